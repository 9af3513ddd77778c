//! What the command line asks for beside the Dockerfile: platforms, statements, steps of others, addresses, limits; and the cloud's
//! own registry, which takes it all.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use dhow_e2e::{HOST_IP, Host, eventually, run};
use serde_json::Value;

use crate::Cloud;

const REGISTRY: &str = "198.18.0.1:5443";
const PORT: u16 = 8089;

const PROJECT: &str = "
apiVersion: registry.dhow.io/v1alpha1
kind: Project
metadata: {name: team}
spec: {visibility: Public}
";

const SEVERAL: &str = "
FROM --platform=$BUILDPLATFORM docker.io/dhow/debian-base AS build
ARG TARGETARCH
RUN cat /proc/sys/kernel/random/uuid > /made && echo $TARGETARCH >> /made
FROM scratch
COPY --from=build /made /
";

/// A document of the cloud's own registry, which the project shows everyone.
fn own(host: &Host, rest: &str) -> Value {
    let ca = host.data_dir().join("pki/ca.crt");
    let accept = "Accept: application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json";
    let url = format!("https://{REGISTRY}/v2/team/app/{rest}");
    let text = host.curl(&["--cacert", ca.to_str().unwrap(), "-H", accept, &url]).unwrap();
    serde_json::from_str(&text).unwrap()
}

pub fn are_understood(cloud: &Cloud<'_>) {
    let folder = cloud.host.folder().join("options");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("Dockerfile"), SEVERAL).unwrap();
    let context = folder.to_str().unwrap();
    own_registry_takes_an_index(cloud, context);
    steps_go_to_a_folder_and_come_back(cloud, &folder, context);
    contexts_come_from_elsewhere(cloud, &folder);
    limits_and_mistakes_are_told(cloud, &folder, context);
}

fn own_registry_takes_an_index(cloud: &Cloud<'_>, context: &str) {
    let host = cloud.host;
    eventually(Duration::from_secs(60), || host.apply(PROJECT)).unwrap();
    let name = format!("{REGISTRY}/team/app:1");
    let several = ["--platform", "linux/amd64,linux/arm64", "--provenance=mode=max", "--sbom", "-t", &name, "--push"];
    let said = cloud.built(&[&several[..], &[context]].concat());
    assert!(said.contains("[linux/arm64 build 1/2] RUN") && said.contains("pushed"), "{said}");
    let index = own(host, "manifests/1");
    let platforms: Vec<&str> = index["manifests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|of| of["platform"]["architecture"].as_str().unwrap())
        .collect();
    assert_eq!(platforms, ["amd64", "arm64", "unknown", "unknown"]);
    let image = index["manifests"][1]["digest"].as_str().unwrap();
    let referrers = own(host, &format!("referrers/{image}"));
    assert_eq!(referrers["manifests"][0]["digest"], index["manifests"][3]["digest"], "{referrers}");
    // The whole goes on under another name.
    let other = format!("{REGISTRY}/team/app:2");
    host.dhow(&["image", "push", &name, &other]).unwrap();
    assert_eq!(own(host, "manifests/2"), index);
}

fn steps_go_to_a_folder_and_come_back(cloud: &Cloud<'_>, folder: &Path, context: &str) {
    let cache = folder.join("cache");
    let (to, from) =
        (format!("type=local,dest={},mode=max", cache.display()), format!("type=local,src={}", cache.display()));
    std::fs::write(folder.join(".dockerignore"), "*\n").unwrap();
    let out = folder.join("out");
    let files = format!("type=local,dest={}", out.display());
    let made = |more: &[&str]| {
        let said = cloud.built(&[more, &["-o", &files, context]].concat());
        (said.matches("CACHED").count(), std::fs::read_to_string(out.join("made")).unwrap())
    };
    let (_, first) = made(&["--cache-from", &from, "--cache-to", &to]);
    cloud.host.dhow(&["image", "prune"]).unwrap();
    assert_eq!(made(&["--cache-from", &from]), (2, first));
    // What comes next takes the place of what was there.
    let blobs = || std::fs::read_dir(cache.join("blobs/sha256")).unwrap().count();
    let before = blobs();
    made(&["--no-cache", "--cache-to", &to]);
    assert_eq!(blobs(), before);
}

fn contexts_come_from_elsewhere(cloud: &Cloud<'_>, folder: &Path) {
    let out = folder.join("elsewhere");
    let to = format!("type=local,dest={}", out.display());
    let mut serving = cloud.host.serve("FROM scratch\nCOPY <<E /only\nx\nE\n", PORT).unwrap();
    let address = format!("http://{HOST_IP}:{PORT}/Dockerfile");
    eventually(Duration::from_secs(20), || cloud.host.curl(&[&address])).unwrap();
    cloud.built(&["-o", &to, &address]);
    assert_eq!(std::fs::read_to_string(out.join("only")).unwrap(), "x\n");
    serving.kill().unwrap();
    serving.wait().unwrap();
    let script = "printf 'FROM scratch\nCOPY a /piped\n' > t/Dockerfile && echo a > t/a && tar -C t -cjf t.tar.bz2 .";
    std::fs::create_dir(folder.join("t")).unwrap();
    run(Command::new("sh").args(["-euc", script]).current_dir(folder)).unwrap();
    let archive = std::fs::File::open(folder.join("t.tar.bz2")).unwrap();
    run(cloud.command(&["-o", &to, "-"]).stdin(archive)).unwrap();
    assert_eq!(std::fs::read_to_string(out.join("piped")).unwrap(), "a\n");
}

fn limits_and_mistakes_are_told(cloud: &Cloud<'_>, folder: &Path, context: &str) {
    let hungry = folder.join("hungry");
    let text = "FROM docker.io/dhow/debian-base\nRUN perl -e '$x = \"a\" x 300000000; print length $x'\n";
    std::fs::write(&hungry, text).unwrap();
    let hungry = hungry.to_str().unwrap();
    let said = cloud.refused(&["--memory", "64m", "-f", hungry, context]);
    assert!(said.contains("it wanted more memory than a step may have (64 MiB)"), "{said}");
    for (args, why) in [
        (&["--ssh", "default=/etc/passwd"][..], "is no socket of an agent"),
        (&["--cache-to", "type=gha"], "none of registry, local and inline"),
        (&["--attest", "type=guess"], "neither provenance nor sbom"),
        (&["--platform", "linux"], "write os/arch[/variant]"),
        (&["--memory", "much"], "a size such as 512m"),
    ] {
        let said = cloud.refused(&[args, &[context]].concat());
        assert!(said.contains(why), "{args:?}: {said}");
    }
}
