//! The cluster's own registry of images: projects and robots made with kubectl, pushes by the real docker, skopeo and our own
//! command line, and pods of both machines that run what was pushed.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dhow_e2e::machines::Machines;
use dhow_e2e::{dockerd, eventually, in_turn, run, workspace};
use serde_json::Value;

const REGISTRY: &str = "198.18.0.1:5443";
const INSIDE: &str = "registry.dhow-registry.svc.cluster.local";
const SOON: Duration = Duration::from_secs(60);

const PROJECTS: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: team}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: pusher, namespace: team}
---
apiVersion: registry.dhow.io/v1alpha1
kind: RobotAccount
metadata: {name: ci, namespace: team}
---
apiVersion: registry.dhow.io/v1alpha1
kind: Project
metadata: {name: team}
spec:
  quota: 1Gi
  immutableTags: [v*]
  members:
  - {kind: Robot, namespace: team, name: ci, role: Developer}
  - {kind: ServiceAccount, namespace: team, name: pusher, role: Developer}
"#;

type Step = fn(&Machines, &Path) -> Result<()>;

#[test]
fn images_pushed_to_the_cluster_run_in_it() {
    // m0 is the server, m1 a node behind a router.
    let machines = Machines::new(1).unwrap();
    let folder = tempfile::Builder::new().prefix("dhow-rg").tempdir_in("/var/tmp").unwrap();
    let steps: &[(&str, Step)] = &[
        ("starts", starts),
        ("pushes as the administrator", pushes_as_the_administrator),
        ("makes robots", makes_robots),
        ("skopeo pushes as a robot", skopeo_pushes_as_a_robot),
        ("docker pushes with a token", docker_pushes_with_a_token),
        ("runs everywhere", runs_everywhere),
        ("keeps strangers out", keeps_strangers_out),
        ("has no second copy", has_no_second_copy),
        ("says what a project has", says_what_a_project_has),
        ("replicates", replicates),
        ("runs only what is signed", runs_only_what_is_signed),
        ("purges", purges),
    ];
    in_turn(steps, |step| step(&machines, folder.path())).unwrap();
}

/// The image as Docker has them in archives.
fn archive(folder: &Path) -> String {
    folder.join("busybox.tar").display().to_string()
}

fn starts(machines: &Machines, folder: &Path) -> Result<()> {
    machines.server().dhow(&["up"])?;
    let token = machines.server().dhow(&["token", "create", "--ttl", "1h"])?;
    machines.all[1].dhow(&["join", "198.18.0.1", "--token", token.trim()])?;
    let image = workspace().join("target/images/busybox.tar").display().to_string();
    machines.server().dhow(&["image", "import", "--node", "m0", &image])?;
    let export = ["image", "export", "--node", "m0", "busybox", "--format", "docker", "-o", &archive(folder)];
    machines.server().dhow(&export)?;
    // As everyone finds it who looks where other clusters have theirs.
    let map = eventually(SOON, || {
        machines.get(&["get", "configmap", "local-registry-hosting", "--namespace", "kube-public"])
    })?;
    let text = map["data"]["localRegistryHosting.v1"].as_str().context("no text")?;
    ensure!(text.contains(REGISTRY) && text.contains(INSIDE), "{text}");
    let certificates = folder.join("trust");
    fs::create_dir_all(&certificates)?;
    fs::copy(machines.server().data_dir().join("pki/ca.crt"), certificates.join("ca.crt"))?;
    eventually(SOON, || machines.apply(PROJECTS))?;
    Ok(())
}

fn push(machines: &Machines, target: &str) -> Result<String> {
    machines.server().dhow_said(&["image", "push", "--node", "m0", "busybox", target])
}

fn pushes_as_the_administrator(machines: &Machines, _: &Path) -> Result<()> {
    let target = format!("{REGISTRY}/team/app:1");
    let said = push(machines, &target)?;
    ensure!(said.contains(&format!("pushed {target}")), "{said}");
    let said = push(machines, &format!("{REGISTRY}/nobody/app:1"))?;
    ensure!(said.contains("there is no Project \"nobody\""), "{said}");
    Ok(())
}

