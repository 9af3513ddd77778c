//! Network configurations as the CNI specification has them: a folder of lists of plugins, and what each plugin is told.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

/// Versions whose requests and results are alike, oldest first. Before them, results looked different.
const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// The network that pods are connected to.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct NetworkList {
    pub name: String,
    /// The newest one that the list and we know.
    pub version: &'static str,
    /// In the order in which they are asked to add; the other way around for the rest.
    pub plugins: Vec<Value>,
    pub disable_check: bool,
    pub disable_gc: bool,
}

impl NetworkList {
    /// The folder's first list by name.
    ///
    /// # Errors
    /// What a node says of its network then.
    pub fn find(folder: &Path) -> Result<Self, String> {
        let unreadable = |error: std::io::Error| {
            format!("cni config load failed: read the cni config folder {}: {error}", folder.display())
        };
        let mut files = BTreeSet::new();
        for entry in std::fs::read_dir(folder).map_err(unreadable)? {
            files.insert(entry.map_err(unreadable)?.path());
        }
        let wanted = |path: &PathBuf| {
            let extension = path.extension().and_then(|extension| extension.to_str());
            matches!(extension, Some("conflist" | "conf" | "json"))
        };
        let mut files = files.into_iter().filter(wanted);
        let path = files.next().ok_or_else(|| {
            format!(
                "cni config load failed: no network config found in {}: cni plugin not initialized",
                folder.display()
            )
        })?;
        let failed =
            |why: String| format!("cni config load failed: failed to load CNI config file {}: {why}", path.display());
        let text = std::fs::read(&path).map_err(|error| failed(error.to_string()))?;
        Self::parse(&text).map_err(failed)
    }

