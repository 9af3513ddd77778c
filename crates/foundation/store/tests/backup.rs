//! Backups of a store at work, and stores made from them.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use dhow_store::{
    Error, FjallKv, KeyRange, KeyValue, Kv, Op, RangeRequest, SKIP_REVISIONS, Txn, WatchRequest, restore_backup,
    verify_backup,
};
use futures::StreamExt;

async fn put(kv: &FjallKv, key: &str, value: &str, lease: i64) -> u64 {
    let op = Op::Put { key: key.to_owned().into(), value: value.to_owned().into(), lease };
    kv.txn(Txn { success: vec![op], ..Txn::default() }).await.unwrap().revision
}

async fn all(kv: &FjallKv) -> Vec<KeyValue> {
    kv.range(RangeRequest::new(KeyRange::prefix(""))).await.unwrap().kvs
}

async fn sample(dir: &Path) -> FjallKv {
    let kv = FjallKv::open(dir).unwrap();
    let lease = kv.lease_grant(600).await.unwrap();
    for i in 0..50 {
        put(&kv, &format!("k{}", i % 20), &format!("value {i}"), if i % 5 == 0 { lease } else { 0 }).await;
    }
    kv.txn(Txn { success: vec![Op::Delete { range: KeyRange::key("k7") }], ..Txn::default() }).await.unwrap();
    kv
}

#[tokio::test]
async fn a_restored_store_is_the_same_and_goes_on() {
    let dirs = tempfile::tempdir().unwrap();
    let kv = sample(&dirs.path().join("first")).await;
    let (expected, revision) = (all(&kv).await, kv.current_revision().await.unwrap());
    let lease = expected.iter().find(|kv| kv.lease != 0).unwrap().lease;
    let file = dirs.path().join("backup");
    let made = kv.backup_file(&file).unwrap();
    assert_eq!((made.revision, made.keys, made.leases), (revision, expected.len() as u64, 1));
    assert_eq!(made.bytes, std::fs::metadata(&file).unwrap().len());
    assert_eq!(verify_backup(&file).unwrap(), made);
    let mut streamed = Vec::new();
    kv.backup(&mut streamed).unwrap();
    assert_eq!(streamed.len() as u64, made.bytes);
    let after = put(&kv, "later", "x", 0).await;

    for (name, skip) in [("exact", 0), ("apart", SKIP_REVISIONS)] {
        let dir = dirs.path().join(name);
        // An empty folder may be there already.
        std::fs::create_dir(&dir).unwrap();
        assert_eq!(restore_backup(&file, &dir, skip).unwrap(), made);
        for _ in 0..2 {
            let kv = FjallKv::open(&dir).unwrap();
            assert_eq!(all(&kv).await, expected, "keys with their revisions, versions and leases");
            assert_eq!(kv.current_revision().await.unwrap(), revision + skip);
        }
        let kv = FjallKv::open(&dir).unwrap();
        kv.lease_keep_alive(lease).await.unwrap();
        // A revision from after the backup is the past now, not some other write.
        if skip > 0 {
            let watch = kv.watch(WatchRequest { range: KeyRange::prefix(""), start_revision: after + 1 }).await;
            assert!(matches!(watch.err(), Some(Error::Compacted { .. })));
        }
        assert_eq!(put(&kv, "new", "x", 0).await, revision + skip + 1);
        kv.lease_revoke(lease).await.unwrap();
        assert!(all(&kv).await.iter().all(|kv| kv.lease == 0));
        let mut watch =
            kv.watch(WatchRequest { range: KeyRange::prefix(""), start_revision: revision + skip + 1 }).await.unwrap();
        assert!(watch.next().await.unwrap().is_ok());

        // And once more, from the restored one.
        let (expected, second) = (all(&kv).await, dirs.path().join("second"));
        let again = kv.backup_file(&second).unwrap();
        drop(kv);
        let dir = dirs.path().join(format!("{name}-again"));
        assert_eq!(restore_backup(&second, &dir, skip).unwrap(), again);
        assert_eq!(all(&FjallKv::open(&dir).unwrap()).await, expected);
        let error = restore_backup(&second, &dir, skip).unwrap_err();
        assert!(error.to_string().contains("not empty"), "{error}");
        assert_eq!(all(&FjallKv::open(&dir).unwrap()).await, expected, "a refused restore touches nothing");
    }
}

