//! Layered configuration: flags > `DHOW_*` variables > the file > its `.d` folder > defaults.
//!
//! Invariants: an unknown key or variable is an error that names where it was written; a later layer replaces scalars
//! and lists and merges maps. Raw text ends here: everyone else sees one typed value.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::{Error, Result, files};

/// Where to look. `load` reads everything once.
#[derive(Debug, Default)]
pub struct Sources {
    file: Option<(PathBuf, bool)>,
    prefix: String,
    variables: Vec<(String, String)>,
    reserved: Vec<&'static str>,
    flags: Value,
}

impl Sources {
    pub fn new() -> Self {
        Self::default()
    }

    /// A YAML file and, before it, every `*.yaml` of the folder `<file>.d` in name order. Missing files are fine
    /// unless `required`.
    pub fn file(mut self, path: &Path, required: bool) -> Self {
        self.file = Some((path.to_owned(), required));
        self
    }

    /// Variables that start with `prefix` (`DHOW_`): `DHOW_NETWORK_POD_CIDR` sets `network.podCidr`. Those in
    /// `reserved` belong to someone else.
    pub fn environment(
        mut self,
        prefix: &str,
        variables: impl IntoIterator<Item = (String, String)>,
        reserved: &[&'static str],
    ) -> Self {
        prefix.clone_into(&mut self.prefix);
        self.variables = variables.into_iter().filter(|(name, _)| name.starts_with(prefix)).collect();
        self.variables.sort();
        self.reserved = reserved.to_vec();
        self
    }

    /// A map in the shape of the configuration; nulls mean "not given".
    pub fn flags(mut self, flags: Value) -> Self {
        self.flags = flags;
        self
    }

    /// `T` should deny unknown fields itself; its `Default` is the first layer and names the variables.
    pub fn load<T: Default + Serialize + DeserializeOwned>(&self) -> Result<T> {
        let defaults = serde_json::to_value(T::default())
            .map_err(|e| Error::Config { origin: "defaults".to_owned(), message: e.to_string() })?;
        let mut merged = defaults.clone();
        let mut config = T::default();
        let mut apply = |origin: &str, text: &str, layer: &Value| -> Result<()> {
            let wrong = |path: &[String], message: String| Error::Config { origin: place(origin, text, path), message };
            let mut path = Vec::new();
            unknown_keys(&defaults, layer, &mut path).map_err(|message| wrong(&path, message))?;
            let mut next = merged.clone();
            merge(&mut next, layer);
            config = serde_json::from_value(next.clone()).map_err(|error| {
                let path = culprit::<T>(&merged, layer);
                let of = if path.is_empty() { String::new() } else { format!("{}: ", path.join(".")) };
                wrong(&path, format!("{of}{error}"))
            })?;
            merged = next;
            Ok(())
        };
        for path in self.files()? {
            let (text, layer) = read_yaml(&path)?;
            apply(&path.display().to_string(), &text, &layer)?;
        }
        for (name, text) in &self.variables {
            if self.reserved.contains(&name.as_str()) {
                continue;
            }
            let path = variable_path(&defaults, &self.prefix, name).ok_or_else(|| Error::Config {
                origin: format!("environment variable {name}"),
                message: "sets nothing that exists".to_owned(),
            })?;
            let origin = format!("environment variable {name}");
            let mut tried = Ok(());
            for value in readings(at(&defaults, &path), text) {
                tried = apply(&origin, "", &nest(&path, value));
                if tried.is_ok() {
                    break;
                }
            }
            tried?;
        }
        apply("command line", "", &without_nulls(&self.flags))?;
        Ok(config)
    }

    fn files(&self) -> Result<Vec<PathBuf>> {
        let Some((file, required)) = &self.file else { return Ok(Vec::new()) };
        let mut folder = file.clone().into_os_string();
        folder.push(".d");
        let folder = PathBuf::from(folder);
        let mut paths = Vec::new();
        match std::fs::read_dir(&folder) {
            Ok(entries) => {
                for entry in entries {
                    let path = entry.map_err(|e| Error::io("read directory", &folder, e))?.path();
                    if path.extension().is_some_and(|e| e == "yaml" || e == "yml") {
                        paths.push(path);
                    }
                }
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io("read directory", &folder, e)),
        }
        paths.sort();
        if *required || file.exists() {
            paths.push(file.clone());
        }
        Ok(paths)
    }
}

fn read_yaml(path: &Path) -> Result<(String, Value)> {
    let bad = |message: String| Error::Config { origin: path.display().to_string(), message };
    let text = files::read_optional(path)?.ok_or_else(|| bad("no such file".to_owned()))?;
    let only_comments = text.lines().all(|l| l.trim().is_empty() || l.trim_start().starts_with('#'));
    if only_comments {
        return Ok((text, Value::Object(Map::new())));
    }
    match yaml(&text).map_err(|e| bad(e.to_string()))? {
        Value::Null => Ok((text, Value::Object(Map::new()))),
        value @ Value::Object(_) => Ok((text, value)),
        _ => Err(bad("a configuration is a map of keys to values".to_owned())),
    }
}

/// YAML 1.2 booleans only: `country: no` is a string.
fn yaml(text: &str) -> std::result::Result<Value, serde_saphyr::Error> {
    serde_saphyr::from_str_with_options(text, serde_saphyr::options! { strict_booleans: true })
}

/// Compares a layer with the defaults. A default that is empty or null says nothing about what may be below it.
fn unknown_keys(known: &Value, layer: &Value, path: &mut Vec<String>) -> std::result::Result<(), String> {
    let (Value::Object(known), Value::Object(layer)) = (known, layer) else { return Ok(()) };
    if known.is_empty() && !path.is_empty() {
        return Ok(());
    }
    for (key, value) in layer {
        path.push(key.clone());
        match known.get(key) {
            None => return Err(format!("unknown key {:?}", path.join("."))),
            Some(below) => unknown_keys(below, value, path)?,
        }
        path.pop();
    }
    Ok(())
}

/// The key of a layer that does not fit, if one alone does not.
fn culprit<T: DeserializeOwned>(base: &Value, layer: &Value) -> Vec<String> {
    fn leaves(value: &Value, path: &mut Vec<String>, all: &mut Vec<(Vec<String>, Value)>) {
        match value {
            Value::Object(map) if !map.is_empty() => {
                for (key, below) in map {
                    path.push(key.clone());
                    leaves(below, path, all);
                    path.pop();
                }
            }
            other => all.push((path.clone(), other.clone())),
        }
    }
    let mut all = Vec::new();
    leaves(layer, &mut Vec::new(), &mut all);
    let bad = all.into_iter().find(|(path, value)| {
        let mut next = base.clone();
        merge(&mut next, &nest(path, value.clone()));
        serde_json::from_value::<T>(next).is_err()
    });
    bad.map(|(path, _)| path).unwrap_or_default()
}

/// Where a key was written: `origin`, with the line if it is in the text.
fn place(origin: &str, text: &str, path: &[String]) -> String {
    let mut lines = text.lines().enumerate();
    let mut found = None;
    for key in path {
        // The same line may hold the next key, too.
        let here = found.filter(|(_, line): &(usize, &str)| names(line, key));
        match here.or_else(|| lines.by_ref().find(|(_, line)| names(line, key))) {
            Some(line) => found = Some(line),
            None => break,
        }
    }
    match found {
        Some((number, _)) => format!("{origin}:{}", number + 1),
        None => origin.to_owned(),
    }
}

/// Whether a line of YAML has this key.
fn names(line: &str, key: &str) -> bool {
    line.match_indices(key).any(|(at, _)| {
        let before = line[..at].trim_end_matches(['"', '\'']);
        let after = line[at + key.len()..].trim_start_matches(['"', '\'']).trim_start();
        after.starts_with(':') && before.chars().next_back().is_none_or(|c| c.is_whitespace() || "{,".contains(c))
    })
}

fn merge(base: &mut Value, layer: &Value) {
    match (base, layer) {
        (Value::Object(base), Value::Object(layer)) => {
            for (key, value) in layer {
                merge(base.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (base, layer) => *base = layer.clone(),
    }
}

fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(
            map.iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.clone(), without_nulls(v))).collect(),
        ),
        Value::Null => Value::Object(Map::new()),
        other => other.clone(),
    }
}

