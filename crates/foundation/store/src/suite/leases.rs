//! Leases: keys that go when their owner does.

use super::*;
use crate::{EventKind, LeaseId};

async fn put_leased(store: &Store, name: &str, lease: LeaseId) {
    store.write(vec![Op::Put { key: store.key(name), value: "x".into(), lease }]).await;
}

pub(super) async fn revoking_deletes_in_one_revision(store: &Store) {
    let lease = store.kv.lease_grant(600).await.unwrap();
    let other = store.kv.lease_grant(600).await.unwrap();
    assert!(lease > 0 && other > 0 && lease != other);
    for name in ["a", "b", "detached", "moved", "deleted"] {
        put_leased(store, name, lease).await;
    }
    assert_eq!(store.get("a").await.unwrap().lease, lease);
    store.put("detached", "y").await;
    put_leased(store, "moved", other).await;
    let last = store.delete("deleted").await;
    let mut watch = store.watch(0).await;
    store.kv.lease_revoke(lease).await.unwrap();
    let (revision, events) = watch.events().await;
    assert_eq!(revision, last + 1);
    let mut gone: Vec<_> = events.iter().map(|e| store.name(&e.kv)).collect();
    gone.sort();
    assert_eq!(gone, ["a", "b"]);
    assert!(events.iter().all(|e| e.kind == EventKind::Delete && e.previous.is_some()));
    assert_eq!(store.names(0).await, ["detached", "moved"]);
    store.kv.lease_revoke(other).await.unwrap();
    assert_eq!(store.names(0).await, ["detached"]);
}

pub(super) async fn running_out_deletes(store: &Store) {
    let mut watch = store.watch(0).await;
    let lease = store.kv.lease_grant(1).await.unwrap();
    let long = store.kv.lease_grant(600).await.unwrap();
    put_leased(store, "short", lease).await;
    put_leased(store, "long", long).await;
    loop {
        let (_, events) = watch.events().await;
        if events[0].kind == EventKind::Delete {
            assert_eq!(store.name(&events[0].kv), "short");
            break;
        }
    }
    assert_eq!(store.names(0).await, ["long"]);
    let error = store.kv.lease_keep_alive(lease).await.unwrap_err();
    assert!(matches!(error, Error::LeaseNotFound(id) if id == lease), "{error}");
    store.kv.lease_revoke(long).await.unwrap();
}

pub(super) async fn keeping_alive_keeps(store: &Store) {
    let lease = store.kv.lease_grant(2).await.unwrap();
    put_leased(store, "a", lease).await;
    let clock = std::time::Instant::now();
    // Longer than the lease alone would have lived.
    while clock.elapsed() < Duration::from_millis(2600) {
        tokio::time::sleep(Duration::from_millis(250)).await;
        store.kv.lease_keep_alive(lease).await.unwrap();
    }
    assert!(store.get("a").await.is_some());
    store.kv.lease_revoke(lease).await.unwrap();
}

pub(super) async fn unknown_leases_are_refused(store: &Store) {
    let id = 7_777_777;
    let put = Txn { success: vec![Op::Put { key: store.key("a"), value: "x".into(), lease: id }], ..Txn::default() };
    for result in
        [store.kv.txn(put).await.map(|_| ()), store.kv.lease_keep_alive(id).await, store.kv.lease_revoke(id).await]
    {
        assert!(matches!(result, Err(Error::LeaseNotFound(found)) if found == id), "{result:?}");
    }
}
