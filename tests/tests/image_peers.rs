//! Nodes that pull from each other: Debian's docker-registry on the server's machine, and what it is asked for.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dhow_e2e::machines::{Machine, Machines};
use dhow_e2e::{eventually, in_turn, run, workspace};
use serde_json::{Value, json};

const OPEN: &str = "198.18.0.1:5000";
/// Lets in `user` with `pass` only.
const CLOSED: &str = "198.18.0.1:5001";
const SOON: Duration = Duration::from_secs(60);

type Step = fn(&Machines, &Scene) -> Result<()>;

/// The registries and what they keep.
struct Scene {
    folder: tempfile::TempDir,
    registries: Vec<Child>,
}

impl Drop for Scene {
    fn drop(&mut self) {
        for registry in &mut self.registries {
            let _ = registry.kill();
            let _ = registry.wait();
        }
    }
}

impl Scene {
    fn new(machines: &Machines) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("dhow-ip").tempdir_in("/var/tmp")?;
        let mut scene = Self { folder, registries: Vec::new() };
        // bcrypt of "pass"
        let passwords = scene.folder.path().join("htpasswd");
        fs::write(&passwords, "user:$2b$05$abcdefghijklmnopqrstuuZFBUbfXoM8LFiPx8LYlO/sXZB/Cwk3K\n")?;
        let closed = format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", passwords.display());
        scene.serve(machines, OPEN, "")?;
        scene.serve(machines, CLOSED, &closed)?;
        Ok(scene)
    }

    fn serve(&mut self, machines: &Machines, address: &str, more: &str) -> Result<()> {
        let config = self.folder.path().join(format!("{address}.yml"));
        let text = format!(
            "version: 0.1\nhttp: {{addr: '{address}'}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n{more}",
            self.storage(address).display()
        );
        fs::write(&config, text)?;
        let mut serve = machines.server().command("docker-registry");
        let log = File::create(self.folder.path().join(format!("{address}.log")))?;
        serve.arg("serve").arg(&config).stdout(log).stderr(Stdio::null());
        self.registries.push(serve.spawn()?);
        Ok(())
    }

    fn storage(&self, address: &str) -> PathBuf {
        self.folder.path().join(address)
    }

    /// Blobs of the open registry that a machine asked for.
    fn asked(&self, by: &Machine) -> Result<Vec<String>> {
        let log = fs::read_to_string(self.folder.path().join(format!("{OPEN}.log")))?;
        let of_it = log.lines().filter(|line| line.starts_with(&format!("{} ", by.address)));
        let gets = of_it.filter_map(|line| line.split_once("\"GET /v2/team/app/blobs/"));
        Ok(gets.filter_map(|(_, rest)| Some(rest.split_once(' ')?.0.to_owned())).collect())
    }

    /// The bytes of a layer as the open registry keeps them.
    fn kept(&self, layer: &str) -> PathBuf {
        let hex = layer.trim_start_matches("sha256:");
        self.storage(OPEN).join(format!("docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]))
    }
}

#[test]
fn nodes_pull_layers_from_each_other() {
    // m0 is the server, m1 beside it, m2 behind a router.
    let machines = Machines::new(2).unwrap();
    let scene = Scene::new(&machines).unwrap();
    let steps: &[(&str, Step)] = &[
        ("starts", starts),
        ("the first node asks the registry", the_first_node_asks_the_registry),
        ("the second node asks the first", the_second_node_asks_the_first),
        ("a node may have layers and nothing else", a_node_may_have_layers_and_nothing_else),
        ("a pod without the secret gets nothing", a_pod_without_the_secret_gets_nothing),
        ("wrong and missing layers come from the registry", wrong_and_missing_layers_come_from_the_registry),
        ("who is told to stay alone does", who_is_told_to_stay_alone_does),
        ("purges", purges),
    ];
    in_turn(steps, |step| step(&machines, &scene)).unwrap();
}

fn settings(more: Value) -> String {
    let mut registries = json!({"hosts": {OPEN: {"plainHttp": true}, CLOSED: {"plainHttp": true}}});
    registries.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"registries": registries}).to_string()
}

fn starts(machines: &Machines, scene: &Scene) -> Result<()> {
    for machine in &machines.all {
        fs::write(machine.settings(), settings(json!({})))?;
    }
    machines.server().dhow(&["up"])?;
    let token = machines.server().dhow(&["token", "create", "--ttl", "1h"])?;
    for machine in &machines.all[1..] {
        machine.dhow(&["join", "198.18.0.1", "--token", token.trim()])?;
    }
    machines.kubectl(&["wait", "--for=condition=Ready", "node", "--all", "--timeout=60s"])?;
    let image = format!("oci-archive:{}", workspace().join("target/images/nginx.tar").display());
    for (registry, credentials) in [(OPEN, [].as_slice()), (CLOSED, &["--dest-creds", "user:pass"])] {
        let copy = || {
            let mut copy = machines.server().command("skopeo");
            copy.args(["copy", "--quiet", "--dest-tls-verify=false"]).args(credentials);
            run(copy.args([&image, &format!("docker://{registry}/team/app:1")]))
        };
        // It listens in a moment.
        eventually(SOON, copy)?;
    }
    ensure!(!layers(machines, scene)?.is_empty(), "an image without layers");
    Ok(())
}