/// What the Secret of the robot has.
fn robot(machines: &Machines) -> Result<(String, String)> {
    use base64::Engine;
    let secret = machines.get(&["get", "secret", "ci", "--namespace", "team"])?;
    ensure!(secret["type"] == "kubernetes.io/dockerconfigjson", "{}", secret["type"]);
    let data = secret["data"][".dockerconfigjson"].as_str().context("no credentials")?;
    let config: Value = serde_json::from_slice(&base64::prelude::BASE64_STANDARD.decode(data)?)?;
    let entry = &config["auths"][REGISTRY];
    ensure!(config["auths"][INSIDE]["password"] == entry["password"], "another password inside");
    let text = |key: &str| entry[key].as_str().map(str::to_owned).context("no such field");
    Ok((text("username")?, text("password")?))
}

fn makes_robots(machines: &Machines, _: &Path) -> Result<()> {
    let wait = ["--namespace", "team", "--for=condition=Ready", "robotaccount/ci", "--timeout=60s"];
    machines.kubectl(&[&["wait"], &wait[..]].concat())?;
    let before = robot(machines)?;
    ensure!(before.0 == "robot.team.ci", "{}", before.0);
    // The secret itself is nowhere else.
    let object = machines.get(&["get", "robotaccount", "ci", "--namespace", "team"])?;
    ensure!(object["status"]["userName"] == "robot.team.ci" && !object.to_string().contains(&before.1), "{object}");
    let rotate = r#"{"spec": {"rotation": "2"}}"#;
    machines.kubectl(&["patch", "robot", "ci", "--namespace", "team", "--type=merge", "--patch", rotate])?;
    eventually(SOON, || {
        let object = machines.get(&["get", "robotaccount", "ci", "--namespace", "team"])?;
        ensure!(object["status"]["rotation"] == "2", "{}", object["status"]);
        ensure!(robot(machines)?.1 != before.1, "the same secret");
        Ok(())
    })?;
    let refused = machines.apply(
        "apiVersion: registry.dhow.io/v1alpha1\nkind: Project\nmetadata: {name: bad}\n\
         spec: {members: [{kind: User, name: ada, namespace: team, role: Guest}]}\n",
    );
    let refused = format!("{:#}", refused.unwrap_err());
    ensure!(refused.contains("users and groups have none"), "{refused}");
    Ok(())
}

fn skopeo(machines: &Machines, folder: &Path, target: &str, credentials: &str) -> Result<String> {
    let source = format!("docker-archive:{}", archive(folder));
    let trust = folder.join("trust");
    let mut copy = machines.server().command("skopeo");
    copy.args(["copy", "--quiet", "--dest-creds", credentials, "--dest-cert-dir"]).arg(trust);
    run(copy.args([&source, &format!("docker://{REGISTRY}/{target}")]))
}

fn skopeo_pushes_as_a_robot(machines: &Machines, folder: &Path) -> Result<()> {
    let (user, password) = robot(machines)?;
    // The watch brings its new secret in a moment.
    eventually(SOON, || skopeo(machines, folder, "team/app:v2", &format!("{user}:{password}")))?;
    let wrong = skopeo(machines, folder, "team/app:3", &format!("{user}:wrong")).unwrap_err();
    ensure!(format!("{wrong:#}").contains("incorrect username or password"), "{wrong:#}");
    Ok(())
}

