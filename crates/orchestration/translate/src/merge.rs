//! How a further file changes what is there: maps merge, lists grow, values replace; a few keys have rules of their own.

use crate::error::{Error, Result};
use crate::short;
use crate::yaml::{Kind, Node, Tag};

/// Lists of `key=value` that are maps as well.
const PAIRS: &[&str] =
    &["environment", "labels", "annotations", "sysctls", "args", "additional_contexts", "options", "driver_opts"];
/// Replaced as a whole.
const REPLACED: &[&str] = &["command", "entrypoint", "test", "extends"];
/// One text or a list of them.
const TEXTS: &[&str] = &["dns", "dns_search", "tmpfs", "env_file", "label_file"];

/// Lays `over` on `base`. `path` tells the keys from the root.
pub fn merge(base: &mut Node, over: Node, path: &[&str]) -> Result<()> {
    let key = path.last().copied().unwrap_or_default();
    if over.tag == Some(Tag::Override) {
        *base = untagged(over);
        return Ok(());
    }
    if over.is_null() {
        return Ok(());
    }
    if REPLACED.contains(&key) && in_service(path)
        || path.get(2).is_some_and(|two| *two == "ulimits") && path.len() == 4
    {
        *base = untagged(over);
        return Ok(());
    }
    let mut over = over;
    for side in [&mut *base, &mut over] {
        canonical(side, path)?;
    }
    if key == "logging" && driver(base).is_some() && driver(&over).is_some() && driver(base) != driver(&over) {
        *base = untagged(over);
        return Ok(());
    }
    if base.is_null() {
        *base = untagged(over);
        return Ok(());
    }
    let place = over.place.clone();
    match (&mut base.kind, over.kind) {
        (Kind::Map(_), Kind::Map(entries)) => {
            for (name, value) in entries {
                let mut inner = path.to_vec();
                inner.push(&name);
                if value.tag == Some(Tag::Reset) {
                    base.remove(&name);
                } else if let Some(known) = base.get_mut(&name) {
                    merge(known, value, &inner)?;
                } else {
                    base.set(&name, without_tags(value));
                }
            }
            Ok(())
        }
        (Kind::List(items), Kind::List(more)) => {
            items.extend(more.into_iter().filter(|item| item.tag != Some(Tag::Reset)).map(untagged));
            unique(items, path);
            Ok(())
        }
        (Kind::Scalar { .. }, kind @ Kind::Scalar { .. }) => {
            *base = Node::new(kind, place);
            Ok(())
        }
        _ => Err(Error::Invalid {
            place,
            path: path.join("."),
            problem: format!("cannot be merged with what {} has", base.place),
        }),
    }
}

/// Takes away what `!reset` marks where nothing else is merged.
pub fn without_tags(mut node: Node) -> Node {
    if let Kind::Map(entries) = &mut node.kind {
        let all = std::mem::take(entries);
        *entries = all
            .into_iter()
            .filter(|(_, value)| value.tag != Some(Tag::Reset))
            .map(|(name, value)| (name, without_tags(value)))
            .collect();
    }
    untagged(node)
}

fn untagged(mut node: Node) -> Node {
    node.tag = None;
    node
}

fn in_service(path: &[&str]) -> bool {
    path.first() == Some(&"services")
}

fn driver(logging: &Node) -> Option<&str> {
    logging.get("driver").and_then(Node::scalar)
}

/// Brings both forms of a key to the one that merges.
fn canonical(node: &mut Node, path: &[&str]) -> Result<()> {
    let key = path.last().copied().unwrap_or_default();
    let place = node.place.clone();
    let of_service = in_service(path) && path.len() == 3;
    if PAIRS.contains(&key)
        && (of_service
            || matches!(path.get(path.len().wrapping_sub(2)), Some(&("build" | "deploy" | "volume")))
            || path.len() == 3)
    {
        if let Kind::List(items) = &node.kind {
            let mut map = Node::map(&place);
            for item in items {
                let Some(text) = item.scalar() else { continue };
                match text.split_once('=') {
                    Some((name, value)) => map.set(name, Node::text(value, &item.place)),
                    None => {
                        map.set(text, Node::new(Kind::Scalar { text: String::new(), plain: true }, item.place.clone()));
                    }
                }
            }
            *node = map;
        }
    } else if of_service && matches!(key, "depends_on" | "networks" | "models") {
        if let Kind::List(items) = &node.kind {
            let mut map = Node::map(&place);
            for item in items {
                let Some(text) = item.scalar() else { continue };
                let mut value = Node::map(&item.place);
                if key == "depends_on" {
                    value.set("condition", Node::text("service_started", &item.place));
                }
                map.set(text, value);
            }
            *node = map;
        }
    } else if of_service && key == "build" {
        if let Some(context) = node.scalar() {
            let mut map = Node::map(&place);
            map.set("context", Node::text(context, &place));
            *node = map;
        }
    } else if of_service && key == "extra_hosts" {
        if let Kind::Map(entries) = &node.kind {
            let mut items = Vec::new();
            for (name, value) in entries {
                let addresses = if value.items().is_empty() { std::slice::from_ref(value) } else { value.items() };
                items.extend(
                    addresses
                        .iter()
                        .filter_map(|one| Some(Node::text(format!("{name}={}", one.scalar()?), &one.place))),
                );
            }
            *node = Node::new(Kind::List(items), place);
        }
    } else if of_service && TEXTS.contains(&key) && node.scalar().is_some() {
        let only = Node::new(node.kind.clone(), place.clone());
        *node = Node::new(Kind::List(vec![only]), place);
    } else if in_service(path) && path.get(2) == Some(&"networks") && path.len() == 4 && node.is_null() {
        *node = Node::map(&place);
    }
    Ok(())
}

