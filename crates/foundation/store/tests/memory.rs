//! The in-memory store: the suite, and what only it can show.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use dhow_store::{Error, KeyRange, Kv, MemoryKv, Op, Options, RangeRequest, Txn, WatchMessage, WatchRequest};
use futures::StreamExt;

async fn put(kv: &dyn Kv, key: &str, value: &str) -> u64 {
    let op = Op::Put { key: key.to_owned().into(), value: value.to_owned().into(), lease: 0 };
    kv.txn(Txn { success: vec![op], ..Txn::default() }).await.unwrap().revision
}

fn everything() -> KeyRange {
    KeyRange::prefix("")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn suite() {
    dhow_store::suite::run(|| async { Arc::new(MemoryKv::new()) as Arc<dyn Kv> }).await;
}

/// One store for all cases, as an etcd would be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn suite_on_one_store() {
    let kv = MemoryKv::new();
    dhow_store::suite::run(|| async { Arc::new(kv.clone()) as Arc<dyn Kv> }).await;
}

#[tokio::test]
async fn the_first_write_makes_revision_2() {
    let kv = MemoryKv::new();
    assert_eq!(kv.current_revision().await.unwrap(), 1);
    assert_eq!(put(&kv, "a", "1").await, 2);
}

#[tokio::test]
async fn history_is_bounded() {
    for options in [
        Options { max_history_events: 100, ..Options::default() },
        Options { max_history_bytes: 4000, ..Options::default() },
    ] {
        let kv = MemoryKv::with_options(options);
        let mut last = 0;
        for i in 0..1000 {
            last = put(&kv, &format!("{:02}", i % 50), "0123456789012345678901234567890123456").await;
        }
        let read = |revision| {
            kv.range(RangeRequest { range: everything(), revision, limit: 0, count_only: true, keys_only: false })
        };
        assert!(matches!(read(2).await, Err(Error::Compacted { .. })));
        assert!(matches!(read(last - 110).await, Err(Error::Compacted { .. })));
        assert_eq!(read(last - 50).await.unwrap().count, 50);
    }
    // Even one revision larger than the bound leaves a working store.
    let kv = MemoryKv::with_options(Options { max_history_bytes: 10, ..Options::default() });
    for _ in 0..3 {
        let last = put(&kv, "a", "0123456789012345678901234567890123456").await;
        assert_eq!(
            kv.range(RangeRequest {
                range: everything(),
                revision: last,
                limit: 0,
                count_only: false,
                keys_only: false
            })
            .await
            .unwrap()
            .count,
            1
        );
    }
}

#[tokio::test]
async fn a_slow_watcher_is_told_where_it_stopped() {
    let kv = MemoryKv::with_options(Options { watch_buffer: 10, ..Options::default() });
    let mut watch = kv.watch(WatchRequest { range: everything(), start_revision: 0 }).await.unwrap();
    for _ in 0..50 {
        put(&kv, "a", "1").await;
    }
    let mut last = 1;
    loop {
        match watch.next().await.unwrap() {
            Ok(WatchMessage::Events { revision, .. }) => {
                assert_eq!(revision, last + 1);
                last = revision;
            }
            Ok(WatchMessage::Progress { .. }) => panic!("no progress while events wait"),
            Err(Error::WatchLagged(revision)) => {
                assert_eq!(revision, last);
                break;
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(last, 11);
    assert!(watch.next().await.is_none());
    // It can go on from there.
    let mut watch = kv.watch(WatchRequest { range: everything(), start_revision: last + 1 }).await.unwrap();
    assert!(matches!(watch.next().await, Some(Ok(WatchMessage::Events { revision: 12, .. }))));
}

#[tokio::test]
async fn a_quiet_watch_reports_progress() {
    let kv = MemoryKv::with_options(Options { watch_progress: Duration::from_millis(10), ..Options::default() });
    let mut watch = kv.watch(WatchRequest { range: KeyRange::key("mine"), start_revision: 0 }).await.unwrap();
    put(&kv, "other", "1").await;
    let last = put(&kv, "other", "2").await;
    assert!(matches!(watch.next().await, Some(Ok(WatchMessage::Progress { revision })) if revision == last));
    let mine = put(&kv, "mine", "1").await;
    assert!(matches!(watch.next().await, Some(Ok(WatchMessage::Events { revision, .. })) if revision == mine));
}

#[tokio::test]
async fn watches_end_with_the_store() {
    let kv = MemoryKv::new();
    let mut watch = kv.watch(WatchRequest { range: everything(), start_revision: 0 }).await.unwrap();
    put(&kv, "a", "1").await;
    drop(kv);
    assert!(matches!(watch.next().await, Some(Ok(WatchMessage::Events { revision: 2, .. }))));
    assert!(matches!(watch.next().await, Some(Err(Error::Closed))));
    assert!(watch.next().await.is_none());
}
