//! The embedded store: the suite, and what must outlive a restart.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use dhow_store::{
    Error, EventKind, FjallKv, KeyRange, KeyValue, Kv, Op, Options, RangeRequest, Txn, WatchMessage, WatchRequest,
};
use futures::StreamExt;

async fn put(kv: &FjallKv, key: &str, value: &str) -> u64 {
    let op = Op::Put { key: key.to_owned().into(), value: value.to_owned().into(), lease: 0 };
    kv.txn(Txn { success: vec![op], ..Txn::default() }).await.unwrap().revision
}

async fn delete(kv: &FjallKv, key: &str) -> u64 {
    let op = Op::Delete { range: KeyRange::key(key.to_owned()) };
    kv.txn(Txn { success: vec![op], ..Txn::default() }).await.unwrap().revision
}

async fn all(kv: &FjallKv, revision: u64) -> Result<Vec<KeyValue>, Error> {
    let range = KeyRange::prefix("");
    Ok(kv.range(RangeRequest { range, revision, limit: 0, count_only: false, keys_only: false }).await?.kvs)
}

/// Everything a watch from `start` delivers up to `end`.
async fn events(kv: &FjallKv, start: u64, end: u64) -> Vec<(u64, EventKind, KeyValue, Option<KeyValue>)> {
    let request = WatchRequest { range: KeyRange::prefix(""), start_revision: start };
    let mut watch = kv.watch(request).await.unwrap();
    let mut out = Vec::new();
    while let Some(Ok(WatchMessage::Events { revision, events })) = watch.next().await {
        out.extend(events.into_iter().map(|e| (revision, e.kind, e.kv, e.previous)));
        if revision >= end {
            break;
        }
    }
    out
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn suite() {
    let dirs = tempfile::tempdir().unwrap();
    let next = std::sync::atomic::AtomicU32::new(0);
    dhow_store::suite::run(|| async {
        let n = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Arc::new(FjallKv::open(dirs.path().join(n.to_string())).unwrap()) as Arc<dyn Kv>
    })
    .await;
}

/// Everything observable of a store.
async fn portrait(
    kv: &FjallKv,
) -> (u64, Vec<Option<Vec<KeyValue>>>, Vec<(u64, EventKind, KeyValue, Option<KeyValue>)>) {
    let last = kv.current_revision().await.unwrap();
    let mut worlds = Vec::new();
    let mut first = 0;
    for revision in 1..=last {
        match all(kv, revision).await {
            Ok(kvs) => worlds.push(Some(kvs)),
            Err(Error::Compacted { compacted, .. }) => {
                first = compacted;
                worlds.push(None);
            }
            Err(error) => panic!("{error}"),
        }
    }
    (last, worlds, events(kv, first.max(1), last).await)
}

#[tokio::test]
async fn keys_history_and_revisions_outlive_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let mut kv = FjallKv::open(dir.path()).unwrap();
    assert_eq!(put(&kv, "a", "1").await, 2, "the first write makes revision 2");
    for round in 0..6 {
        for i in 0..40 {
            put(&kv, &format!("k{}", i % 7), &format!("{round}-{i}")).await;
            if i % 5 == 0 {
                delete(&kv, &format!("k{}", (i + 3) % 7)).await;
            }
        }
        let last = kv.current_revision().await.unwrap();
        match round {
            2 => kv.compact(last - 20).await.unwrap(),
            3 => kv.compact(last - 19).await.unwrap(),
            // Ends with a delete, whose tombstone has to survive being the compacted revision.
            4 => {
                let last = delete(&kv, "k1").await;
                kv.compact(last).await.unwrap();
            }
            _ => {}
        }
        let before = portrait(&kv).await;
        drop(kv);
        kv = FjallKv::open(dir.path()).unwrap();
        let after = portrait(&kv).await;
        assert_eq!(after, before, "round {round}");
    }
}

#[tokio::test]
async fn leases_outlive_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let kv = FjallKv::open(dir.path()).unwrap();
    let (short, long) = (kv.lease_grant(1).await.unwrap(), kv.lease_grant(600).await.unwrap());
    for (key, lease) in [("short", short), ("long", long)] {
        let op = Op::Put { key: key.into(), value: "x".into(), lease };
        kv.txn(Txn { success: vec![op], ..Txn::default() }).await.unwrap();
    }
    drop(kv);
    let kv = FjallKv::open(dir.path()).unwrap();
    let mut watch = kv.watch(WatchRequest { range: KeyRange::key("short"), start_revision: 0 }).await.unwrap();
    let before = all(&kv, 0).await.unwrap();
    assert_eq!(before.iter().map(|kv| kv.lease).collect::<Vec<_>>(), [long, short]);
    let message = tokio::time::timeout(Duration::from_secs(20), watch.next()).await.unwrap();
    assert!(matches!(message, Some(Ok(WatchMessage::Events { events, .. })) if events[0].kind == EventKind::Delete));
    kv.lease_revoke(long).await.unwrap();
    assert!(all(&kv, 0).await.unwrap().is_empty());
    drop(kv);
    let kv = FjallKv::open(dir.path()).unwrap();
    assert!(all(&kv, 0).await.unwrap().is_empty());
    assert!(matches!(kv.lease_keep_alive(long).await, Err(Error::LeaseNotFound(_))));
}

#[tokio::test]
async fn history_on_disk_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { max_history_events: 200, ..Options::default() };
    let kv = FjallKv::open_with(dir.path(), options.clone()).unwrap();
    for i in 0..2000 {
        let op = Op::Put { key: format!("{}", i % 10).into(), value: "x".into(), lease: 0 };
        kv.txn(Txn { success: vec![op], relaxed: true, ..Txn::default() }).await.unwrap();
    }
    assert!(matches!(all(&kv, 1000).await, Err(Error::Compacted { .. })));
    let before = portrait(&kv).await;
    drop(kv);
    let kv = FjallKv::open_with(dir.path(), options).unwrap();
    assert_eq!(portrait(&kv).await, before);
}

#[tokio::test]
async fn a_store_is_open_once() {
    let dir = tempfile::tempdir().unwrap();
    let _kv = FjallKv::open(dir.path()).unwrap();
    let error = FjallKv::open(dir.path()).err().unwrap().to_string();
    assert!(error.contains("another process"), "{error}");
}
