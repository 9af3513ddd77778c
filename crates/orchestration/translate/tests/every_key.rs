//! No key of the Compose schema is dropped in silence: each one changes the objects, or is named in a warning with its
//! place, or is refused by name.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Memory, complaints, one};
use dhow_translate::schema;
use serde_json::{Value, json};

/// A project in which every key finds what it may name.
fn base() -> Value {
    json!({
        "services": {"web": {"image": "web:1"}, "other": {"image": "other:1"}},
        "networks": {"net": {}},
        "volumes": {"vol": {}},
        "configs": {"conf": {"content": "x"}},
        "secrets": {"sec": {"environment": "SEC"}},
    })
}

fn files() -> Memory {
    Memory::default()
        .with("a.env", "FROM_FILE=\"1\"\n")
        .with("a.labels", "from.file=1\n")
        .with("b.env", "C=3\n")
        .with("file", "text")
        .with(".env", "SEC=secret\nOTHER=o\n")
        .with("elsewhere/.env", "C=9\n")
        .with("sub/inc.yaml", "services: {inc: {image: 'inc:${C:-none}'}}\n")
        .with("sub/ext.yaml", "services: {ext: {image: x, tty: true}}\n")
}

/// What `*` stands for after these steps.
fn name(pattern: &str) -> &'static str {
    match pattern {
        "services" => "web",
        "networks" | "services.*.networks" => "net",
        "volumes" => "vol",
        "configs" => "conf",
        "secrets" => "sec",
        "services.*.depends_on" => "other",
        "services.*.ulimits" | "services.*.build.ulimits" => "nofile",
        "services.*.extra_hosts" => "somewhere",
        "services.*.sysctls" => "net.ipv4.ip_unprivileged_port_start",
        _ => "key",
    }
}

/// What a map has to have for a key in it to count.
fn siblings(pattern: &str, leaf: &str) -> Value {
    match pattern {
        "services.*.volumes[]" => {
            let kind = ["bind", "tmpfs", "image"]
                .into_iter()
                .find(|kind| leaf.contains(&format!("[].{kind}.")))
                .unwrap_or("volume");
            let source = match kind {
                "bind" => "/somewhere",
                "image" => "img:1",
                _ => "vol",
            };
            if kind == "tmpfs" {
                json!({"type": kind, "target": "/t"})
            } else {
                json!({"type": kind, "source": source, "target": "/t"})
            }
        }
        "services.*.configs[]" => json!({"source": "conf"}),
        "services.*.secrets[]" => json!({"source": "sec"}),
        "services.*.ports[]" => json!({"target": 80, "published": 8080}),
        "services.*.devices[]" => json!({"source": "/dev/a"}),
        "services.*.healthcheck" => {
            if leaf.ends_with("start_interval") {
                json!({"test": "x", "start_period": "60s"})
            } else {
                json!({"test": "x"})
            }
        }
        "services.*.post_start[]" | "services.*.pre_stop[]" => json!({"command": ["x"]}),
        "services.*.env_file[]" if leaf.ends_with("required") => json!({"path": "missing.env"}),
        "services.*.env_file[]" => json!({"path": "a.env"}),
        "services.*.extends" => json!({"service": "other"}),
        "services.*.deploy.resources.reservations.devices[]" | "services.*.gpus[]" => json!({"capabilities": ["gpu"]}),
        "services.*.deploy.resources.reservations.generic_resources[].discrete_resource_spec" => {
            json!({"kind": "example.com/a", "value": 1})
        }
        "services.*.depends_on.*" if leaf.ends_with("required") => json!({"condition": "service_started"}),
        "include[]" => json!({"path": "sub/inc.yaml"}),
        "networks.*.external" | "volumes.*.external" | "configs.*.external" | "secrets.*.external" => json!({}),
        "services.*.domainname" => json!({}),
        _ => json!({}),
    }
}

