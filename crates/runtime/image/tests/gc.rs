//! Making room without taking away what is in use.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::Cursor;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use common::registry::{Behaviour, Registry};
use common::{Packing, TestImage, bulky, tar_of};
use dhow_image::{ImageStore, PullOptions};

fn image(marker: u8) -> TestImage {
    TestImage::with_layers(
        Packing::Gzip,
        vec![tar_of(&[("base", &[7; 100_000])]), tar_of(&[("own", &[marker; 200_000])])],
    )
}

async fn import(store: &ImageStore, marker: u8) -> String {
    let archive = image(marker).oci_archive(&format!("app:{marker}"));
    store.import(Cursor::new(archive)).await.unwrap()[0].id.clone()
}

#[tokio::test]
async fn frees_what_is_asked_oldest_first_and_never_what_is_held() {
    let root = tempfile::tempdir().unwrap();
    let store = ImageStore::open(root.path()).unwrap();
    let ids = [import(&store, 1).await, import(&store, 2).await, import(&store, 3).await];
    store.hold(&ids[0], "container").unwrap();
    let before = store.fs_usage().unwrap();
    assert!(before.used_bytes > 700_000 && before.used_bytes < 2_000_000, "{before:?}");
    assert!(before.capacity_bytes > before.available_bytes && before.inodes_used >= 4 + 8);

    assert!(store.collect_garbage(1, Duration::from_secs(3600)).unwrap().images.is_empty(), "all are young");
    let collected = store.collect_garbage(1, Duration::ZERO).unwrap();
    assert_eq!(collected.images.len(), 1);
    assert!(collected.freed_bytes >= 200_000, "{collected:?}");
    let collected = store.collect_garbage(u64::MAX, Duration::ZERO).unwrap();
    assert_eq!(collected.images.len(), 1);
    assert_eq!(store.list().len(), 1);
    let held = store.get("app:1").unwrap();
    let layers = store.layers(&held).await.unwrap();
    assert_eq!(std::fs::read(layers[0].join("own")).unwrap(), vec![1; 200_000]);
    let after = store.fs_usage().unwrap();
    assert!(after.used_bytes + 400_000 < before.used_bytes, "{before:?} {after:?}");
    store.release("container").unwrap();
    store.prune(true).unwrap();
    assert_eq!(store.list().len(), 0);
    assert_eq!(store.fs_usage().unwrap().inodes_used, 0);
}

#[tokio::test]
async fn pruning_takes_the_nameless_unless_told_otherwise() {
    let root = tempfile::tempdir().unwrap();
    let store = ImageStore::open(root.path()).unwrap();
    let old = import(&store, 1).await;
    store.import(Cursor::new(image(2).oci_archive("app:1"))).await.unwrap();
    assert!(store.get(&old).unwrap().references.is_empty(), "its name moved");
    assert_eq!(store.prune(false).unwrap().images, [old]);
    assert_eq!(store.list().len(), 1);
}

#[tokio::test]
async fn a_pull_under_way_keeps_its_content_through_collections() {
    let image = bulky(1);
    let behaviour = Behaviour { stall: Some((200_000, AtomicUsize::new(1))), ..Behaviour::default() };
    let registry = Registry::start(behaviour, None).await;
    registry.add("v1", &image);
    let root = tempfile::tempdir().unwrap();
    let store = ImageStore::open(root.path()).unwrap();
    let name = format!("{}/team/app:v1", registry.address);
    let options = PullOptions {
        registries: common::registries(serde_json::json!({"stallTimeoutSeconds": 1})),
        ..PullOptions::default()
    };
    let collecting = async {
        loop {
            store.collect_garbage(u64::MAX, Duration::ZERO).unwrap();
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::select! {
        pulled = store.pull(&name, options, None) => assert_eq!(pulled.unwrap().id, image.id()),
        () = collecting => {}
    }
    let manifests = registry.log().iter().filter(|l| l.contains("/manifests/")).count();
    assert_eq!(manifests, 1, "{:?}", registry.log());
}

#[tokio::test]
async fn a_pull_that_failed_for_good_leaves_nothing() {
    let image = bulky(2);
    let registry = Registry::start(Behaviour { corrupt: true, ..Behaviour::default() }, None).await;
    registry.add("v1", &image);
    let root = tempfile::tempdir().unwrap();
    let store = ImageStore::open(root.path()).unwrap();
    let name = format!("{}/team/app:v1", registry.address);
    store.pull(&name, PullOptions::default(), None).await.unwrap_err();
    assert_eq!(store.fs_usage().unwrap().inodes_used, 0);
}
