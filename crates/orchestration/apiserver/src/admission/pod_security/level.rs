//! Levels and versions, from a namespace's labels.

use std::fmt;

use dhow_api::{Labels, meta};
use serde_json::Value;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Privileged,
    Baseline,
    Restricted,
}

/// A level at a version of the standards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    pub level: Level,
    /// The minor version of Kubernetes whose standards hold; the newest when none is named.
    pub minor: u32,
}

const LATEST: u32 = u32::MAX;

impl Default for Mark {
    fn default() -> Self {
        Self { level: Level::Privileged, minor: LATEST }
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Privileged => "privileged",
            Level::Baseline => "baseline",
            Level::Restricted => "restricted",
        };
        match self.minor {
            LATEST => write!(f, "{level}:latest"),
            minor => write!(f, "{level}:v1.{minor}"),
        }
    }
}

/// What a namespace asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    pub enforce: Mark,
    pub audit: Mark,
    pub warn: Mark,
}

/// A label that makes no sense: its key, its value and why.
pub type LabelError = (String, String, &'static str);

impl Policy {
    pub fn of(labels: &Labels) -> (Self, Vec<LabelError>) {
        Self::read(|key| labels.get(key))
    }

    pub fn of_value(namespace: &Value) -> (Self, Vec<LabelError>) {
        Self::read(|key| meta::at(namespace, &["metadata", "labels", key]).and_then(Value::as_str))
    }

    fn read<'a>(get: impl Fn(&str) -> Option<&'a str>) -> (Self, Vec<LabelError>) {
        let mut errors = Vec::new();
        let mut mark = |mode: &str, on_error: Level| {
            let key = format!("pod-security.kubernetes.io/{mode}");
            let mut mark = Mark::default();
            if let Some(text) = get(&key) {
                mark.level = level(text).unwrap_or_else(|| {
                    let why = "must be one of privileged, baseline, restricted";
                    errors.push((key.clone(), text.to_owned(), why));
                    on_error
                });
            }
            let key = format!("{key}-version");
            if let Some(text) = get(&key) {
                mark.minor = minor(text).unwrap_or_else(|| {
                    errors.push((key, text.to_owned(), "must be \"latest\" or \"v1.x\""));
                    LATEST
                });
            }
            mark
        };
        // Whoever wanted something and misspelt it gets the strictest when it is about refusing.
        let enforce = mark("enforce", Level::Restricted);
        let audit = mark("audit", Level::Privileged);
        let mut warn = mark("warn", Level::Privileged);
        // Without a wish of its own, a warning comes where a refusal of the pods would.
        if get("pod-security.kubernetes.io/warn").is_none() && enforce.level > warn.level {
            warn = enforce.clone();
        }
        (Self { enforce, audit, warn }, errors)
    }
}

fn level(text: &str) -> Option<Level> {
    match text {
        "privileged" => Some(Level::Privileged),
        "baseline" => Some(Level::Baseline),
        "restricted" => Some(Level::Restricted),
        _ => None,
    }
}

fn minor(text: &str) -> Option<u32> {
    if text == "latest" {
        return Some(LATEST);
    }
    let digits = text.strip_prefix("v1.")?;
    let canonical = digits == "0" || !digits.starts_with('0');
    digits.parse().ok().filter(|_| canonical && digits.bytes().all(|byte| byte.is_ascii_digit()))
}
