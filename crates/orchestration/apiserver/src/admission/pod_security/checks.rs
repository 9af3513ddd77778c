//! What all checks need: a pod's parts by name, and how lists of them are put in words.

use std::collections::BTreeSet;

use dhow_api::meta;
use serde_json::Value;

/// One check that a pod did not pass.
pub struct Violation {
    pub reason: String,
    detail: String,
}

impl Violation {
    pub fn new(reason: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { reason: reason.into(), detail: detail.into() }
    }

    pub fn text(&self) -> String {
        if self.detail.is_empty() { self.reason.clone() } else { format!("{} ({})", self.reason, self.detail) }
    }
}

/// A pod, or the template of one, under the standards of a version.
pub struct Pod<'a> {
    pub value: &'a Value,
    pub spec: &'a Value,
    /// The pod's own security context.
    pub context: &'a Value,
    pub minor: u32,
}

impl<'a> Pod<'a> {
    pub fn new(value: &'a Value, minor: u32) -> Self {
        let spec = &value["spec"];
        Self { value, spec, context: &spec["securityContext"], minor }
    }

    /// Init containers, containers, ephemeral containers.
    pub fn containers(&self) -> impl Iterator<Item = &'a Value> + use<'a> {
        let spec = self.spec;
        ["initContainers", "containers", "ephemeralContainers"].into_iter().flat_map(|list| meta::items(spec, &[list]))
    }

    /// Names of the containers whose security context is like that; null where there is none.
    pub fn those(&self, test: impl Fn(&Value) -> bool) -> Vec<String> {
        let found = self.containers().filter(|container| test(&container["securityContext"]));
        found.map(|container| container["name"].as_str().unwrap_or_default().to_owned()).collect()
    }

    /// Windows has none of what some checks ask for.
    pub fn is_windows(&self) -> bool {
        self.minor >= 25 && self.spec["os"]["name"] == "windows"
    }
}

pub fn plural<'a>(one: &'a str, many: &'a str, count: usize) -> &'a str {
    if count == 1 { one } else { many }
}

/// `"a", "b"`.
pub fn quoted<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> String {
    names.into_iter().map(|name| format!("{:?}", name.as_ref())).collect::<Vec<_>>().join(", ")
}

/// `container "a"`, `containers "a", "b"`.
pub fn containers(names: &[String]) -> String {
    format!("{} {}", plural("container", "containers", names.len()), quoted(names))
}

/// Who set a bad value: the pod, containers, or both. Empty if nobody did.
pub fn setters(pod: bool, names: &[String]) -> String {
    let mut parts = Vec::new();
    if pod {
        parts.push("pod".to_owned());
    }
    if !names.is_empty() {
        parts.push(containers(names));
    }
    parts.join(" and ")
}

/// Collects the strings of a list that are not among those allowed; returns whether there are any.
pub fn others<'a>(list: &'a Value, allowed: &[&str], into: &mut BTreeSet<&'a str>) -> bool {
    let mut any = false;
    for text in list.as_array().into_iter().flatten().filter_map(Value::as_str) {
        if !allowed.contains(&text) {
            into.insert(text);
            any = true;
        }
    }
    any
}
