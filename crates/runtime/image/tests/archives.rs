//! Import, export, names, removal and recovery, through the public interface.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::Cursor;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use common::{Packing, TestImage, tar_of};
use dhow_image::{ArchiveFormat, Error, ImageStore};

fn count(dir: &Path) -> usize {
    fs::read_dir(dir).map(|d| d.count()).unwrap_or(0)
}

async fn check_layers(store: &ImageStore, reference: &str, marker: &str) {
    let image = store.get(reference).unwrap();
    let layers = store.layers(&image).await.unwrap();
    assert_eq!(layers.len(), 2);
    assert_eq!(fs::read(layers[0].join("top/file")).unwrap(), marker.as_bytes());
    assert!(fs::symlink_metadata(layers[0].join("base/file")).unwrap().file_type().is_char_device());
    assert_eq!(fs::read(layers[1].join("base/file")).unwrap(), b"base");
}

#[tokio::test]
async fn imports_every_kind_of_archive() {
    let root = tempfile::tempdir().unwrap();
    let store = ImageStore::open(root.path()).unwrap();
    let all = [Packing::Plain, Packing::Gzip, Packing::Zstd];
    for (i, layers) in all.into_iter().enumerate() {
        for (j, outer) in all.into_iter().enumerate() {
            let marker = format!("{i}{j}");
            let image = TestImage::new(layers, &marker);
            let oci = outer.pack(&image.oci_archive(&format!("oci/app:{marker}")));
            let imported = store.import(Cursor::new(oci)).await.unwrap();
            assert_eq!(imported.len(), 1);
            assert_eq!(imported[0].id, image.id());
            assert_eq!(imported[0].references, [format!("docker.io/oci/app:{marker}")]);
            check_layers(&store, &format!("oci/app:{marker}"), &marker).await;
        }
    }
    let image = TestImage::new(Packing::Plain, "docker");
    let imported = store.import(Cursor::new(Packing::Gzip.pack(&image.docker_archive("dock:er")))).await.unwrap();
    assert_eq!(imported[0].references, ["docker.io/library/dock:er"]);
    check_layers(&store, "dock:er", "docker").await;
    let config = imported[0].config.config().as_ref().unwrap();
    assert_eq!(config.cmd().as_deref(), Some(&["/bin/sh".to_owned()][..]));
    // The base layer of all ten images is one directory.
    assert_eq!(count(&root.path().join("layers")), 1 + 10);
}

#[tokio::test]
async fn export_round_trips_and_skopeo_reads_it() {
    let root = tempfile::tempdir().unwrap();
    let store = ImageStore::open(&root.path().join("a")).unwrap();
    let image = TestImage::new(Packing::Gzip, "x");
    store.import(Cursor::new(image.oci_archive("app:1"))).await.unwrap();
    let path = root.path().join("out.tar");
    let file = tokio::fs::File::create(&path).await.unwrap();
    store.export(&["app:1".to_owned()], ArchiveFormat::Oci, file).await.unwrap();
    let other = ImageStore::open(&root.path().join("b")).unwrap();
    let back = other.import(tokio::fs::File::open(&path).await.unwrap()).await.unwrap();
    assert_eq!((back[0].id.clone(), back[0].references.clone()), (image.id(), vec!["docker.io/library/app:1".into()]));
    check_layers(&other, "app:1", "x").await;

    let inspect =
        std::process::Command::new("skopeo").arg("inspect").arg(format!("oci-archive:{}", path.display())).output();
    let output = inspect.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let seen: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(seen["Digest"], image.manifest_digest().as_str());
}

