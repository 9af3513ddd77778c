//! Watches: the right events, in order, none lost, none twice.

use super::*;
use crate::EventKind;

pub(super) async fn sees_what_it_asked_for(store: &Store) {
    store.put("before", "1").await;
    let mut watch = store.watch(0).await;
    let one = KeyRange::key(store.key("b"));
    let one = store.kv.watch(WatchRequest { range: one, start_revision: 0 }).await.unwrap();
    let mut one = Watching { stream: one, progress: 0 };
    let other = Store { kv: Arc::clone(&store.kv), prefix: format!("/elsewhere{}", store.prefix) };

    let created = store.put("a", "1").await;
    other.put("x", "1").await;
    let changed = store.put("a", "2").await;
    let several =
        store.write(vec![store.put_op("b", "1"), store.delete_op("a"), other.put_op("y", "1")]).await.revision;
    other.delete("x").await;

    let (revision, events) = watch.events().await;
    assert_eq!((revision, events.len(), events[0].kind), (created, 1, EventKind::Put));
    assert_eq!(events[0].previous, None);
    assert_eq!((events[0].kv.version, &events[0].kv.value[..]), (1, &b"1"[..]));
    let (revision, events) = watch.events().await;
    assert_eq!((revision, events[0].kind), (changed, EventKind::Put));
    let before = events[0].previous.as_ref().unwrap();
    assert_eq!((&before.value[..], before.mod_revision), (&b"1"[..], created));
    let (revision, mut events) = watch.events().await;
    events.sort_by(|a, b| a.kv.key.cmp(&b.kv.key));
    assert_eq!((revision, events.len()), (several, 2), "one batch per revision, without keys of others");
    let (gone, put) = (&events[0], &events[1]);
    assert_eq!((gone.kind, gone.kv.key.clone(), gone.kv.value.len()), (EventKind::Delete, store.key("a"), 0));
    assert_eq!(gone.kv.mod_revision, several);
    assert_eq!(gone.previous.as_ref().unwrap().value, "2");
    assert_eq!((put.kind, put.kv.key.clone()), (EventKind::Put, store.key("b")));

    let (revision, events) = one.events().await;
    assert_eq!((revision, events.len()), (several, 1));
    assert_eq!(events[0].kv.key, store.key("b"));
}

pub(super) async fn empty_ranges_are_refused(store: &Store) {
    let range = KeyRange { start: store.key("b"), end: Some(store.key("a")) };
    let refused = store.kv.watch(WatchRequest { range, start_revision: 0 }).await;
    assert!(matches!(refused.err(), Some(Error::Invalid(_))));
}

/// More than a store keeps in one piece: many revisions and large values, all from the past.
pub(super) async fn a_long_past_comes_whole(store: &Store) {
    let value = "x".repeat(10_000);
    let start = store.put("k", &value).await;
    let (mut last, mut written) = (start, 1);
    for _ in 0..30 {
        let ops = (0..40).map(|i| store.put_op(&format!("{i}"), &value)).collect();
        last = store.write(ops).await.revision;
        written += 40;
    }
    let mut watch = store.watch(start).await;
    let mut seen = 0;
    loop {
        let (revision, events) = watch.events().await;
        assert_eq!(events.len(), if revision == start { 1 } else { 40 }, "a revision comes in one piece");
        seen += events.len();
        if revision == last {
            break;
        }
    }
    assert_eq!(seen, written);
    assert_eq!(store.list(0, 0).await.unwrap().kvs.len(), 41);
}

pub(super) async fn starts_in_the_past(store: &Store) {
    let first = store.put("a", "1").await;
    let second = store.put("a", "2").await;
    let third = store.delete("a").await;
    for (start, expected) in [(first, vec![first, second, third]), (second, vec![second, third]), (third, vec![third])]
    {
        let mut watch = store.watch(start).await;
        for revision in expected {
            let (got, events) = watch.events().await;
            assert_eq!(got, revision);
            assert_eq!(events[0].previous.is_some(), revision != first);
        }
    }
    // The past joins the present without a seam.
    let mut watch = store.watch(second).await;
    let fourth = store.put("b", "1").await;
    for expected in [second, third, fourth] {
        assert_eq!(watch.events().await.0, expected);
    }
}

pub(super) async fn starts_in_the_future(store: &Store) {
    let now = store.put("a", "1").await;
    let mut watch = store.watch(now + 3).await;
    for _ in 0..3 {
        store.put("a", "x").await;
    }
    // Others may write to a shared store, so only a bound is certain.
    assert!(watch.events().await.0 >= now + 3);
}

pub(super) async fn starts_after_compaction(store: &Store) {
    let first = store.put("a", "1").await;
    let second = store.put("b", "1").await;
    let third = store.put("a", "2").await;
    let fourth = store.delete("a").await;
    store.kv.compact(third).await.unwrap();
    for lost in [first, second] {
        let opened = store.kv.watch(WatchRequest { range: store.all(), start_revision: lost }).await;
        let error = match opened {
            Err(error) => error,
            // A backend may tell in the stream.
            Ok(mut stream) => stream.next().await.unwrap().unwrap_err(),
        };
        assert!(matches!(error, Error::Compacted { .. }), "{error}");
    }
    let mut watch = store.watch(third).await;
    let (revision, events) = watch.events().await;
    // (A delete of that very revision is not promised: etcd before 3.6 forgets it.)
    assert_eq!((revision, events[0].kind), (third, EventKind::Put), "the compacted revision can still be watched");
    assert_eq!(watch.events().await.0, fourth);
}

pub(super) async fn sees_every_revision_once(store: &Store) {
    const TASKS: usize = 6;
    const EACH: usize = 40;
    let start = store.put("start", "").await;
    let mut early = store.watch(start + 1).await;
    let writers = (0..TASKS).map(|task| {
        let kv = Arc::clone(&store.kv);
        let key = store.key(&format!("k{}", task % 3));
        tokio::spawn(async move {
            let mut revisions = Vec::new();
            for i in 0..EACH {
                let op = Op::Put { key: key.clone(), value: format!("{task}-{i}").into(), lease: 0 };
                revisions.push(kv.txn(Txn { success: vec![op], ..Txn::default() }).await.unwrap().revision);
            }
            revisions
        })
    });
    let writers: Vec<_> = writers.collect();
    let mut middle = store.watch(start + 1).await;
    let mut written = Vec::new();
    for writer in writers {
        let revisions = writer.await.unwrap();
        assert!(revisions.is_sorted(), "a writer's revisions ascend");
        written.extend(revisions);
    }
    written.sort_unstable();
    let mut late = store.watch(start + 1).await;
    for watch in [&mut early, &mut middle, &mut late] {
        let mut latest: std::collections::HashMap<Bytes, Revision> = std::collections::HashMap::new();
        for expected in &written {
            let (revision, events) = watch.events().await;
            assert_eq!(revision, *expected);
            for event in events {
                let before = latest.insert(event.kv.key.clone(), revision);
                assert_eq!(event.previous.map(|p| p.mod_revision), before, "previous is what was sent before");
            }
        }
    }
}
