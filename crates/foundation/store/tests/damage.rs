//! Files of the embedded store that are flipped, cut, overwritten or gone: an error that names the file and says what
//! to do, or, where nothing was lost, the same content. Never a panic, never less in silence.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use dhow_store::{Error, FjallKv, KeyRange, KeyValue, Kv, Op, RangeRequest, Txn};

async fn write(kv: &FjallKv, key: String, value: String) {
    let op = Op::Put { key: key.into(), value: value.into(), lease: 0 };
    kv.txn(Txn { success: vec![op], relaxed: true, ..Txn::default() }).await.unwrap();
}

async fn all(kv: &FjallKv) -> Vec<KeyValue> {
    kv.range(RangeRequest::new(KeyRange::prefix(""))).await.unwrap().kvs
}

fn files(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, out);
        } else {
            out.push(path);
        }
    }
    out.sort();
}

/// Without the zeros at the end that a journal sets aside.
fn used(path: &Path) -> Vec<u8> {
    let mut bytes = std::fs::read(path).unwrap();
    if path.extension().is_some_and(|e| e == "jnl") {
        let used = bytes.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1);
        bytes.truncate(used);
    }
    bytes
}

fn copy(from: &Path, to: &Path) {
    let mut all = Vec::new();
    files(from, &mut all);
    for file in all {
        let target = to.join(file.strip_prefix(from).unwrap());
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        // Tables are never written again, so a link will do until one is damaged.
        if file.parent().unwrap().ends_with("tables") && std::fs::hard_link(&file, &target).is_ok() {
            continue;
        }
        std::fs::write(&target, used(&file)).unwrap();
    }
}

/// Values of many kilobytes go through the journals into tables; later ones stay in the journal.
async fn fill(dir: &Path) -> Vec<KeyValue> {
    let kv = FjallKv::open(dir).unwrap();
    for i in 0..120 {
        write(&kv, format!("large/{}", i % 20), format!("{i:04} ").repeat(20_000)).await;
    }
    kv.compact(100).await.unwrap();
    kv.lease_grant(600).await.unwrap();
    for i in 0..50 {
        write(&kv, format!("small/{i}"), "value ".repeat(20)).await;
    }
    let expected = all(&kv).await;
    drop(kv);
    expected
}

#[tokio::test]
async fn damage_is_noticed_and_named() {
    let original = tempfile::tempdir().unwrap();
    let expected = fill(original.path()).await;
    let slim = tempfile::tempdir().unwrap();
    copy(original.path(), slim.path());
    let mut names = Vec::new();
    files(slim.path(), &mut names);
    assert!(names.iter().any(|n| n.parent().unwrap().ends_with("tables")), "no tables yet: {names:?}");
    let (mut noticed, mut harmless) = (0, 0);
    for file in &names {
        let name = file.strip_prefix(slim.path()).unwrap();
        let length = std::fs::metadata(file).unwrap().len();
        let places = [0, length / 3, length * 5 / 6, length.saturating_sub(1)];
        let mut damages = vec![("remove", 0)];
        if length > 0 {
            damages.extend(places.iter().flat_map(|at| [("flip", *at), ("cut", *at)]));
            damages.push(("zero", length / 3));
        }
        damages.dedup();
        for (damage, at) in damages {
            let dir = tempfile::tempdir().unwrap();
            copy(slim.path(), dir.path());
            let target = dir.path().join(name);
            let bytes = std::fs::read(&target).unwrap();
            std::fs::remove_file(&target).unwrap();
            std::fs::write(&target, &bytes).unwrap();
            let open = || std::fs::File::options().write(true).open(&target).unwrap();
            match damage {
                "flip" => {
                    let byte = bytes[at as usize] ^ 0x55;
                    open().write_all_at(&[byte], at).unwrap();
                }
                "cut" => open().set_len(at).unwrap(),
                "zero" => open().write_all_at(&vec![0; (length - at).min(4096) as usize], at).unwrap(),
                _ => std::fs::remove_file(&target).unwrap(),
            }
            let what = format!("{}: {damage} at {at} of {length}", name.display());
            let opened = std::panic::catch_unwind(|| FjallKv::open(dir.path()));
            match opened {
                Err(_) => panic!("{what}: opening panicked"),
                Ok(Err(error)) => {
                    noticed += 1;
                    let text = error.to_string();
                    assert!(matches!(error, Error::Corrupt { .. }), "{what}: {text}");
                    // A journal that is gone cannot be told by its name.
                    let named = text.contains(target.to_str().unwrap())
                        || (name.extension().is_some_and(|e| e == "jnl") && text.contains(".jnl"))
                        || name.ends_with("current") && text.contains(target.parent().unwrap().to_str().unwrap());
                    assert!(named, "{what}: {text}");
                    assert!(text.contains("restore"), "{what}: {text}");
                    // Asking again gives no other answer.
                    assert!(FjallKv::open(dir.path()).is_err(), "{what}: the second try succeeded");
                }
                Ok(Ok(kv)) => {
                    harmless += 1;
                    assert_eq!(all(&kv).await, expected, "{what}: silent loss");
                }
            }
        }
    }
    eprintln!("{} files, {noticed} times refused, {harmless} times harmless", names.len());
    assert!(noticed > 50);
}

