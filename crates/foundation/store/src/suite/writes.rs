//! Puts, deletes and transactions.

use super::*;
use crate::{Compare, Operator, Target};

pub(super) async fn versions_count_writes(store: &Store) {
    let first = store.put("a", "1").await;
    let kv = store.get("a").await.unwrap();
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version, kv.lease), (first, first, 1, 0));
    assert_eq!(kv.value, "1");

    let second = store.put("a", "2").await;
    assert_eq!(second, first + 1, "one write, one revision");
    let kv = store.get("a").await.unwrap();
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (first, second, 2));

    let gone = store.write(vec![store.delete_op("a")]).await;
    assert_eq!(previous(&gone.results[0]), [kv]);
    assert_eq!(gone.revision, second + 1);
    assert_eq!(store.get("a").await, None);

    let again = store.put("a", "3").await;
    let kv = store.get("a").await.unwrap();
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (again, again, 1));
    assert!(store.kv.current_revision().await.unwrap() >= again);
}

pub(super) async fn compares_guard(store: &Store) {
    let created = store.put("a", "1").await;
    let modified = store.put("a", "2").await;
    let (a, b) = (store.key("a"), store.key("b"));
    let lease = store.kv.lease_grant(600).await.unwrap();
    let leased = store.key("leased");
    store.write(vec![Op::Put { key: leased.clone(), value: "".into(), lease }]).await;

    // (key, what it is compared with, how the key's own relates to that)
    use std::cmp::Ordering::{self, Equal, Greater, Less};
    let relations: Vec<(&Bytes, Target, Option<Ordering>)> = vec![
        (&a, Target::ModRevision(modified), Some(Equal)),
        (&a, Target::ModRevision(created), Some(Greater)),
        (&a, Target::ModRevision(modified + 1), Some(Less)),
        (&a, Target::ModRevision(0), Some(Greater)),
        (&b, Target::ModRevision(0), Some(Equal)),
        (&b, Target::ModRevision(modified), Some(Less)),
        (&a, Target::CreateRevision(created), Some(Equal)),
        (&a, Target::CreateRevision(modified), Some(Less)),
        (&a, Target::CreateRevision(created - 1), Some(Greater)),
        (&b, Target::CreateRevision(0), Some(Equal)),
        (&a, Target::Version(2), Some(Equal)),
        (&a, Target::Version(1), Some(Greater)),
        (&a, Target::Version(3), Some(Less)),
        (&b, Target::Version(0), Some(Equal)),
        (&a, Target::Value("2".into()), Some(Equal)),
        (&a, Target::Value("1".into()), Some(Greater)),
        (&a, Target::Value("20".into()), Some(Less)),
        // The value of nothing relates to nothing.
        (&b, Target::Value("".into()), None),
        (&b, Target::Value("1".into()), None),
        (&leased, Target::Lease(lease), Some(Equal)),
        (&leased, Target::Lease(lease + 1), Some(Less)),
        (&leased, Target::Lease(0), Some(Greater)),
        (&a, Target::Lease(0), Some(Equal)),
        (&b, Target::Lease(0), Some(Equal)),
    ];
    let checks = relations.into_iter().flat_map(|(key, target, order)| {
        [
            (Operator::Equal, order == Some(Equal)),
            (Operator::NotEqual, order.is_some_and(|o| o != Equal)),
            (Operator::Greater, order == Some(Greater)),
            (Operator::Less, order == Some(Less)),
        ]
        .map(|(operator, holds)| (Compare::new(key.clone(), operator, target.clone()), holds))
    });
    for (compare, expected) in checks {
        let txn = Txn {
            compare: vec![compare.clone()],
            success: vec![store.put_op("yes", "x")],
            failure: vec![store.put_op("no", "x"), store.put_op("no2", "x")],
            relaxed: false,
        };
        let response = store.kv.txn(txn).await.unwrap();
        assert_eq!(response.succeeded, expected, "{compare:?}");
        assert_eq!(response.results.len(), if expected { 1 } else { 2 }, "{compare:?}");
    }
    // Guards are joined by "and".
    let txn = Txn {
        compare: vec![Compare::equal(a, Target::Version(2)), Compare::equal(b, Target::Version(7))],
        success: vec![store.put_op("a", "3")],
        ..Txn::default()
    };
    assert!(!store.kv.txn(txn).await.unwrap().succeeded);
    assert_eq!(store.get("a").await.unwrap().value, "2");
    store.kv.lease_revoke(lease).await.unwrap();
}

