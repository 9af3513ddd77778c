//! Backup archives in a bucket: sent as they are made, whole or absent, and fetched to be checked and restored.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use dhow_store::{Blob, BlobUpload, S3Blob};
use futures::TryStreamExt;
use tempfile::NamedTempFile;
use tokio::sync::mpsc;

use crate::backup::{self, Contents, UNFINISHED};

/// What uploads of ours are called.
const UPLOAD: &str = "backup-";
/// The archive comes in pieces of this size, a few of which may wait for the server.
const PIECE: usize = 1 << 20;
const WAITING: usize = 4;

/// The end of a pipe from threads to a task.
struct Pipe(mpsc::Sender<Bytes>);

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.blocking_send(Bytes::copy_from_slice(bytes)).map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Makes the archive `key` from the backup file of a store, and the cluster's keys if their folder is given.
pub async fn send(bucket: &S3Blob, key: &str, store: PathBuf, keys: Option<PathBuf>) -> Result<Contents> {
    let failed = |error: dhow_store::Error| anyhow!("{}", dhow_base::chain(&error));
    let mut upload = bucket.begin(&format!("{UPLOAD}{key}")).await.map_err(failed)?;
    let (sender, mut pieces) = mpsc::channel(WAITING);
    let packing = tokio::task::spawn_blocking(move || {
        let out = BufWriter::with_capacity(PIECE, Pipe(sender));
        backup::pack(out, &store, keys.as_deref()).map(|(contents, _)| contents)
    });
    let sent = pour(&mut pieces, &mut upload).await;
    // Who still wants to send learns that nobody listens.
    drop(pieces);
    let packed = packing.await.context("make the archive")?;
    match (sent, packed) {
        (Ok(()), Ok(contents)) => upload.commit(key).await.map(|()| contents).map_err(failed),
        (sent, packed) => {
            let error = sent.err().map(failed).or(packed.err());
            upload.abort().await.map_err(failed)?;
            Err(error.unwrap_or_else(|| anyhow!("the archive is not whole")))
        }
    }
}

async fn pour(pieces: &mut mpsc::Receiver<Bytes>, upload: &mut Box<dyn BlobUpload>) -> Result<(), dhow_store::Error> {
    while let Some(piece) = pieces.recv().await {
        upload.write(vec![piece]).await?;
    }
    Ok(())
}

/// Brings the archive `key` to a file in `folder` that goes with the value.
pub async fn fetch(bucket: &S3Blob, key: &str, folder: &Path) -> Result<NamedTempFile> {
    let failed = |error: dhow_store::Error| anyhow!("{}", dhow_base::chain(&error));
    let mut found = bucket
        .get(key, 0..u64::MAX)
        .await
        .map_err(failed)?
        .with_context(|| format!("there is no {}", bucket.url(key)))?;
    let writing = || format!("write into {}", folder.display());
    let mut file = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(folder).with_context(writing)?;
    while let Some(piece) = found.try_next().await.map_err(failed)? {
        // Small writes into the page cache; what is restored from it is what is made durable.
        file.write_all(&piece).with_context(writing)?;
    }
    Ok(file)
}

/// Removes what backups that were cut off so long ago left in the bucket.
pub async fn tidy(bucket: &S3Blob, age: Duration) -> Result<(), dhow_store::Error> {
    let old = SystemTime::now().checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH);
    for pending in bucket.uploads().await? {
        if pending.id.starts_with(UPLOAD)
            && pending.touched < old
            && let Some(upload) = bucket.resume(&pending.id).await?
        {
            upload.abort().await?;
        }
    }
    Ok(())
}
