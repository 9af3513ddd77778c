//! Ranges, pages, the past.

use super::*;

pub(super) async fn ranges_are_ordered_and_limited(store: &Store) {
    for name in ["b/2", "a", "b/10", "c", "b"] {
        store.put(name, name).await;
    }
    let range = |start: &str, end: Option<&str>, limit, count_only| {
        let range = KeyRange { start: store.key(start), end: end.map(|e| store.key(e)) };
        store.kv.range(RangeRequest { range, revision: 0, limit, count_only, keys_only: false })
    };
    let names = |response: &RangeResponse| response.kvs.iter().map(|kv| store.name(kv)).collect::<Vec<_>>();

    assert_eq!(store.names(0).await, ["a", "b", "b/10", "b/2", "c"], "byte order");
    let some = range("b", Some("c"), 0, false).await.unwrap();
    assert_eq!((names(&some), some.more, some.count), (vec!["b".into(), "b/10".into(), "b/2".into()], false, 3));
    let limited = range("b", Some("c"), 2, false).await.unwrap();
    assert_eq!((names(&limited), limited.more, limited.count), (vec!["b".into(), "b/10".into()], true, 3));
    let exact = range("b", Some("c"), 3, false).await.unwrap();
    assert_eq!((exact.kvs.len(), exact.more, exact.count), (3, false, 3));
    let counted = range("b", Some("c"), 0, true).await.unwrap();
    assert_eq!((counted.kvs.len(), counted.count), (0, 3));
    let keys = RangeRequest { keys_only: true, limit: 2, ..RangeRequest::new(store.all()) };
    let keys = store.kv.range(keys).await.unwrap();
    assert_eq!((names(&keys), keys.more, keys.count), (vec!["a".into(), "b".into()], true, 5));
    assert!(keys.kvs.iter().all(|kv| kv.value.is_empty() && kv.version == 1 && kv.mod_revision > 1));
    let one = range("b", None, 0, false).await.unwrap();
    assert_eq!((names(&one), one.count), (vec!["b".into()], 1));
    let nothing = range("b", Some("b"), 0, false).await.unwrap();
    assert_eq!((nothing.kvs.len(), nothing.more, nothing.count), (0, false, 0));
    let backwards = range("c", Some("a"), 0, false).await.unwrap();
    assert_eq!(backwards.count, 0);
    let below = KeyRange::prefix(store.key("b/"));
    let below = store
        .kv
        .range(RangeRequest { range: below, revision: 0, limit: 0, count_only: false, keys_only: false })
        .await
        .unwrap();
    assert_eq!(names(&below), ["b/10", "b/2"]);
    // An end of one zero byte has no end.
    let rest = KeyRange { start: store.key("b/2"), end: Some(Bytes::from_static(b"\0")) };
    let rest = store
        .kv
        .range(RangeRequest { range: rest, revision: 0, limit: 2, count_only: false, keys_only: false })
        .await
        .unwrap();
    assert_eq!(names(&rest), ["b/2", "c"]);
}

pub(super) async fn pages_are_of_one_revision(store: &Store) {
    for i in 0..25 {
        store.put(&format!("{i:03}"), "first").await;
    }
    let first = store.list(0, 10).await.unwrap();
    let (revision, mut seen) = (first.revision, first.kvs.clone());
    assert!(first.more);
    let mut more = true;
    let mut turn = 0;
    while more {
        // The world changes between pages.
        turn += 1;
        store.put(&format!("{:03}", 10 + turn), "changed").await;
        store.put(&format!("{:03}-new", 20 + turn), "new").await;
        store.delete(&format!("{:03}", 22 + turn)).await;
        store.delete("000").await;
        let mut start = seen.last().unwrap().key.to_vec();
        start.push(0);
        let range = KeyRange { start: start.into(), end: store.all().end };
        let page = RangeRequest { range, revision, limit: 10, count_only: false, keys_only: false };
        let page = store.kv.range(page).await.unwrap();
        assert_eq!(page.revision, revision);
        assert_eq!(page.count, 25 - seen.len());
        seen.extend(page.kvs);
        more = page.more;
    }
    let names: Vec<_> = seen.iter().map(|kv| store.name(kv)).collect();
    assert_eq!(names, (0..25).map(|i| format!("{i:03}")).collect::<Vec<_>>());
    assert!(seen.iter().all(|kv| kv.value == "first" && kv.mod_revision <= revision));

    let current = store.kv.current_revision().await.unwrap();
    let counted = RangeRequest { count_only: true, ..RangeRequest::at(store.all(), revision) };
    assert_eq!(store.kv.range(counted).await.unwrap().count, 25);
    let error = store.list(current + 1_000_000, 0).await.unwrap_err();
    assert!(matches!(error, Error::FutureRevision { .. }), "{error}");
}

pub(super) async fn compaction_ends_the_past(store: &Store) {
    let first = store.put("a", "1").await;
    store.put("b", "1").await;
    let second = store.put("a", "2").await;
    store.delete("b").await;
    let third = store.put("a", "3").await;
    store.kv.compact(second).await.unwrap();
    let error = store.list(first, 0).await.unwrap_err();
    assert!(matches!(error, Error::Compacted { requested, .. } if requested == first), "{error}");
    // The compacted revision itself can be read, and so can what came later.
    let then = store.list(second, 0).await.unwrap();
    assert_eq!(then.kvs.iter().map(|kv| kv.value.clone()).collect::<Vec<_>>(), ["2", "1"]);
    let now = store.list(third, 0).await.unwrap();
    assert_eq!(now.kvs.iter().map(|kv| kv.value.clone()).collect::<Vec<_>>(), ["3"]);
    for late in [first, second] {
        let error = store.kv.compact(late).await.unwrap_err();
        assert!(matches!(error, Error::Compacted { .. }), "{error}");
    }
    let current = store.kv.current_revision().await.unwrap();
    let error = store.kv.compact(current + 1_000_000).await.unwrap_err();
    assert!(matches!(error, Error::FutureRevision { .. }), "{error}");
    store.kv.compact(current).await.unwrap();
    assert_eq!(store.names(0).await, ["a"]);
    assert_eq!(store.get("a").await.unwrap().version, 3, "compaction changes no live key");
}