#[tokio::test]
async fn several_images_as_docker_archive_and_back_through_skopeo() {
    let root = tempfile::tempdir().unwrap();
    let store = ImageStore::open(&root.path().join("a")).unwrap();
    let (one, two) = (TestImage::new(Packing::Gzip, "1"), TestImage::new(Packing::Gzip, "2"));
    store.import(Cursor::new(one.oci_archive("app:1"))).await.unwrap();
    store.import(Cursor::new(two.oci_archive("reg.io/team/app:2"))).await.unwrap();
    store.tag("app:1", "app:also").unwrap();
    for format in [ArchiveFormat::Docker, ArchiveFormat::Oci] {
        let path = root.path().join("out.tar");
        let names = [one.id(), "reg.io/team/app:2".to_owned()];
        store.export(&names, format, tokio::fs::File::create(&path).await.unwrap()).await.unwrap();
        let other = ImageStore::open(&root.path().join(format!("{format:?}"))).unwrap();
        other.import(tokio::fs::File::open(&path).await.unwrap()).await.unwrap();
        check_layers(&other, "app:also", "1").await;
        check_layers(&other, "app:1", "1").await;
        check_layers(&other, "reg.io/team/app:2", "2").await;
        assert_eq!(other.list().len(), 2);
        let kind = if format == ArchiveFormat::Docker { "docker-archive" } else { "oci-archive" };
        for name in ["docker.io/library/app:1", "docker.io/library/app:also", "reg.io/team/app:2"] {
            // What skopeo makes of ours, we read again.
            let again = root.path().join("again.tar");
            let copied = std::process::Command::new("skopeo")
                .args(["copy", "--quiet", &format!("{kind}:{}:{name}", path.display())])
                .arg(format!("docker-archive:{}:{name}", again.display()))
                .output()
                .unwrap();
            assert!(copied.status.success(), "{name}: {}", String::from_utf8_lossy(&copied.stderr));
            let last = ImageStore::open(&root.path().join("last")).unwrap();
            let imported = last.import(tokio::fs::File::open(&again).await.unwrap()).await.unwrap();
            assert_eq!(imported[0].references, [name]);
            check_layers(&last, name, if name.contains("team") { "2" } else { "1" }).await;
            last.remove(name).unwrap();
            fs::remove_file(&again).unwrap();
        }
    }
}

#[tokio::test]
async fn hostile_and_damaged_archives_leave_nothing_behind() {
    let root = tempfile::tempdir().unwrap();
    let store = ImageStore::open(root.path()).unwrap();
    let mut wrong_diff = TestImage::new(Packing::Gzip, "x");
    wrong_diff.blobs[1] = Packing::Gzip.pack(&tar_of(&[("evil", b"")]));
    let manifest = String::from_utf8(wrong_diff.manifest.clone()).unwrap();
    let good = TestImage::new(Packing::Gzip, "x");
    let swapped = manifest
        .replace(dhow_image::Digest::of(&good.blobs[1]).as_str(), dhow_image::Digest::of(&wrong_diff.blobs[1]).as_str())
        .replace(&format!("\"size\":{}", good.blobs[1].len()), &format!("\"size\":{}", wrong_diff.blobs[1].len()));
    wrong_diff.manifest = swapped.into_bytes();
    let error = store.import(Cursor::new(wrong_diff.oci_archive("a:1"))).await.unwrap_err();
    assert!(matches!(error, Error::DigestMismatch { .. }), "{error}");

    let archive = good.oci_archive("a:1");
    let mut flipped = archive.clone();
    let position = flipped.windows(4).position(|w| w == &good.blobs[0][4..8]).unwrap();
    flipped[position] ^= 1;
    assert!(store.import(Cursor::new(flipped)).await.is_err());
    assert!(store.import(Cursor::new(archive[..archive.len() / 2].to_vec())).await.is_err());
    assert!(store.import(Cursor::new(b"not an archive".to_vec())).await.is_err());
    assert!(store.import(Cursor::new(tar_of(&[("x", b"")]))).await.is_err());
    assert!(store.list().is_empty());
    drop(store);
    ImageStore::open(root.path()).unwrap();
    for dir in ["blobs/sha256", "ingest", "work", "layers"] {
        assert_eq!(count(&root.path().join(dir)), 0, "{dir}");
    }
}

