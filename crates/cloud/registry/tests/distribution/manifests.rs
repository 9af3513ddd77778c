//! Manifests, tags, referrers and lists.

use std::collections::BTreeMap;
use std::sync::Arc;

use dhow_image::Digest;
use dhow_registry::{Config, Everyone, Pattern, Rules};
use serde_json::{Value, json};

use crate::harness::{INDEX, MANIFEST, Server, Web, descriptor, image, index};

const DOCKER: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

fn of(manifest: &Value) -> Digest {
    Digest::of(manifest.to_string().as_bytes())
}

#[tokio::test]
async fn a_manifest_comes_back_as_it_was_sent() {
    let server = Server::new().await;
    let web = &server.web;
    web.push_blob("a", b"{}").await;
    web.push_blob("a", b"layer").await;
    // Unknown fields, white space and order are the client's.
    let text = serde_json::to_string_pretty(&image(&["layer"])).unwrap().replacen('{', "{ \"x-own\": [1, 2.50],", 1);
    let digest = Digest::of(text.as_bytes());
    let put =
        web.send("PUT", "/v2/a/manifests/v1", &[("content-type", &format!("{MANIFEST}; q=1"))], text.clone()).await;
    let put = put.expect(201);
    assert_eq!(put.header("docker-content-digest"), Some(digest.as_str()));
    assert_eq!(put.header("location").unwrap(), format!("/v2/a/manifests/{digest}"));
    for reference in ["v1", digest.as_str()] {
        let path = format!("/v2/a/manifests/{reference}");
        let got = web.get(&path).await.expect(200);
        assert_eq!((got.header("content-type"), &got.body[..]), (Some(MANIFEST), text.as_bytes()));
        let head = web.head(&path).await.expect(200);
        assert_eq!(head.header("content-length").unwrap(), text.len().to_string());
        assert_eq!(head.header("docker-content-digest"), Some(digest.as_str()));
        let etag = got.header("etag").unwrap();
        web.send("GET", &path, &[("if-none-match", etag)], "").await.expect(304);
    }
    let mut hasher = dhow_image::Hasher::sha512();
    hasher.update(text.as_bytes());
    let long = hasher.finish();
    let by_long =
        web.send("PUT", &format!("/v2/a/manifests/{long}"), &[("content-type", MANIFEST)], text.clone()).await;
    assert_eq!(by_long.expect(201).header("docker-content-digest"), Some(long.as_str()));
    assert_eq!(&web.get(&format!("/v2/a/manifests/{long}")).await.expect(200).body[..], text.as_bytes());
}

#[tokio::test]
async fn what_is_wrong_with_a_manifest_is_told() {
    let server = Server::new().await;
    let web = &server.web;
    web.push_blob("a", b"{}").await;
    let manifest = image(&["here", "missing", "too"]);
    web.push_blob("a", b"here").await;
    let refused = web.put_manifest("a", "v1", &manifest).await.expect(404);
    assert_eq!(refused.code(), "MANIFEST_BLOB_UNKNOWN");
    let missing: Vec<Value> =
        refused.json()["errors"].as_array().unwrap().iter().map(|e| e["detail"]["digest"].clone()).collect();
    assert_eq!(json!(missing), json!([Digest::of(b"missing"), Digest::of(b"too")]));
    // Another repository's blob is not this one's.
    web.push_blob("b", b"missing").await;
    web.put_manifest("a", "v1", &image(&["missing"])).await.expect(404);
    let good = image(&["here"]);
    let wrong = Digest::of(b"wrong");
    assert_eq!(web.put_manifest("a", wrong.as_str(), &good).await.expect(400).code(), "DIGEST_INVALID");
    assert_eq!(web.put_manifest("a", "sha256:baddigeststring", &good).await.expect(400).code(), "DIGEST_INVALID");
    for bad in ["-x", ".x", "a%20b", &"t".repeat(129)] {
        assert_eq!(web.put_manifest("a", bad, &good).await.expect(400).code(), "TAG_INVALID", "{bad}");
    }
    let put =
        async |kind: &str, body: String| web.send("PUT", "/v2/a/manifests/v1", &[("content-type", kind)], body).await;
    assert_eq!(put(MANIFEST, "{".to_owned()).await.expect(400).code(), "MANIFEST_INVALID");
    assert_eq!(put(INDEX, good.to_string()).await.expect(400).code(), "MANIFEST_INVALID");
    assert_eq!(put("text/plain", "hello".to_owned()).await.expect(400).code(), "MANIFEST_INVALID");
    let large = format!("{}{}", good, " ".repeat(4 << 20));
    put(MANIFEST, large).await.expect(413);
    let fits = format!("{}{}", good, " ".repeat((4 << 20) - good.to_string().len()));
    put(MANIFEST, fits).await.expect(201);
    assert_eq!(web.get("/v2/a/manifests/none").await.expect(404).code(), "MANIFEST_UNKNOWN");
    assert_eq!(web.get("/v2/a/manifests/.INVALID").await.expect(404).code(), "MANIFEST_UNKNOWN");
    assert_eq!(web.get("/v2/none/manifests/none").await.expect(404).code(), "NAME_UNKNOWN");
    assert_eq!(web.get("/v2/UPPER/manifests/none").await.expect(400).code(), "NAME_INVALID");
    assert_eq!(web.send("POST", "/v2/a/manifests/v1", &[], "").await.expect(405).code(), "UNSUPPORTED");
    web.get("/v2/a/nothing/here").await.expect(404);
}

