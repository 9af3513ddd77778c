//! Precedence, unknown keys, and errors that say where.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::json;

use super::*;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Config {
    node_name: Option<String>,
    max_pods: Option<u32>,
    listen: String,
    debug: bool,
    sans: Vec<String>,
    labels: BTreeMap<String, String>,
    network: Network,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Network {
    pod_cidr: String,
    mtu: u32,
}

impl Default for Network {
    fn default() -> Self {
        Self { pod_cidr: "10.42.0.0/16".into(), mtu: 1500 }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            node_name: None,
            max_pods: None,
            listen: "0.0.0.0:6443".into(),
            debug: false,
            sans: vec![],
            labels: BTreeMap::new(),
            network: Network::default(),
        }
    }
}

fn vars(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

#[test]
fn later_layers_win() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.yaml");
    std::fs::write(&file, "# ours\nlisten: file\nnetwork:\n  mtu: 1400\nsans: [a]\n").unwrap();
    std::fs::create_dir(dir.path().join("config.yaml.d")).unwrap();
    std::fs::write(dir.path().join("config.yaml.d/10-a.yaml"), "nodeName: a\ndebug: true\nlisten: a\nlabels: {x: y}")
        .unwrap();
    std::fs::write(dir.path().join("config.yaml.d/20-b.yaml"), "nodeName: b\n").unwrap();
    std::fs::write(dir.path().join("config.yaml.d/empty.yaml"), "# nothing\n").unwrap();
    let config: Config = Sources::new()
        .file(&file, true)
        .environment(
            "DHOW_",
            vars(&[("DHOW_NETWORK_MTU", "1300"), ("DHOW_MAX_PODS", "7"), ("DHOW_LOG", "x"), ("HOME", "/")]),
            &["DHOW_LOG"],
        )
        .flags(json!({"network": {"mtu": null}, "maxPods": 9}))
        .load()
        .unwrap();
    let expected = Config {
        node_name: Some("b".into()),
        max_pods: Some(9),
        listen: "file".into(),
        debug: true,
        sans: vec!["a".into()],
        labels: BTreeMap::from([("x".into(), "y".into())]),
        network: Network { mtu: 1300, ..Network::default() },
    };
    assert_eq!(config, expected);
}

#[test]
fn variables_take_the_type_of_their_key() {
    let load = |pairs: &[(&str, &str)]| Sources::new().environment("DHOW_", vars(pairs), &[]).load::<Config>();
    assert_eq!(load(&[("DHOW_NODE_NAME", "123")]).unwrap().node_name.as_deref(), Some("123"));
    assert_eq!(load(&[("DHOW_SANS", "a, b")]).unwrap().sans, ["a", "b"]);
    assert!(load(&[("DHOW_DEBUG", "true")]).unwrap().debug);
    let text = load(&[("DHOW_NETWORK_MTU", "wide")]).unwrap_err().to_string();
    assert!(text.contains("DHOW_NETWORK_MTU"), "{text}");
    let text = load(&[("DHOW_NETWROK_MTU", "1")]).unwrap_err().to_string();
    assert!(text.contains("DHOW_NETWROK_MTU"), "{text}");
}

#[test]
fn mistakes_name_their_place() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.yaml");
    for (content, expected) in [
        ("network:\n  podCdr: x\n", "unknown key \"network.podCdr\""),
        ("lisen: x\n", "unknown key \"lisen\""),
        ("network: {mtu: wide}\n", "invalid type"),
        ("- a\n", "map of keys"),
        ("a: [\n", ""),
    ] {
        std::fs::write(&file, content).unwrap();
        let text = Sources::new().file(&file, true).load::<Config>().unwrap_err().to_string();
        assert!(text.contains("config.yaml") && text.contains(expected), "{content:?}: {text}");
    }
    std::fs::remove_file(&file).unwrap();
    assert!(Sources::new().file(&file, true).load::<Config>().is_err());
    assert_eq!(Sources::new().file(&file, false).load::<Config>().unwrap(), Config::default());
}