    /// A list of plugins, or a single one.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let document: Value =
            serde_json::from_slice(text).map_err(|error| format!("error parsing configuration: {error}"))?;
        let text = |key: &str| document[key].as_str().unwrap_or_default();
        let name = text("name");
        let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) || !name.chars().all(valid) {
            return Err(format!("invalid characters found in network name: {name:?}"));
        }
        let plugins = match document.get("plugins") {
            Some(Value::Array(plugins)) => plugins.clone(),
            Some(_) => return Err("error parsing configuration list: invalid 'plugins' type".to_owned()),
            None => vec![document.clone()],
        };
        if plugins.is_empty() {
            return Err("error parsing configuration list: no plugins in list".to_owned());
        }
        if let Some(at) = plugins.iter().position(|plugin| plugin["type"].as_str().unwrap_or_default().is_empty()) {
            return Err(format!("error parsing configuration list: missing 'type' in plugin {at}"));
        }
        // Absent means the oldest there ever was.
        let written = document["cniVersion"].as_str().unwrap_or("0.1.0");
        let others = document["cniVersions"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let named: BTreeSet<&str> = others.chain([written]).collect();
        let version = VERSIONS.into_iter().rev().find(|version| named.contains(version));
        let version = version.ok_or_else(|| format!("unsupported CNI result version {written:?}"))?;
        let flag = |key: &str| match &document[key] {
            Value::Bool(set) => *set,
            Value::String(text) => text.eq_ignore_ascii_case("true"),
            _ => false,
        };
        let (disable_check, disable_gc) = (flag("disableCheck"), flag("disableGC"));
        Ok(Self { name: name.to_owned(), version, plugins, disable_check, disable_gc })
    }

    /// What [`NetworkList::parse`] reads the same from.
    pub fn document(&self) -> Value {
        serde_json::json!({
            "cniVersion": self.version, "name": self.name, "plugins": self.plugins,
            "disableCheck": self.disable_check, "disableGC": self.disable_gc,
        })
    }

    /// What a plugin is told: its own part, with what is the same for all of them, what of `capabilities` it has asked for, and
    /// the result of those before it.
    pub fn told(&self, plugin: &Value, capabilities: &Map<String, Value>, previous: Option<&Value>) -> Value {
        let mut told = plugin.clone();
        told["cniVersion"] = self.version.into();
        told["name"] = self.name.clone().into();
        let asked = told.as_object_mut().and_then(|told| told.remove("capabilities"));
        let asked = |name: &str| asked.as_ref().is_some_and(|asked| asked[name] == Value::Bool(true));
        let given = capabilities.iter().filter(|(name, _)| asked(name));
        let given: Map<String, Value> = given.map(|(name, value)| (name.clone(), value.clone())).collect();
        if !given.is_empty() {
            told["runtimeConfig"] = given.into();
        }
        if let Some(previous) = previous {
            told["prevResult"] = previous.clone();
        }
        told
    }

    /// Whether the specification has it, in the list's version.
    pub fn checks(&self) -> bool {
        !self.disable_check && self.version >= "0.4.0"
    }

    pub fn collects_garbage(&self) -> bool {
        !self.disable_gc && self.version >= "1.1.0"
    }

    /// Whether plugins are told the earlier result when they undo it.
    pub fn remembers(&self) -> bool {
        self.version >= "0.4.0"
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const BRIDGE: &str = r#"{"cniVersion": "1.0.0", "name": "pods", "plugins": [
        {"type": "bridge", "capabilities": {"ipRanges": true}, "ipam": {"type": "host-local"}},
        {"type": "portmap", "capabilities": {"portMappings": true, "bandwidth": false}}
    ]}"#;

    #[test]
    fn the_first_list_of_a_folder_counts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let error = NetworkList::find(path).unwrap_err();
        assert!(
            error.contains("no network config found in") && error.contains("cni plugin not initialized"),
            "{error}"
        );
        std::fs::write(path.join("00-notes.txt"), "nothing").unwrap();
        std::fs::write(path.join("20-pods.conflist"), BRIDGE).unwrap();
        assert_eq!(NetworkList::find(path).unwrap().name, "pods");
        let single = r#"{"cniVersion": "0.4.0", "name": "one", "type": "ptp"}"#;
        std::fs::write(path.join("10-one.conf"), single).unwrap();
        let one = NetworkList::find(path).unwrap();
        assert_eq!((one.name.as_str(), one.version, one.plugins.len()), ("one", "0.4.0", 1));
        std::fs::write(path.join("05-torn.conflist"), "{").unwrap();
        assert!(NetworkList::find(path).unwrap_err().contains("05-torn.conflist"));
        assert!(NetworkList::find(&path.join("none")).unwrap_err().contains("No such file"));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, says) in [
            (r#"{"cniVersion": "1.0.0", "name": "a b", "plugins": [{"type": "x"}]}"#, "invalid characters"),
            (r#"{"cniVersion": "1.0.0", "plugins": [{"type": "x"}]}"#, "invalid characters"),
            (r#"{"cniVersion": "1.0.0", "name": "a", "plugins": []}"#, "no plugins"),
            (r#"{"cniVersion": "1.0.0", "name": "a", "plugins": [{"type": "x"}, {}]}"#, "missing 'type' in plugin 1"),
            (r#"{"cniVersion": "1.0.0", "name": "a"}"#, "missing 'type'"),
            (r#"{"cniVersion": "0.2.0", "name": "a", "type": "x"}"#, "unsupported CNI result version \"0.2.0\""),
            (r#"{"name": "a", "type": "x"}"#, "unsupported CNI result version"),
            ("[]", "invalid characters"),
        ] {
            let error = NetworkList::parse(text.as_bytes()).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn plugins_are_told_what_they_asked_for() {
        let list = NetworkList::parse(BRIDGE.as_bytes()).unwrap();
        let capabilities = json!({"portMappings": [1], "bandwidth": {}, "ipRanges": [2]});
        let capabilities = capabilities.as_object().unwrap();
        let previous = json!({"ips": []});
        let bridge = list.told(&list.plugins[0], capabilities, None);
        assert_eq!(
            bridge,
            json!({"cniVersion": "1.0.0", "name": "pods", "type": "bridge", "ipam": {"type": "host-local"},
                "runtimeConfig": {"ipRanges": [2]}})
        );
        let portmap = list.told(&list.plugins[1], capabilities, Some(&previous));
        assert_eq!(
            portmap,
            json!({"cniVersion": "1.0.0", "name": "pods", "type": "portmap", "runtimeConfig": {"portMappings": [1]},
                "prevResult": previous})
        );
        assert!(list.checks() && !list.collects_garbage());
        assert_eq!(NetworkList::parse(list.document().to_string().as_bytes()).unwrap(), list);
    }

    #[test]
    fn the_newest_version_of_both_is_spoken() {
        let of =
            |rest: &str| NetworkList::parse(format!(r#"{{"name": "a", "type": "x", {rest}}}"#).as_bytes()).unwrap();
        let new = of(r#""cniVersion": "0.4.0", "cniVersions": ["1.1.0", "9.0.0"]"#);
        assert_eq!(new.version, "1.1.0");
        assert!(new.collects_garbage());
        let mute = of(r#""cniVersion": "1.1.0", "disableGC": true, "disableCheck": "true""#);
        assert!(!mute.collects_garbage() && !mute.checks());
        assert!(!of(r#""cniVersion": "0.3.1""#).remembers());
    }

    proptest! {
        #[test]
        fn nothing_in_a_file_brings_us_down(text in "\\PC*", bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = NetworkList::parse(text.as_bytes());
            let _ = NetworkList::parse(&bytes);
            let _ = NetworkList::parse(format!(r#"{{"cniVersion":"1.0.0","name":"a","plugins":{text}}}"#).as_bytes());
        }
    }
}
