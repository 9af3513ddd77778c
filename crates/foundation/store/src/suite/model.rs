//! Random transactions against a model so simple that it is obviously right: a full copy of the keys per revision.

use std::collections::BTreeMap;

use super::*;
use crate::{Compare, EventKind, Target};

/// A small deterministic generator; quality does not matter here, repeatability does.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

type Keys = BTreeMap<String, KeyValue>;

pub(super) async fn agrees_with_a_simple_model(store: &Store) {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let start = store.put("000", "0").await;
    let mut watch = store.watch(start).await;
    let mut worlds: BTreeMap<Revision, Keys> = BTreeMap::new();
    worlds.insert(start, BTreeMap::from([("000".to_owned(), store.get("000").await.unwrap())]));
    let mut compacted = 0;

    for step in 0..400 {
        let (&revision, keys) = worlds.last_key_value().unwrap();
        let (txn, expected, succeeded) = transaction(store, &mut random, keys, revision + 1, step);
        let response = store.kv.txn(txn).await.unwrap();
        assert_eq!(response.succeeded, succeeded);
        if expected != *keys {
            assert_eq!(response.revision, revision + 1, "the suite is the only writer of this store");
            worlds.insert(revision + 1, expected);
        } else {
            assert_eq!(response.revision, revision);
        }
        if step % 97 == 96 {
            compacted = revision - random.below(20);
            store.kv.compact(compacted).await.unwrap();
            worlds.retain(|r, _| *r >= compacted);
        }
        if step % 7 == 0 {
            let nth = random.below(worlds.len() as u64) as usize;
            let (&at, keys) = worlds.iter().nth(nth).unwrap();
            let read = store.list(at, 0).await.unwrap();
            let read: Keys = read.kvs.into_iter().map(|kv| (store.name(&kv), kv)).collect();
            assert_eq!(&read, keys, "keys at revision {at}");
        }
    }
    assert!(store.list(compacted - 1, 0).await.is_err());

    // Replaying the watch's events gives every world again.
    let mut replayed = Keys::new();
    let last = *worlds.last_key_value().unwrap().0;
    loop {
        let (revision, events) = watch.events().await;
        for event in events {
            let name = store.name(&event.kv);
            let before = match event.kind {
                EventKind::Put => replayed.insert(name, event.kv),
                EventKind::Delete => replayed.remove(&name),
            };
            assert_eq!(event.previous, before);
        }
        if let Some(keys) = worlds.get(&revision) {
            assert_eq!(&replayed, keys, "events up to revision {revision}");
        }
        if revision == last {
            break;
        }
    }
}

/// A random transaction, the keys after it and whether its guard holds.
fn transaction(store: &Store, random: &mut Random, keys: &Keys, revision: Revision, step: u64) -> (Txn, Keys, bool) {
    let mut after = keys.clone();
    let guard = format!("{:03}", random.below(12));
    let guessed = random.below(3);
    let version = keys.get(&guard).map_or(0, |kv| kv.version);
    let compare = vec![Compare::equal(store.key(&guard), Target::Version(guessed))];
    let succeeded = version == guessed;
    let mut names: Vec<String> = (0..1 + random.below(4)).map(|_| format!("{:03}", random.below(12))).collect();
    names.sort();
    names.dedup();
    let ops = names.into_iter().map(|name| {
        if random.below(3) == 0 {
            after.remove(&name);
            return store.delete_op(&name);
        }
        let value = format!("{step}");
        let old = after.get(&name);
        let kv = KeyValue {
            key: store.key(&name),
            value: value.clone().into(),
            create_revision: old.map_or(revision, |o| o.create_revision),
            mod_revision: revision,
            version: old.map_or(1, |o| o.version + 1),
            lease: 0,
        };
        let op = store.put_op(&name, &value);
        after.insert(name, kv);
        op
    });
    let ops: Vec<Op> = ops.collect();
    let (success, failure) = if succeeded { (ops, vec![]) } else { (vec![store.put_op("bad", "")], ops) };
    (Txn { compare, success, failure, relaxed: step.is_multiple_of(5) }, after, succeeded)
}