#[tokio::test]
async fn content_lives_as_long_as_something_refers_to_it() {
    let root = tempfile::tempdir().unwrap();
    let (blobs, layers) = (root.path().join("blobs/sha256"), root.path().join("layers"));
    let store = ImageStore::open(root.path()).unwrap();
    assert!(matches!(ImageStore::open(root.path()), Err(Error::InUse(_))));
    let (one, two) = (TestImage::new(Packing::Gzip, "1"), TestImage::new(Packing::Gzip, "2"));
    store.import(Cursor::new(one.oci_archive("app:1"))).await.unwrap();
    store.import(Cursor::new(two.oci_archive("app:2"))).await.unwrap();
    store.tag("app:1", "app:stable").unwrap();
    assert_eq!((count(&blobs), count(&layers)), (7, 3));

    store.remove("app:1").unwrap();
    assert_eq!(store.get("app:stable").unwrap().id, one.id());
    assert_eq!(count(&blobs), 7, "another name still has it");
    store.hold(&one.id(), "container-1").unwrap();
    store.remove("app:stable").unwrap();
    assert_eq!(count(&layers), 3, "held");
    drop(store);

    let store = ImageStore::open(root.path()).unwrap();
    assert_eq!(count(&layers), 3, "held across a restart");
    store.release("container-1").unwrap();
    assert!(store.get(&one.id()).is_none());
    assert_eq!((count(&blobs), count(&layers)), (4, 2), "the shared base stays");
    // By id prefix, and a name that moves to another image.
    store.import(Cursor::new(one.oci_archive("app:2"))).await.unwrap();
    assert_eq!(store.get("app:2").unwrap().id, one.id());
    let prefix = two.id()[7..19].to_owned();
    assert_eq!(store.get(&prefix).unwrap().references.len(), 0);
    store.remove(&prefix).unwrap();
    store.remove("app:2").unwrap();
    assert_eq!((count(&blobs), count(&layers)), (0, 0));
    assert!(store.remove("app:2").unwrap_err().is_not_found());
}

#[tokio::test]
async fn recovers_from_what_a_crash_leaves() {
    let root = tempfile::tempdir().unwrap();
    let store = ImageStore::open(root.path()).unwrap();
    let image = TestImage::new(Packing::Zstd, "x");
    store.import(Cursor::new(image.oci_archive("app:1"))).await.unwrap();
    drop(store);
    fs::create_dir_all(root.path().join("work/unpack-half/etc")).unwrap();
    fs::write(root.path().join("ingest/new-half"), b"half").unwrap();
    fs::create_dir_all(root.path().join("layers").join("0".repeat(40))).unwrap();
    fs::write(root.path().join("blobs/sha256").join("0".repeat(64)), b"stray").unwrap();
    for entry in fs::read_dir(root.path().join("layers")).unwrap().skip(1) {
        // A lost layer directory is unpacked again on demand.
        let _ = fs::remove_dir_all(entry.unwrap().path());
    }
    let store = ImageStore::open(root.path()).unwrap();
    assert_eq!(count(&root.path().join("work")) + count(&root.path().join("ingest")), 0);
    check_layers(&store, "app:1", "x").await;
    assert_eq!(count(&root.path().join("layers")), 2);
    assert_eq!(count(&root.path().join("blobs/sha256")), 4);
}

#[tokio::test]
async fn concurrent_imports_of_the_same_content_join() {
    let root = tempfile::tempdir().unwrap();
    let store = ImageStore::open(root.path()).unwrap();
    let archive = TestImage::new(Packing::Gzip, "x").oci_archive("app:1");
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let (store, archive) = (store.clone(), archive.clone());
            tokio::spawn(async move { store.import(Cursor::new(archive)).await })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    assert_eq!(store.list().len(), 1);
    check_layers(&store, "app:1", "x").await;
}
