//! The same requests to Debian's docker-registry and to ours: the same status and, where both have them, the same headers.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use dhow_image::Digest;
use serde_json::{Value, json};

use crate::harness::{Reply, Server, Web, descriptor};

const DOCKER: &str = "application/vnd.docker.distribution.manifest.v2+json";

pub struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn reference(folder: &Path) -> (Killed, String) {
    let config = folder.join("config.yml");
    let text = format!(
        "version: 0.1\nlog: {{level: info}}\nhttp: {{addr: '127.0.0.1:0'}}\n\
         storage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}\n",
        folder.join("storage").display()
    );
    std::fs::write(&config, text).unwrap();
    let mut command = Command::new("docker-registry");
    command.arg("serve").arg(&config).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let address = lines
        .by_ref()
        .map_while(Result::ok)
        .find_map(|line| Some(line.split_once("listening on ")?.1.split(['"', ' ', ',']).next()?.to_owned()))
        .expect("the registry says where it listens");
    std::thread::spawn(move || lines.for_each(drop));
    (Killed(child), address)
}

/// What is compared of an answer.
fn shown(reply: &Reply, with_code: bool) -> Value {
    let mut shown = json!({ "status": reply.status.as_u16() });
    for name in
        ["docker-content-digest", "docker-distribution-api-version", "etag", "content-range", "range", "cache-control"]
    {
        shown[name] = json!(reply.header(name));
    }
    if reply.status.is_success() {
        shown["content-length"] = json!(reply.header("content-length"));
        shown["content-type"] = json!(reply.header("content-type"));
    }
    if with_code && reply.status.is_client_error() && !reply.body.is_empty() {
        shown["code"] =
            json!(serde_json::from_slice::<Value>(&reply.body).ok().map(|body| body["errors"][0]["code"].clone()));
    }
    shown
}

/// Absolute or not, the same place.
fn path(location: &str) -> &str {
    location.find("/v2/").map_or(location, |at| &location[at..])
}

