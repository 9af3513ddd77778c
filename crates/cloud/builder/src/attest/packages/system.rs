//! What the databases of dpkg and apk list.

use std::path::Path;

use super::{Found, Package, escape, records};

impl Found {
    pub fn dpkg(&mut self, text: &str, vendor: &str, database: &Path) {
        for record in records(text) {
            let field = |key: &str| record.get(key).copied().filter(|value| !value.is_empty());
            let (Some(name), Some(version)) = (field("Package"), field("Version")) else { continue };
            // What was removed leaves its settings and a record.
            if field("Status").is_some_and(|status| !status.ends_with(" installed")) {
                continue;
            }
            let arch = field("Architecture").map(|arch| format!("arch={}", escape(arch)));
            let distribution = self.distribution.as_deref().map(|name| format!("distro={}", escape(name)));
            let qualifiers: Vec<String> = arch.into_iter().chain(distribution).collect();
            self.packages.insert(Package {
                name: name.to_owned(),
                version: version.to_owned(),
                purl: format!("pkg:deb/{vendor}/{}@{}?{}", escape(name), escape(version), qualifiers.join("&")),
                license: None,
                supplier: field("Maintainer").map(str::to_owned),
                found_in: format!("/{}", database.display()),
            });
        }
    }

    pub fn apk(&mut self, text: &str, vendor: &str, database: &Path) {
        for record in records(text) {
            let field = |key: &str| record.get(key).copied().filter(|value| !value.is_empty());
            let (Some(name), Some(version)) = (field("P"), field("V")) else { continue };
            let arch = field("A").map(|arch| format!("arch={}", escape(arch)));
            let distribution = self.distribution.as_deref().map(|name| format!("distro={}", escape(name)));
            let qualifiers: Vec<String> = arch.into_iter().chain(distribution).collect();
            self.packages.insert(Package {
                name: name.to_owned(),
                version: version.to_owned(),
                purl: format!("pkg:apk/{vendor}/{}@{}?{}", escape(name), escape(version), qualifiers.join("&")),
                license: field("L").map(str::to_owned),
                supplier: field("m").map(str::to_owned),
                found_in: format!("/{}", database.display()),
            });
        }
    }
}
