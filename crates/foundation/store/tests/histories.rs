//! Every backend against random histories, shrunk to the shortest that fails.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;

use dhow_store::{FjallKv, Kv, MemoryKv};
use proptest::test_runner::{Config, TestRunner};

use support::histories::{run, steps};

fn runner(cases: u32) -> TestRunner {
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 500, ..Config::default() };
    TestRunner::new(config)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

#[test]
fn memory() {
    let runtime = runtime();
    runner(200)
        .run(&steps(60), |steps| {
            runtime.block_on(run(Arc::new(MemoryKv::new()), "/k/".to_owned(), &steps, |kv| kv));
            Ok(())
        })
        .unwrap();
}

#[test]
fn embedded() {
    let runtime = runtime();
    runner(40)
        .run(&steps(60), |steps| {
            let dir = tempfile::tempdir().unwrap();
            let open = || Arc::new(FjallKv::open(dir.path()).unwrap()) as Arc<dyn Kv>;
            runtime.block_on(run(open(), "/k/".to_owned(), &steps, |kv| {
                drop(kv);
                open()
            }));
            Ok(())
        })
        .unwrap();
}

#[test]
fn etcd() {
    let runtime = runtime();
    let (_etcd, kv) = runtime.block_on(support::etcd::Etcd::start(1));
    let next = std::cell::Cell::new(0);
    runner(25)
        .run(&steps(50), |steps| {
            next.set(next.get() + 1);
            runtime.block_on(run(Arc::new(kv.clone()), format!("/k/{}/", next.get()), &steps, |kv| kv));
            Ok(())
        })
        .unwrap();
}
