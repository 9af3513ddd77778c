//! Throughput, latency and memory of the stores, side by side with etcd through one gRPC client.
//!
//! `bench/store.sh` prints the tables of `docs/benchmarks.md`. Every store runs on the same disk (`TMPDIR`), every write is durable before it is acknowledged, except in memory.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

#[path = "../tests/support/etcd.rs"]
#[allow(dead_code)]
mod etcd;
#[path = "../tests/support/serve.rs"]
mod serve;

use std::sync::Arc;
use std::time::{Duration, Instant};

use dhow_store::{EtcdKv, FjallKv, KeyRange, Kv, MemoryKv, Op, RangeRequest, Txn, WatchMessage, WatchRequest};
use futures::StreamExt;

const VALUE: usize = 1200;
const MEASURE: Duration = Duration::from_secs(5);
const WATCHERS: usize = 1000;

fn value(n: u64) -> Vec<u8> {
    // Not compressible to nothing: a store must not win by that.
    let mut state = n | 1;
    let step = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        b'a' + (state % 26) as u8
    };
    (0..VALUE).map(step).collect()
}

async fn put(kv: &dyn Kv, key: String, n: u64) {
    let op = Op::Put { key: key.into(), value: value(n).into(), lease: 0 };
    kv.txn(Txn { success: vec![op], ..Txn::default() }).await.unwrap();
}

struct Row {
    many: (f64, Duration, Duration),
    one: (Duration, Duration),
    list: (Duration, Duration),
    fan_out: (Duration, f64),
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() - 1) * percent / 100]
}

/// Writes for a while from several tasks, 1,000 keys each.
async fn writes(kv: &Arc<dyn Kv>, writers: usize) -> (f64, Duration, Duration) {
    let start = Instant::now();
    let tasks: Vec<_> = (0..writers)
        .map(|w| {
            let kv = Arc::clone(kv);
            tokio::spawn(async move {
                let mut times = Vec::new();
                for n in 0.. {
                    let before = Instant::now();
                    if before - start > MEASURE {
                        break;
                    }
                    put(&*kv, format!("/write/{w}/{}", n % 1000), n).await;
                    times.push(before.elapsed());
                }
                times
            })
        })
        .collect();
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await.unwrap());
    }
    let rate = times.len() as f64 / start.elapsed().as_secs_f64();
    times.sort();
    (rate, percentile(&times, 50), percentile(&times, 99))
}

async fn list(kv: &Arc<dyn Kv>) -> (Duration, Duration) {
    for n in 0..10_000 / 50 {
        let puts = (0..50).map(|i| {
            let n = n * 50 + i;
            Op::Put { key: format!("/list/{n:05}").into(), value: value(n).into(), lease: 0 }
        });
        kv.txn(Txn { success: puts.collect(), ..Txn::default() }).await.unwrap();
    }
    let mut times = Vec::new();
    for _ in 0..30 {
        let before = Instant::now();
        let found = kv.range(RangeRequest::new(KeyRange::prefix("/list/"))).await.unwrap();
        times.push(before.elapsed());
        assert_eq!(found.kvs.len(), 10_000);
    }
    times.sort();
    (percentile(&times, 50), percentile(&times, 99))
}

/// From the write of an event until the last of the watchers has it, and events delivered per second in a burst.
async fn fan_out(kv: &Arc<dyn Kv>) -> (Duration, f64) {
    let (arrived, mut arrivals) = tokio::sync::mpsc::unbounded_channel();
    let mut tasks = Vec::new();
    for _ in 0..WATCHERS {
        let request = WatchRequest { range: KeyRange::prefix("/watch/"), start_revision: 0 };
        let mut watch = kv.watch(request).await.unwrap();
        let arrived = arrived.clone();
        tasks.push(tokio::spawn(async move {
            while let Some(Ok(message)) = watch.next().await {
                if let WatchMessage::Events { events, .. } = message {
                    let _ = arrived.send(events.len());
                }
            }
        }));
    }
    let mut wait = async |mut expected: usize| {
        while expected > 0 {
            expected -= arrivals.recv().await.unwrap();
        }
    };
    let mut times = Vec::new();
    for n in 0..50 {
        let before = Instant::now();
        put(&**kv, "/watch/a".to_owned(), n).await;
        wait(WATCHERS).await;
        times.push(before.elapsed());
    }
    times.sort();
    let before = Instant::now();
    let burst = 200;
    for n in 0..burst {
        put(&**kv, format!("/watch/{n}"), n).await;
    }
    wait(WATCHERS * burst as usize).await;
    let rate = (WATCHERS * burst as usize) as f64 / before.elapsed().as_secs_f64();
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    (percentile(&times, 50), rate)
}