/// Digests and sizes.
fn layers(machines: &Machines, _: &Scene) -> Result<Vec<(String, u64)>> {
    let mut inspect = machines.server().command("skopeo");
    inspect.args(["inspect", "--raw", "--tls-verify=false", &format!("docker://{OPEN}/team/app:1")]);
    let manifest: Value = serde_json::from_str(&run(&mut inspect)?)?;
    let layers = manifest["layers"].as_array().context("no layers")?;
    let layer = |layer: &Value| Some((layer["digest"].as_str()?.to_owned(), layer["size"].as_u64()?));
    layers.iter().map(|one| layer(one).context("a layer without a digest")).collect()
}

fn pod(name: &str, node: &str, registry: &str, secret: &str) -> String {
    let secrets = if secret.is_empty() { json!([]) } else { json!([{"name": secret}]) };
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "nodeName": node, "terminationGracePeriodSeconds": 0, "imagePullSecrets": secrets,
            "containers": [{
                "name": "main", "image": format!("{registry}/team/app:1"), "imagePullPolicy": "Always",
                "command": ["sleep", "1000"],
            }],
        },
    })
    .to_string()
}

fn runs(machines: &Machines, name: &str, node: &str, registry: &str, secret: &str) -> Result<()> {
    machines.apply(&pod(name, node, registry, secret))?;
    machines.kubectl(&["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=60s"]).map(drop)
}

/// What a node counts under this name.
fn counted(machines: &Machines, node: &str, name: &str) -> Result<u64> {
    let page = machines.kubectl(&["get", "--raw", &format!("/api/v1/nodes/{node}/proxy/metrics")])?;
    let line = page.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name}: {page}"))?;
    line.trim().parse().context("read the number")
}

const FROM_NODES: &str = "dhow_image_fetched_bytes_total{from=\"node\"}";
const FROM_REGISTRIES: &str = "dhow_image_fetched_bytes_total{from=\"registry\"}";
const GIVEN: &str = "dhow_image_given_bytes_total";

fn the_first_node_asks_the_registry(machines: &Machines, scene: &Scene) -> Result<()> {
    runs(machines, "first", "m1", OPEN, "")?;
    let layers = layers(machines, scene)?;
    ensure!(scene.asked(&machines.all[1])?.len() == layers.len() + 1, "{:?}", scene.asked(&machines.all[1])?);
    ensure!(counted(machines, "m1", FROM_NODES)? == 0, "from nodes that have nothing");
    let bytes: u64 = layers.iter().map(|(_, size)| size).sum();
    ensure!(counted(machines, "m1", FROM_REGISTRIES)? > bytes, "the registry's bytes are not counted");
    Ok(())
}

/// With a registry that has the manifest and the config, and lost all layers.
fn the_second_node_asks_the_first(machines: &Machines, scene: &Scene) -> Result<()> {
    let layers = layers(machines, scene)?;
    for (layer, _) in &layers {
        fs::rename(scene.kept(layer), scene.kept(layer).with_extension("away"))?;
    }
    runs(machines, "second", "m2", OPEN, "")?;
    for (layer, _) in &layers {
        fs::rename(scene.kept(layer).with_extension("away"), scene.kept(layer))?;
    }
    let asked = scene.asked(&machines.all[2])?;
    ensure!(asked.len() == 1 && layers.iter().all(|(layer, _)| *layer != asked[0]), "{asked:?}");
    let bytes: u64 = layers.iter().map(|(_, size)| size).sum();
    ensure!(counted(machines, "m2", FROM_NODES)? == bytes, "not all bytes are from m1");
    ensure!(counted(machines, "m1", GIVEN)? == bytes, "m1 gave others");
    Ok(())
}

/// The status that a node's server answers with.
fn status(from: &Machine, to: &Machine, certificate: Option<&str>, path: &str) -> Result<String> {
    let keys = from.data_dir().join("node-pki");
    let mut curl = from.command("curl");
    curl.args(["--silent", "--output", "/dev/null", "--write-out", "%{http_code}", "--max-time", "10"]);
    curl.arg("--cacert").arg(keys.join("ca.crt"));
    if let Some(name) = certificate {
        curl.arg("--cert").arg(keys.join(format!("{name}.crt"))).arg("--key").arg(keys.join(format!("{name}.key")));
    }
    run(curl.arg(format!("https://{}:10250{path}", to.address)))
}