/// A value that means something there.
fn sample(leaf: &str, types: &str) -> Value {
    let last = leaf.rsplit('.').next().unwrap();
    let by_path = match leaf {
        "name" => Some(json!("named")),
        "include[]" => Some(json!("sub/inc.yaml")),
        "include[].path" | "include[].path[]" => Some(json!("sub/inc.yaml")),
        "include[].env_file" | "include[].env_file[]" => Some(json!("b.env")),
        "include[].project_directory" => Some(json!("elsewhere")),
        "services.*.build" => Some(json!(".")),
        "services.*.deploy.mode" => Some(json!("global")),
        "services.*.deploy.endpoint_mode" => Some(json!("vip")),
        "services.*.deploy.restart_policy.condition" => Some(json!("none")),
        "services.*.deploy.placement.constraints[]" => Some(json!("node.labels.a == b")),
        "services.*.deploy.placement.preferences[].spread" => Some(json!("node.labels.zone")),
        "services.*.deploy.resources.reservations.generic_resources[].discrete_resource_spec.kind" => {
            Some(json!("example.com/b"))
        }
        "services.*.depends_on[]" => Some(json!("other")),
        "services.*.depends_on.*.condition" => Some(json!("service_healthy")),
        "services.*.depends_on.*.required" => Some(json!(false)),
        "services.*.dns" | "services.*.dns[]" => Some(json!("9.9.9.9")),
        "services.*.env_file" | "services.*.env_file[]" | "services.*.env_file[].path" => Some(json!("a.env")),
        "services.*.healthcheck.retries" => Some(json!(7)),
        "services.*.volumes[].bind.create_host_path" => Some(json!(false)),
        "services.*.env_file[].format" => Some(json!("raw")),
        "services.*.env_file[].required" => Some(json!(false)),
        "services.*.label_file" | "services.*.label_file[]" => Some(json!("a.labels")),
        "services.*.environment[]" => Some(json!("A=1")),
        "services.*.expose[]" => Some(json!("9000")),
        "services.*.extends" => Some(json!("other")),
        "services.*.extends.service" => Some(json!("third")),
        "services.*.extends.file" => Some(json!("sub/ext.yaml")),
        "services.*.extra_hosts[]" => Some(json!("somewhere=10.0.0.1")),
        "services.*.extra_hosts.*" | "services.*.extra_hosts.*[]" => Some(json!("10.0.0.1")),
        "services.*.group_add[]" => Some(json!("1000")),
        "services.*.healthcheck.test[]" => Some(json!("NONE")),
        "services.*.ipc"
        | "services.*.pid"
        | "services.*.network_mode"
        | "services.*.userns_mode"
        | "services.*.uts" => Some(json!("host")),
        "services.*.links[]" => Some(json!("other:alias")),
        "services.*.networks[]" => Some(json!("net")),
        "services.*.platform" => Some(json!("linux/arm64")),
        "services.*.ports[]" => Some(json!("8080:80")),
        "services.*.ports[].mode" => Some(json!("host")),
        "services.*.ports[].host_ip" => Some(json!("127.0.0.1")),
        "services.*.ports[].published" => Some(json!("9090")),
        "services.*.ports[].protocol" => Some(json!("udp")),
        "services.*.pull_policy" => Some(json!("always")),
        "services.*.restart" => Some(json!("on-failure:3")),
        "services.*.secrets[]" => Some(json!("sec")),
        "services.*.configs[]" => Some(json!("conf")),
        "services.*.secrets[].source" | "services.*.configs[].source" => None,
        "services.*.security_opt[]" => Some(json!("no-new-privileges:true")),
        "services.*.stop_signal" => Some(json!("SIGUSR1")),
        "services.*.sysctls[]" => Some(json!("net.ipv4.ip_unprivileged_port_start=0")),
        "services.*.sysctls.*" => Some(json!("0")),
        "services.*.tmpfs" | "services.*.tmpfs[]" => Some(json!("/scratch")),
        "services.*.user" => Some(json!("1000:1000")),
        "services.*.volumes[]" => Some(json!("vol:/data")),
        "services.*.volumes[].bind.propagation" => Some(json!("rshared")),
        "services.*.volumes_from[]" => Some(json!("other")),
        "services.*.devices[]" => Some(json!("/dev/a:/dev/b")),
        "services.*.gpus" => Some(json!("all")),
        "services.*.deploy.update_config.failure_action" | "services.*.deploy.rollback_config.failure_action" => {
            Some(json!("rollback"))
        }
        "services.*.cgroup" => Some(json!("host")),
        "services.*.labels[]" | "services.*.annotations[]" | "services.*.deploy.labels[]" => Some(json!("a=b")),
        "configs.*.file" | "secrets.*.file" => Some(json!("file")),
        "configs.*.environment" | "secrets.*.environment" => Some(json!("OTHER")),
        "services.*.hostname" => Some(json!("host")),
        "services.*.cap_add[]" | "services.*.cap_drop[]" => Some(json!("NET_ADMIN")),
        _ => None,
    };
    if let Some(value) = by_path {
        return value;
    }
    match last {
        "delay" | "monitor" | "window" | "interval" | "timeout" | "start_period" | "start_interval"
        | "stop_grace_period" => json!("7s"),
        "memory" | "mem_limit" | "mem_reservation" | "memswap_limit" | "shm_size" | "size" => json!("64m"),
        "mode" => json!("0400"),
        "target" if leaf.contains("ports") => json!(81),
        "target" => json!("/elsewhere"),
        "source" => json!("/dev/b"),
        "uid" | "gid" => json!("103"),
        "cpus" => json!("0.5"),
        _ => {
            let word = types.split('|').find_map(|one| one.strip_prefix('='));
            let has = |name: &str| types.split('|').any(|one| one == name);
            match word {
                Some(word) => json!(word),
                None if has("boolean") => json!(true),
                None if has("integer") || has("number") => json!(3),
                None => json!("text"),
            }
        }
    }
}

