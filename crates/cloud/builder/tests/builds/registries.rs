//! What builds give to registries, and what other builders take from there.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::bench::{Bench, members, sh};
use crate::docker_registry::{Setup, docker_registry};

const STAMPED: &str = "FROM busybox AS build\nRUN cat /proc/sys/kernel/random/uuid > /stamp\nCOPY main /\n\
                       FROM busybox\nCOPY --from=build /stamp /main /\nRUN cat /proc/sys/kernel/random/uuid >> /stamp\n\
                       COPY --link main /linked\n";

fn get(address: &str, rest: &str) -> Value {
    let accept = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json";
    let script = format!("curl -fsS -u user:pass -H 'Accept: {accept}' http://{address}/v2/team/app/{rest}");
    serde_json::from_str(&sh("/".as_ref(), &script)).unwrap()
}

fn credentials(address: &str, password: &str) -> Value {
    let mut all = json!({});
    all[address] = json!({"username": "user", "password": password});
    all
}

pub async fn images_are_pushed() {
    let bench = Bench::new(&["busybox"]).await;
    let (_registry, address) = docker_registry(bench.folder.path(), &Setup { password: true, ..Setup::default() });
    let names = json!([format!("{address}/team/app:1"), format!("{address}/team/app:2")]);
    let mut more = json!({"names": names, "push": true, "credentials": credentials(&address, "wrong")});
    let said = bench.refused(STAMPED, more.clone(), &[("main", b"m")]).await;
    assert!(said.to_lowercase().contains("unauthorized") || said.contains("401"), "{said}");
    more["credentials"] = credentials(&address, "pass");
    let said = bench.ask(STAMPED, more, &[("main", b"m")]).await;
    assert_eq!(said.error(), None);
    let pushed: Vec<&Value> = said.events.iter().filter(|event| event["event"] == "pushed").collect();
    assert_eq!(pushed.len(), 2, "{}", said.text());
    let manifest = get(&address, "manifests/2");
    let kinds: Vec<&str> =
        manifest["layers"].as_array().unwrap().iter().map(|layer| layer["mediaType"].as_str().unwrap()).collect();
    assert!(kinds.len() > 3 && kinds.iter().skip(1).all(|kind| kind.ends_with("tar+gzip")), "{manifest}");
    let config = get(&address, &format!("blobs/{}", manifest["config"]["digest"].as_str().unwrap()));
    assert_eq!(config["rootfs"]["diff_ids"].as_array().unwrap().len(), kinds.len());
    // Another builder takes it as a base, with the same credentials only.
    let other = Bench::new(&[]).await;
    let text = format!("FROM {address}/team/app:1\nCOPY main /more\n");
    let said = other.refused(&text, json!({}), &[("main", b"m")]).await;
    assert!(said.to_lowercase().contains("unauthorized") || said.contains("401"), "{said}");
    let (_, seen) = other.build(&text, json!({"credentials": credentials(&address, "pass")}), &[("main", b"m")]).await;
    assert!(seen.contains_key("stamp") && seen.contains_key("more"));
}

/// The archive of a folder as files of a request.
fn sent(cache: &BTreeMap<String, Vec<u8>>) -> Vec<(String, &[u8])> {
    cache.iter().map(|(path, bytes)| (format!("contexts/1/{path}"), bytes.as_slice())).collect()
}