/// Of items that mean the same, the last one stays, at the place of the first.
fn unique(items: &mut Vec<Node>, path: &[&str]) {
    let key = path.last().copied().unwrap_or_default();
    let identity = |node: &Node| -> Option<String> {
        let field = |name: &str| node.get(name).and_then(Node::scalar).unwrap_or_default().to_owned();
        match (key, node.scalar()) {
            ("volumes" | "devices", Some(text)) => {
                Some(short::volume(text).map_or_else(|_| text.to_owned(), |volume| volume.target))
            }
            ("volumes" | "devices", None) => Some(field("target")),
            ("configs" | "secrets", Some(text)) => Some(text.to_owned()),
            ("configs" | "secrets", None) => {
                let target = field("target");
                let name = if target.is_empty() { field("source") } else { target };
                Some(name.trim_start_matches("/run/secrets/").trim_start_matches('/').to_owned())
            }
            ("ports", Some(text)) => {
                let ports = short::ports(text).unwrap_or_default();
                let one = ports.first()?;
                Some(format!("{:?}:{:?}:{}/{}", one.host_ip, one.published, one.target, one.protocol.name()))
            }
            ("ports", None) => {
                let protocol = short::Protocol::parse(&field("protocol")).unwrap_or_default();
                let address = Some(field("host_ip")).filter(|text| !text.is_empty());
                let published = field("published").parse::<u16>().ok();
                Some(format!("{address:?}:{published:?}:{}/{}", field("target"), protocol.name()))
            }
            ("env_file" | "label_file", None) => Some(field("path")),
            (
                "expose" | "cap_add" | "cap_drop" | "dns" | "dns_opt" | "dns_search" | "tmpfs" | "env_file"
                | "label_file" | "profiles" | "links" | "aliases" | "security_opt" | "group_add" | "tags" | "platforms"
                | "extra_hosts",
                Some(text),
            ) => Some(text.to_owned()),
            _ => None,
        }
    };
    let all = std::mem::take(items);
    let mut seen: Vec<(Option<String>, Node)> = Vec::new();
    for item in all {
        let name = identity(&item);
        match seen.iter_mut().find(|(known, _)| name.is_some() && *known == name) {
            Some((_, kept)) => *kept = item,
            None => seen.push((name, item)),
        }
    }
    *items = seen.into_iter().map(|(_, item)| item).collect();
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn merged(base: &str, over: &str) -> serde_json::Value {
        let wrap = |text: &str| crate::yaml::parse("c", &format!("services: {{a: {text}}}")).unwrap().remove(0);
        let mut node = wrap(base);
        merge(&mut node, wrap(over), &[]).unwrap();
        node.to_json()["services"]["a"].clone()
    }

    #[test]
    fn forms_of_a_key_meet() {
        let found = merged("{environment: [A=1, B], command: [x, y]}", "{environment: {A: 2, C: 3}, command: z}");
        assert_eq!(found, json!({"environment": {"A": 2, "B": null, "C": 3}, "command": "z"}));
        let found = merged(
            "{depends_on: [a], dns: 1.1.1.1}",
            "{depends_on: {b: {condition: service_healthy}}, dns: [8.8.8.8]}",
        );
        assert_eq!(found["depends_on"]["a"]["condition"], "service_started");
        assert_eq!(found["dns"], json!(["1.1.1.1", "8.8.8.8"]));
        assert_eq!(merged("{build: .}", "{build: {target: x}}")["build"], json!({"context": ".", "target": "x"}));
    }

    #[test]
    fn the_same_port_and_mount_stay_one() {
        let found = merged(
            "{ports: ['80:80', '81:81'], volumes: ['a:/x']}",
            "{ports: [{target: 80, published: 80}], volumes: ['b:/x:ro']}",
        );
        assert_eq!(found["ports"], json!([{"target": 80, "published": 80}, "81:81"]));
        assert_eq!(found["volumes"], json!(["b:/x:ro"]));
    }

    #[test]
    fn tags_take_away_and_replace() {
        let found = merged(
            "{ports: ['80'], environment: {A: 1, B: 2}, tty: true}",
            "{ports: !reset [], environment: !override {C: 3}, tty: !reset null}",
        );
        assert_eq!(found, json!({"environment": {"C": 3}}));
        let found = merged("{environment: {A: 1, B: 2}}", "{environment: {A: !reset null}}");
        assert_eq!(found["environment"], json!({"B": 2}));
    }

    #[test]
    fn options_of_another_log_driver_go() {
        let found = merged("{logging: {driver: a, options: {x: 1}}}", "{logging: {driver: b}}");
        assert_eq!(found["logging"], json!({"driver": "b"}));
    }
}