/// Puts the value where the pattern says; the path as errors and warnings write it.
fn insert(root: &mut Value, leaf: &str, value: Option<Value>) -> String {
    let mut steps = Vec::new();
    for part in leaf.split('.') {
        let lists = part.matches("[]").count();
        steps.push(part.trim_end_matches("[]"));
        steps.extend(std::iter::repeat_n("[]", lists));
    }
    let (mut at, mut path, mut pattern) = (root, String::new(), String::new());
    for (index, step) in steps.iter().enumerate() {
        let last = index + 1 == steps.len();
        if *step == "[]" {
            pattern.push_str("[]");
            if !at.is_array() {
                *at = json!([]);
            }
            let list = at.as_array_mut().unwrap();
            if last {
                path.push_str(&format!("[{}]", list.len()));
                list.extend(value.clone());
                return path;
            }
            path.push_str("[0]");
            if list.is_empty() {
                list.push(siblings(&pattern, leaf));
            }
            at = &mut list[0];
            continue;
        }
        let key = if *step == "*" { name(&pattern) } else { step };
        if !pattern.is_empty() {
            pattern.push('.');
            path.push('.');
        }
        pattern.push_str(step);
        path.push_str(key);
        if !at.is_object() {
            *at = json!({});
        }
        let map = at.as_object_mut().unwrap();
        if last {
            match &value {
                Some(value) => drop(map.insert(key.to_owned(), value.clone())),
                None => drop(map.remove(key)),
            }
            return path;
        }
        at = map.entry(key).or_insert_with(|| siblings(&pattern, leaf));
        if at.is_null() {
            *at = siblings(&pattern, leaf);
        }
    }
    path
}

