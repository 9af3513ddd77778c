//! What is in an image, as an SPDX 2.3 document.

use dhow_image::{Digest, Statement};
use serde_json::{Value, json};

use super::packages::{Found, Package};
use crate::build::Tree;

const PREDICATE: &str = "https://spdx.dev/Document";
const ROOT: &str = "SPDXRef-Image";
/// What is not known is said not to be.
const NONE: &str = "NOASSERTION";

/// The statement about one image.
pub fn statement(found: &Found, tree: &Tree) -> Statement {
    let chain = Tree::chain(&tree.layers);
    let created = tree.config.created.as_deref().unwrap_or_default();
    // To the second, as the format wants it.
    let created = created.parse::<jiff::Timestamp>().map(|time| time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
    let mut packages = vec![json!({
        "name": "image",
        "SPDXID": ROOT,
        "downloadLocation": NONE,
        "filesAnalyzed": false,
        "licenseConcluded": NONE,
        "licenseDeclared": NONE,
        "copyrightText": NONE,
        "primaryPackagePurpose": "CONTAINER",
    })];
    let mut relationships = vec![json!({
        "spdxElementId": "SPDXRef-DOCUMENT", "relationshipType": "DESCRIBES", "relatedSpdxElement": ROOT,
    })];
    for package in &found.packages {
        let id = identity(package);
        relationships.push(json!({"spdxElementId": ROOT, "relationshipType": "CONTAINS", "relatedSpdxElement": id}));
        packages.push(described(package, &id));
    }
    let predicate = json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": found.distribution.as_deref().unwrap_or("image"),
        "documentNamespace": format!("https://dhow.io/spdx/{}", chain.trim_start_matches("sha256:")),
        "creationInfo": {
            "created": created.unwrap_or_else(|_| "1970-01-01T00:00:00Z".to_owned()),
            "creators": [format!("Tool: dhow-{}", env!("CARGO_PKG_VERSION"))],
        },
        "packages": packages,
        "relationships": relationships,
    });
    Statement { predicate_type: PREDICATE.to_owned(), predicate }
}

/// The same package has the same one everywhere.
fn identity(package: &Package) -> String {
    let plain: String =
        package.name.chars().map(|c| if c.is_ascii_alphanumeric() || "-.".contains(c) { c } else { '-' }).collect();
    let number = Digest::of(format!("{} {}", package.purl, package.found_in).as_bytes());
    format!("SPDXRef-Package-{plain}-{}", &number.hex()[..16])
}

fn described(package: &Package, id: &str) -> Value {
    json!({
        "name": package.name,
        "SPDXID": id,
        "versionInfo": package.version,
        "supplier": supplier(package.supplier.as_deref()),
        "downloadLocation": NONE,
        "filesAnalyzed": false,
        "sourceInfo": format!("found in {}", package.found_in),
        "licenseConcluded": NONE,
        // What packages say is seldom an expression of the format's.
        "licenseDeclared": NONE,
        "licenseComments": package.license.as_deref().unwrap_or(NONE),
        "copyrightText": NONE,
        "externalRefs": [{
            "referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": package.purl,
        }],
    })
}

/// `Name <address>` as the format writes it.
fn supplier(text: Option<&str>) -> String {
    let Some(text) = text.map(str::trim).filter(|text| !text.is_empty()) else { return NONE.to_owned() };
    match text.split_once('<') {
        Some((name, address)) => format!("Person: {} ({})", name.trim(), address.trim_end_matches('>').trim()),
        None => format!("Person: {text}"),
    }
}
