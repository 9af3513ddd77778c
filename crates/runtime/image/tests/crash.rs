//! kill -9 at any moment: the store opens again, and what it lists is whole.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Cursor, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use common::{Packing, TestImage, tar_of};
use dhow_image::{Digest, ImageStore};

const ROOT: &str = "DHOW_TEST_CRASH_ROOT";

fn image(i: usize) -> TestImage {
    let noise: Vec<u8> =
        (0..200_000u32).map(|n| (n.wrapping_mul(2_654_435_761).wrapping_add(i as u32) >> 13) as u8).collect();
    TestImage::with_layers(Packing::Gzip, vec![tar_of(&[("shared", &[7; 50_000])]), tar_of(&[("own", &noise)])])
}

/// Not a test of its own: the process that gets killed.
#[test]
#[ignore = "run by survives_being_killed"]
fn victim() {
    let root = PathBuf::from(std::env::var_os(ROOT).unwrap());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let store = ImageStore::open(&root).unwrap();
    for i in (0..4).cycle() {
        let archive = image(i).oci_archive(&format!("app:{i}"));
        runtime.block_on(store.import(Cursor::new(archive))).unwrap();
        writeln!(std::io::stderr(), "step").unwrap();
        let _ = store.remove(&format!("app:{}", (i + 2) % 4));
        writeln!(std::io::stderr(), "step").unwrap();
    }
}

#[tokio::test]
async fn survives_being_killed() {
    let root = tempfile::tempdir().unwrap();
    for round in 0..12usize {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "victim", "--ignored", "--nocapture"])
            .env(ROOT, root.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        // After a different number of steps each time, and then wherever it happens to be.
        assert_eq!(lines.take(1 + round).filter(|l| l.as_deref().is_ok_and(|l| l.contains("step"))).count(), 1 + round);
        child.kill().unwrap();
        child.wait().unwrap();

        let store = ImageStore::open(root.path()).unwrap();
        for entry in fs::read_dir(root.path().join("blobs/sha256")).unwrap() {
            let entry = entry.unwrap();
            let digest = Digest::of(&fs::read(entry.path()).unwrap());
            assert_eq!(digest.hex(), entry.file_name().to_str().unwrap());
        }
        let images = store.list();
        assert!(!images.is_empty(), "an acknowledged import was lost");
        for found in images {
            let i: usize = found.references[0].rsplit(':').next().unwrap().parse().unwrap();
            assert_eq!(found.id, image(i).id());
            let layers = store.layers(&found).await.unwrap();
            assert_eq!(fs::read(layers[0].join("own")).unwrap().len(), 200_000);
            assert_eq!(fs::read(layers[1].join("shared")).unwrap().len(), 50_000);
        }
        assert_eq!(fs::read_dir(root.path().join("work")).unwrap().count(), 0);
    }
}
