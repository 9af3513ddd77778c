//! Random histories against a model that keeps a full copy of the keys per revision and nothing clever.

use std::collections::BTreeMap;
use std::sync::Arc;

use dhow_store::{
    Compare, Error, KeyRange, KeyValue, Kv, LeaseId, Op, OpResult, Operator, RangeRequest, Revision, Target, Txn,
    WatchMessage, WatchRequest,
};
use futures::StreamExt;
use proptest::prelude::*;

const KEYS: u8 = 6;

#[derive(Debug, Clone)]
pub enum Step {
    Txn {
        guards: Vec<(u8, Operator, Kind, u8)>,
        success: Vec<Act>,
        failure: Vec<Act>,
    },
    /// Reads `back` revisions ago.
    Read {
        back: u8,
        from: u8,
        to: u8,
        limit: u8,
        keys_only: bool,
    },
    Compact {
        back: u8,
    },
    Grant,
    Revoke {
        nth: u8,
    },
    /// The store is closed and opened again, where that means something.
    Reopen,
}

#[derive(Debug, Clone)]
pub enum Act {
    Put { key: u8, value: u8, lease: u8 },
    Delete { from: u8, to: u8 },
    Read { from: u8, to: u8 },
}

#[derive(Debug, Clone, Copy)]
pub enum Kind {
    Mod,
    Create,
    Version,
    Value,
    Lease,
}

pub fn steps(length: usize) -> impl Strategy<Value = Vec<Step>> {
    let act = prop_oneof![
        4 => (0..KEYS, any::<u8>(), 0..4u8).prop_map(|(key, value, lease)| Act::Put { key, value, lease }),
        1 => (0..KEYS, 0..=KEYS).prop_map(|(from, to)| Act::Delete { from, to }),
        1 => (0..KEYS, 0..=KEYS).prop_map(|(from, to)| Act::Read { from, to }),
    ];
    let operator =
        prop_oneof![Just(Operator::Equal), Just(Operator::NotEqual), Just(Operator::Greater), Just(Operator::Less)];
    let kind =
        prop_oneof![Just(Kind::Mod), Just(Kind::Create), Just(Kind::Version), Just(Kind::Value), Just(Kind::Lease)];
    let guard = (0..KEYS, operator, kind, 0..4u8);
    let acts = prop::collection::vec(act, 0..4);
    let step = prop_oneof![
        12 => (prop::collection::vec(guard, 0..3), acts.clone(), acts)
            .prop_map(|(guards, success, failure)| Step::Txn { guards, success, failure }),
        4 => (0..12u8, 0..KEYS, 0..=KEYS, 0..4u8, any::<bool>())
            .prop_map(|(back, from, to, limit, keys_only)| Step::Read { back, from, to, limit, keys_only }),
        1 => (0..12u8).prop_map(|back| Step::Compact { back }),
        1 => Just(Step::Grant),
        1 => (0..4u8).prop_map(|nth| Step::Revoke { nth }),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..length)
}

type Keys = BTreeMap<u8, KeyValue>;

/// What the store should hold.
struct Model {
    prefix: String,
    worlds: BTreeMap<Revision, Keys>,
    compacted: Revision,
    leases: Vec<LeaseId>,
}

impl Model {
    fn key(&self, n: u8) -> String {
        format!("{}{n:03}", self.prefix)
    }

    fn range(&self, from: u8, to: u8) -> KeyRange {
        KeyRange { start: self.key(from).into(), end: Some(self.key(to).into()) }
    }

    fn now(&self) -> (Revision, Keys) {
        let (revision, keys) = self.worlds.last_key_value().unwrap();
        (*revision, keys.clone())
    }

    /// 0 is no lease, others are among those granted.
    fn lease(&self, n: u8) -> LeaseId {
        if n == 0 || self.leases.is_empty() { 0 } else { self.leases[n as usize % self.leases.len()] }
    }

