//! What must not be seen: the secret values that are known, and what looks like a key or a token.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::Path;

use aho_corasick::{AhoCorasick, MatchKind};
use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use regex::bytes::Regex;
use serde_json::Value;

use crate::settings::Settings;

const INSTEAD: &str = "[redacted]";
/// A shorter value is found everywhere by chance.
const SHORTEST: usize = 6;
/// A line of a longer value is looked for by itself if it is as long as this.
const LINE: usize = 16;
/// So is what follows a line's colon or equals sign.
const PART: usize = 8;

/// Secret values, as they come to be known.
#[derive(Debug, Default)]
pub struct Known {
    values: BTreeSet<Vec<u8>>,
    /// How many were too short to be looked for.
    pub too_short: usize,
}

impl Known {
    /// A value in every form that it appears in: as it is, its lines, in both alphabets of base64.
    pub fn add(&mut self, value: &[u8]) {
        let value = value.trim_ascii();
        if value.len() < SHORTEST {
            self.too_short += usize::from(!value.is_empty());
            return;
        }
        self.values.insert(STANDARD.encode(value).into_bytes());
        self.values.insert(URL_SAFE_NO_PAD.encode(value).into_bytes());
        let lines = value.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
        // The frame of a key is no secret.
        for line in lines.filter(|line| line.len() >= LINE && !line.starts_with(b"-----")) {
            self.values.insert(line.to_vec());
            // `key: value` and `key=value` as files of settings have them.
            let at = line.iter().position(|byte| matches!(byte, b':' | b'='));
            let value = at.map(|at| line[at + 1..].trim_ascii()).filter(|value| value.len() >= PART);
            self.values.extend(value.map(<[u8]>::to_vec));
        }
        self.values.insert(value.to_vec());
    }

    /// Keys, tokens and kubeconfigs in a cloud's data folder.
    pub fn of_machine(&mut self, data_dir: &Path) {
        self.below(&data_dir.join("pki"));
        self.below(&data_dir.join("node-pki"));
        self.folder(data_dir, |name| name.ends_with(".kubeconfig"));
    }

    fn below(&mut self, folder: &Path) {
        self.folder(folder, |name| !name.ends_with(".crt"));
        let Ok(entries) = std::fs::read_dir(folder) else { return };
        for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
            self.below(&entry.path());
        }
    }

    fn folder(&mut self, folder: &Path, wanted: impl Fn(&str) -> bool) {
        let Ok(entries) = std::fs::read_dir(folder) else { return };
        for path in entries.flatten().map(|entry| entry.path()) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let Some(text) = Some(&path).filter(|_| wanted(&name)).and_then(|path| std::fs::read(path).ok()) else {
                continue;
            };
            match name.ends_with(".kubeconfig") {
                true => self.kubeconfig(&text),
                false => self.add(&text),
            }
        }
    }

    /// What proves its user; the rest of a kubeconfig says where the cluster is.
    fn kubeconfig(&mut self, text: &[u8]) {
        let Ok(config) = serde_saphyr::from_slice::<Value>(text) else { return };
        for user in config["users"].as_array().into_iter().flatten() {
            for key in ["client-key-data", "token", "password"] {
                let Some(value) = user["user"][key].as_str() else { continue };
                self.add(value.as_bytes());
                if let Ok(inner) = STANDARD.decode(value) {
                    self.add(&inner);
                }
            }
        }
    }

    pub fn redactor(&self) -> Result<Redactor> {
        let known = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(&self.values)
            .context("prepare the search for secrets")?;
        // Tokens in three parts, private keys, and passwords in addresses and headers.
        let looks = [
            r"eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}",
            r"(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----",
            r"\b[a-z0-9]{6}\.[a-z0-9]{16}\b",
            r"dhow-server-[0-9a-f]{64}",
            r"(?i)\b(?:bearer|basic) [A-Za-z0-9_.~+/=-]{8,}",
            r"://[^\s/@:]*:[^\s/@]+@",
        ];
        let looks = Regex::new(&looks.join("|")).context("prepare the search for tokens")?;
        Ok(Redactor { known, looks })
    }
}

/// Takes secrets out of text.
#[derive(Debug)]
pub struct Redactor {
    known: AhoCorasick,
    looks: Regex,
}

impl Redactor {
    pub fn clean<'a>(&self, text: &'a [u8]) -> Cow<'a, [u8]> {
        let mut out = Vec::new();
        let mut from = 0;
        for found in self.known.find_iter(text) {
            out.extend_from_slice(&text[from..found.start()]);
            out.extend_from_slice(INSTEAD.as_bytes());
            from = found.end();
        }
        let known = match from {
            0 => Cow::Borrowed(text),
            from => {
                out.extend_from_slice(&text[from..]);
                Cow::Owned(out)
            }
        };
        match self.looks.replace_all(&known, INSTEAD.as_bytes()) {
            Cow::Borrowed(_) => known,
            Cow::Owned(clean) => Cow::Owned(clean),
        }
    }
}

