//! Log reading: tail, since, partial lines, follow until the end.

#![allow(clippy::unwrap_used)]

use std::io::Write;

use super::*;
use crate::testing::{FakeRuntime, container};

const T: [&str; 4] =
    ["2026-01-01T00:00:01.5Z", "2026-01-01T00:00:02Z", "2026-01-01T00:00:03Z", "2026-01-01T00:00:04.000000001Z"];

fn sample() -> String {
    format!("{} stdout F one\n{} stderr P tw\n{} stderr F o\n{} stdout F three  spaced\n", T[0], T[1], T[2], T[3])
}

async fn all(mut receiver: mpsc::Receiver<std::io::Result<Bytes>>) -> String {
    let mut out = Vec::new();
    while let Some(part) = receiver.recv().await {
        out.extend_from_slice(&part.unwrap());
    }
    String::from_utf8(out).unwrap()
}

async fn read(content: &str, options: LogOptions) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0.log");
    std::fs::write(&path, content).unwrap();
    let runtime = Arc::new(FakeRuntime::default());
    all(LogStream { runtime, container: "c".into(), path, options }.start().unwrap()).await
}

#[tokio::test]
async fn prefixes_go_and_partial_lines_join() {
    assert_eq!(read(&sample(), LogOptions::default()).await, "one\ntwo\nthree  spaced\n");
    let options = LogOptions { timestamps: true, ..Default::default() };
    let want = format!("{} one\n{} two\n{} three  spaced\n", T[0], T[1], T[3]);
    assert_eq!(read(&sample(), options).await, want);
}

#[tokio::test]
async fn tail_since_and_limit_narrow_what_is_sent() {
    let tail = |n| LogOptions { tail: Some(n), ..Default::default() };
    assert_eq!(read(&sample(), tail(0)).await, "");
    assert_eq!(read(&sample(), tail(1)).await, "three  spaced\n");
    assert_eq!(read(&sample(), tail(2)).await, "two\nthree  spaced\n");
    assert_eq!(read(&sample(), tail(99)).await, "one\ntwo\nthree  spaced\n");
    let since = LogOptions { since: Some(T[3].parse().unwrap()), ..Default::default() };
    assert_eq!(read(&sample(), since).await, "three  spaced\n");
    let limit = LogOptions { limit: Some(5), ..Default::default() };
    assert_eq!(read(&sample(), limit).await, "one\nt");
}

#[tokio::test]
async fn tail_finds_lines_across_blocks() {
    let long = "x".repeat(BLOCK * 2);
    let content = format!("{} stdout F a\n{} stdout F {long}\n{} stdout F b\n", T[0], T[1], T[2]);
    let options = |n| LogOptions { tail: Some(n), ..Default::default() };
    assert_eq!(read(&content, options(1)).await, "b\n");
    assert_eq!(read(&content, options(2)).await, format!("{long}\nb\n"));
    assert_eq!(read(&content, options(3)).await, format!("a\n{long}\nb\n"));
}

#[tokio::test]
async fn a_followed_log_goes_on_over_appends_and_rotation_until_the_container_ends() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0.log");
    std::fs::write(&path, sample()).unwrap();
    let runtime = Arc::new(FakeRuntime::default());
    runtime.containers.lock().push(container("s", "a", 0, None));
    let id = runtime.containers.lock()[0].id.clone();
    let options = LogOptions { follow: true, tail: Some(1), ..Default::default() };
    let stream = LogStream { runtime: runtime.clone(), container: id.clone(), path: path.clone(), options };
    let mut receiver = stream.start().unwrap();
    assert_eq!(receiver.recv().await.unwrap().unwrap(), "three  spaced\n");

    let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
    write!(file, "{} stdout F fo", T[3]).unwrap();
    writeln!(file, "ur").unwrap();
    assert_eq!(receiver.recv().await.unwrap().unwrap(), "four\n");

    std::fs::rename(&path, dir.path().join("0.log.1")).unwrap();
    std::fs::write(&path, format!("{} stdout F five\n", T[3])).unwrap();
    assert_eq!(receiver.recv().await.unwrap().unwrap(), "five\n");

    let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
    writeln!(file, "{} stdout F last", T[3]).unwrap();
    runtime.end(&id, 0);
    assert_eq!(all(receiver).await, "last\n");
}

#[test]
fn bad_numbers_and_times_are_refused_by_name() {
    let parse = |name: &str, value: &str| LogOptions::parse(&[(name.into(), value.into())], Timestamp::UNIX_EPOCH);
    assert!(parse("tailLines", "-1").unwrap_err().contains("tailLines"));
    assert!(parse("sinceTime", "noon").unwrap_err().contains("sinceTime"));
    let since = parse("sinceSeconds", "10").unwrap().since;
    assert_eq!(since, Some(Timestamp::from_second(-10).unwrap()));
}
