//! The suite of blobs on S3, served by another implementation over real sockets, and what only a network can do.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use dhow_base::chain;
use dhow_base::pki::ClusterCa;
use dhow_store::{Blob, BlobUpload, S3Blob, S3Config, S3Credentials, suite};
use dhow_test_s3::{BUCKET, Fault, Server};
use futures::TryStreamExt;

struct Place {
    folder: tempfile::TempDir,
    server: Server,
}

impl Place {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::start(folder.path(), None).await.unwrap();
        Self { folder, server }
    }

    fn config(&self) -> S3Config {
        S3Config {
            endpoint: Some(self.server.url()),
            path_style: true,
            prefix: "cloud/blobs".to_owned(),
            timeout: Duration::from_secs(20),
            piece: 5 << 20,
            ..S3Config::new(BUCKET, S3Credentials::File(self.server.credentials.clone()))
        }
    }

    fn store(&self) -> S3Blob {
        S3Blob::new(self.config()).unwrap()
    }

    /// Files below the bucket's folder that are part of an upload.
    fn left(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut folders = vec![self.server.bucket.clone()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => folders.push(path),
                    false if path.to_string_lossy().contains(".uploads") => found.push(path.display().to_string()),
                    false => {}
                }
            }
        }
        // Parts of multipart uploads are beside the buckets.
        let parts = std::fs::read_dir(self.folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
        found.extend(parts.filter_map(|name| name.into_string().ok()).filter(|name| name.contains("upload")));
        found
    }
}