/// The key a variable's name stands for.
fn variable_path(defaults: &Value, prefix: &str, name: &str) -> Option<Vec<String>> {
    fn search(value: &Value, so_far: &str, path: &mut Vec<String>, name: &str) -> bool {
        let Value::Object(map) = value else { return false };
        for (key, below) in map {
            let spelled = format!("{so_far}{}", screaming(key));
            path.push(key.clone());
            if spelled == name || search(below, &format!("{spelled}_"), path, name) {
                return true;
            }
            path.pop();
        }
        false
    }
    let mut path = Vec::new();
    search(defaults, prefix, &mut path, name).then_some(path)
}

/// `podCidr` and `pod-cidr` as `POD_CIDR`.
fn screaming(key: &str) -> String {
    let mut out = String::new();
    let mut lower_before = false;
    for c in key.chars() {
        if c.is_ascii_uppercase() && lower_before {
            out.push('_');
        }
        lower_before = c.is_ascii_lowercase() || c.is_ascii_digit();
        out.push(if c == '-' { '_' } else { c.to_ascii_uppercase() });
    }
    out
}

fn at<'a>(value: &'a Value, path: &[String]) -> &'a Value {
    path.iter().fold(value, |value, key| &value[key.as_str()])
}

fn nest(path: &[String], value: Value) -> Value {
    path.iter().rev().fold(value, |value, key| Value::Object(Map::from_iter([(key.clone(), value)])))
}

/// How a variable's text may be meant, likeliest first; the type of the configuration decides.
fn readings(default: &Value, text: &str) -> Vec<Value> {
    let plain = Value::String(text.to_owned());
    let yaml = yaml(text).ok();
    match default {
        Value::String(_) => vec![plain],
        Value::Array(_) => {
            let list = yaml.filter(Value::is_array).unwrap_or_else(|| {
                Value::Array(
                    text.split(',')
                        .map(str::trim)
                        .filter(|s| !s.is_empty())
                        .map(|s| Value::String(s.to_owned()))
                        .collect(),
                )
            });
            vec![list]
        }
        Value::Null => std::iter::once(plain).chain(yaml).collect(),
        _ => yaml.into_iter().chain([plain]).collect(),
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