    fn compare(&self, keys: &Keys, guard: &(u8, Operator, Kind, u8)) -> (Compare, bool) {
        let (key, operator, kind, offset) = *guard;
        let found = keys.get(&key);
        // Near the truth, so that every relation comes up.
        let near = |truth: u64| (truth + u64::from(offset)).saturating_sub(1);
        let number = |truth: u64, target: fn(u64) -> Target| (target(near(truth)), Some(truth.cmp(&near(truth))));
        let (target, order) = match kind {
            Kind::Mod => number(found.map_or(0, |kv| kv.mod_revision), Target::ModRevision),
            Kind::Create => number(found.map_or(0, |kv| kv.create_revision), Target::CreateRevision),
            Kind::Version => number(found.map_or(0, |kv| kv.version), Target::Version),
            Kind::Value => {
                let value = vec![offset];
                (Target::Value(value.clone().into()), found.map(|kv| kv.value[..].cmp(&value)))
            }
            Kind::Lease => {
                let lease = self.lease(offset);
                (Target::Lease(lease), Some(found.map_or(0, |kv| kv.lease).cmp(&lease)))
            }
        };
        let holds = order.is_some_and(|order| match operator {
            Operator::Equal => order.is_eq(),
            Operator::NotEqual => order.is_ne(),
            Operator::Greater => order.is_gt(),
            Operator::Less => order.is_lt(),
        });
        (Compare::new(self.key(key), operator, target), holds)
    }

    fn op(&self, act: &Act) -> Op {
        match act {
            Act::Put { key, value, lease } => {
                Op::Put { key: self.key(*key).into(), value: vec![*value].into(), lease: self.lease(*lease) }
            }
            Act::Delete { from, to } => Op::Delete { range: self.range(*from, *to) },
            Act::Read { from, to } => Op::Range(RangeRequest::new(self.range(*from, *to))),
        }
    }

    /// Whether one key is written in two ways.
    fn nonsense(acts: &[Act]) -> bool {
        let puts: Vec<u8> =
            acts.iter().filter_map(|a| if let Act::Put { key, .. } = a { Some(*key) } else { None }).collect();
        let twice = (1..puts.len()).any(|i| puts[..i].contains(&puts[i]));
        let deleted =
            acts.iter().any(|a| matches!(a, Act::Delete { from, to } if puts.iter().any(|p| (*from..*to).contains(p))));
        twice || deleted
    }

    /// Carries out what succeeded; gives what each part should answer.
    fn apply(&mut self, acts: &[Act]) -> Vec<Vec<KeyValue>> {
        let (revision, mut keys) = self.now();
        let mut wrote = false;
        let mut answers = Vec::new();
        for act in acts {
            answers.push(match act {
                Act::Put { key, value, lease } => {
                    wrote = true;
                    let old = keys.get(key).cloned();
                    let kv = KeyValue {
                        key: self.key(*key).into(),
                        value: vec![*value].into(),
                        create_revision: old.as_ref().map_or(revision + 1, |o| o.create_revision),
                        mod_revision: revision + 1,
                        version: old.as_ref().map_or(1, |o| o.version + 1),
                        lease: self.lease(*lease),
                    };
                    keys.insert(*key, kv);
                    old.into_iter().collect()
                }
                Act::Delete { from, to } => {
                    let gone: Vec<u8> = keys.keys().copied().filter(|k| (*from..*to).contains(k)).collect();
                    wrote |= !gone.is_empty();
                    gone.iter().filter_map(|k| keys.remove(k)).collect()
                }
                Act::Read { from, to } => {
                    keys.iter().filter(|(k, _)| (*from..*to).contains(*k)).map(|(_, kv)| kv.clone()).collect()
                }
            });
        }
        if wrote {
            self.worlds.insert(revision + 1, keys);
        }
        answers
    }
}