fn noise(length: usize) -> Vec<u8> {
    (0..length as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

async fn fill(upload: &mut Box<dyn BlobUpload>, bytes: &[u8]) {
    for piece in bytes.chunks(1 << 20) {
        upload.write(vec![Bytes::copy_from_slice(piece)]).await.unwrap();
    }
}

async fn put(store: &S3Blob, key: &str, bytes: &[u8]) {
    let mut upload = store.begin("put").await.unwrap();
    fill(&mut upload, bytes).await;
    upload.commit(key).await.unwrap();
}

async fn get(store: &S3Blob, key: &str) -> Result<Vec<u8>, String> {
    let stream = store.get(key, 0..u64::MAX).await.map_err(|error| chain(&error))?.ok_or("none")?;
    let pieces: Vec<Bytes> = stream.try_collect().await.map_err(|error| chain(&error))?;
    Ok(pieces.concat())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_passes_the_suite() {
    let place = Place::new().await;
    let store: Arc<dyn Blob> = Arc::new(place.store());
    suite::blobs::run(|| async { store.clone() }).await;
    // Refused commits of the suite's nonsense stay for whoever resumes them; nothing else does.
    let left = place.left();
    assert!(left.iter().all(|file| file.contains("nonsense_is_refused") || file.contains("begun_again")), "{left:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_go_on_over_many_pages() {
    let place = Place::new().await;
    let store = S3Blob::new(S3Config { page: 3, ..place.config() }).unwrap();
    for n in 0..10 {
        put(&store, &format!("many/{n}"), b"x").await;
    }
    let mut keys: Vec<String> = store.list("many/").await.unwrap().map_ok(|meta| meta.key).try_collect().await.unwrap();
    keys.sort();
    assert_eq!(keys, (0..10).map(|n| format!("many/{n}")).collect::<Vec<_>>());
    // Keys of others with the same beginning are not ours.
    std::fs::write(place.server.bucket.join("other"), "x").unwrap();
    assert_eq!(store.list("").await.unwrap().try_collect::<Vec<_>>().await.unwrap().len(), 10);
}

/// Uploads are found and gone on with by a process that did not begin them, wherever the other one was cut off.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_process_goes_on() {
    let place = Place::new().await;
    let bytes = noise(14 << 20);
    let mut upload = place.store().begin("one").await.unwrap();
    fill(&mut upload, &bytes[..11 << 20]).await;
    upload.park().await.unwrap();
    let other = place.store();
    let pending = other.uploads().await.unwrap();
    assert_eq!((pending.len(), pending[0].size), (1, 11 << 20));
    // A commit that ends before its last step.
    place.server.script.next("POST /dhow/cloud/blobs/a/b?uploadId", Fault::Refuse(403, "AccessDenied"));
    place.server.script.next("DELETE /dhow/cloud/blobs/a/b?uploadId", Fault::Refuse(400, "InvalidRequest"));
    let upload = other.resume("one").await.unwrap().unwrap();
    let error = chain(&upload.commit("a/b").await.unwrap_err());
    assert!(error.contains("s3://dhow/cloud/blobs/a/b") && error.contains("s3:PutObject"), "{error}");
    assert!(other.head("a/b").await.unwrap().is_none());
    drop(other);

    let third = place.store();
    let mut upload = third.resume("one").await.unwrap().unwrap();
    assert_eq!(upload.written(), 11 << 20);
    fill(&mut upload, &bytes[11 << 20..]).await;
    upload.commit("a/b").await.unwrap();
    assert!(get(&third, "a/b").await.unwrap() == bytes);
    assert_eq!(place.left(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_passes_is_tried_again() {
    let place = Place::new().await;
    let store = place.store();
    let script = &place.server.script;
    let bytes = noise(11 << 20);
    script.next("PUT", Fault::Refuse(503, "SlowDown"));
    script.next("PUT", Fault::Refuse(500, "InternalError"));
    script.next("PUT", Fault::Forget(500));
    // It is done, and the answer is lost.
    script.next("POST /dhow/cloud/blobs/a?uploadId", Fault::Forget(503));
    put(&store, "a", &bytes).await;
    script.next("GET /dhow/cloud/blobs/a", Fault::Cut(1_000_000));
    script.next("GET /dhow/cloud/blobs/a", Fault::Refuse(429, "TooManyRequests"));
    script.next("GET /dhow/cloud/blobs/a", Fault::Cut(10));
    assert!(get(&store, "a").await.unwrap() == bytes);
    // A server that cannot copy parts.
    script.next("partNumber=1", Fault::Refuse(501, "NotImplemented"));
    put(&store, "b", &bytes).await;
    assert!(get(&store, "b").await.unwrap() == bytes);
    assert_eq!(place.left(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_that_was_replaced_is_no_rest_of_another() {
    let place = Place::new().await;
    let store = place.store();
    put(&store, "a", &noise(3 << 20)).await;
    place.server.script.next("GET /dhow/cloud/blobs/a", Fault::Cut(1000));
    let stream = store.get("a", 0..u64::MAX).await.unwrap().unwrap();
    put(&store, "a", &[7; 3 << 20]).await;
    let read: Result<Vec<Bytes>, _> = stream.try_collect().await;
    let error = chain(&read.map(|pieces| pieces.len()).unwrap_err());
    assert!(error.contains("replaced") || error.contains("412"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_hangs_is_not_waited_for() {
    let place = Place::new().await;
    let config = S3Config { timeout: Duration::from_millis(200), attempts: 2, ..place.config() };
    let store = S3Blob::new(config).unwrap();
    for _ in 0..2 {
        place.server.script.next("HEAD", Fault::Hang);
    }
    let begun = Instant::now();
    let error = chain(&store.head("a").await.unwrap_err());
    assert!(error.contains("no answer within 0.2 s"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(5));
    // It is well again.
    assert!(store.head("a").await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mistakes_are_named_with_what_helps() {
    let place = Place::new().await;
    let said = async |config: S3Config| match S3Blob::new(config) {
        Ok(store) => chain(&store.check().await.unwrap_err()),
        Err(error) => chain(&error),
    };
    place.store().check().await.unwrap();
    let error = said(S3Config { bucket: "another".to_owned(), ..place.config() }).await;
    assert!(
        error.contains("s3://another/") && error.contains("NoSuchBucket") && error.contains("make the bucket"),
        "{error}"
    );
    assert!(error.contains(&place.server.url()), "{error}");
    let wrong = place.folder.path().join("wrong");
    std::fs::write(&wrong, "aws_access_key_id = test-access\naws_secret_access_key = guessed-by-a-stranger\n").unwrap();
    let error = said(S3Config { credentials: S3Credentials::File(wrong.clone()), ..place.config() }).await;
    assert!(error.contains("SignatureDoesNotMatch") && error.contains("correct the access key"), "{error}");
    assert!(!error.contains("guessed-by-a-stranger"), "{error}");
    // Credentials that are put right are taken up.
    let store = S3Blob::new(S3Config { credentials: S3Credentials::File(wrong.clone()), ..place.config() }).unwrap();
    store.check().await.unwrap_err();
    std::fs::copy(&place.server.credentials, &wrong).unwrap();
    store.check().await.unwrap();
    let error = said(S3Config { endpoint: Some("http://127.0.0.1:1".to_owned()), ..place.config() }).await;
    assert!(error.contains("cannot be reached"), "{error}");
    place.server.script.next("PUT", Fault::Refuse(507, "XMinioStorageFull"));
    let error = place.store().begin("x").await.unwrap().commit("x").await.unwrap_err();
    let source = std::error::Error::source(&error).unwrap().downcast_ref::<std::io::Error>().unwrap();
    assert_eq!(source.kind(), std::io::ErrorKind::StorageFull);
    for (bucket, prefix, endpoint) in [
        ("", "", "http://h"),
        ("b", "a//b", "http://h"),
        ("b", "../x", "http://h"),
        ("b", "", "h:1"),
        ("b", "", "http://h/p"),
    ] {
        let config = S3Config {
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
            endpoint: Some(endpoint.to_owned()),
            ..place.config()
        };
        assert!(S3Blob::new(config).is_err(), "{bucket} {prefix} {endpoint}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_believed_by_their_authority() {
    let folder = tempfile::tempdir().unwrap();
    let ca = ClusterCa::load_or_create(&folder.path().join("ca")).unwrap();
    let cert = ca.issue_server("s3", &["127.0.0.1".to_owned()]).unwrap();
    let server = Server::start(folder.path(), Some(&cert)).await.unwrap();
    let config = S3Config {
        endpoint: Some(format!("https://{}", server.address)),
        path_style: true,
        ..S3Config::new(BUCKET, S3Credentials::File(server.credentials.clone()))
    };
    let error = chain(&S3Blob::new(config.clone()).unwrap().check().await.unwrap_err());
    assert!(error.contains("not trusted") && error.contains("caFile"), "{error}");
    let file = folder.path().join("ca.crt");
    std::fs::write(&file, ca.cert_pem()).unwrap();
    let store = S3Blob::new(S3Config { ca_file: Some(file), ..config }).unwrap();
    put(&store, "a", b"x").await;
    assert_eq!(get(&store, "a").await.unwrap(), b"x");
    assert!(server.bucket.join("a").is_file());
}