/// Pairs are always written together, so a snapshot that has one half of a pair is none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_go_on_during_a_backup() {
    let dirs = tempfile::tempdir().unwrap();
    let kv = FjallKv::open(dirs.path().join("store")).unwrap();
    let pad = "x".repeat(2000);
    for i in 0..500 {
        put(&kv, &format!("bulk/{i}"), &pad, 0).await;
    }
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writer = tokio::spawn({
        let (kv, stop) = (kv.clone(), stop.clone());
        async move {
            let mut n = 0u64;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                n += 1;
                let put = |key: &str| Op::Put { key: key.to_owned().into(), value: n.to_string().into(), lease: 0 };
                kv.txn(Txn { success: vec![put("left"), put("right")], ..Txn::default() }).await.unwrap();
            }
            n
        }
    });
    let mut revisions = Vec::new();
    for i in 0..10 {
        let (store, file) = (kv.clone(), dirs.path().join(format!("{i}.backup")));
        let made = tokio::task::spawn_blocking(move || store.backup_file(&file)).await.unwrap().unwrap();
        revisions.push(made.revision);
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(writer.await.unwrap() > 10);
    assert!(revisions.is_sorted() && revisions[0] < revisions[9], "{revisions:?}");
    for i in 0..10 {
        let dir = dirs.path().join(format!("{i}"));
        restore_backup(&dirs.path().join(format!("{i}.backup")), &dir, 0).unwrap();
        let found = all(&FjallKv::open(&dir).unwrap()).await;
        let value = |key: &str| found.iter().find(|kv| kv.key == key).map(|kv| (kv.value.clone(), kv.mod_revision));
        assert_eq!(value("left"), value("right"));
    }
}

#[tokio::test]
async fn a_damaged_backup_is_refused_and_restores_nothing() {
    let dirs = tempfile::tempdir().unwrap();
    let kv = sample(&dirs.path().join("store")).await;
    let mut whole = Vec::new();
    kv.backup(&mut whole).unwrap();
    let (file, dir) = (dirs.path().join("damaged"), dirs.path().join("restored"));
    let refused = |bytes: &[u8], what: &str| {
        std::fs::write(&file, bytes).unwrap();
        for error in [verify_backup(&file).unwrap_err(), restore_backup(&file, &dir, 0).unwrap_err()] {
            assert!(matches!(error, Error::Corrupt { .. }), "{what}: {error}");
            assert!(error.to_string().contains(file.to_str().unwrap()), "{what}: {error}");
        }
        assert!(!dir.exists(), "{what}");
    };
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        refused(&bytes, &format!("flip at {at}"));
        refused(&whole[..at], &format!("cut at {at}"));
    }
    refused(&[&whole[..], b"x"].concat(), "something after the end");
    std::fs::write(&file, &whole).unwrap();
    restore_backup(&file, &dir, 0).unwrap();
    assert_eq!(all(&FjallKv::open(&dir).unwrap()).await, all(&kv).await);
}

#[tokio::test]
async fn a_cut_off_restore_does_not_open() {
    let dirs = tempfile::tempdir().unwrap();
    let kv = sample(&dirs.path().join("store")).await;
    let error = kv.backup_file(&dirs.path().join("no/such/folder/file")).unwrap_err();
    assert!(error.to_string().contains("no/such/folder"), "{error}");
    assert!(verify_backup(&dirs.path().join("nothing")).unwrap_err().to_string().contains("nothing"));
    // The store that is open is not a place to restore into.
    let file = dirs.path().join("backup");
    kv.backup_file(&file).unwrap();
    assert!(restore_backup(&file, &dirs.path().join("store"), 0).is_err());
    assert!(!all(&kv).await.is_empty());
}
