//! What installers of languages leave beside each package.

use std::path::Path;

use dhow_image::View;

use super::{Found, MAX_DESCRIPTION, Package, escape, pypi, records, text};
use crate::error::Result;

impl Found {
    pub fn python(&mut self, view: &View, path: &Path) -> Result<()> {
        let Some(text) = text(view, path, MAX_DESCRIPTION)? else { return Ok(()) };
        let Some(record) = records(&text).next() else { return Ok(()) };
        let field = |key: &str| record.get(key).copied().filter(|value| !value.is_empty() && *value != "UNKNOWN");
        let (Some(name), Some(version)) = (field("Name"), field("Version")) else { return Ok(()) };
        self.packages.insert(Package {
            name: name.to_owned(),
            version: version.to_owned(),
            purl: pypi(name, version),
            license: field("License-Expression").or_else(|| field("License")).map(str::to_owned),
            supplier: field("Author").map(str::to_owned),
            found_in: format!("/{}", path.display()),
        });
        Ok(())
    }

    pub fn node(&mut self, view: &View, path: &Path) -> Result<()> {
        let Some(text) = text(view, path, MAX_DESCRIPTION)? else { return Ok(()) };
        let Ok(package) = serde_json::from_str::<serde_json::Value>(&text) else { return Ok(()) };
        let field = |key: &str| package[key].as_str().filter(|value| !value.is_empty());
        let (Some(name), Some(version)) = (field("name"), field("version")) else { return Ok(()) };
        let plain: Vec<String> = name.split('/').map(escape).collect();
        self.packages.insert(Package {
            name: name.to_owned(),
            version: version.to_owned(),
            purl: format!("pkg:npm/{}@{}", plain.join("/"), escape(version)),
            license: field("license").map(str::to_owned),
            supplier: None,
            found_in: format!("/{}", path.display()),
        });
        Ok(())
    }
}