pub async fn steps_are_given_to_others() {
    let bench = Bench::new(&["busybox"]).await;
    let (_registry, address) = docker_registry(bench.folder.path(), &Setup { password: true, ..Setup::default() });
    let auth = credentials(&address, "pass");
    let remote = format!("{address}/team/app:cache");
    let to = |to: Value, mode: &str| json!({"to": to, "mode": mode, "compression": null, "ignoreError": false});
    let give = json!({
        "credentials": auth,
        "cacheTo": [to(json!({"folder": "latest"}), "max"), to(json!({"registry": remote}), "max")],
    });
    let main: (&str, &[u8]) = ("main", b"m");
    let (said, first) = bench.build(STAMPED, give, &[main]).await;
    assert_eq!(said.cached(), 0, "{}", said.text());
    let manifest = get(&address, "manifests/cache");
    assert_eq!(manifest["artifactType"], "application/vnd.dhow.build.cache.v1");
    let packed = |layer: &Value| layer["mediaType"].as_str().unwrap().contains("layer.v1.tar+");
    assert!(manifest["layers"].as_array().unwrap().iter().all(packed), "{manifest}");
    let cache = members(&said.cache);
    assert!(cache.contains_key("oci-layout") && cache.contains_key("index.json"), "{:?}", cache.keys());

    // Builders that never did any of it.
    let folder = sent(&cache);
    let mut files: Vec<(&str, &[u8])> = folder.iter().map(|(path, bytes)| (path.as_str(), *bytes)).collect();
    files.push(main);
    for (from, files) in [
        (json!([{"folder": [1, "latest"]}]), &files[..]),
        (json!([{"registry": format!("{address}/team/app:none")}, {"registry": remote}]), &[main][..]),
    ] {
        let other = Bench::new(&["busybox"]).await;
        let (said, seen) = other.build(STAMPED, json!({"cacheFrom": from, "credentials": auth}), files).await;
        assert_eq!((said.cached(), &seen), (5, &first), "{}", said.text());
        // They are its own from then on.
        let (said, seen) = other.build(STAMPED, json!({}), &[main]).await;
        assert_eq!((said.cached(), &seen), (5, &first), "{}", said.text());
        let (said, _) =
            other.build(STAMPED, json!({"cacheFrom": from, "credentials": auth}), &[("main", b"other")]).await;
        assert!(said.cached() < 5, "{}", said.text());
    }
    // A cache that was tampered with is not used, and does no harm.
    let mut wrong = cache.clone();
    for (path, bytes) in &mut wrong {
        if path.starts_with("blobs/") && bytes.first() != Some(&b'{') {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        }
    }
    let folder = sent(&wrong);
    let mut files: Vec<(&str, &[u8])> = folder.iter().map(|(path, bytes)| (path.as_str(), *bytes)).collect();
    files.push(main);
    let other = Bench::new(&["busybox"]).await;
    let (said, seen) = other.build(STAMPED, json!({"cacheFrom": [{"folder": [1, null]}]}), &files).await;
    assert!(
        said.text().contains("a step of the cache is not used") && seen["stamp"] != first["stamp"],
        "{}",
        said.text()
    );

    // An image brings the keys of its own layers.
    let single = "FROM busybox\nRUN cat /proc/sys/kernel/random/uuid > /stamp\nCOPY main /\n";
    let name = format!("{address}/team/app:inline");
    let give = json!({
        "credentials": auth, "names": [name], "push": true, "output": "store", "cacheTo": [to(json!("inline"), "min")],
    });
    let said = bench.ask(single, give, &[main]).await;
    assert_eq!(said.error(), None);
    let (_, first) = bench.build(single, json!({}), &[main]).await;
    let other = Bench::new(&["busybox"]).await;
    let from = json!({"cacheFrom": [{"registry": name}], "credentials": auth});
    let (said, seen) = other.build(single, from, &[main]).await;
    assert_eq!((said.cached(), seen), (2, first), "{}", said.text());
    // What is built on it has not its keys.
    let (_, _) = other.build(&format!("FROM {name}\nRUN true\n"), json!({"credentials": auth}), &[]).await;
}

const SEVERAL: &str = "FROM --platform=$BUILDPLATFORM busybox AS build\nARG TARGETARCH\n\
                       RUN echo for $TARGETARCH > /made\nFROM scratch\nARG TARGETPLATFORM\nLABEL for=$TARGETPLATFORM\n\
                       COPY --from=build /made /\n";

