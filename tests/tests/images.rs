//! `dhow image` against a running cloud and a real registry, and pods whose images come from there.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use dhow_e2e::{HOST_IP, Host, eventually, run};
use serde_json::Value;

/// A docker-archive `app.tar` of an image `app:1` with busybox in it.
fn archive(folder: &Path) -> String {
    let script = r#"
        mkdir -p rootfs/bin && cp "$(command -v busybox)" rootfs/bin/busybox && ln -sf busybox rootfs/bin/sleep
        tar -C rootfs -cf layer.tar . && diff=$(sha256sum layer.tar | cut -d' ' -f1)
        printf '{"architecture":"%s","os":"linux","config":{"Cmd":["/bin/sleep","1000"]},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
            "$(dpkg --print-architecture)" "$diff" >config.json
        printf '[{"Config":"config.json","RepoTags":["app:1"],"Layers":["layer.tar"]}]' >manifest.json
        tar -cf app.tar manifest.json config.json layer.tar
    "#;
    run(Command::new("sh").args(["-euc", script]).current_dir(folder)).unwrap();
    folder.join("app.tar").to_str().unwrap().to_owned()
}

#[test]
fn images_travel_between_node_registry_and_archives() {
    let host = Host::new().unwrap();
    let folder = host.folder().to_owned();
    let registry = format!("{HOST_IP}:5000");
    let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).unwrap();
    // bcrypt of "pass"
    write("htpasswd", "user:$2b$05$abcdefghijklmnopqrstuuZFBUbfXoM8LFiPx8LYlO/sXZB/Cwk3K\n");
    write(
        "registry.yml",
        &format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {0}/registry}}}}\nhttp: {{addr: '{registry}'}}\n\
             auth: {{htpasswd: {{realm: test, path: {0}/htpasswd}}}}\n",
            folder.display()
        ),
    );
    write(
        "config.yaml",
        &format!("registries:\n  hosts:\n    '{registry}': {{plainHttp: true, username: user, password: pass}}\n"),
    );
    // The user's credentials are in a helper's keeping.
    write("config.json", &format!(r#"{{"credHelpers": {{"{registry}": "e2e"}}}}"#));
    let answer = r#"{"ServerURL":"x","Username":"user","Secret":"pass"}"#;
    write("docker-credential-e2e", &format!("#!/bin/sh\ntest \"$1 $(cat)\" = 'get {registry}' && echo '{answer}'\n"));
    run(Command::new("chmod").arg("+x").arg(folder.join("docker-credential-e2e"))).unwrap();
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
    let settings = folder.join("registry.yml");
    let mut serving = host.command("docker-registry");
    serving.arg("serve").arg(&settings).stdout(Stdio::null()).stderr(Stdio::null());
    let mut serving = serving.spawn().unwrap();

    run(host.dhow_command(&["up"]).env("DHOW_CONFIG", folder.join("config.yaml"))).unwrap();
    let image =
        |args: &[&str]| run(host.dhow_command(&["image"]).args(args).env("DOCKER_CONFIG", &folder).env("PATH", &path));
    let list = || serde_json::from_str::<Value>(&image(&["list", "-o", "json"]).unwrap()).unwrap();
    image(&["import", &archive(&folder)]).unwrap();
    let remote = format!("{registry}/team/app:1");
    image(&["push", "app:1", &remote, "--chunk", "1"]).unwrap();
    image(&["tag", "app:1", "web:blue"]).unwrap();
    let names = list()["images"][0]["repo_tags"].clone();
    assert_eq!(names, serde_json::json!(["docker.io/library/app:1", "docker.io/library/web:blue"]));
    let out = folder.join("out.tar");
    image(&["export", "app:1", "web:blue", "-o", out.to_str().unwrap(), "--format", "docker"]).unwrap();
    let seen =
        run(Command::new("skopeo").args(["inspect", &format!("docker-archive:{}:web:blue", out.display())])).unwrap();
    assert!(seen.contains("\"Layers\""), "{seen}");
    image(&["remove", "app:1", "web:blue"]).unwrap();
    assert_eq!(list()["images"], serde_json::json!([]));
    let missing = host.dhow_command(&["image", "inspect", "app:1"]).output().unwrap();
    assert_eq!(missing.status.code(), Some(3), "{}", String::from_utf8_lossy(&missing.stderr));

    // A pod brings it back, with the node's credentials.
    host.kubectl(&["run", "app", &format!("--image={remote}"), "--restart=Never"]).unwrap();
    host.kubectl(&["wait", "--for=condition=Ready", "--timeout=60s", "pod/app"]).unwrap();
    assert_eq!(list()["images"][0]["in_use_by"], 1);
    image(&["prune", "--all"]).unwrap();
    assert_eq!(list()["images"].as_array().unwrap().len(), 1, "it is in use");
    let wide = image(&["list", "-o", "wide"]).unwrap();
    assert!(wide.contains("USED BY") && wide.contains(&remote), "{wide}");

    host.kubectl(&["run", "none", &format!("--image={registry}/team/none:1"), "--restart=Never"]).unwrap();
    eventually(Duration::from_secs(30), || {
        let pod = host.get(&["get", "pod", "none"])?;
        let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
        let message = waiting["message"].as_str().unwrap_or_default();
        let reason = waiting["reason"].as_str().unwrap_or_default();
        anyhow::ensure!(matches!(reason, "ErrImagePull" | "ImagePullBackOff"), "{waiting}");
        anyhow::ensure!(reason == "ImagePullBackOff" || message.contains("not found"), "{waiting}");
        Ok(())
    })
    .unwrap();
    host.kubectl(&["delete", "pod", "app", "none", "--grace-period=0", "--force"]).unwrap();
    eventually(Duration::from_secs(30), || {
        anyhow::ensure!(list()["images"][0]["in_use_by"] == 0, "{}", list());
        Ok(())
    })
    .unwrap();
    image(&["prune", "--all"]).unwrap();
    assert_eq!(list()["images"], serde_json::json!([]));
    image(&["pull", &remote]).unwrap();
    serving.kill().unwrap();
    serving.wait().unwrap();
}
