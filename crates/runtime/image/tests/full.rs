//! Full disks: what does not fit leaves nothing, fits once there is room, and room can always be made.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::registry::{Behaviour, Registry};
use common::{Packing, TestImage, bulky, tar_of};
use dhow_image::{Error, ImageStore, PullOptions};

/// A file system of its own for a store, no larger than it is said to be.
struct Small(tempfile::TempDir);

impl Small {
    fn new(kilobytes: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let small = Self(folder);
        small.mount(&format!("size={kilobytes}k"), false);
        small
    }

    fn mount(&self, options: &str, again: bool) {
        let options = if again { format!("remount,{options}") } else { options.to_owned() };
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(self.path()).output();
        let mounted = mounted.unwrap();
        assert!(mounted.status.success(), "{}", String::from_utf8_lossy(&mounted.stderr));
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Everything in it.
    fn entries(&self) -> BTreeSet<PathBuf> {
        let mut found = BTreeSet::new();
        let mut todo = vec![self.path().to_owned()];
        while let Some(folder) = todo.pop() {
            for entry in std::fs::read_dir(&folder).unwrap() {
                let entry = entry.unwrap();
                if entry.file_type().unwrap().is_dir() {
                    todo.push(entry.path());
                }
                found.insert(entry.path());
            }
        }
        found
    }

    /// Writes until nothing more fits; returns what to delete.
    fn fill(&self) -> PathBuf {
        let path = self.path().join("filler");
        let mut file = std::fs::File::create(&path).unwrap();
        while file.write_all(&[1; 4096]).is_ok() {}
        path
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

fn full(error: &Error) -> bool {
    error.chain().contains("No space left on device")
}

/// Layers that fill a disk packed, and one that fills it unpacked.
fn images() -> [TestImage; 2] {
    [
        bulky(31),
        TestImage::with_layers(Packing::Zstd, vec![tar_of(&[("sevens", &[7; 700_000])]), tar_of(&[("a", b"b")])]),
    ]
}

/// The disk ends at each point of the way in turn: while a blob is written, while a layer is unpacked, at the index.
#[tokio::test]
async fn what_does_not_fit_leaves_nothing_and_fits_once_there_is_room() {
    for (number, image) in images().into_iter().enumerate() {
        let registry = Registry::start(Behaviour::default(), None).await;
        registry.add("v1", &image);
        let name = format!("{}/team/app:v1", registry.address);
        let (mut refused, mut taken) = (0, 0);
        for kilobytes in (32..1100).step_by(36) {
            for pulled in [false, true] {
                let small = Small::new(kilobytes);
                let store = ImageStore::open(small.path()).unwrap();
                let empty = small.entries();
                let bring = || async {
                    if pulled {
                        return store.pull(&name, PullOptions::default(), None).await;
                    }
                    Ok(store.import(Cursor::new(image.oci_archive("app:v1"))).await?.remove(0))
                };
                if let Err(error) = bring().await {
                    refused += 1;
                    assert!(full(&error), "image {number}, {kilobytes} KiB: {}", error.chain());
                    assert_eq!(small.entries(), empty, "image {number}, {kilobytes} KiB, pulled: {pulled}");
                    assert!(store.list().is_empty());
                    small.mount("size=8m", true);
                    bring().await.unwrap();
                } else {
                    taken += 1;
                }
                let image = &store.list()[0];
                assert!(store.layers(image).await.unwrap().iter().all(|layer| layer.is_dir()));
                drop(store);
                assert_eq!(ImageStore::open(small.path()).unwrap().list().len(), 1, "it lasts");
            }
        }
        assert!(refused > 4 && taken > 4, "{refused} refused, {taken} taken");
    }
}

#[tokio::test]
async fn a_full_disk_gets_room_again() {
    let small = Small::new(4096);
    let store = ImageStore::open(small.path()).unwrap();
    for number in 0..3u8 {
        let image =
            TestImage::with_layers(Packing::Gzip, vec![tar_of(&[("own", &[number; 200_000])]), tar_of(&[("b", b"c")])]);
        store.import(Cursor::new(image.oci_archive(&format!("app:{number}")))).await.unwrap();
    }
    let held = store.get("app:0").unwrap();
    store.hold(&held.id, "container").unwrap();
    let filler = small.fill();
    // What cannot be written down did not happen.
    assert!(full(&store.hold(&store.get("app:1").unwrap().id, "another").unwrap_err()));
    assert!(full(&store.tag("app:1", "also:1").unwrap_err()));
    assert!(store.get("also:1").is_none() && store.get("app:1").unwrap().holders.is_empty());
    store.remove("app:2").unwrap();
    small.fill();
    let collected = store.collect_garbage(1, Duration::ZERO).unwrap();
    assert_eq!(collected.images, ["docker.io/library/app:1"]);
    std::fs::remove_file(filler).unwrap();
    drop(store);
    let store = ImageStore::open(small.path()).unwrap();
    let left: Vec<String> = store.list().into_iter().flat_map(|image| image.references).collect();
    assert_eq!(left, ["docker.io/library/app:0"]);
}