pub async fn several_platforms_make_an_index() {
    let bench = Bench::new(&["busybox"]).await;
    let (_registry, address) = docker_registry(bench.folder.path(), &Setup { password: true, ..Setup::default() });
    let auth = credentials(&address, "pass");
    let name = format!("{address}/team/app:several");
    let both = "linux/amd64,linux/arm64";
    let push = json!({
        "platform": both, "credentials": auth, "names": [name], "push": true, "args": {"SECRET": "x"},
        "attest": {"provenance": "min", "sbom": true},
    });
    let said = bench.ask(SEVERAL, push, &[]).await;
    assert_eq!(said.error(), None);
    assert!(said.text().contains("[linux/arm64 build 1/2] RUN"), "{}", said.text());
    let index = get(&address, "manifests/several");
    let manifests = index["manifests"].as_array().unwrap();
    let of = |manifest: &Value| manifest["platform"]["architecture"].as_str().unwrap().to_owned();
    assert_eq!(manifests.iter().map(of).collect::<Vec<_>>(), ["amd64", "arm64", "unknown", "unknown"]);
    for (at, platform) in ["linux/amd64", "linux/arm64"].iter().enumerate() {
        let digest = manifests[at]["digest"].as_str().unwrap();
        let manifest = get(&address, &format!("manifests/{digest}"));
        let config = get(&address, &format!("blobs/{}", manifest["config"]["digest"].as_str().unwrap()));
        assert_eq!(
            (&config["config"]["Labels"]["for"], of(&json!({"platform": config}))),
            (&json!(platform), of(&manifests[at]))
        );
        let attested = &manifests[at + 2];
        assert_eq!(attested["annotations"]["vnd.docker.reference.digest"], digest);
        assert_eq!(attested["annotations"]["vnd.docker.reference.type"], "attestation-manifest");
        let attested = get(&address, &format!("manifests/{}", attested["digest"].as_str().unwrap()));
        assert_eq!((&attested["subject"]["digest"], attested["layers"].as_array().unwrap().len()), (&json!(digest), 2));
        let layer = &attested["layers"][1];
        assert_eq!(layer["annotations"]["in-toto.io/predicate-type"], "https://slsa.dev/provenance/v1");
        let statement = get(&address, &format!("blobs/{}", layer["digest"].as_str().unwrap()));
        assert_eq!(format!("sha256:{}", statement["subject"][0]["digest"]["sha256"].as_str().unwrap()), digest);
        let definition = &statement["predicate"]["buildDefinition"];
        let used = definition["resolvedDependencies"][0]["uri"].as_str().unwrap();
        assert!(used.starts_with("pkg:docker/busybox@latest?platform=linux%2F"), "{used}");
        assert!(!statement.to_string().contains("SECRET"), "arguments are nobody's business unless asked for");
    }
    // The whole leaves as an archive, too; an archive of files has a folder for each.
    let oci = json!({"platform": both, "output": "oci"});
    let said = bench.ask(SEVERAL, oci, &[]).await;
    let layout = said.files();
    let top: Value = serde_json::from_slice(&layout["index.json"]).unwrap();
    assert_eq!(top["manifests"][0]["mediaType"], "application/vnd.oci.image.index.v1+json", "{top}");
    let inner = top["manifests"][0]["digest"].as_str().unwrap().replace(':', "/");
    let inner: Value = serde_json::from_slice(&layout[&format!("blobs/{inner}")]).unwrap();
    assert_eq!(inner["manifests"].as_array().unwrap().len(), 2);
    let (said, seen) = bench.build(SEVERAL, json!({"platform": both}), &[]).await;
    let made = |path: &str| seen[path].trim().to_owned();
    assert_eq!((made("linux_amd64/made"), made("linux_arm64/made")), ("for amd64".into(), "for arm64".into()));
    assert_eq!(said.cached(), 4, "{}", said.text());
    let said = bench.refused(SEVERAL, json!({"platform": both, "output": "docker"}), &[]).await;
    assert!(said.contains("of one platform"), "{said}");

    // Base images by platform; the machine's own keeps its name here. What cannot be run is said.
    let host = dhow_image::Platform::host();
    let foreign = if host.architecture == "amd64" { "arm64" } else { "amd64" };
    let before = bench.store.get(&name).unwrap().id;
    let over = format!("FROM {name}\nCOPY main /\n");
    let more = json!({"platform": both, "credentials": auth});
    let (_, seen) = bench.build(&over, more, &[("main", b"m")]).await;
    assert_eq!(seen["linux_arm64/made"].trim(), "for arm64");
    assert_eq!(bench.store.get(&name).unwrap().id, before);
    let more = json!({"platform": format!("linux/{foreign}"), "credentials": auth});
    let said = bench.refused(&format!("{over}RUN [\"/made\"]\n"), more, &[("main", b"m")]).await;
    assert!(
        said.contains(&format!("linux/{foreign} programs cannot be run")) && said.contains("binfmt_misc"),
        "{said}"
    );
}