/// Keys that are what the objects are made of: another way to see that they count.
fn special(leaf: &str, root: &mut Value) {
    if leaf.starts_with("configs.*.") && leaf != "configs.*.content" || leaf.starts_with("secrets.*.") {
        let (section, entry) = if leaf.starts_with("configs") { ("configs", "conf") } else { ("secrets", "sec") };
        if leaf.ends_with(".file") || leaf.ends_with(".environment") {
            root[section][entry] = json!({});
        }
    }
    if leaf == "services.*.extends.service" {
        root["services"]["third"] = json!({"image": "t", "tty": true});
    }
    if leaf == "services.*.extends.file" {
        root["services"]["web"] = json!({"extends": {"service": "ext"}});
        root["services"]["ext"] = json!({"image": "e"});
    }
    if leaf == "services.*.extends" {
        root["services"]["other"]["tty"] = json!(true);
    }
    if leaf == "services.*.volumes_from[]" {
        root["services"]["other"]["volumes"] = json!(["vol:/data"]);
    }
    if leaf == "services.*.domainname" {
        root["services"]["web"]["hostname"] = json!("host");
    }
    if leaf == "services.*.deploy.endpoint_mode" {
        root["services"]["web"]["expose"] = json!(["80"]);
    }
    if leaf == "services.*.uts" {
        root["services"]["web"]["network_mode"] = json!("bridge");
    }
    if leaf == "services.*.depends_on.*.required" {
        root["services"].as_object_mut().unwrap().remove("other");
    }
    if leaf.starts_with("services.*.models") {
        root["models"] = json!({"key": {"model": "m"}});
    }
    if leaf.starts_with("networks.*.") {
        root["services"]["web"]["networks"] = json!(["net"]);
    }
    if leaf == "services.*.networks.*.aliases" || leaf == "services.*.networks.*.aliases[]" {
        root["services"]["other"]["tty"] = json!(true);
    }
    let external = |section: &str| leaf == format!("{section}.*.external.name");
    if external("volumes") {
        root["services"]["web"]["volumes"] = json!(["vol:/data"]);
    }
    for (section, entry) in [("configs", "conf"), ("secrets", "sec")] {
        if external(section) {
            root["services"]["web"][section] = json!([entry]);
        }
    }
    if leaf.starts_with("include[].") {
        root["include"] = json!([{"path": "sub/inc.yaml"}]);
    }
}

fn covers(outer: &str, path: &str) -> bool {
    path.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

#[test]
fn no_key_is_dropped_in_silence() {
    let mut silent = Vec::new();
    let mut seen = 0;
    for (leaf, types) in schema::paths() {
        let scalar = types.split('|').any(|one| !matches!(one, "map" | "list" | "null" | ""));
        if !scalar || leaf == "services.*.image" {
            continue;
        }
        seen += 1;
        let mut with = base();
        special(leaf, &mut with);
        let mut without = with.clone();
        let path = insert(&mut with, leaf, Some(sample(leaf, types)));
        insert(&mut without, leaf, None);
        let found = match one(&with.to_string(), &files()) {
            Ok(found) => found,
            // Refused with a place is not silent; it has to be this key, or what it is in.
            Err(error) => {
                let section = path.split(['.', '[']).take(3).collect::<Vec<_>>().join(".");
                let text = error.to_string();
                if !text.contains(&path) && !text.contains(&section) && !text.contains("read ") {
                    silent.push(format!("{leaf} ({types}): {text}"));
                }
                continue;
            }
        };
        silent.extend(found.objects.iter().flat_map(complaints).map(|one| format!("{leaf} is not valid: {one}")));
        let before = one(&without.to_string(), &files()).ok();
        let changed =
            before.as_ref().is_none_or(|before| before.objects != found.objects || before.builds != found.builds);
        let known = before.map(|before| before.warnings).unwrap_or_default();
        let told = found.warnings.iter().any(|warning| {
            let new = known.iter().all(|old| (&old.path, &old.message) != (&warning.path, &warning.message));
            // What is told of all that a key is in covers it, whether or not it is told without it, too.
            let within = covers(&warning.path, &path)
                && warning.path.matches(['.', '[']).count() > usize::from(!path.starts_with("models"));
            within || new && warning.path.starts_with(&path)
        });
        if !changed && !told {
            silent.push(format!("{leaf} ({types}) as {}", sample(leaf, types)));
        }
    }
    assert!(seen > 250, "the table has {seen} keys");
    assert!(silent.is_empty(), "{} keys are dropped in silence:\n{}", silent.len(), silent.join("\n"));
}