fn docker_pushes_with_a_token(machines: &Machines, folder: &Path) -> Result<()> {
    // It looks for registries' authorities in one place only; that of this test is its own.
    let trust = format!(
        "mount -t tmpfs none /etc/docker && mkdir -p /etc/docker/certs.d/{REGISTRY} && \
         cp {}/ca.crt /etc/docker/certs.d/{REGISTRY}/ && exec \"$@\"",
        folder.join("trust").display()
    );
    let command = |program: &str| {
        let mut command = machines.server().command("unshare");
        command.args(["--mount", "sh", "-c", &trust, "sh", program]);
        command
    };
    let (_containerd, _docker) = dockerd::start(command, folder)?;
    let socket = format!("unix://{}", folder.join("d.sock").display());
    let docker = |args: &[&str]| {
        let mut docker = machines.server().command("docker");
        run(docker.env("DOCKER_CONFIG", folder).args(["--host", &socket]).args(args))
    };
    let token = machines.kubectl(&["create", "token", "pusher", "--namespace", "team"])?;
    docker(&["login", REGISTRY, "--username", "token", "--password", token.trim()])?;
    docker(&["load", "--quiet", "--input", &archive(folder)])?;
    let target = format!("{REGISTRY}/team/app:3");
    docker(&["tag", "busybox", &target])?;
    docker(&["push", "--quiet", &target])?;
    docker(&["image", "rm", &target])?;
    docker(&["pull", "--quiet", &target])?;
    Ok(())
}

fn pod(name: &str, namespace: &str, node: &str, image: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  nodeName: {node}\n  \
         terminationGracePeriodSeconds: 0\n  containers:\n  - {{name: main, image: '{image}', imagePullPolicy: Always, \
         command: [busybox, sleep, '1000']}}\n---\n"
    )
}

fn runs_everywhere(machines: &Machines, _: &Path) -> Result<()> {
    let pods = [
        pod("on-m0", "team", "m0", &format!("{REGISTRY}/team/app:3")),
        pod("on-m1", "team", "m1", &format!("{REGISTRY}/team/app:3")),
        pod("by-name", "team", "m1", &format!("{INSIDE}/team/app:v2")),
    ];
    machines.apply(&pods.concat())?;
    machines.kubectl(&["wait", "--namespace", "team", "--for=condition=Ready", "pod", "--all", "--timeout=60s"])?;
    Ok(())
}

fn keeps_strangers_out(machines: &Machines, _: &Path) -> Result<()> {
    let stranger = pod("stranger", "default", "m1", &format!("{REGISTRY}/team/app:3"));
    machines.apply(&stranger)?;
    eventually(SOON, || {
        let pod = machines.get(&["get", "pod", "stranger"])?;
        let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
        let reason = waiting["reason"].as_str().unwrap_or_default();
        ensure!(reason == "ErrImagePull" || reason == "ImagePullBackOff", "{waiting}");
        Ok(())
    })?;
    // Let in, and without the back-off of before.
    let open = r#"{"spec": {"visibility": "Shared"}}"#;
    machines.kubectl(&["patch", "project", "team", "--type=merge", "--patch", open])?;
    machines.kubectl(&["delete", "pod", "stranger"])?;
    machines.apply(&stranger)?;
    machines.kubectl(&["wait", "--for=condition=Ready", "pod/stranger", "--timeout=60s"])?;
    Ok(())
}

/// On the machine of the registry, what a pod runs and what was pushed are the same files.
fn has_no_second_copy(machines: &Machines, _: &Path) -> Result<()> {
    let data = machines.server().data_dir();
    let inodes = |folder: &str| -> Result<BTreeMap<PathBuf, (u64, u64)>> {
        let files = fs::read_dir(data.join(folder).join("blobs/sha256"))?;
        let file = |file: std::io::Result<fs::DirEntry>| -> Result<_> {
            let meta = file.as_ref().map_err(|error| anyhow::anyhow!("{error}"))?.metadata()?;
            Ok((PathBuf::from(file?.file_name()), (meta.ino(), meta.len())))
        };
        files.map(file).collect()
    };
    let (images, pushed) = (inodes("images")?, inodes("registry")?);
    // Whoever pushed it: docker, and the node itself.
    let both = pushed.iter().filter_map(|(name, file)| Some((file, images.get(name)?)));
    let both: Vec<_> = both.filter(|((_, size), _)| *size > 100_000).collect();
    ensure!(!both.is_empty() && both.iter().all(|(one, other)| one == other), "a layer has a copy: {both:?}");
    Ok(())
}