async fn answers(web: &Web) -> Vec<(&'static str, Value)> {
    let mut all = Vec::new();
    let mut note = |what: &'static str, reply: &Reply| all.push((what, shown(reply, true)));
    let blob = b"a layer of sixteen";
    let (digest, config) = (Digest::of(blob), Digest::of(b"{}"));
    note("base", &web.get("/v2/").await);
    note("missing blob", &web.get(&format!("/v2/a/b/blobs/{digest}")).await);
    note("missing blob, head", &web.head(&format!("/v2/a/b/blobs/{digest}")).await);
    note("missing tags", &web.get("/v2/a/b/tags/list").await);
    let begun = web.send("POST", "/v2/a/b/blobs/uploads/", &[], "").await;
    note("begin", &begun);
    let location = path(begun.header("location").unwrap()).to_owned();
    note("status", &web.get(&location).await);
    let patched = web.send("PATCH", &location, &[("content-type", "application/octet-stream")], &blob[..10]).await;
    note("patch", &patched);
    let location = path(patched.header("location").unwrap()).to_owned();
    note("status after a patch", &web.get(&location).await);
    let joint = if location.contains('?') { '&' } else { '?' };
    let put = web.send("PUT", &format!("{location}{joint}digest={digest}"), &[], &blob[10..]).await;
    note("put", &put);
    assert_eq!(path(put.header("location").unwrap()), format!("/v2/a/b/blobs/{digest}"));
    let begun = web.send("POST", "/v2/a/b/blobs/uploads/", &[], "").await;
    let location = path(begun.header("location").unwrap()).to_owned();
    let joint = if location.contains('?') { '&' } else { '?' };
    note("wrong digest", &web.send("PUT", &format!("{location}{joint}digest={digest}"), &[], "wrong").await);
    let begun = web.send("POST", "/v2/a/b/blobs/uploads/", &[], "").await;
    let location = path(begun.header("location").unwrap()).to_owned();
    let joint = if location.contains('?') { '&' } else { '?' };
    note("no digest", &web.send("PUT", &location, &[], "{}").await);
    let begun = web.send("POST", "/v2/a/b/blobs/uploads/", &[], "").await;
    let location = path(begun.header("location").unwrap()).to_owned();
    note("config", &web.send("PUT", &format!("{location}{joint}digest={config}"), &[], "{}").await);
    let begun = web.send("POST", "/v2/a/b/blobs/uploads/", &[], "").await;
    let location = path(begun.header("location").unwrap()).to_owned();
    note("cancel", &web.delete(&location).await);
    note("cancelled", &web.get(&location).await);
    let place = format!("/v2/a/b/blobs/{digest}");
    note("blob", &web.get(&place).await);
    note("blob, head", &web.head(&place).await);
    note("blob, range", &web.send("GET", &place, &[("range", "bytes=2-5")], "").await);
    // Not a range past the end: docker-registry announces a body there that it does not send.
    note("mount", &web.send("POST", &format!("/v2/c/blobs/uploads/?mount={digest}&from=a/b"), &[], "").await);
    note(
        "mount of nothing",
        &web.send("POST", &format!("/v2/c/blobs/uploads/?mount={}&from=a/b", Digest::of(b"?")), &[], "").await,
    );
    let manifest = json!({
        "schemaVersion": 2, "mediaType": DOCKER,
        "config": descriptor("application/vnd.docker.container.image.v1+json", b"{}"),
        "layers": [descriptor("application/vnd.docker.image.rootfs.diff.tar.gzip", blob)],
    });
    let text = manifest.to_string();
    let kind = [("content-type", DOCKER)];
    let accept = [("accept", DOCKER)];
    let by_digest = format!("/v2/a/b/manifests/{}", Digest::of(text.as_bytes()));
    note("missing manifest", &web.send("GET", "/v2/a/b/manifests/v1", &accept, "").await);
    note("put manifest", &web.send("PUT", "/v2/a/b/manifests/v1", &kind, text.clone()).await);
    note("manifest by tag", &web.send("GET", "/v2/a/b/manifests/v1", &accept, "").await);
    note("manifest by digest", &web.send("GET", &by_digest, &accept, "").await);
    note("manifest, head", &web.send("HEAD", "/v2/a/b/manifests/v1", &accept, "").await);
    note(
        "put manifest under a wrong digest",
        &web.send("PUT", &format!("/v2/a/b/manifests/{digest}"), &kind, text.clone()).await,
    );
    note("put nonsense", &web.send("PUT", "/v2/a/b/manifests/v2", &kind, "{").await);
    let lacking = text.replace(digest.as_str(), Digest::of(b"?").as_str());
    note("put manifest without its layer", &web.send("PUT", "/v2/a/b/manifests/v2", &kind, lacking).await);
    note("tags", &web.get("/v2/a/b/tags/list").await);
    note("delete manifest", &web.delete(&by_digest).await);
    note("deleted manifest", &web.send("GET", &by_digest, &accept, "").await);
    note("deleted manifest's tag", &web.send("GET", "/v2/a/b/manifests/v1", &accept, "").await);
    note("delete manifest again", &web.delete(&by_digest).await);
    note("delete blob", &web.delete(&place).await);
    note("deleted blob", &web.get(&place).await);
    all
}

/// Where ours differs on purpose: the specification has 404 for the first; the second ends with a line feed there; the third
/// says more.
const OURS: &[(&str, &str)] = &[
    ("put manifest without its layer", "status"),
    ("tags", "content-length"),
    ("delete blob", "docker-content-digest"),
];

#[tokio::test]
async fn answers_as_docker_registry_does() {
    let folder = tempfile::tempdir().unwrap();
    let (_registry, address) = reference(folder.path());
    let server = Server::new().await;
    let theirs = answers(&Web::new(&address)).await;
    let ours = answers(&server.web).await;
    let mut differences = Vec::new();
    for ((what, theirs), (_, ours)) in theirs.iter().zip(&ours) {
        for (name, value) in theirs.as_object().unwrap() {
            if ours[name] != *value && !OURS.contains(&(what, name)) {
                differences.push(format!("{what}: {name}: ours {} theirs {value}", ours[name]));
            }
        }
    }
    assert!(differences.is_empty(), "\n{}", differences.join("\n"));
}