fn a_node_may_have_layers_and_nothing_else(machines: &Machines, scene: &Scene) -> Result<()> {
    let (from, to) = (&machines.all[2], &machines.all[1]);
    let layer = &layers(machines, scene)?[0].0;
    let wanted = format!("/images/layers/{layer}?repository={OPEN}/team/app");
    let elsewhere = format!("/images/layers/{layer}?repository=198.18.0.1:5002/team/app");
    let image = machines.get(&["get", "pod", "first"])?;
    let image = image["status"]["containerStatuses"][0]["imageID"].as_str().context("no image")?.to_owned();
    let manifest = image.rsplit_once('@').context("no digest")?.1;
    let manifest = format!("/images/layers/{manifest}?repository={OPEN}/team/app");
    for (certificate, path, answer) in [
        (Some("node-client"), wanted.as_str(), "200"),
        (Some("node-client"), &elsewhere, "404"),
        (Some("node-client"), &manifest, "404"),
        (Some("node-client"), "/pods", "403"),
        (Some("node-client"), "/healthz", "403"),
        (Some("node-client"), "/metrics", "403"),
        (Some("node-client"), "/images", "403"),
        (Some("node-client"), "/images/export?name=nginx", "403"),
        (Some("node-client"), "/containerLogs/default/first/main", "403"),
        (Some("node-client"), "/exec/default/first/main?command=id&output=1", "403"),
        (Some("node-client"), "/portForward/default/first", "403"),
        // A part of a node is no node.
        (Some("kube-proxy"), &wanted, "403"),
        (None, &wanted, "401"),
        (None, "/pods", "401"),
    ] {
        let said = status(from, to, certificate, path)?;
        ensure!(said == answer, "{certificate:?} {path}: {said} instead of {answer}");
    }
    // The server is a node like others.
    let said = status(from, machines.server(), Some("node-client"), "/pods")?;
    ensure!(said == "403", "m0: {said}");
    Ok(())
}

fn a_pod_without_the_secret_gets_nothing(machines: &Machines, _: &Scene) -> Result<()> {
    machines.kubectl(&[
        "create",
        "secret",
        "docker-registry",
        "pull",
        &format!("--docker-server={CLOSED}"),
        "--docker-username=user",
        "--docker-password=pass",
    ])?;
    runs(machines, "let-in", "m1", CLOSED, "pull")?;
    machines.apply(&pod("kept-out", "m2", CLOSED, ""))?;
    eventually(SOON, || {
        let pod = machines.get(&["get", "pod", "kept-out"])?;
        let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
        let reason = waiting["reason"].as_str().unwrap_or_default();
        ensure!(reason == "ErrImagePull" || reason == "ImagePullBackOff", "{waiting}");
        Ok(())
    })?;
    machines.kubectl(&["delete", "pod", "kept-out"])?;
    runs(machines, "let-in-too", "m2", CLOSED, "pull")
}

/// m1's disk lies, m2's forgot: the server's node has to ask the registry, and its pod runs.
fn wrong_and_missing_layers_come_from_the_registry(machines: &Machines, scene: &Scene) -> Result<()> {
    let layers = layers(machines, scene)?;
    for (layer, _) in &layers {
        let hex = layer.trim_start_matches("sha256:");
        let on = |machine: &Machine| machine.data_dir().join("images/blobs/sha256").join(hex);
        let mut bytes = fs::read(on(&machines.all[1]))?;
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0xff;
        fs::write(on(&machines.all[1]), bytes)?;
        fs::remove_file(on(&machines.all[2]))?;
    }
    runs(machines, "third", "m0", OPEN, "")?;
    let asked = scene.asked(machines.server())?;
    ensure!(layers.iter().all(|(layer, _)| asked.contains(layer)), "{asked:?}");
    let bytes: u64 = layers.iter().map(|(_, size)| size).sum();
    ensure!(counted(machines, "m0", FROM_REGISTRIES)? > bytes, "not from the registry");
    Ok(())
}

fn who_is_told_to_stay_alone_does(machines: &Machines, scene: &Scene) -> Result<()> {
    // The server's node has it whole.
    let (alone, whole) = (&machines.all[1], machines.server());
    for pod in ["first", "let-in"] {
        machines.kubectl(&["delete", "pod", pod])?;
    }
    machines.server().dhow(&["image", "prune", "--all", "--node", "m1"])?;
    alone.dhow(&["down"])?;
    fs::write(alone.settings(), settings(json!({"peers": false})))?;
    alone.dhow(&["join"])?;
    let before = counted(machines, "m0", GIVEN)?;
    runs(machines, "alone", "m1", OPEN, "")?;
    ensure!(counted(machines, "m0", GIVEN)? == before, "m0 gave it");
    ensure!(counted(machines, "m1", FROM_NODES)? == 0, "it came from another node");
    let layer = format!("/images/layers/{}?repository={OPEN}/team/app", layers(machines, scene)?[0].0);
    let asking = &machines.all[2];
    for (to, answer) in [(alone, "404"), (whole, "200")] {
        let said = status(asking, to, Some("node-client"), &layer)?;
        ensure!(said == answer, "{}: {said} instead of {answer}", to.name);
    }
    Ok(())
}

fn purges(machines: &Machines, _: &Scene) -> Result<()> {
    machines.purge()
}
