//! `dhow server migrate-store`: the state of a stopped cloud from its data folder into etcd.
//!
//! Invariants: no key is lost or changed, which is read back before the move counts; revisions go on far above those
//! that clients of the embedded store remember, by an offset that every server reads from etcd; servers start neither on
//! etcd before the move is complete, nor on the data folder after it.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use dhow_base::files;
use dhow_store::{FjallKv, KeyRange, KeyValue, Kv, LeaseId, Op, RangeRequest, SKIP_REVISIONS, Txn};
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};

use crate::builtins::blocking;
use crate::place::Place;
use crate::{shared, store};

/// No kind's key: the API server's cache passes over it.
const ORIGIN: &str = "/registry/dhow/origin";
const PAGE: usize = 500;
/// What one transaction may hold: etcd's defaults are 128 operations and 1.5 MiB.
const OPS: usize = 100;
const BYTES: usize = 1 << 20;

/// In etcd: where its state came from.
#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Origin {
    /// Certificate of the cluster's authority, which tells clusters apart.
    ca: String,
    /// Revision of the embedded store that was copied.
    revision: u64,
    /// Added to etcd's revisions.
    pub offset: u64,
    /// Everything is there, and was compared.
    pub complete: bool,
}

impl Origin {
    pub async fn read(etcd: &Arc<dyn Kv>) -> Result<Option<Self>> {
        let found = etcd.range(RangeRequest::new(KeyRange::key(ORIGIN))).await.context("read from etcd")?;
        let Some(kept) = found.kvs.first() else { return Ok(None) };
        Ok(Some(serde_json::from_slice(&kept.value).with_context(|| format!("read {ORIGIN} in etcd"))?))
    }

    fn write(&self) -> Result<Op> {
        let value = serde_json::to_vec(self).context("encode the origin")?;
        Ok(Op::Put { key: Bytes::from_static(ORIGIN.as_bytes()), value: value.into(), lease: 0 })
    }
}

/// How many keys were moved, and the first revision that clients see from now on.
pub struct Moved {
    pub keys: usize,
    pub revision: u64,
}

/// Moves the state; repeated after it was cut off, it begins anew. The data folder is the caller's alone.
pub async fn run(place: &Place) -> Result<Moved> {
    let etcd = place.etcd.as_ref().context("name the etcd servers with --store")?;
    ensure!(place.store_dir().is_dir(), "{} holds no store", place.data_dir.display());
    let ca_path = place.pki_dir().join("ca.crt");
    let ca = files::read_optional(&ca_path)?.with_context(|| format!("{} is missing", ca_path.display()))?;
    let source = blocking(place, "open the store", |place| Ok(FjallKv::open(place.store_dir())?)).await?;
    let target = store::connect(etcd).await?;
    let moved = copy(&source, &target, ca).await?;
    shared::settle(place, &target).await.context("share the cluster's keys")?;
    let text = format!("{}\n", etcd.endpoints.text);
    blocking(place, "note the move", move |place| Ok(files::write_private(&place.moved_file(), text.as_bytes())?))
        .await?;
    finish(&target).await?;
    Ok(moved)
}

/// Copies and compares everything; the move is complete after [`finish`].
async fn copy(source: &FjallKv, target: &Arc<dyn Kv>, ca: String) -> Result<Moved> {
    let revision = source.current_revision().await?;
    let before = Origin::read(target).await?;
    check(target, before.as_ref(), &ca, revision).await?;
    let origin = Origin { ca, revision, offset: revision + SKIP_REVISIONS, complete: false };
    if before.as_ref().is_some_and(|before| before.complete) {
        let kept = before.map_or(origin.offset, |before| before.offset);
        return Ok(Moved { keys: 0, revision: target.current_revision().await? + kept });
    }
    // Whatever an earlier attempt left goes.
    let all = [(b"\0".to_vec(), ORIGIN.into()), ([ORIGIN.as_bytes(), b"\0"].concat(), b"\0".to_vec())];
    let ops = all.map(|(start, end): (Vec<u8>, Vec<u8>)| Op::Delete {
        range: KeyRange { start: start.into(), end: Some(end.into()) },
    });
    let begin = Txn { success: [Vec::from(ops), vec![origin.write()?]].concat(), ..Txn::default() };
    target.txn(begin).await.context("begin the move in etcd")?;

    let count =
        source.range(RangeRequest { count_only: true, ..RangeRequest::at(everything(), revision) }).await?.count;
    let style = ProgressStyle::with_template("{bar:30} {pos} of {len} {msg}").context("draw the progress")?;
    let progress = ProgressBar::new(count as u64).with_style(style).with_message("copied");
    let ttls: HashMap<LeaseId, u64> = source.leases().into_iter().collect();
    let mut leases = HashMap::new();
    let mut pages = Pages::new(source, revision);
    while let Some(page) = pages.next().await? {
        for batch in batches(&page) {
            let mut ops = Vec::with_capacity(batch.len());
            for kv in batch {
                let lease = match (kv.lease, leases.get(&kv.lease)) {
                    (0, _) => 0,
                    (_, Some(known)) => *known,
                    (old, None) => {
                        let ttl = ttls.get(&old).with_context(|| format!("lease {old} is missing"))?;
                        let new = target.lease_grant(*ttl).await.context("make a lease in etcd")?;
                        leases.insert(old, new);
                        new
                    }
                };
                ops.push(Op::Put { key: kv.key.clone(), value: kv.value.clone(), lease });
            }
            let first = batch.first().map(|kv| String::from_utf8_lossy(&kv.key)).unwrap_or_default();
            target
                .txn(Txn { success: ops, ..Txn::default() })
                .await
                .with_context(|| format!("write {} keys from {first} on to etcd", batch.len()))?;
            progress.inc(batch.len() as u64);
        }
    }
    progress.set_position(0);
    progress.set_message("compared");
    compare(source, target, revision, &progress).await?;
    progress.finish_and_clear();
    Ok(Moved { keys: count, revision: target.current_revision().await? + origin.offset })
}