/// Runs a history; `reopen` gives the store back after a restart, or the same one.
pub async fn run(mut kv: Arc<dyn Kv>, prefix: String, steps: &[Step], reopen: impl Fn(Arc<dyn Kv>) -> Arc<dyn Kv>) {
    let mut start = kv.current_revision().await.unwrap();
    let mut model = Model { prefix, worlds: BTreeMap::from([(start, Keys::new())]), compacted: 0, leases: Vec::new() };
    for step in steps {
        let (now, keys) = model.now();
        match step {
            Step::Txn { guards, success, failure } => {
                let guards: Vec<_> = guards.iter().map(|g| model.compare(&keys, g)).collect();
                let succeeds = guards.iter().all(|(_, holds)| *holds);
                let txn = Txn {
                    compare: guards.into_iter().map(|(compare, _)| compare).collect(),
                    success: success.iter().map(|a| model.op(a)).collect(),
                    failure: failure.iter().map(|a| model.op(a)).collect(),
                    relaxed: success.len() == 1,
                };
                let answer = kv.txn(txn).await;
                if Model::nonsense(success) || Model::nonsense(failure) {
                    assert!(matches!(answer, Err(Error::Invalid(_))), "{answer:?}");
                    continue;
                }
                let answer = answer.unwrap();
                assert_eq!(answer.succeeded, succeeds);
                let expected = model.apply(if succeeds { success } else { failure });
                let found: Vec<Vec<KeyValue>> = answer
                    .results
                    .into_iter()
                    .map(|result| match result {
                        OpResult::Put { previous } => previous.into_iter().collect(),
                        OpResult::Delete { previous } => previous,
                        OpResult::Range(response) => response.kvs,
                    })
                    .collect();
                assert_eq!(found, expected);
                assert_eq!(answer.revision, model.now().0);
            }
            Step::Read { back, from, to, limit, keys_only } => {
                let at = now.saturating_sub(u64::from(*back)).max(1);
                let (limit, keys_only) = (usize::from(*limit), *keys_only);
                let request = RangeRequest { limit, keys_only, ..RangeRequest::at(model.range(*from, *to), at) };
                let answer = kv.range(request).await;
                if at < model.compacted {
                    assert!(matches!(answer, Err(Error::Compacted { .. })), "{answer:?}");
                    continue;
                }
                let Some(world) = model.worlds.get(&at) else { continue };
                let mut expected: Vec<KeyValue> =
                    world.iter().filter(|(k, _)| (*from..*to).contains(*k)).map(|(_, kv)| kv.clone()).collect();
                let answer = answer.unwrap();
                assert_eq!(answer.count, expected.len());
                assert_eq!(answer.more, limit != 0 && expected.len() > limit);
                if limit != 0 {
                    expected.truncate(limit);
                }
                if keys_only {
                    expected.iter_mut().for_each(|kv| kv.value = Default::default());
                }
                assert_eq!(answer.kvs, expected);
            }
            Step::Compact { back } => {
                let at = now.saturating_sub(u64::from(*back)).max(1);
                let answer = kv.compact(at).await;
                // A shared store may have been compacted further by whoever used it before.
                if at <= model.compacted || at < start {
                    if at > start {
                        assert!(matches!(answer, Err(Error::Compacted { .. })), "{answer:?}");
                    } else if answer.is_ok() {
                        model.compacted = at;
                    }
                    continue;
                }
                match answer {
                    Ok(()) => model.compacted = at,
                    Err(Error::Compacted { .. }) if at == start => {}
                    Err(error) => panic!("{error}"),
                }
            }
            Step::Grant => model.leases.push(kv.lease_grant(600).await.unwrap()),
            Step::Revoke { nth } => {
                let lease = model.lease(*nth);
                if lease == 0 {
                    continue;
                }
                kv.lease_revoke(lease).await.unwrap();
                model.leases.retain(|l| *l != lease);
                let mut after = keys.clone();
                after.retain(|_, kv| kv.lease != lease);
                if after.len() != keys.len() {
                    model.worlds.insert(now + 1, after);
                }
            }
            Step::Reopen => kv = reopen(kv),
        }
        let (revision, keys) = model.now();
        let list = kv.range(RangeRequest::new(KeyRange::prefix(model.prefix.clone()))).await.unwrap();
        assert_eq!((list.revision, list.kvs), (revision, keys.into_values().collect::<Vec<_>>()), "after {step:?}");
    }

    // What a watch tells, from as early as it can, is the same history again.
    let (last, keys) = model.now();
    start = start.max(model.compacted).max(1);
    let mut replayed = model.worlds.range(..=start).next_back().unwrap().1.clone();
    let range = KeyRange::prefix(model.prefix.clone());
    let mut watch = kv.watch(WatchRequest { range, start_revision: start + 1 }).await.unwrap();
    let mut seen = start;
    while seen < last {
        match watch.next().await.unwrap().unwrap() {
            WatchMessage::Events { revision, events } => {
                for event in events {
                    let n: u8 = std::str::from_utf8(&event.kv.key[model.prefix.len()..]).unwrap().parse().unwrap();
                    let before = match event.kind {
                        dhow_store::EventKind::Put => replayed.insert(n, event.kv),
                        dhow_store::EventKind::Delete => replayed.remove(&n),
                    };
                    assert_eq!(event.previous, before);
                }
                assert_eq!(Some(&replayed), model.worlds.get(&revision), "at revision {revision}");
                seen = revision;
            }
            WatchMessage::Progress { revision } => assert!(revision <= seen || revision >= last),
        }
    }
    assert_eq!(replayed, keys);
    for lease in model.leases {
        kv.lease_revoke(lease).await.unwrap();
    }
}
