//! What is told of images beside their bytes: signatures, bills of material, reports, use.

use dhow_image::Digest;
use serde_json::{Value, json};

use crate::harness::{MANIFEST, Server, descriptor, image, index};

/// A referrer of one layer; its digest.
async fn attach(server: &Server, subject: &Value, kind: &str, bytes: &str, made: &str) -> Digest {
    let mut manifest = image(&[]);
    manifest["layers"] = json!([descriptor(kind, bytes.as_bytes())]);
    manifest["subject"] = descriptor(MANIFEST, subject.to_string().as_bytes());
    manifest["artifactType"] = json!(kind);
    manifest["annotations"] = json!({"org.opencontainers.image.created": made});
    server.web.push_blob("team/app", bytes.as_bytes()).await;
    let digest = Digest::of(manifest.to_string().as_bytes());
    server.web.put_manifest("team/app", digest.as_str(), &manifest).await.expect(201);
    digest
}

#[tokio::test]
async fn images_are_shown_with_all_that_is_about_them() {
    let server = Server::new().await;
    let (_, plain) = server.web.push_image("team/app", "1", "one").await;
    let whole = index(&[&plain]);
    server.web.put_manifest("team/app", "all", &whole).await.expect(201);
    server.web.push_image("team/app", "2", "two").await;
    let report = |severity: &str| json!({"Results": [{"Vulnerabilities": [{"Severity": severity}]}]}).to_string();
    attach(&server, &plain, "application/vnd.aquasec.trivy.report+json", &report("HIGH"), "2026-02-01T00:00:00Z").await;
    attach(&server, &plain, "application/vnd.aquasec.trivy.report+json", &report("LOW"), "2026-01-01T00:00:00Z").await;
    attach(&server, &plain, "application/spdx+json", "{\"spdxVersion\": \"SPDX-2.3\"}", "2026-01-01T00:00:00Z").await;
    attach(&server, &plain, "application/vnd.cncf.notary.signature", "{}", "2026-01-01T00:00:00Z").await;

    let found = server.web.get("/v2/team/app/_dhow/artifacts").await.expect(200).json();
    let tags = found["tags"].as_array().unwrap();
    assert_eq!(tags.iter().map(|tag| tag["tag"].as_str().unwrap()).collect::<Vec<_>>(), ["1", "2", "all"]);
    for tag in [&tags[0], &tags[2]] {
        assert_eq!((&tag["signatures"], &tag["sboms"]), (&json!(["notation"]), &json!(["spdx"])), "{tag}");
        // The newest report counts.
        assert_eq!((&tag["vulnerabilities"]["high"], &tag["vulnerabilities"]["low"]), (&json!(1), &json!(0)));
        assert_eq!(tag["referrers"].as_array().unwrap().len(), 4);
    }
    assert_eq!((&tags[1]["signatures"], &tags[1]["vulnerabilities"]), (&json!([]), &Value::Null));
    let size = plain.to_string().len() + "{}".len() + "one".len();
    assert_eq!(tags[0]["size"], json!(size));
    assert_eq!(tags[2]["size"], json!(size + whole.to_string().len()));

    let one = server.web.get("/v2/team/app/_dhow/artifacts?tag=2").await.expect(200).json();
    assert_eq!(one["tags"].as_array().unwrap().len(), 1);
    server.web.get("/v2/team/app/_dhow/artifacts?tag=none").await.expect(404);
    server.web.get("/v2/none/_dhow/artifacts").await.expect(404);
}

#[tokio::test]
async fn pulls_and_pushes_are_counted_by_day() {
    let server = Server::new().await;
    let (digest, plain) = server.web.push_image("team/app", "1", "one").await;
    let whole = index(&[&plain]);
    server.web.put_manifest("team/app", "all", &whole).await.expect(201);
    let used = async || {
        let found = server.web.get("/v2/team/app/_dhow/artifacts").await.expect(200).json();
        let days = found["usage"].as_object().unwrap().clone();
        days.values().fold((0, 0), |(pulls, pushes), day| {
            (pulls + day["pulls"].as_u64().unwrap(), pushes + day["pushes"].as_u64().unwrap())
        })
    };
    assert_eq!(used().await, (0, 2));
    // A pull of an index is one of the platform's image; to look is none.
    server.web.head("/v2/team/app/manifests/all").await.expect(200);
    server.web.get("/v2/team/app/manifests/all").await.expect(200);
    server.web.get(&format!("/v2/team/app/manifests/{digest}")).await.expect(200);
    assert_eq!(used().await, (1, 2));
    // Written down at the end, and then added to.
    let stop = tokio_util::sync::CancellationToken::new();
    stop.cancel();
    server.registry.clone().keep_usage(stop).await;
    assert_eq!(used().await, (1, 2));
    server.web.get("/v2/team/app/manifests/1").await.expect(200);
    assert_eq!(used().await, (2, 2));
}