/// Whether something of this name is no business of others.
fn secret_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let words = ["password", "passwd", "passphrase", "pwd", "secret", "token", "credential", "apikey", "api_key"];
    words.iter().any(|word| name.contains(word)) || name.ends_with("key") || name.ends_with("auth")
}

/// The settings in force without what they keep secret, which is remembered.
pub fn settings(settings: &Settings, known: &mut Known) -> Result<Value> {
    let mut value = serde_json::to_value(settings).context("encode the settings")?;
    named(&mut value, known);
    Ok(value)
}

/// Takes the values of keys with a telling name out. Names of files are no secrets, but what is in those is.
fn named(value: &mut Value, known: &mut Known) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                match value {
                    Value::String(text) if secret_name(key) && text.starts_with('/') => {
                        if let Ok(held) = std::fs::read(text) {
                            known.add(&held);
                        }
                    }
                    Value::String(text) if secret_name(key) => {
                        known.add(text.as_bytes());
                        INSTEAD.clone_into(text);
                    }
                    other => named(other, known),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| named(item, known)),
        _ => {}
    }
}

/// An object for the bundle: without managed fields and copies of itself; Secrets and ConfigMaps without what they
/// hold; variables named like secrets without their value.
pub fn object(object: &mut Value, kind: &str) {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
        if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
            annotations.iter_mut().filter(|(key, _)| secret_name(key)).for_each(|(_, value)| *value = INSTEAD.into());
        }
    }
    if matches!(kind, "Secret" | "ConfigMap") {
        for part in ["data", "stringData", "binaryData"] {
            for value in
                object.get_mut(part).and_then(Value::as_object_mut).into_iter().flat_map(|data| data.values_mut())
            {
                *value = format!("{} bytes", value.as_str().map_or(0, str::len)).into();
            }
        }
    }
    variables(object);
}

/// `{name: …PASSWORD…, value: …}` wherever it is in an object.
fn variables(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            let telling = fields.get("name").and_then(Value::as_str).is_some_and(secret_name);
            if telling && let Some(value) = fields.get_mut("value").filter(|value| value.is_string()) {
                *value = INSTEAD.into();
            }
            fields.values_mut().for_each(variables);
        }
        Value::Array(items) => items.iter_mut().for_each(variables),
        _ => {}
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn known_values_and_what_looks_like_a_token_are_taken_out() {
        let mut known = Known::default();
        known.add(b"swordfish\n");
        known.add(b"no");
        known.add(b"user: somebody-with-a-name\npassword: longer-than-a-word\n");
        assert_eq!(known.too_short, 1);
        let redactor = known.redactor().unwrap();
        let clean = |text: &str| String::from_utf8(redactor.clean(text.as_bytes()).into_owned()).unwrap();
        assert_eq!(clean("a swordfish b"), "a [redacted] b");
        assert_eq!(clean(&format!("{}!", STANDARD.encode("swordfish"))), "[redacted]!");
        assert_eq!(clean("x password: longer-than-a-word y"), "x [redacted] y");
        assert_eq!(clean("longer-than-a-word"), "[redacted]");
        assert_eq!(clean("nothing to hide"), "nothing to hide");
        for secret in [
            "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJtZSJ9.c2lnbmF0dXJl",
            "abcdef.0123456789abcdef",
            "Bearer abcdefgh",
            "-----BEGIN EC PRIVATE KEY-----\nMHc\n-----END EC PRIVATE KEY-----",
        ] {
            assert_eq!(clean(&format!("<{secret}>")), "<[redacted]>");
        }
        assert_eq!(clean("http://me:word@host/"), "http[redacted]host/");
    }

    #[test]
    fn objects_lose_what_they_hold() {
        let mut secret = json!({
            "metadata": {"name": "s", "managedFields": [], "annotations": {
                "kubectl.kubernetes.io/last-applied-configuration": "{\"data\":1}", "a/token": "x"}},
            "data": {"word": "aGlkZGVu"},
        });
        object(&mut secret, "Secret");
        let wanted =
            json!({"metadata": {"name": "s", "annotations": {"a/token": "[redacted]"}}, "data": {"word": "8 bytes"}});
        assert_eq!(secret, wanted);
        let mut pod = json!({"spec": {"containers": [{"name": "token-maker", "env": [
            {"name": "DB_PASSWORD", "value": "x"}, {"name": "PORT", "value": "1"},
            {"name": "API_KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}]}});
        let before = pod.clone();
        object(&mut pod, "Pod");
        assert_eq!(pod["spec"]["containers"][0]["env"][0]["value"], INSTEAD);
        pod["spec"]["containers"][0]["env"][0]["value"] = "x".into();
        assert_eq!(pod, before);
    }
}