#[tokio::test]
async fn indexes_need_their_parts_and_keep_them() {
    let server = Server::new().await;
    let web = &server.web;
    let (part, manifest) = web.push_image("a", "part", "layer").await;
    let whole = index(&[&manifest]);
    web.put_manifest("a", "multi", &whole).await.expect(201);
    let absent = index(&[&manifest, &image(&["other"])]);
    assert_eq!(web.put_manifest("a", "broken", &absent).await.expect(404).code(), "MANIFEST_BLOB_UNKNOWN");
    web.put_manifest("a", "empty", &index(&[])).await.expect(201);
    let deleted = web.delete(&format!("/v2/a/manifests/{part}")).await.expect(405);
    assert_eq!(deleted.code(), "UNSUPPORTED");
    assert!(deleted.json()["errors"][0]["message"].as_str().unwrap().contains("is part of the index"));
    let layer = Digest::of(b"layer");
    assert_eq!(web.delete(&format!("/v2/a/blobs/{layer}")).await.expect(405).code(), "UNSUPPORTED");
    web.delete(&format!("/v2/a/manifests/{}", of(&whole))).await.expect(202);
    web.get("/v2/a/manifests/multi").await.expect(404);
    web.delete(&format!("/v2/a/manifests/{part}")).await.expect(202);
    web.get("/v2/a/manifests/part").await.expect(404);
    web.get(&format!("/v2/a/manifests/{part}")).await.expect(404);
    web.delete(&format!("/v2/a/manifests/{part}")).await.expect(404);
    web.delete(&format!("/v2/a/blobs/{layer}")).await.expect(202);
    web.get(&format!("/v2/a/blobs/{layer}")).await.expect(404);
}

#[tokio::test]
async fn what_the_client_accepts_decides() {
    let server = Server::new().await;
    let web = &server.web;
    let (_, oci) = web.push_image("a", "oci", "layer").await;
    let mut docker = oci.clone();
    docker["mediaType"] = json!(DOCKER);
    web.put_manifest("a", "docker", &docker).await.expect(201);
    let mut entry = descriptor(DOCKER, docker.to_string().as_bytes());
    entry["platform"] = json!({"os": "linux", "architecture": "amd64"});
    let list = json!({"schemaVersion": 2, "mediaType": DOCKER_LIST, "manifests": [entry]});
    web.put_manifest("a", "list", &list).await.expect(201);
    let get = async |tag: &str, accept: &str| {
        web.send("GET", &format!("/v2/a/manifests/{tag}"), &[("accept", accept)], "").await
    };
    for accept in ["*/*", MANIFEST, &format!("{INDEX}, {MANIFEST};q=0.5"), "application/*"] {
        assert_eq!(get("oci", accept).await.expect(200).header("content-type"), Some(MANIFEST), "{accept}");
    }
    assert_eq!(get("oci", DOCKER).await.expect(404).code(), "MANIFEST_UNKNOWN");
    assert_eq!(
        get("list", &format!("{DOCKER},{DOCKER_LIST}")).await.expect(200).header("content-type"),
        Some(DOCKER_LIST)
    );
    let old = get("list", DOCKER).await.expect(200);
    assert_eq!((old.header("content-type"), &old.body[..]), (Some(DOCKER), docker.to_string().as_bytes()));
    assert_eq!(old.header("docker-content-digest"), Some(of(&docker).as_str()));
}

