//! Blobs in and out, in every way that the protocol knows.

use std::sync::Arc;

use bytes::Bytes;
use dhow_image::{Digest, Hasher};
use dhow_registry::{Config, Everyone, Registry};
use dhow_store::{FsBlob, MemoryKv};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{Server, everywhere, files, noise};

fn sha512(bytes: &[u8]) -> Digest {
    let mut hasher = Hasher::sha512();
    hasher.update(bytes);
    hasher.finish()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_way_in_brings_the_same_blob() {
    everywhere(Config::default, async |server| {
        let web = &server.web;
        for (round, digest_of) in [Digest::of as fn(&[u8]) -> Digest, sha512].into_iter().enumerate() {
            for (way, size) in [
                ("post", 512),
                ("put", 512),
                ("chunks", 3_000_017),
                ("last", 300_000),
                ("stream", 2_500_000),
                ("late", 100_000),
            ] {
                let bytes = noise((round * 10 + way.len() + size) as u64, size);
                let digest = digest_of(&bytes);
                let repository = format!("ways/{way}");
                let blob = format!("/v2/{repository}/blobs/{digest}");
                web.get(&blob).await.expect(404);
                let body = Bytes::from(bytes.clone());
                let finish = |location: String| format!("{location}?digest={digest}");
                let reply = match way {
                    "post" => {
                        let path = format!("/v2/{repository}/blobs/uploads/?digest={digest}");
                        web.send("POST", &path, &[], body).await
                    }
                    "put" => web.send("PUT", &finish(web.begin(&repository).await), &[], body).await,
                    "stream" => {
                        let location = web.begin(&repository).await;
                        let pieces = body.chunks(70_000).map(Bytes::copy_from_slice).collect();
                        let reply = web.stream("PATCH", &location, &[], pieces).await.expect(202);
                        assert_eq!(reply.header("range").unwrap(), format!("0-{}", size - 1));
                        web.send("PUT", &finish(reply.header("location").unwrap().to_owned()), &[], "").await
                    }
                    "late" => {
                        // The algorithm is known at the end only.
                        let location = web.begin(&repository).await;
                        web.send("PATCH", &location, &[], body).await.expect(202);
                        web.send("PUT", &finish(location), &[], "").await
                    }
                    _ => {
                        let path = format!("/v2/{repository}/blobs/uploads/?digest-algorithm={}", digest.algorithm());
                        let begun = web.send("POST", &path, &[], "").await.expect(202);
                        let mut location = begun.header("location").unwrap().to_owned();
                        let third = size.div_ceil(3);
                        let mut last = Bytes::new();
                        for (n, chunk) in bytes.chunks(third).enumerate() {
                            let from = n * third;
                            let range = format!("{from}-{}", from + chunk.len() - 1);
                            if way == "last" && n == 2 {
                                last = Bytes::copy_from_slice(chunk);
                                break;
                            }
                            let headers = [("content-range", range.as_str())];
                            let sent = Bytes::copy_from_slice(chunk);
                            let reply = web.send("PATCH", &location, &headers, sent).await.expect(202);
                            assert_eq!(reply.header("range").unwrap(), format!("0-{}", from + chunk.len() - 1));
                            location = reply.header("location").unwrap().to_owned();
                        }
                        web.send("PUT", &finish(location), &[], last).await
                    }
                };
                let reply = reply.expect(201);
                assert_eq!(reply.header("location"), Some(blob.as_str()));
                assert_eq!(reply.header("docker-content-digest"), Some(digest.as_str()));
                let head = web.head(&blob).await.expect(200);
                assert_eq!(head.header("content-length").unwrap(), size.to_string());
                let got = web.get(&blob).await.expect(200);
                assert!(got.body == bytes, "{way}");
                assert_eq!(got.header("docker-content-digest"), Some(digest.as_str()));
                server.registry.settle().await.unwrap();
                assert_eq!(std::fs::read(server.blob_file(&digest)).unwrap(), bytes);
                assert!(web.get(&blob).await.expect(200).body == bytes, "{way}");
            }
        }
        assert_eq!(files(&server.blobs.join(".uploads")), 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunks_out_of_order_are_refused_and_told_where_to_go_on() {
    everywhere(Config::default, async |server| {
        let web = &server.web;
        let location = web.begin("a").await;
        let chunk = async |range: &str, body: &'static [u8]| {
            web.send("PATCH", &location, &[("content-range", range)], Bytes::from_static(body)).await
        };
        let early = chunk("5-9", b"56789").await.expect(416);
        assert_eq!(early.header("range"), Some("0-0"));
        chunk("0-4", b"01234").await.expect(202);
        let again = chunk("0-4", b"01234").await.expect(416);
        assert_eq!((again.header("range"), again.header("location")), (Some("0-4"), Some(location.as_str())));
        let status = web.get(&location).await.expect(204);
        assert_eq!((status.header("range"), status.header("location")), (Some("0-4"), Some(location.as_str())));
        assert_eq!(chunk("5-9", b"567").await.expect(400).code(), "SIZE_INVALID");
        assert_eq!(chunk("nonsense", b"567").await.expect(400).code(), "BLOB_UPLOAD_INVALID");
        let digest = Digest::of(b"0123456789");
        let finish = format!("{location}?digest={digest}");
        let headers = [("content-range", "4-9")];
        web.send("PUT", &finish, &headers, "456789").await.expect(416);
        web.send("PUT", &finish, &[("content-range", "5-9")], "56789").await.expect(201);
        assert_eq!(&web.get(&format!("/v2/a/blobs/{digest}")).await.body[..], b"0123456789");
        assert_eq!(web.get(&location).await.expect(404).code(), "BLOB_UPLOAD_UNKNOWN");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_connection_is_taken_up_where_it_broke() {
    let config = || Config { silence: std::time::Duration::from_secs(5), ..Config::default() };
    everywhere(config, async |server| {
        let web = &server.web;
        let bytes = noise(7, 3 << 20);
        let location = web.begin("a/b").await;
        let mut tcp = tokio::net::TcpStream::connect(server.address).await.unwrap();
        let head = format!("PATCH {location} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", bytes.len());
        tcp.write_all(head.as_bytes()).await.unwrap();
        tcp.write_all(&bytes[..2_000_000]).await.unwrap();
        // Once some of it is there, the request is being worked on.
        while web.get(&location).await.expect(204).header("range") == Some("0-0") {
            tokio::task::yield_now().await;
        }
        drop(tcp);
        // The next one waits until what the old connection brought is written.
        let refused = web.send("PATCH", &location, &[("content-range", "999999999-999999999")], "x").await.expect(416);
        let range = refused.header("range").unwrap().to_owned();
        let have: usize = range.strip_prefix("0-").unwrap().parse::<usize>().unwrap() + 1;
        assert!(have <= 2_000_000);
        let digest = Digest::of(&bytes);
        let rest = Bytes::copy_from_slice(&bytes[if have == 1 { 0 } else { have }..]);
        web.send("PUT", &format!("{location}?digest={digest}"), &[], rest).await.expect(201);
        assert!(web.get(&format!("/v2/a/b/blobs/{digest}")).await.body == bytes);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_content_is_never_kept() {
    everywhere(Config::default, async |server| {
        let web = &server.web;
        let wrong = Digest::of(b"something else");
        let post = format!("/v2/a/blobs/uploads/?digest={wrong}");
        assert_eq!(web.send("POST", &post, &[], "bytes").await.expect(400).code(), "DIGEST_INVALID");
        let location = web.begin("a").await;
        assert_eq!(web.send("PUT", &location, &[], "bytes").await.expect(400).code(), "DIGEST_INVALID");
        let put = format!("{location}?digest={wrong}");
        assert_eq!(web.send("PUT", &put, &[], "bytes").await.expect(400).code(), "DIGEST_INVALID");
        web.get(&location).await.expect(404);
        for bad in ["sha256:abc", "md5:d41d8cd98f00b204e9800998ecf8427e", "x", "sha256%3A.."] {
            let path = format!("/v2/a/blobs/uploads/?digest={bad}");
            assert_eq!(web.send("POST", &path, &[], "x").await.expect(400).code(), "DIGEST_INVALID", "{bad}");
        }
        let path = "/v2/a/blobs/uploads/?digest-algorithm=md5";
        assert_eq!(web.send("POST", path, &[], "").await.expect(400).code(), "DIGEST_INVALID");
        assert_eq!(files(&server.blobs), 0);
        web.head(&format!("/v2/a/blobs/{wrong}")).await.expect(404);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_are_cancelled_and_belong_to_their_repository() {
    everywhere(Config::default, async |server| {
        let web = &server.web;
        let location = web.begin("a").await;
        let elsewhere = location.replace("/v2/a/", "/v2/b/");
        web.get(&elsewhere).await.expect(404);
        web.send("PATCH", &elsewhere, &[], "x").await.expect(404);
        web.delete(&elsewhere).await.expect(404);
        web.delete(&location).await.expect(204);
        web.get(&location).await.expect(404);
        for made_up in ["x", "..", "%2e%2e%2fx", "00000000-0000-0000-0000-000000000000"] {
            web.send("PATCH", &format!("/v2/a/blobs/uploads/{made_up}"), &[], "x").await.expect(404);
        }
        assert_eq!(files(&server.blobs), 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ranges_and_conditions_of_downloads() {
    everywhere(Config::default, async |server| {
        let web = &server.web;
        let bytes = noise(3, 2048);
        let digest = web.push_blob("a", &bytes).await;
        let path = format!("/v2/a/blobs/{digest}");
        for (range, part, told) in [
            ("bytes=500-1499", 500..1500, "bytes 500-1499/2048"),
            ("bytes=500-", 500..2048, "bytes 500-2047/2048"),
            ("bytes=-500", 1548..2048, "bytes 1548-2047/2048"),
            ("bytes=2000-5000", 2000..2048, "bytes 2000-2047/2048"),
        ] {
            let reply = web.send("GET", &path, &[("range", range)], "").await.expect(206);
            assert_eq!(reply.header("content-range"), Some(told));
            assert_eq!(reply.header("content-length").unwrap(), part.len().to_string());
            assert!(reply.body == bytes[part]);
        }
        for range in ["bytes=500-0", "bytes=5000-10000"] {
            let reply = web.send("GET", &path, &[("range", range)], "").await.expect(416);
            assert_eq!(reply.header("content-range"), Some("bytes */2048"));
        }
        let etag = web.head(&path).await.header("etag").unwrap().to_owned();
        let unchanged = web.send("GET", &path, &[("if-none-match", &etag)], "").await.expect(304);
        assert!(unchanged.body.is_empty());
        web.send("GET", &path, &[("if-none-match", "\"other\"")], "").await.expect(200);
        web.send("GET", &path, &[("if-range", "\"other\""), ("range", "bytes=1-2")], "").await.expect(200);
        web.send("GET", &path, &[("if-range", &etag), ("range", "bytes=1-2")], "").await.expect(206);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blobs_are_mounted_across_repositories() {
    everywhere(Config::default, async |server| {
        let web = &server.web;
        let digest = web.push_blob("from/here", b"shared").await;
        let mount = async |repository: &str, digest: &Digest, from: &str| {
            web.send("POST", &format!("/v2/{repository}/blobs/uploads/?mount={digest}{from}"), &[], "").await
        };
        let named = mount("to/one", &digest, "&from=from/here").await.expect(201);
        assert_eq!(named.header("location").unwrap(), format!("/v2/to/one/blobs/{digest}"));
        mount("to/two", &digest, "").await.expect(201);
        let missing = mount("to/three", &digest, "&from=not/there").await.expect(202);
        assert!(missing.header("location").is_some());
        mount("to/three", &Digest::of(b"unknown"), "").await.expect(202);
        for (repository, status) in [("to/one", 200), ("to/two", 200), ("to/three", 404)] {
            web.get(&format!("/v2/{repository}/blobs/{digest}")).await.expect(status);
        }
        web.delete(&format!("/v2/from/here/blobs/{digest}")).await.expect(202);
        web.get(&format!("/v2/from/here/blobs/{digest}")).await.expect(404);
        web.delete(&format!("/v2/from/here/blobs/{digest}")).await.expect(404);
        web.get(&format!("/v2/to/one/blobs/{digest}")).await.expect(200);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_push_the_same_blob_at_once() {
    everywhere(Config::default, async |server| {
        let bytes = Bytes::from(noise(5, 1_500_000));
        let digest = Digest::of(&bytes);
        let pushes = (0..12).map(|n| {
            let (web, bytes, digest) = (server.web.clone(), bytes.clone(), digest.clone());
            async move {
                let repository = format!("r{}", n % 3);
                let location = web.begin(&repository).await;
                web.send("PUT", &format!("{location}?digest={digest}"), &[], bytes).await.expect(201);
                let got = web.get(&format!("/v2/{repository}/blobs/{digest}")).await.expect(200);
                assert_eq!(got.body.len(), 1_500_000);
            }
        });
        futures::future::join_all(pushes).await;
        assert_eq!(files(&server.blobs), 1);
    })
    .await;
}

#[tokio::test]
async fn a_body_that_is_refused_does_not_break_the_connection() {
    let server = Server::new().await;
    let mut tcp = tokio::net::TcpStream::connect(server.address).await.unwrap();
    let body = vec![b'x'; 2 << 20];
    let head = format!("PATCH /v2/a/blobs/uploads/none HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
    tcp.write_all(head.as_bytes()).await.unwrap();
    tcp.write_all(&body).await.unwrap();
    tcp.write_all(b"GET /v2/ HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut text = String::new();
    tcp.read_to_string(&mut text).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 404"), "{text}");
    assert!(text.contains("HTTP/1.1 200"), "{text}");
}

#[tokio::test]
async fn what_is_small_is_a_file_a_moment_later() {
    let (kv, folder) = (Arc::new(MemoryKv::new()), tempfile::tempdir().unwrap());
    let files_in = folder.path().join("registry");
    let open = async || {
        let blobs = Arc::new(FsBlob::open(&files_in).unwrap());
        Registry::open(Config::default(), kv.clone(), blobs, Arc::new(Everyone::default())).await.unwrap()
    };
    let server = Server::over(Config::default(), Arc::new(Everyone::default()), kv.clone(), folder).await;
    let (kept, gone) = (server.web.push_blob("a", b"kept").await, server.web.push_blob("a", b"gone").await);
    let manifest = server.web.push_image("a", "1", "layer").await.0;
    server.web.delete(&format!("/v2/a/blobs/{gone}")).await.expect(202);
    // Another process goes on with what this one left in the records.
    let other = open().await;
    assert_eq!(other.read_blob("a", &kept, 100).await.unwrap().unwrap(), b"kept");
    other.settle().await.unwrap();
    assert_eq!(std::fs::read(server.blob_file(&kept)).unwrap(), b"kept");
    assert!(server.blob_file(&manifest).exists() && !server.blob_file(&gone).exists());
    assert_eq!(files(&server.blobs.join(".uploads")), 0);
    // Parts, before and after.
    let path = format!("/v2/a/blobs/{}", server.web.push_blob("a", b"0123456789").await);
    for _ in 0..2 {
        let part = server.web.send("GET", &path, &[("range", "bytes=3-5")], "").await.expect(206);
        assert_eq!(part.body, b"345"[..]);
        server.registry.settle().await.unwrap();
    }
    // By itself, in the end.
    let last = server.web.push_blob("a", b"last").await;
    tokio::time::timeout(std::time::Duration::from_secs(60), async {
        while !server.blob_file(&last).exists() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();
}