fn says_what_a_project_has(machines: &Machines, _: &Path) -> Result<()> {
    eventually(SOON, || {
        let project = machines.get(&["get", "project", "team"])?;
        let status = &project["status"];
        ensure!(status["repositories"] == 1 && status["bytes"].as_u64() > Some(100_000), "{status}");
        ensure!(
            status["conditions"][0]["type"] == "Accepted" && status["conditions"][0]["status"] == "True",
            "{status}"
        );
        Ok(())
    })?;
    let metrics = machines.kubectl(&["get", "--raw", "/metrics"])?;
    for line in [
        "dhow_registry_requests_total{method=\"PUT\",code=\"201\"}",
        "dhow_registry_project_repositories{project=\"team\"} 1",
    ] {
        ensure!(metrics.contains(line), "no {line}");
    }
    Ok(())
}

struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const ELSEWHERE: &str = "127.0.0.1:5000";

const RULE: &str = r#"
apiVersion: registry.dhow.io/v1alpha1
kind: ReplicationRule
metadata: {name: out}
spec:
  direction: Push
  remote: {registry: "127.0.0.1:5000"}
  repositories: [team/app]
  tags: [v*, later]
  rename: {from: team/, to: mirror/}
  onPush: true
"#;

/// To Debian's docker-registry: what is there already, and what comes later.
fn replicates(machines: &Machines, folder: &Path) -> Result<()> {
    let config = folder.join("elsewhere.yml");
    let storage = folder.join("elsewhere");
    fs::write(
        &config,
        format!(
            "version: 0.1\nhttp: {{addr: '{ELSEWHERE}'}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n",
            storage.display()
        ),
    )?;
    let mut serve = machines.server().command("docker-registry");
    serve.arg("serve").arg(&config).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let _elsewhere = Killed(serve.spawn()?);
    machines.apply(RULE)?;
    let tags = || -> Result<BTreeSet<String>> {
        let mut inspect = machines.server().command("skopeo");
        inspect.args(["list-tags", "--tls-verify=false", &format!("docker://{ELSEWHERE}/mirror/app")]);
        Ok(serde_json::from_value(serde_json::from_str::<Value>(&run(&mut inspect)?)?["Tags"].take())?)
    };
    let has = |wanted: &[&str]| {
        eventually(SOON, || {
            let found = tags()?;
            ensure!(found.iter().eq(wanted), "{found:?}");
            Ok(())
        })
    };
    has(&["v2"])?;
    push(machines, &format!("{REGISTRY}/team/app:later"))?;
    has(&["later", "v2"])?;
    machines.kubectl(&["wait", "--for=condition=Replicated", "replicationrule/out", "--timeout=60s"])?;
    eventually(SOON, || {
        let rule = machines.get(&["get", "replicationrule", "out"])?;
        let last = &rule["status"]["lastRun"];
        ensure!(last["failed"] == 0 && last["copied"] == 1 && last["trigger"] == "Push", "{last}");
        Ok(())
    })?;
    machines.kubectl(&["delete", "replicationrule", "out"])?;
    Ok(())
}