/// Whether the target may be written: empty, or the same cluster's unfinished or unused copy.
async fn check(target: &Arc<dyn Kv>, before: Option<&Origin>, ca: &str, revision: u64) -> Result<()> {
    let Some(before) = before else {
        let request = RangeRequest { count_only: true, ..RangeRequest::new(everything()) };
        let count = target.range(request).await.context("look into etcd")?.count;
        ensure!(count == 0, "the etcd servers are not empty: {count} keys are there");
        return Ok(());
    };
    ensure!(before.ca == ca, "the etcd servers hold another cluster");
    ensure!(
        !before.complete || before.revision == revision,
        "this cluster was moved to the etcd servers before, and its data folder was used since; going back and forth \
         would lose what was written in either"
    );
    Ok(())
}

/// Reads everything back.
async fn compare(source: &FjallKv, target: &Arc<dyn Kv>, revision: u64, progress: &ProgressBar) -> Result<()> {
    let at = target.current_revision().await.context("read back from etcd")?;
    let mut pages = Pages::new(source, revision);
    let mut seen = 0;
    while let Some(page) = pages.next().await? {
        let (Some(first), Some(last)) = (page.first(), page.last()) else { break };
        let end = [&last.key[..], b"\0"].concat().into();
        let range = KeyRange { start: first.key.clone(), end: Some(end) };
        let found = target.range(RangeRequest::at(range, at)).await.context("read back from etcd")?;
        let mut copies = found.kvs.iter().filter(|kv| kv.key != ORIGIN.as_bytes());
        for kv in &page {
            let same = copies.next().is_some_and(|copy| copy.key == kv.key && copy.value == kv.value);
            ensure!(same, "{} is not in etcd as it is here", String::from_utf8_lossy(&kv.key));
        }
        ensure!(copies.next().is_none(), "there is more in etcd than was copied; does another program write there?");
        seen += page.len();
        progress.set_position(seen as u64);
    }
    let request = RangeRequest { count_only: true, ..RangeRequest::at(everything(), at) };
    let count = target.range(request).await.context("read back from etcd")?.count;
    ensure!(count == seen + 1, "there are {count} keys in etcd instead of {}", seen + 1);
    Ok(())
}

/// Lets servers start on etcd.
async fn finish(target: &Arc<dyn Kv>) -> Result<()> {
    let origin = Origin::read(target).await?.context("the mark of the move is gone from etcd")?;
    let done = Origin { complete: true, ..origin };
    target.txn(Txn { success: vec![done.write()?], ..Txn::default() }).await.context("finish the move in etcd")?;
    Ok(())
}

fn everything() -> KeyRange {
    KeyRange::prefix("")
}

/// All keys of a revision, some at a time.
struct Pages<'a> {
    source: &'a FjallKv,
    revision: u64,
    from: Option<Bytes>,
}

impl<'a> Pages<'a> {
    fn new(source: &'a FjallKv, revision: u64) -> Self {
        Self { source, revision, from: Some(Bytes::from_static(b"\0")) }
    }