#[tokio::test]
async fn a_lost_tail_is_noticed_without_an_orderly_stop() {
    let dir = tempfile::tempdir().unwrap();
    let kv = FjallKv::open(dir.path()).unwrap();
    for i in 0..20 {
        let op = Op::Put { key: format!("{i}").into(), value: "x".into(), lease: 0 };
        kv.txn(Txn { success: vec![op], ..Txn::default() }).await.unwrap();
    }
    // What a killed process leaves.
    let killed = tempfile::tempdir().unwrap();
    copy(dir.path(), killed.path());
    let mut names = Vec::new();
    files(killed.path(), &mut names);
    let journal = names.iter().rfind(|n| n.extension().is_some_and(|e| e == "jnl")).unwrap();
    let bytes = std::fs::read(journal).unwrap();
    std::fs::write(journal, &bytes[..bytes.len() - 20]).unwrap();
    let error = FjallKv::open(killed.path()).err().unwrap().to_string();
    assert!(error.contains(journal.to_str().unwrap()) && error.contains("revisions 21 to 21"), "{error}");
}

/// A write that was under way when the power went: its pages may reach the disk in any order.
#[tokio::test]
async fn an_unfinished_write_is_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let kv = FjallKv::open(dir.path()).unwrap();
    for i in 0..20 {
        let op = Op::Put { key: format!("{i}").into(), value: "x".into(), lease: 0 };
        kv.txn(Txn { success: vec![op], ..Txn::default() }).await.unwrap();
    }
    let before = tempfile::tempdir().unwrap();
    copy(dir.path(), before.path());
    let expected = all(&kv).await;
    let op = Op::Put { key: "late".into(), value: "x".repeat(10_000).into(), lease: 0 };
    kv.txn(Txn { success: vec![op], ..Txn::default() }).await.unwrap();
    let after = tempfile::tempdir().unwrap();
    copy(dir.path(), after.path());
    let mut names = Vec::new();
    files(before.path(), &mut names);
    let journal = names.iter().rfind(|n| n.extension().is_some_and(|e| e == "jnl")).unwrap();
    let (old, new) = (used(journal), used(&after.path().join(journal.file_name().unwrap())));
    let grown = new.len() - old.len();
    for hole in [0..grown / 2, grown / 3..grown / 2, grown / 2..grown] {
        let mut torn = new.clone();
        torn[old.len() + hole.start..old.len() + hole.end].fill(0);
        let crashed = tempfile::tempdir().unwrap();
        copy(before.path(), crashed.path());
        std::fs::write(crashed.path().join(journal.file_name().unwrap()), torn).unwrap();
        let kv = FjallKv::open(crashed.path()).unwrap();
        assert_eq!(all(&kv).await, expected, "{hole:?}");
        write(&kv, "after".to_owned(), "y".to_owned()).await;
        drop(kv);
        assert_eq!(all(&FjallKv::open(crashed.path()).unwrap()).await.len(), expected.len() + 1);
    }
}
