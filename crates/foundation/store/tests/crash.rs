//! Killed with -9 under load: no acknowledged write is lost, none is half there, no revision comes twice.
//!
//! `DHOW_STORE_CRASH_ROUNDS` sets the rounds of the short form (10); the long form is `--ignored`.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use dhow_store::{Compare, FjallKv, KeyRange, KeyValue, Kv, Op, Options, RangeRequest, Target, Txn};

const CHILD: &str = "DHOW_STORE_CRASH_CHILD";
const KEYS: usize = 8;

/// Not a test by itself: the process that is killed. Each write sets a pair of keys and sometimes a third, large one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crash_child() {
    let Ok(dir) = std::env::var(CHILD) else { return };
    let kv = FjallKv::open_with(dir, Options { max_history_events: 500, ..Options::default() }).unwrap();
    let writers = (0..KEYS).map(|k| {
        let kv = kv.clone();
        async move {
            let (key, mirror) = (format!("key/{k}"), format!("mirror/{k}"));
            let found = kv.range(RangeRequest::new(KeyRange::key(key.clone()))).await.unwrap().kvs;
            let mut number: u64 = found.first().map_or(0, |kv| text(kv).parse().unwrap());
            let mut version = found.first().map_or(0, |kv| kv.version);
            loop {
                number += 1;
                let put =
                    |key: &str| Op::Put { key: key.to_owned().into(), value: number.to_string().into(), lease: 0 };
                let mut success = vec![put(&key), put(&mirror)];
                let bulk = format!("bulk/{k}");
                match number % 10 {
                    3 => success.push(Op::Put { key: bulk.into(), value: vec![k as u8; 20_000].into(), lease: 0 }),
                    7 => success.push(Op::Delete { range: KeyRange::key(bulk) }),
                    _ => {}
                }
                let txn = Txn {
                    compare: vec![Compare::equal(key.clone(), Target::Version(version))],
                    success,
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

fn text(kv: &KeyValue) -> &str {
    std::str::from_utf8(&kv.value).unwrap()
}

/// Everything that was acknowledged, over all rounds.
#[derive(Default)]
struct Acknowledged {
    /// Latest number of each key.
    numbers: BTreeMap<usize, u64>,
    /// Who got a revision.
    revisions: BTreeMap<u64, (usize, u64)>,
}

impl Acknowledged {
    fn note(&mut self, line: &str) {
        let Some((_, ack)) = line.rsplit_once("ack ") else { return };
        let numbers: Vec<u64> = ack.split(' ').map(|n| n.parse().unwrap()).collect();
        let (key, number, revision) = (numbers[0] as usize, numbers[1], numbers[2]);
        self.numbers.insert(key, number);
        let twice = self.revisions.insert(revision, (key, number));
        assert_eq!(twice, None, "revision {revision} was given twice");
    }
}

async fn rounds(rounds: u64) {
    let dir = tempfile::tempdir().unwrap();
    let noted = Mutex::new(Acknowledged::default());
    let mut seed = u64::from(std::process::id()) << 20 | 0x9e37;
    let mut silent = 0;
    for round in 0..rounds {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        // Random moments: sometimes while it starts and recovers, mostly at work.
        let life = Duration::from_micros((seed >> 33) % 150_000);
        let at_start = round % 5 == 4;
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crash_child", "--nocapture"])
            .env(CHILD, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let before = noted.lock().unwrap().revisions.len();
        std::thread::scope(|scope| {
            scope.spawn(|| lines.map_while(Result::ok).for_each(|line| noted.lock().unwrap().note(&line)));
            if !at_start {
                let started = || noted.lock().unwrap().revisions.len() > before;
                while !started() {
                    assert!(child.try_wait().unwrap().is_none(), "round {round}: the child ended by itself");
                    std::thread::park_timeout(Duration::from_millis(1));
                }
            }
            // There is no event to wait for: any moment has to do.
            std::thread::park_timeout(life);
            assert!(child.try_wait().unwrap().is_none(), "round {round}: the child ended by itself");
            child.kill().unwrap();
            child.wait().unwrap();
        });
        let acknowledged = std::mem::take(&mut *noted.lock().unwrap());
        silent += u64::from(acknowledged.revisions.len() == before);

        let kv = FjallKv::open(dir.path()).unwrap();
        let current = kv.current_revision().await.unwrap();
        let last = acknowledged.revisions.last_key_value().map_or(1, |(revision, _)| *revision);
        assert!(current >= last, "round {round}: revisions went back to {current} from {last}");
        let found = kv.range(RangeRequest::new(KeyRange::prefix(""))).await.unwrap().kvs;
        let found: BTreeMap<String, KeyValue> =
            found.into_iter().map(|kv| (String::from_utf8_lossy(&kv.key).into_owned(), kv)).collect();
        for k in 0..KEYS {
            let number = acknowledged.numbers.get(&k).copied().unwrap_or(0);
            let Some(kv) = found.get(&format!("key/{k}")) else {
                assert_eq!(number, 0, "round {round}: key {k} is gone");
                continue;
            };
            let value: u64 = text(kv).parse().unwrap();
            assert!(value >= number, "round {round}, key {k}: {value} after {number} was acknowledged");
            assert_eq!(kv.version, value, "round {round}: every write counted once");
            if let Some(owner) = acknowledged.revisions.get(&kv.mod_revision) {
                assert_eq!(*owner, (k, value), "round {round}: revision {} is another's", kv.mod_revision);
            }
            let mirror = &found[&format!("mirror/{k}")];
            assert_eq!(
                (&mirror.value, mirror.mod_revision),
                (&kv.value, kv.mod_revision),
                "round {round}: half a write"
            );
            // The large key comes with number 3, 13, .. and goes with 7, 17, ..
            let bulk = found.get(&format!("bulk/{k}"));
            assert_eq!(bulk.is_some(), (3..7).contains(&(value % 10)), "round {round}, key {k}: half a write");
            assert!(bulk.is_none_or(|kv| kv.value == vec![k as u8; 20_000]));
        }
        *noted.lock().unwrap() = acknowledged;
    }
    let writes = noted.into_inner().unwrap().revisions.len();
    eprintln!("{rounds} kills, {silent} before anything was written, {writes} writes acknowledged, none lost");
    assert!(writes > 0);
}

#[tokio::test]
async fn survives_kill_9() {
    let number = std::env::var("DHOW_STORE_CRASH_ROUNDS").ok().and_then(|r| r.parse().ok()).unwrap_or(10);
    rounds(number).await;
}

#[tokio::test]
#[ignore = "several minutes: 300 kills"]
async fn survives_kill_9_for_long() {
    rounds(300).await;
}
