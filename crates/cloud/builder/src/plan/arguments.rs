//! Build arguments: those that hold for the whole file, and those of a stage.

use std::collections::BTreeMap;

use super::Wanted;
use crate::dockerfile::{self, Dockerfile, Mistake};

/// Passed to every RUN when given, without an ARG, and no part of what decides about the cache.
const PROXIES: [&str; 5] = ["http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy"];
/// A value longer than this comes from a file that means harm.
pub const MAX_VALUE: usize = 1 << 20;

/// Whether a build argument needs no ARG.
pub fn is_predefined(name: &str) -> bool {
    is_proxy(name) || name == "SOURCE_DATE_EPOCH" || name.starts_with("BUILDKIT_")
}

/// Whether it says how the network is reached.
pub fn is_proxy(name: &str) -> bool {
    PROXIES.contains(&name.to_ascii_lowercase().as_str())
}

/// What holds before the first FROM.
pub struct Globals {
    /// Declared in the file, or known to every build.
    values: BTreeMap<String, Option<String>>,
}

impl Globals {
    pub fn new(file: &Dockerfile, wanted: &Wanted) -> Result<Self, Mistake> {
        let mut values = BTreeMap::new();
        for (prefix, platform) in [("TARGET", &wanted.platform), ("BUILD", &wanted.builder)] {
            let variant = platform.variant.clone().unwrap_or_default();
            for (name, value) in [
                ("PLATFORM", platform.to_string()),
                ("OS", platform.os.clone()),
                ("ARCH", platform.architecture.clone()),
                ("VARIANT", variant),
            ] {
                let name = format!("{prefix}{name}");
                let value = wanted.args.get(&name).cloned().unwrap_or(value);
                values.insert(name, Some(value));
            }
        }
        let stage = wanted.target.clone().unwrap_or_else(|| "default".to_owned());
        values.insert("TARGETSTAGE".to_owned(), Some(stage));
        let mut globals = Globals { values };
        for declared in &file.globals {
            for (name, default) in &declared.value {
                let value = match (wanted.args.get(name), default) {
                    (Some(given), _) => Some(given.clone()),
                    (None, Some(default)) => {
                        let wrong = |message| Mistake::new(declared.lines, message).at(default);
                        Some(globals.word(default, file.escape).map_err(wrong)?)
                    }
                    (None, None) => globals.values.get(name).cloned().flatten(),
                };
                globals.values.insert(name.clone(), value);
            }
        }
        Ok(globals)
    }

    pub fn get(&self, name: &str) -> Option<String> {
        self.values.get(name).cloned().flatten()
    }

    /// A word with these variables put in.
    pub fn word(&self, text: &str, escape: char) -> Result<String, String> {
        let value = dockerfile::word(text, escape, &|name| self.get(name))?;
        bounded(value)
    }
}

/// Values that grow with each line would take all memory there is.
pub fn bounded(value: String) -> Result<String, String> {
    if value.len() > MAX_VALUE { Err(format!("a value is longer than {MAX_VALUE} bytes")) } else { Ok(value) }
}
