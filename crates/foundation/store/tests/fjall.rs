//! The embedded store: the suite, and what must outlive a restart, a crash and a damaged disk.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use dhow_store::{
    Compare, Error, EventKind, FjallKv, KeyRange, KeyValue, Kv, Op, Options, RangeRequest, Target, Txn, WatchMessage,
    WatchRequest,
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

fn files(dir: &Path, out: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, out);
        } else {
            out.push(path);
        }
    }
}

fn copy(from: &Path, to: &Path) {
    let mut all = Vec::new();
    files(from, &mut all);
    for file in all {
        let target = to.join(file.strip_prefix(from).unwrap());
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        std::fs::copy(&file, target).unwrap();
    }
}

/// Cutting or overwriting any file gives a clear error or, where nothing was lost, the same content: never less.
#[tokio::test]
async fn damage_is_noticed() {
    let original = tempfile::tempdir().unwrap();
    let kv = FjallKv::open(original.path()).unwrap();
    for i in 0..300 {
        let op = Op::Put { key: format!("k{i}").into(), value: "value ".repeat(20).into(), lease: 0 };
        kv.txn(Txn { success: vec![op], relaxed: true, ..Txn::default() }).await.unwrap();
    }
    let expected = all(&kv, 0).await.unwrap();
    drop(kv);
    let mut names = Vec::new();
    files(original.path(), &mut names);
    let mut noticed = 0;
    for file in names {
        let name = file.strip_prefix(original.path()).unwrap().to_owned();
        if name.ends_with("clean") || name.ends_with("lock") {
            continue;
        }
        for damage in ["cut", "flip", "zero", "remove"] {
            let dir = tempfile::tempdir().unwrap();
            copy(original.path(), dir.path());
            let target = dir.path().join(&name);
            let mut bytes = std::fs::read(&target).unwrap();
            let used = bytes.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1);
            match damage {
                "cut" => bytes.truncate(used / 2),
                "flip" if used > 0 => bytes[used / 2] ^= 0x55,
                "zero" => bytes[used / 3..used].fill(0),
                _ => {}
            }
            if damage == "remove" {
                std::fs::remove_file(&target).unwrap();
            } else {
                std::fs::write(&target, bytes).unwrap();
            }
            let opened = std::panic::catch_unwind(|| FjallKv::open(dir.path()));
            match opened {
                Err(_) => panic!("{}: {damage}: opening panicked", name.display()),
                Ok(Err(error)) => {
                    noticed += 1;
                    assert!(error.to_string().contains(dir.path().to_str().unwrap()), "{error}");
                }
                Ok(Ok(kv)) => {
                    assert_eq!(all(&kv, 0).await.unwrap(), expected, "{}: {damage}: silent loss", name.display());
                }
            }
        }
    }
    assert!(noticed > 0);
}

const CHILD: &str = "DHOW_STORE_CRASH_CHILD";
const KEYS: usize = 8;

/// Not a test by itself: the process that `survives_kill_9` kills. Each write sets a pair of keys.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crash_child() {
    let Ok(dir) = std::env::var(CHILD) else { return };
    let kv = FjallKv::open_with(dir, Options { max_history_events: 500, ..Options::default() }).unwrap();
    let writers = (0..KEYS).map(|k| {
        let kv = kv.clone();
        async move {
            let (key, mirror) = (format!("key/{k}"), format!("mirror/{k}"));
            let range = KeyRange::key(key.clone());
            let read = RangeRequest { range, revision: 0, limit: 0, count_only: false, keys_only: false };
            let found = kv.range(read).await.unwrap().kvs;
            let mut number: u64 =
                found.first().map_or(0, |kv| std::str::from_utf8(&kv.value).unwrap().parse().unwrap());
            let mut version = found.first().map_or(0, |kv| kv.version);
            loop {
                number += 1;
                let put =
                    |key: &str| Op::Put { key: key.to_owned().into(), value: number.to_string().into(), lease: 0 };
                let txn = Txn {
                    compare: vec![Compare::equal(key.clone(), Target::Version(version))],
                    success: vec![put(&key), put(&mirror)],
                    ..Txn::default()
                };
                let response = kv.txn(txn).await.unwrap();
                assert!(response.succeeded);
                version += 1;
                // One write call per line: a line is there whole or not at all.
                let line = format!("ack {k} {number} {}\n", response.revision);
                std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
            }
        }
    });
    futures::future::join_all(writers).await;
}

/// No acknowledged write is lost and none is half there, however often the process dies under load.
/// `DHOW_STORE_CRASH_ROUNDS` sets the rounds (20).
#[tokio::test]
async fn survives_kill_9() {
    let rounds = std::env::var("DHOW_STORE_CRASH_ROUNDS").ok().and_then(|r| r.parse().ok()).unwrap_or(20u64);
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged: BTreeMap<usize, u64> = BTreeMap::new();
    let mut last_revision = 0;
    for round in 0..rounds {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crash_child", "--nocapture"])
            .env(CHILD, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut note = |line: &str| {
            let Some(ack) = line.rsplit_once("ack ").map(|(_, ack)| ack) else { return false };
            let numbers: Vec<u64> = ack.split(' ').map(|n| n.parse().unwrap()).collect();
            acknowledged.insert(numbers[0] as usize, numbers[1]);
            last_revision = last_revision.max(numbers[2]);
            true
        };
        // A different moment each round.
        let mut wanted = 1 + round * 37 % 400;
        while wanted > 0 {
            let line = lines.next().expect("the child lives until it is killed").unwrap();
            wanted -= u64::from(note(&line));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        for line in lines.map_while(Result::ok) {
            note(&line);
        }

        let kv = FjallKv::open(dir.path()).unwrap();
        assert!(kv.current_revision().await.unwrap() >= last_revision, "round {round}: revisions went back");
        let found: BTreeMap<String, KeyValue> = all(&kv, 0)
            .await
            .unwrap()
            .into_iter()
            .map(|kv| (String::from_utf8_lossy(&kv.key).into_owned(), kv))
            .collect();
        for (k, number) in &acknowledged {
            let kv = &found[&format!("key/{k}")];
            let value: u64 = std::str::from_utf8(&kv.value).unwrap().parse().unwrap();
            assert!(
                value == *number || value == number + 1,
                "round {round}, key {k}: {value} after {number} was acknowledged"
            );
            assert_eq!(kv.version, value, "round {round}: every write counted once");
            let mirror = &found[&format!("mirror/{k}")];
            assert_eq!(
                (&mirror.value, mirror.mod_revision),
                (&kv.value, kv.mod_revision),
                "round {round}: half a write"
            );
        }
        drop(kv);
    }
}