pub(super) async fn a_transaction_is_one_revision(store: &Store) {
    let before = store.put("old", "1").await;
    let range = |revision| {
        Op::Range(RangeRequest { range: store.all(), revision, limit: 0, count_only: false, keys_only: false })
    };
    let ops = vec![
        range(0),
        store.put_op("a", "1"),
        range(0),
        store.put_op("b", "1"),
        store.delete_op("old"),
        range(0),
        range(before),
    ];
    let response = store.write(ops).await;
    assert_eq!(response.revision, before + 1);
    let names = |i: usize| previous(&response.results[i]).iter().map(|kv| store.name(kv)).collect::<Vec<_>>();
    assert_eq!(names(0), ["old"]);
    assert_eq!(names(2), ["a", "old"], "a transaction sees its own writes");
    assert_eq!(names(4), ["old"]);
    assert_eq!(names(5), ["a", "b"]);
    assert_eq!(names(6), ["old"], "the past does not change");
    for name in ["a", "b"] {
        assert_eq!(store.get(name).await.unwrap().mod_revision, response.revision);
    }
    assert_eq!(store.names(before).await, ["old"]);
}

pub(super) async fn nothing_written_is_no_revision(store: &Store) {
    let revision = store.put("a", "1").await;
    let response = store.write(vec![Op::Delete { range: KeyRange::key(store.key("missing")) }]).await;
    assert_eq!(response.revision, revision);
    assert!(previous(&response.results[0]).is_empty());
    let read =
        Op::Range(RangeRequest { range: store.all(), revision: 0, limit: 0, count_only: false, keys_only: false });
    assert_eq!(store.write(vec![read]).await.revision, revision);
    assert_eq!(store.write(vec![]).await.revision, revision);
    // The same value again is a write, though.
    assert_eq!(store.put("a", "1").await, revision + 1);
}

pub(super) async fn nonsense_is_refused_whole(store: &Store) {
    let revision = store.put("a", "1").await;
    let lost_lease = Op::Put { key: store.key("c"), value: "1".into(), lease: 4242 };
    for ops in [
        vec![store.put_op("b", "1"), store.put_op("b", "2")],
        vec![store.put_op("b", "1"), Op::Delete { range: store.all() }],
        vec![store.put_op("b", "1"), Op::Put { key: Bytes::new(), value: "1".into(), lease: 0 }],
        vec![store.put_op("b", "1"), lost_lease],
    ] {
        assert!(store.kv.txn(Txn { success: ops.clone(), ..Txn::default() }).await.is_err(), "{ops:?}");
    }
    assert_eq!(store.names(0).await, ["a"]);
    assert_eq!(store.put("a", "2").await, revision + 1, "a refused transaction takes no revision");
}

pub(super) async fn increments_are_not_lost(store: &Store) {
    const TASKS: usize = 8;
    const EACH: usize = 25;
    store.put("n", "0").await;
    let (kv, key) = (&store.kv, store.key("n"));
    let increments = (0..TASKS * EACH).map(|_| {
        let (kv, key) = (Arc::clone(kv), key.clone());
        async move {
            loop {
                let range = KeyRange::key(key.clone());
                let read = RangeRequest { range, revision: 0, limit: 0, count_only: false, keys_only: false };
                let now = kv.range(read).await.unwrap().kvs.remove(0);
                let number: u64 = std::str::from_utf8(&now.value).unwrap().parse().unwrap();
                let txn = Txn {
                    compare: vec![Compare::equal(key.clone(), Target::ModRevision(now.mod_revision))],
                    success: vec![Op::Put { key: key.clone(), value: (number + 1).to_string().into(), lease: 0 }],
                    ..Txn::default()
                };
                if kv.txn(txn).await.unwrap().succeeded {
                    return;
                }
            }
        }
    });
    futures::stream::iter(increments).for_each_concurrent(TASKS, |f| f).await;
    let kv = store.get("n").await.unwrap();
    assert_eq!(kv.value, (TASKS * EACH).to_string());
    assert_eq!(kv.version, (TASKS * EACH + 1) as u64);
}
