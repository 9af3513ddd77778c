//! The etcd backend on real servers: the suite, TLS, and the loss of members.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use dhow_store::{
    Compare, Error, EtcdConfig, EtcdKv, KeyRange, Kv, Op, RangeRequest, Target, Txn, WatchMessage, WatchRequest,
};
use futures::StreamExt;
use support::etcd::Etcd;

async fn put(kv: &dyn Kv, key: &str, value: &str) -> Result<u64, Error> {
    let op = Op::Put { key: key.to_owned().into(), value: value.to_owned().into(), lease: 0 };
    Ok(kv.txn(Txn { success: vec![op], ..Txn::default() }).await?.revision)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn suite() {
    let (_etcd, kv) = Etcd::start(1).await;
    dhow_store::suite::run(|| async { Arc::new(kv.clone()) as Arc<dyn Kv> }).await;
}

#[tokio::test]
async fn long_lists_come_in_pages_of_one_revision() {
    let (_etcd, kv) = Etcd::start(1).await;
    for chunk in 0..120 {
        let ops = (0..100).map(|i| {
            let key = format!("/list/{:05}", chunk * 100 + i);
            Op::Put { key: key.into(), value: "x".into(), lease: 0 }
        });
        kv.txn(Txn { success: ops.collect(), ..Txn::default() }).await.unwrap();
    }
    let whole = RangeRequest::new(KeyRange::prefix("/list/"));
    let list = kv.range(whole.clone()).await.unwrap();
    assert_eq!((list.kvs.len(), list.count, list.more), (12_000, 12_000, false));
    assert!(list.kvs.is_sorted_by(|a, b| a.key < b.key));
    let part = kv.range(RangeRequest { limit: 7000, ..whole }).await.unwrap();
    assert_eq!((part.kvs.len(), part.count, part.more), (7000, 12_000, true));
}

#[tokio::test]
async fn a_quiet_watch_reports_progress() {
    let (etcd, _) = Etcd::start(1).await;
    let kv = EtcdKv::connect(EtcdConfig { watch_progress: Duration::from_millis(200), ..etcd.config() }).await.unwrap();
    let mut watch = kv.watch(WatchRequest { range: KeyRange::key("mine"), start_revision: 0 }).await.unwrap();
    let other = put(&kv, "other", "1").await.unwrap();
    let message = tokio::time::timeout(Duration::from_secs(20), watch.next()).await.unwrap();
    assert!(matches!(message, Some(Ok(WatchMessage::Progress { revision })) if revision == other), "{message:?}");
}

#[tokio::test]
async fn only_the_right_certificates_get_in() {
    let (etcd, _kv) = Etcd::start(1).await;
    let quick = EtcdConfig { request_timeout: Duration::from_millis(300), ..etcd.config() };
    let stranger = tempfile::tempdir().unwrap();
    let stranger = dhow_base::pki::ClusterCa::load_or_create(stranger.path()).unwrap();
    let pair = stranger.issue_client("dhow", &[]).unwrap();
    for (what, config) in [
        ("a server of another authority", EtcdConfig { ca_pem: Some(stranger.cert_pem().to_owned()), ..quick.clone() }),
        ("no client certificate", EtcdConfig { client_pem: None, ..quick.clone() }),
        ("a stranger's certificate", EtcdConfig { client_pem: Some((pair.cert_pem, pair.key_pem)), ..quick.clone() }),
        ("no authority to trust", EtcdConfig { ca_pem: None, ..quick.clone() }),
        ("no endpoints", EtcdConfig { endpoints: vec![], ..quick.clone() }),
        ("not an address", EtcdConfig { endpoints: vec!["::".to_owned()], ..quick }),
    ] {
        assert!(EtcdKv::connect(config).await.is_err(), "{what}");
    }
}

/// One member after the other is killed under load and comes back: no acknowledged write is lost, a write whose answer
/// got lost says so, and a watch sees each revision once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn loses_members_but_no_writes() {
    let (mut etcd, kv) = Etcd::start(3).await;
    let start = put(&kv, "/start", "").await.unwrap();
    let mut watch =
        kv.watch(WatchRequest { range: KeyRange::prefix("/load/"), start_revision: start + 1 }).await.unwrap();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let (count, mut counted) = tokio::sync::watch::channel(0u64);
    let count = Arc::new(count);
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let (kv, stopped, count) = (kv.clone(), stopped.clone(), Arc::clone(&count));
            tokio::spawn(async move {
                let key = format!("/load/{writer}");
                let (mut version, mut unknown) = (0u64, 0);
                while !*stopped.borrow() {
                    let txn = Txn {
                        compare: vec![Compare::equal(key.clone(), Target::Version(version))],
                        success: vec![Op::Put {
                            key: key.clone().into(),
                            value: (version + 1).to_string().into(),
                            lease: 0,
                        }],
                        ..Txn::default()
                    };
                    match kv.txn(txn).await {
                        Ok(response) => {
                            assert!(response.succeeded, "nobody else writes {key}");
                            version += 1;
                            count.send_modify(|c| *c += 1);
                        }
                        Err(Error::OutcomeUnknown { .. }) => {
                            unknown += 1;
                            let found = kv.range(RangeRequest::new(KeyRange::key(key.clone()))).await.unwrap().kvs;
                            let now = found.first().map_or(0, |kv| kv.version);
                            assert!(now == version || now == version + 1, "{now} after {version} was acknowledged");
                            version = now;
                        }
                        Err(error) => panic!("{error}: {:?}", std::error::Error::source(&error)),
                    }
                }
                (key, version, unknown)
            })
        })
        .collect();
    let more = async |counted: &mut tokio::sync::watch::Receiver<u64>, n: u64| {
        let goal = *counted.borrow() + n;
        let reached = counted.wait_for(|c| *c >= goal);
        tokio::time::timeout(Duration::from_secs(60), reached).await.expect("writes go on").unwrap();
    };
    more(&mut counted, 100).await;
    for victim in [0, 1, 2] {
        etcd.kill(victim);
        more(&mut counted, 100).await;
        etcd.run(victim);
        more(&mut counted, 50).await;
        // The others need it before the next one goes.
        let one = EtcdConfig { endpoints: vec![etcd.config().endpoints[victim].clone()], ..etcd.config() };
        put(&EtcdKv::connect(one).await.unwrap(), "/back", "").await.unwrap();
    }
    stop.send(true).unwrap();
    let mut versions = BTreeMap::new();
    let mut unknown = 0;
    for writer in writers {
        let (key, version, lost) = writer.await.unwrap();
        versions.insert(key, version);
        unknown += lost;
    }
    eprintln!("{versions:?}, {unknown} answers lost");
    let mut seen: BTreeMap<String, u64> = BTreeMap::new();
    let mut last = start;
    while seen != versions {
        let message = tokio::time::timeout(Duration::from_secs(30), watch.next()).await.unwrap().unwrap().unwrap();
        let WatchMessage::Events { revision, events } = message else { continue };
        assert!(revision > last, "{revision} after {last}");
        last = revision;
        for event in events {
            let key = String::from_utf8_lossy(&event.kv.key).into_owned();
            let before = seen.insert(key.clone(), event.kv.version).unwrap_or(0);
            assert_eq!(event.kv.version, before + 1, "{key}: the watch missed or repeated a write");
        }
    }
}
