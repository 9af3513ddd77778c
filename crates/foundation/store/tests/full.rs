//! A disk that fills up: writes fail with the reason, reads go on, and after a restart with space again nothing
//! acknowledged is missing. The small disk is a tmpfs in a mount namespace of its own, which takes root.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::collections::BTreeMap;
use std::process::Command;

use dhow_store::{FjallKv, KeyRange, Kv, Op, RangeRequest, Txn};

const CHILD: &str = "DHOW_STORE_FULL_CHILD";

async fn put(kv: &FjallKv, key: &str, value: &str) -> Result<u64, dhow_store::Error> {
    let op = Op::Put { key: key.to_owned().into(), value: value.to_owned().into(), lease: 0 };
    Ok(kv.txn(Txn { success: vec![op], ..Txn::default() }).await?.revision)
}

async fn all(kv: &FjallKv) -> BTreeMap<String, (usize, u64)> {
    let kvs = kv.range(RangeRequest::new(KeyRange::prefix(""))).await.unwrap().kvs;
    kvs.into_iter()
        .map(|kv| (String::from_utf8_lossy(&kv.key).into_owned(), (kv.value.len(), kv.mod_revision)))
        .collect()
}

/// Not a test by itself: what happens on the small disk.
#[tokio::test]
async fn on_a_small_disk() {
    let Ok(dir) = std::env::var(CHILD) else { return };
    let (store, ballast) = (format!("{dir}/store"), format!("{dir}/ballast"));
    std::fs::write(&ballast, vec![1; 2 << 20]).unwrap();
    let kv = FjallKv::open(&store).unwrap();
    let mut acknowledged = BTreeMap::new();
    let error = loop {
        let key = format!("{:05}", acknowledged.len());
        let size = 1000 + acknowledged.len() * 37 % 9000;
        match put(&kv, &key, &"x".repeat(size)).await {
            Ok(revision) => acknowledged.insert(key, (size, revision)),
            Err(error) => break error,
        };
        assert!(acknowledged.len() < 100_000, "the disk never fills up");
    };
    let reason = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    // Who hits the wall first decides: the write itself, or a table being written behind it.
    assert!(reason.contains("No space left") || reason.contains("full or failing"), "{error}: {reason}");
    // Space alone does not help a store that may have half a write in its journal.
    std::fs::remove_file(&ballast).unwrap();
    let error = put(&kv, "later", "x").await.unwrap_err();
    assert!(error.to_string().contains("opened again"), "{error}");
    assert_eq!(all(&kv).await, acknowledged, "reads go on, and see what was acknowledged");
    drop(kv);
    for _ in 0..2 {
        let kv = FjallKv::open(&store).unwrap();
        let mut found = all(&kv).await;
        // The write that failed may have got through after all.
        found.retain(|key, _| key.as_str() != format!("{:05}", acknowledged.len()));
        assert_eq!(found, acknowledged);
    }
    put(&FjallKv::open(&store).unwrap(), "later", "x").await.unwrap();
}

#[test]
fn a_full_disk_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let script = "mount -t tmpfs -o size=16m none \"$1\" || exit 77; exec \"$2\" --exact on_a_small_disk --nocapture";
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", script, "sh"])
        .arg(dir.path())
        .arg(std::env::current_exe().unwrap())
        .env(CHILD, dir.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(77) || text.contains("unshare failed") {
        eprintln!("skipped: making a small disk takes root: {text}");
        return;
    }
    assert!(output.status.success(), "{text}");
}
