//! The suite of blobs on both backends, and what only files can show.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use bytes::Bytes;
use dhow_store::{Blob, FsBlob, MemoryBlob, suite};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_passes_the_suite() {
    suite::blobs::run(|| async { Arc::new(MemoryBlob::default()) as Arc<dyn Blob> }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_pass_the_suite() {
    let folder = tempfile::tempdir().unwrap();
    let store: Arc<dyn Blob> = Arc::new(FsBlob::open(folder.path()).unwrap());
    suite::blobs::run(|| async { store.clone() }).await;
}

#[tokio::test]
async fn an_upload_outlives_the_process() {
    let folder = tempfile::tempdir().unwrap();
    let mut upload = FsBlob::open(folder.path()).unwrap().begin("one").await.unwrap();
    upload.write(vec![Bytes::from_static(b"kept")]).await.unwrap();
    drop(upload);
    let store = FsBlob::open(folder.path()).unwrap();
    let upload = store.resume("one").await.unwrap().unwrap();
    assert_eq!(upload.written(), 4);
    upload.commit("a/b").await.unwrap();
    assert_eq!(std::fs::read(folder.path().join("a/b")).unwrap(), b"kept");
}
