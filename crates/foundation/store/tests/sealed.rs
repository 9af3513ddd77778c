//! Encryption at rest: the suite through it, and what the store below gets to see.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use bytes::Bytes;
use dhow_store::{
    Error, KeyRange, KeyValue, Kv, MemoryKv, Op, RangeRequest, SealedKv, SealingKeys, Txn, WatchMessage, WatchRequest,
};
use futures::StreamExt;

const SECRETS: &str = "/registry/core/secrets/";

fn sealed(below: &MemoryKv, keys: &[&str], prefixes: &[&str]) -> SealedKv {
    SealedKv::new(Arc::new(below.clone()), SealingKeys::parse(&keys.join("\n")).unwrap(), prefixes)
}

async fn put(kv: &dyn Kv, key: &str, value: impl Into<Bytes>) {
    let op = Op::Put { key: key.to_owned().into(), value: value.into(), lease: 0 };
    kv.txn(Txn { success: vec![op], ..Txn::default() }).await.unwrap();
}

async fn get(kv: &dyn Kv, key: &str) -> Result<KeyValue, Error> {
    Ok(kv.range(RangeRequest::new(KeyRange::key(key.to_owned()))).await?.kvs.remove(0))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn suite() {
    let key = SealingKeys::generate().unwrap();
    for prefixes in [&[""][..], &["/suite/compares_guard/"]] {
        let store = || async { Arc::new(sealed(&MemoryKv::new(), &[&key], prefixes)) as Arc<dyn Kv> };
        dhow_store::suite::run(store).await;
    }
}

#[tokio::test]
async fn only_what_is_chosen_is_sealed() {
    let (below, key) = (MemoryKv::new(), SealingKeys::generate().unwrap());
    let kv = sealed(&below, &[&key], &[SECRETS]);
    let mut watch = kv.watch(WatchRequest { range: KeyRange::prefix(""), start_revision: 0 }).await.unwrap();
    put(&kv, "/registry/core/secrets/a/s", "hidden").await;
    put(&kv, "/registry/core/pods/a/p", "open").await;
    assert_eq!(get(&kv, "/registry/core/secrets/a/s").await.unwrap().value, "hidden");
    assert_eq!(get(&below, "/registry/core/pods/a/p").await.unwrap().value, "open");
    let stored = get(&below, "/registry/core/secrets/a/s").await.unwrap().value;
    assert!(stored.starts_with(b"dhow:sealed:v1:") && !stored.windows(6).any(|part| part == b"hidden"));
    for expected in ["hidden", "open"] {
        let Some(Ok(WatchMessage::Events { events, .. })) = watch.next().await else { panic!("events") };
        assert_eq!(events[0].kv.value, expected);
    }
    // The same value twice does not look the same.
    put(&kv, "/registry/core/secrets/a/s", "hidden").await;
    assert_ne!(get(&below, "/registry/core/secrets/a/s").await.unwrap().value, stored);
    // A value that only looks sealed is read back as it was written, wherever it is.
    put(&kv, "/registry/core/pods/a/q", stored.clone()).await;
    assert_eq!(get(&kv, "/registry/core/pods/a/q").await.unwrap().value, stored);
}

#[tokio::test]
async fn a_key_that_does_not_fit_is_named() {
    let (below, key, other) = (MemoryKv::new(), SealingKeys::generate().unwrap(), SealingKeys::generate().unwrap());
    let kv = sealed(&below, &[&key], &[SECRETS]);
    put(&kv, "/registry/core/secrets/a/s", "hidden").await;
    let id = SealingKeys::parse(&key).unwrap().first_id().to_owned();
    let stranger = sealed(&below, &[&other], &[SECRETS]);
    let error = get(&stranger, "/registry/core/secrets/a/s").await.unwrap_err().to_string();
    assert!(error.contains(&id) && error.contains("add that key to the key file"), "{error}");
    let past = WatchRequest { range: KeyRange::prefix(""), start_revision: 2 };
    let mut watch = stranger.watch(past).await.unwrap();
    assert!(matches!(watch.next().await, Some(Err(Error::Sealed { .. }))));

    // Moved below another name, or changed, it does not open.
    let stored = get(&below, "/registry/core/secrets/a/s").await.unwrap().value;
    put(&below, "/registry/core/secrets/b/s", stored.clone()).await;
    let error = get(&kv, "/registry/core/secrets/b/s").await.unwrap_err().to_string();
    assert!(error.contains(&id) && error.contains("belongs to another name"), "{error}");
    let mut bent = stored.to_vec();
    *bent.last_mut().unwrap() ^= 1;
    put(&below, "/registry/core/secrets/a/s", bent).await;
    assert!(matches!(get(&kv, "/registry/core/secrets/a/s").await, Err(Error::Sealed { .. })));
    for text in ["", "# nothing", "abc", &format!("{key}\n{key}")] {
        assert!(SealingKeys::parse(text).is_err(), "{text}");
    }
}

#[tokio::test]
async fn keys_are_rotated() {
    let (below, old, new) = (MemoryKv::new(), SealingKeys::generate().unwrap(), SealingKeys::generate().unwrap());
    let name = |i: usize| format!("{SECRETS}a/{i:04}");
    // Some were there before anything was sealed; there is more than a page of them.
    for i in 0..10 {
        put(&below, &name(i), format!("v{i}")).await;
    }
    let kv = sealed(&below, &[&old], &[SECRETS]);
    for i in 10..1010 {
        put(&kv, &name(i), format!("v{i}")).await;
    }
    put(&kv, "/registry/core/pods/a/p", "open").await;
    assert_eq!(get(&kv, &name(3)).await.unwrap().value, "v3");
    let lease = kv.lease_grant(600).await.unwrap();
    let op = Op::Put { key: name(2000).into(), value: "leased".into(), lease };
    kv.txn(Txn { success: vec![op], ..Txn::default() }).await.unwrap();

    let kv = sealed(&below, &[&new, &old], &[SECRETS]);
    assert_eq!(get(&kv, &name(500)).await.unwrap().value, "v500");
    assert_eq!(kv.rewrite().await.unwrap(), 1011);
    assert_eq!(kv.rewrite().await.unwrap(), 0);
    assert_eq!(get(&kv, &name(2000)).await.unwrap().lease, lease);
    // The old key is not needed any more, for what was plain neither.
    let kv = sealed(&below, &[&new], &[SECRETS]);
    for i in [0, 9, 10, 1009] {
        assert_eq!(get(&kv, &name(i)).await.unwrap().value, format!("v{i}"));
        assert!(get(&below, &name(i)).await.unwrap().value.starts_with(b"dhow:sealed:v1:"));
    }
    // And back to plain values.
    let kv = sealed(&below, &[&new], &[]);
    assert_eq!(kv.rewrite().await.unwrap(), 1011);
    assert_eq!(get(&below, &name(7)).await.unwrap().value, "v7");
}
