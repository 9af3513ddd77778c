//! What steps see and may use, and what is stated of what they made.

use std::process::Command;

use serde_json::{Value, json};

use crate::bench::{Bench, Served, eventually, sh};

pub async fn an_agent_is_seen() {
    let bench = Bench::new(&["debian-base"]).await;
    let folder = bench.folder.path().join("agent");
    std::fs::create_dir(&folder).unwrap();
    let socket = folder.join("socket");
    let _agent = Served::start(Command::new("ssh-agent").args(["-D", "-a"]).arg(&socket));
    eventually(|| socket.exists()).await;
    sh(&folder, "ssh-keygen -q -t ed25519 -N '' -C of-the-caller -f key && SSH_AUTH_SOCK=$PWD/socket ssh-add -q key");
    // What `ssh-add -l` asks: which keys there are.
    let asks = r#"perl -MSocket -e 'socket(S, AF_UNIX, SOCK_STREAM, 0) && connect(S, sockaddr_un($ENV{SSH_AUTH_SOCK})) or die "$!"; syswrite S, "\0\0\0\1\x0b"; sysread S, $x, 4096; print $x =~ /of-the-caller/ ? "seen" : "none"' > /keys"#;
    let text = format!(
        "FROM docker.io/dhow/debian-base\nRUN --mount=type=ssh,required {asks}\n\
         RUN --mount=type=ssh,id=other,target=/run/agent test \"$SSH_AUTH_SOCK\" = /run/agent\n\
         RUN test \"$(cat /keys)\" = seen && test -z \"$SSH_AUTH_SOCK\"\n"
    );
    let agents = json!({"agents": {"default": socket, "other": socket}});
    bench.build(&text, agents, &[]).await;
    let said = bench.refused(&text, json!({"noCache": true}), &[]).await;
    assert!(said.contains("unset ssh forward key default"), "{said}");
    let said = bench.refused(&text, json!({"agents": {"default": "/etc/passwd"}}), &[]).await;
    assert!(said.contains("is no socket of an agent"), "{said}");
}

pub async fn limits_hold() {
    let bench = Bench::new(&["busybox"]).await;
    let eats = "FROM busybox\nRUN dd if=/dev/zero of=/dev/null bs=300M count=1\n";
    let said = bench.refused(eats, json!({"limits": {"memory": 64 << 20}}), &[]).await;
    assert!(said.contains("it wanted more memory than a step may have (64 MiB)"), "{said}");
    // As much as all steps together may have, but no more.
    let more = json!({"limits": {"memory": 512 << 20, "cpuShares": 256, "cpuQuota": 200_000}});
    bench.build(eats, more, &[]).await;
    let said = bench.refused(&eats.replace("300M", "1300M"), json!({"limits": {"memory": 4_i64 << 30}}), &[]).await;
    assert!(said.contains("it wanted more memory"), "{said}");
    let forks = "FROM busybox\nRUN for i in 1 2 3 4 5 6 7 8; do sleep 3 & done; wait\n";
    let said = bench.ask(forks, json!({"limits": {"pids": 4}}), &[]).await;
    assert!(said.error().is_some() && said.text().contains("fork"), "{}", said.text());
}

pub async fn what_is_in_an_image_is_stated() {
    let bench = Bench::new(&["debian-base"]).await;
    let text = "FROM docker.io/dhow/debian-base\nCOPY package.json /app/node_modules/left/\n";
    let package: &[u8] = br#"{"name": "left", "version": "1.2.3"}"#;
    let more = json!({
        "output": "oci", "attest": {"sbom": true, "provenance": "max"}, "args": {"X": "y"}, "secrets": {"token": ""},
    });
    let said = bench.ask(text, more, &[("package.json", package)]).await;
    assert_eq!(said.error(), None);
    let statements: Vec<Value> = said
        .files()
        .into_values()
        .filter_map(|bytes| serde_json::from_slice::<Value>(&bytes).ok())
        .filter(|document| document["_type"] == "https://in-toto.io/Statement/v1")
        .collect();
    let of = |kind: &str| statements.iter().find(|of| of["predicateType"] == kind).unwrap()["predicate"].clone();
    let spdx = of("https://spdx.dev/Document");
    assert_eq!(spdx["spdxVersion"], "SPDX-2.3");
    let text = spdx.to_string();
    assert!(text.contains("pkg:deb/debian/perl-base@") && text.contains("pkg:npm/left@1.2.3"), "{text}");
    let packages = spdx["packages"].as_array().unwrap();
    let ids: std::collections::BTreeSet<&str> = packages.iter().map(|of| of["SPDXID"].as_str().unwrap()).collect();
    assert!(packages.len() > 50 && ids.len() == packages.len(), "{}", packages.len());
    let provenance = of("https://slsa.dev/provenance/v1");
    let request = &provenance["buildDefinition"]["externalParameters"]["request"];
    assert_eq!((&request["args"]["build-arg:X"], &request["secrets"][0]["id"]), (&json!("y"), &json!("token")));
    assert_eq!(provenance["runDetails"]["byproducts"][0]["mediaType"], "text/x-dockerfile");
}