#[tokio::test]
async fn tags_and_repositories_are_listed_in_pages() {
    let server = Server::new().await;
    let web = &server.web;
    assert_eq!(web.get("/v2/none/tags/list").await.expect(404).code(), "NAME_UNKNOWN");
    let tags = ["A", "Z", "a", "b.1", "b_2", "latest"];
    for tag in tags {
        web.push_image("some/app", tag, "x").await;
    }
    // A longer name with the same beginning is another repository.
    web.push_image("some/app2", "other", "x").await;
    let all = web.get("/v2/some/app/tags/list").await.expect(200);
    assert_eq!(all.json(), json!({"name": "some/app", "tags": tags}));
    assert_eq!(all.header("link"), None);
    assert_eq!(pages(web, "/v2/some/app/tags/list?n=4", "tags").await, [4, 2]);
    assert_eq!(web.get("/v2/some/app/tags/list?n=2&last=a").await.json()["tags"], json!(["b.1", "b_2"]));
    assert_eq!(web.get("/v2/some/app/tags/list?last=b").await.json()["tags"], json!(["b.1", "b_2", "latest"]));
    assert_eq!(web.get("/v2/some/app/tags/list?n=6").await.header("link"), None);
    let none = web.get("/v2/some/app/tags/list?n=0").await.expect(200);
    assert_eq!((none.json()["tags"].clone(), none.header("link")), (json!([]), None));
    for bad in ["-1", "x"] {
        let reply = web.get(&format!("/v2/some/app/tags/list?n={bad}")).await.expect(400);
        assert_eq!(reply.code(), "PAGINATION_NUMBER_INVALID");
    }
    web.delete("/v2/some/app/manifests/Z").await.expect(202);
    web.get("/v2/some/app/manifests/Z").await.expect(404);
    web.get("/v2/some/app/manifests/a").await.expect(200);
    assert_eq!(web.get("/v2/_catalog").await.expect(200).json(), json!({"repositories": ["some/app", "some/app2"]}));
    assert_eq!(pages(web, "/v2/_catalog?n=1", "repositories").await, [1, 1]);
}

/// How many each page has, following links.
async fn pages(web: &Web, start: &str, key: &str) -> Vec<usize> {
    let (mut lengths, mut path) = (Vec::new(), start.to_owned());
    loop {
        let reply = web.get(&path).await.expect(200);
        lengths.push(reply.json()[key].as_array().unwrap().len());
        let Some(link) = reply.header("link") else { return lengths };
        let (target, relation) = link.split_once(';').unwrap();
        assert_eq!(relation.trim(), "rel=\"next\"");
        path = target.trim_matches(['<', '>']).to_owned();
    }
}