/// An image without a signature is refused; with one it runs, by the digest that is signed.
fn runs_only_what_is_signed(machines: &Machines, folder: &Path) -> Result<()> {
    let image = format!("{REGISTRY}/team/signed");
    push(machines, &format!("{image}:1"))?;
    let openssl = |args: &[&str]| run(machines.server().command("openssl").current_dir(folder).args(args));
    openssl(&["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "cosign.key"])?;
    openssl(&["pkey", "-in", "cosign.key", "-pubout", "-out", "cosign.pub"])?;
    let key = folder.join("cosign.pub");
    let from = format!("--from-file=cosign.pub={}", key.display());
    machines.kubectl(&["create", "secret", "generic", "keys", "--namespace", "team", &from])?;
    machines.apply(&format!(
        "apiVersion: registry.dhow.io/v1alpha1\nkind: ImagePolicy\nmetadata: {{name: signed}}\nspec:\n  \
         images: ['{image}']\n  authorities:\n  - name: us\n    cosign: {{secret: {{namespace: team, name: keys}}}}\n"
    ))?;
    machines.kubectl(&["wait", "--for=condition=Accepted", "imagepolicy/signed", "--timeout=60s"])?;
    let pod = pod("signed", "team", "m1", &format!("{image}:1"));
    let refused = format!("{:#}", machines.apply(&pod).unwrap_err());
    ensure!(refused.contains("image policy \"signed\"") && refused.contains("it has no signature"), "{refused}");

    let shown = || -> Result<Value> {
        let text = machines.server().dhow(&["registry", "artifacts", "team/signed:1", "-o", "json"])?;
        Ok(serde_json::from_str::<Value>(&text)?["tags"][0].clone())
    };
    let before = shown()?;
    ensure!(before["signatures"] == serde_json::json!([]) && before["size"].as_u64() > Some(100_000), "{before}");
    let digest = before["digest"].as_str().context("no digest")?.to_owned();
    sign(machines, folder, &digest)?;
    ensure!(shown()?["signatures"] == serde_json::json!(["cosign"]), "{}", shown()?);
    machines.apply(&pod)?;
    let made = machines.get(&["get", "pod", "signed", "--namespace", "team"])?;
    ensure!(made["spec"]["containers"][0]["image"] == format!("{image}@{digest}").as_str(), "{}", made["spec"]);
    machines.kubectl(&["wait", "--namespace", "team", "--for=condition=Ready", "pod/signed", "--timeout=60s"])?;
    let usage = machines.server().dhow(&["registry", "usage", "team/signed"])?;
    ensure!(usage.contains("PULLS"), "{usage}");
    machines.kubectl(&["delete", "imagepolicy", "signed"])?;
    Ok(())
}

/// Lays down a signature as cosign does, pushed by skopeo.
fn sign(machines: &Machines, folder: &Path, digest: &str) -> Result<()> {
    use base64::Engine;
    let payload = serde_json::json!({
        "critical": {
            "identity": {"docker-reference": ""}, "image": {"docker-manifest-digest": digest},
            "type": "cosign container image signature",
        },
        "optional": null,
    })
    .to_string();
    let layout = folder.join("signature");
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let keep = |bytes: &[u8]| -> Result<(String, usize)> {
        fs::write(folder.join("bytes"), bytes)?;
        let sum = run(machines.server().command("sha256sum").arg(folder.join("bytes")))?;
        let hex = sum.split(' ').next().unwrap_or_default().to_owned();
        fs::write(blobs.join(&hex), bytes)?;
        Ok((format!("sha256:{hex}"), bytes.len()))
    };
    fs::write(folder.join("payload"), &payload)?;
    let sign = ["dgst", "-sha256", "-sign", "cosign.key", "-out", "payload.sig", "payload"];
    run(machines.server().command("openssl").current_dir(folder).args(sign))?;
    let signature = base64::prelude::BASE64_STANDARD.encode(fs::read(folder.join("payload.sig"))?);
    let (layer, config) = (keep(payload.as_bytes())?, keep(b"{}")?);
    let image = "application/vnd.oci.image.manifest.v1+json";
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": image,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config.0, "size": config.1},
        "layers": [{
            "mediaType": "application/vnd.dev.cosign.simplesigning.v1+json", "digest": layer.0, "size": layer.1,
            "annotations": {"dev.cosignproject.cosign/signature": signature},
        }],
    })
    .to_string();
    let manifest = keep(manifest.as_bytes())?;
    let index = serde_json::json!({
        "schemaVersion": 2,
        "manifests": [{"mediaType": image, "digest": manifest.0, "size": manifest.1}],
    });
    fs::write(layout.join("index.json"), index.to_string())?;
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#)?;
    let (user, password) = robot(machines)?;
    let tag = digest.replace(':', "-") + ".sig";
    let mut copy = machines.server().command("skopeo");
    copy.args([
        "copy",
        "--quiet",
        "--preserve-digests",
        "--dest-creds",
        &format!("{user}:{password}"),
        "--dest-cert-dir",
    ]);
    copy.arg(folder.join("trust")).arg(format!("oci:{}", layout.display()));
    run(copy.arg(format!("docker://{REGISTRY}/team/signed:{tag}")))?;
    Ok(())
}

fn purges(machines: &Machines, _: &Path) -> Result<()> {
    machines.purge()
}