async fn measure(name: &str, kv: Arc<dyn Kv>) -> Row {
    eprintln!("measuring {name}");
    let many = writes(&kv, 64).await;
    let (_, p50, p99) = writes(&kv, 1).await;
    Row { many, one: (p50, p99), list: list(&kv).await, fan_out: fan_out(&kv).await }
}

fn resident(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
    text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// What 100,000 objects add to a process, per object.
async fn memory(kv: &Arc<dyn Kv>, pid: u32) -> u64 {
    const OBJECTS: u64 = 100_000;
    let before = resident(pid);
    for chunk in 0..OBJECTS / 50 {
        let puts = (0..50).map(|i| {
            let n = chunk * 50 + i;
            Op::Put { key: format!("/registry/pods/default/pod-{n:06}").into(), value: value(n).into(), lease: 0 }
        });
        kv.txn(Txn { success: puts.collect(), ..Txn::default() }).await.unwrap();
    }
    (resident(pid).saturating_sub(before)) / OBJECTS
}

#[tokio::main]
async fn main() {
    let dirs = tempfile::tempdir().unwrap();
    let open = |name: &str| Arc::new(FjallKv::open(dirs.path().join(name)).unwrap()) as Arc<dyn Kv>;
    let own = std::process::id();
    let mut bytes = Vec::new();
    {
        let kv = open("memory");
        bytes.push(("embedded, just written", memory(&kv, own).await));
    }
    let before = resident(own);
    let kv = open("memory");
    eprintln!("embedded opened again: {} bytes more", resident(own).saturating_sub(before));
    drop(kv);
    {
        let (etcd, kv) = etcd::Etcd::start(1).await;
        let kv = Arc::new(kv) as Arc<dyn Kv>;
        bytes.push(("etcd, just written", memory(&kv, etcd.pid(0).unwrap()).await));
    }

    let served = |kv| async move { Arc::new(EtcdKv::connect(serve::serve(kv).await).await.unwrap()) as Arc<dyn Kv> };
    let mut rows = Vec::new();
    rows.push(("memory, in process", measure("memory", Arc::new(MemoryKv::new())).await));
    rows.push(("embedded, in process", measure("embedded", open("direct")).await));
    rows.push(("embedded, gRPC", measure("embedded over gRPC", served(open("served")).await).await));
    let (etcd, kv) = etcd::Etcd::start(1).await;
    rows.push(("etcd, gRPC", measure("etcd", Arc::new(kv)).await));

    println!(
        "| store | writes/s, 64 writers (p50, p99) | one writer p50, p99 | LIST of 10k p50, p99 | \
         one event to 1,000 watchers | events/s to 1,000 watchers |"
    );
    println!("|---|---|---|---|---|---|");
    for (name, row) in rows {
        println!(
            "| {name} | {:.0} ({:.2?}, {:.2?}) | {:.0?}, {:.0?} | {:.1?}, {:.1?} | {:.1?} | {:.0} |",
            row.many.0,
            row.many.1,
            row.many.2,
            row.one.0,
            row.one.1,
            row.list.0,
            row.list.1,
            row.fan_out.0,
            row.fan_out.1
        );
    }
    println!("\n| memory per object of {VALUE} bytes | bytes |\n|---|---|");
    for (name, bytes) in bytes {
        println!("| {name} | {bytes} |");
    }
    drop((etcd, dirs));
    // The servers have no other end.
    std::process::exit(0);
}