#[tokio::test]
async fn referrers_of_a_subject() {
    let server = Server::new().await;
    let web = &server.web;
    let subject = image(&["subject"]);
    let list = format!("/v2/a/referrers/{}", of(&subject));
    let empty = web.get(&list).await.expect(200);
    assert_eq!(empty.header("content-type"), Some(INDEX));
    assert_eq!(empty.json(), json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": []}));
    web.push_blob("a", b"{}").await;
    let about = descriptor(MANIFEST, subject.to_string().as_bytes());
    let mut expected = BTreeMap::new();
    // Referrers come before what they are about as well as after.
    for n in 0..5 {
        let mut artifact = image(&[]);
        artifact["subject"] = about.clone();
        artifact["annotations"] = json!({"n": n.to_string()});
        if n > 0 {
            artifact["artifactType"] = json!(format!("application/x.kind{}", n % 2));
        }
        let reply = web.put_manifest("a", of(&artifact).as_str(), &artifact).await.expect(201);
        assert_eq!(reply.header("oci-subject"), about["digest"].as_str());
        expected.insert(of(&artifact).to_string(), artifact);
    }
    web.push_blob("a", b"subject").await;
    web.put_manifest("a", "v1", &subject).await.expect(201);
    let mut about_index = index(&[]);
    about_index["subject"] = about.clone();
    web.put_manifest("a", of(&about_index).as_str(), &about_index).await.expect(201);
    let all = web.get(&list).await.expect(200).json();
    assert_eq!(all["manifests"].as_array().unwrap().len(), 6);
    for found in all["manifests"].as_array().unwrap() {
        let Some(artifact) = expected.get(found["digest"].as_str().unwrap()) else {
            assert_eq!((&found["mediaType"], found.get("artifactType")), (&json!(INDEX), None));
            continue;
        };
        let kind = artifact.get("artifactType").unwrap_or(&artifact["config"]["mediaType"]);
        assert_eq!(found["artifactType"], *kind);
        assert_eq!(found["annotations"], artifact["annotations"]);
        assert_eq!(found["size"], artifact.to_string().len());
    }
    let filtered = web.get(&format!("{list}?artifactType=application/x.kind1")).await.expect(200);
    assert_eq!(filtered.header("oci-filters-applied"), Some("artifactType"));
    assert_eq!(filtered.json()["manifests"].as_array().unwrap().len(), 2);
    assert_eq!(pages(web, &format!("{list}?n=4"), "manifests").await, [4, 2]);
    let of_kind = pages(web, &format!("{list}?n=1&artifactType=application/x.kind0"), "manifests").await;
    assert_eq!(of_kind.iter().sum::<usize>(), 2);
    let first = all["manifests"][0]["digest"].as_str().unwrap();
    web.delete(&format!("/v2/a/manifests/{first}")).await.expect(202);
    assert_eq!(web.get(&list).await.json()["manifests"].as_array().unwrap().len(), 5);
    assert_eq!(web.get("/v2/a/referrers/sha256:bad").await.expect(400).code(), "DIGEST_INVALID");
}

#[tokio::test]
async fn a_manifest_gets_many_tags_at_once() {
    let server = Server::new().await;
    let web = &server.web;
    let (digest, manifest) = web.push_image("a", "first", "x").await;
    let reference = format!("{digest}?tag=1&tag=1.2&tag=1.2.3");
    let reply = web.put_manifest("a", &reference, &manifest).await.expect(201);
    let told: Vec<&str> = reply.headers.get_all("oci-tag").iter().map(|v| v.to_str().unwrap()).collect();
    assert_eq!(told, ["1", "1.2", "1.2.3"]);
    assert_eq!(web.get("/v2/a/tags/list").await.json()["tags"], json!(["1", "1.2", "1.2.3", "first"]));
    let many: Vec<String> = (0..60).map(|n| format!("tag=t{n}")).collect();
    web.put_manifest("a", &format!("{digest}?{}", many.join("&")), &manifest).await.expect(414);
}

#[tokio::test]
async fn immutable_tags_stay_where_they_are() {
    let rules = Rules { immutable: vec![Pattern("v*".to_owned())], ..Rules::default() };
    let server = Server::with(Config::default(), Arc::new(Everyone(Arc::new(rules)))).await;
    let web = &server.web;
    let (digest, first) = web.push_image("a", "v1", "one").await;
    web.put_manifest("a", "v1", &first).await.expect(201);
    web.push_blob("a", b"two").await;
    let second = image(&["two"]);
    assert_eq!(web.put_manifest("a", "v1", &second).await.expect(403).code(), "DENIED");
    web.put_manifest("a", "latest", &first).await.expect(201);
    web.put_manifest("a", "latest", &second).await.expect(201);
    assert_eq!(web.delete("/v2/a/manifests/v1").await.expect(403).code(), "DENIED");
    assert_eq!(web.delete(&format!("/v2/a/manifests/{digest}")).await.expect(403).code(), "DENIED");
    web.delete("/v2/a/manifests/latest").await.expect(202);
    assert_eq!(&web.get("/v2/a/manifests/v1").await.expect(200).body[..], first.to_string().as_bytes());
}

#[tokio::test]
async fn a_quota_bounds_a_project() {
    let rules = Rules { quota: Some(1000), ..Rules::default() };
    let server = Server::with(Config::default(), Arc::new(Everyone(Arc::new(rules)))).await;
    let web = &server.web;
    let post = &async |repository: &str, bytes: &[u8]| {
        let path = format!("/v2/{repository}/blobs/uploads/?digest={}", Digest::of(bytes));
        web.send("POST", &path, &[], bytes::Bytes::copy_from_slice(bytes)).await
    };
    post("p/a", &[1; 600]).await.expect(201);
    post("p/a", &[1; 600]).await.expect(201);
    let refused = post("p/b", &[2; 500]).await.expect(403);
    assert_eq!(refused.code(), "DENIED");
    assert!(refused.json()["errors"][0]["message"].as_str().unwrap().contains("600 are used and 500 more"));
    post("p/b", &[2; 400]).await.expect(201);
    post("other/a", &[2; 900]).await.expect(201);
    let mounted = Digest::of(&[2; 900]);
    web.send("POST", &format!("/v2/p/b/blobs/uploads/?mount={mounted}&from=other/a"), &[], "").await.expect(403);
    web.delete(&format!("/v2/p/a/blobs/{}", Digest::of(&[1; 600]))).await.expect(202);
    post("p/b", &[3; 600]).await.expect(201);
    post("p/b", &[4; 1]).await.expect(403);
    // At once they get no more than one after the other.
    let rush = (10..20u8).map(|n| async move { post("rush/x", &[n; 150]).await.status.as_u16() });
    let answers = futures::future::join_all(rush).await;
    assert_eq!(answers.iter().filter(|status| **status == 201).count(), 6, "{answers:?}");
}