    async fn next(&mut self) -> Result<Option<Vec<KeyValue>>> {
        let Some(start) = self.from.take() else { return Ok(None) };
        let range = KeyRange { start, end: Some(Bytes::from_static(b"\0")) };
        let request = RangeRequest { limit: PAGE, ..RangeRequest::at(range, self.revision) };
        let page = self.source.range(request).await.context("read the store")?;
        self.from = page.kvs.last().filter(|_| page.more).map(|last| [&last.key[..], b"\0"].concat().into());
        Ok(Some(page.kvs).filter(|kvs| !kvs.is_empty()))
    }
}

/// Parts of a page that fit into a transaction each.
fn batches(page: &[KeyValue]) -> Vec<&[KeyValue]> {
    let (mut out, mut begin, mut bytes) = (Vec::new(), 0, 0);
    for (index, kv) in page.iter().enumerate() {
        let size = kv.key.len() + kv.value.len();
        if index > begin && (index - begin == OPS || bytes + size > BYTES) {
            out.push(&page[begin..index]);
            (begin, bytes) = (index, 0);
        }
        bytes += size;
    }
    if begin < page.len() {
        out.push(&page[begin..]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use dhow_store::{MemoryKv, ShiftedKv};

    async fn put(kv: &dyn Kv, key: &str, value: Vec<u8>, lease: LeaseId) {
        let op = Op::Put { key: key.to_owned().into(), value: value.into(), lease };
        kv.txn(Txn { success: vec![op], ..Txn::default() }).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn everything_arrives_and_revisions_go_on() {
        let folder = tempfile::tempdir().unwrap();
        let source = FjallKv::open(folder.path().join("store")).unwrap();
        for number in 0..1200 {
            put(&source, &format!("/registry/core/pods/a/{number:04}"), vec![7; number], 0).await;
        }
        let lease = source.lease_grant(600).await.unwrap();
        put(&source, "/registry/core/events/a/e", b"{}".to_vec(), lease).await;
        let last = source.current_revision().await.unwrap();
        let target: Arc<dyn Kv> = Arc::new(MemoryKv::new());
        // An attempt that was cut off, with rubbish.
        let cut = Origin { ca: "ca".into(), revision: 3, offset: 5, complete: false };
        target.txn(Txn { success: vec![cut.write().unwrap()], ..Txn::default() }).await.unwrap();
        put(&*target, "/registry/core/pods/a/rubbish", vec![1], 0).await;
        let moved = copy(&source, &target, "ca".into()).await.unwrap();
        assert_eq!(moved.keys, 1201);
        assert!(!Origin::read(&target).await.unwrap().unwrap().complete);
        finish(&target).await.unwrap();
        let origin = Origin::read(&target).await.unwrap().unwrap();
        let shown = ShiftedKv::new(target.clone(), origin.offset);
        let all = shown.range(RangeRequest::new(KeyRange::prefix("/registry/core/"))).await.unwrap();
        assert!(all.kvs.len() == 1201 && all.kvs.iter().all(|kv| kv.mod_revision > last));
        let event = all.kvs.iter().find(|kv| kv.key == "/registry/core/events/a/e").unwrap();
        shown.lease_revoke(event.lease).await.unwrap();
        // Again nothing happens, unless the data folder was used since.
        copy(&source, &target, "ca".into()).await.unwrap();
        assert!(copy(&source, &target, "other".into()).await.is_err());
        put(&source, "late", vec![1], 0).await;
        assert!(copy(&source, &target, "ca".into()).await.is_err());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_somebody_elses_stays() {
        let folder = tempfile::tempdir().unwrap();
        let source = FjallKv::open(folder.path().join("store")).unwrap();
        let target: Arc<dyn Kv> = Arc::new(MemoryKv::new());
        put(&*target, "theirs", vec![1], 0).await;
        let refusal = copy(&source, &target, "ca".into()).await.map(drop).unwrap_err().to_string();
        assert!(refusal.contains("not empty"), "{refusal}");
        assert_eq!(target.current_revision().await.unwrap(), 2);
    }

    #[test]
    fn batches_are_small_enough() {
        let kv = |size: usize| KeyValue {
            key: Bytes::new(),
            value: vec![0; size].into(),
            create_revision: 1,
            mod_revision: 1,
            version: 1,
            lease: 0,
        };
        let page: Vec<_> = (0..250).map(|_| kv(1)).chain([kv(BYTES), kv(BYTES), kv(1)]).collect();
        let sizes: Vec<usize> = batches(&page).iter().map(|batch| batch.len()).collect();
        assert_eq!(sizes, [100, 100, 50, 1, 1, 1]);
        assert!(batches(&[]).is_empty());
    }
}
