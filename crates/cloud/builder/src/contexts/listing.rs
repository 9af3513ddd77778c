//! What a client says of its folder.

use std::collections::HashMap;
use std::path::{Component, Path};

use dhow_image::Digest;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A folder, without its files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Listing {
    /// The client's name for it: the same for the same folder from build to build.
    pub name: String,
    pub entries: Vec<Listed>,
}

/// One thing in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Listed {
    /// Within the folder; no `..`, no slash before it.
    pub path: String,
    /// Of a folder, when it was changed last, in seconds since the epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folder: Option<i64>,
    /// Another one each time the thing changes in any way; empty if it may change without anybody noticing.
    pub version: String,
}

/// The name of a kept context among the node's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name(String);

impl Name {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Listing {
    /// Makes sure that nothing of it is outside of the folder, nor below what is no folder.
    pub fn check(&self) -> Result<Name> {
        let mut all: HashMap<&str, bool> = HashMap::with_capacity(self.entries.len());
        for listed in &self.entries {
            let plain = Path::new(&listed.path).components().all(|part| matches!(part, Component::Normal(_)));
            let clean = !listed.path.split('/').any(|part| part.is_empty() || part == ".");
            if !plain || !clean || listed.path.contains('\0') {
                return Err(Error::Invalid(format!("{:?} is no path in a context", listed.path)));
            }
            if all.insert(&listed.path, listed.folder.is_some()).is_some() {
                return Err(Error::Invalid(format!("{:?} is listed twice", listed.path)));
            }
        }
        for listed in &self.entries {
            let mut above = listed.path.as_str();
            while let Some((parent, _)) = above.rsplit_once('/') {
                match all.get(parent) {
                    Some(false) => {
                        return Err(Error::Invalid(format!("{:?} is listed below what is no folder", listed.path)));
                    }
                    // Its own are looked at when it is.
                    Some(true) => break,
                    None => above = parent,
                }
            }
        }
        Ok(Name(Digest::of(self.name.as_bytes()).hex().to_owned()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn nothing_outside_is_listed() {
        let listed = |path: &str, folder: bool| Listed {
            path: path.to_owned(),
            folder: folder.then_some(1),
            version: "1".to_owned(),
        };
        let check = |entries: Vec<Listed>| Listing { name: "n".to_owned(), entries }.check().map(drop);
        check(vec![listed("a", true), listed("a/b/c", false), listed("d", false)]).unwrap();
        for path in ["", "/a", "a/", "a//b", "../a", "a/../b", "./a", "a/.", "a\0"] {
            check(vec![listed(path, false)]).unwrap_err();
        }
        check(vec![listed("a", false), listed("a/b/c", false)]).unwrap_err();
        check(vec![listed("a", true), listed("a", true)]).unwrap_err();
    }
}
