//! What zones of users need of the API: their kinds, and a namespace whose Secrets the name servers may use.

use anyhow::{Context, Result};
use dhow_dns::ZonesConfig;
use serde_json::{Value, json};

use crate::place;

/// Keys of zones and of their secondaries; nothing else.
const NAMESPACE: &str = "dhow-dns";
const USER: &str = "system:kube-dns";

/// Where the name server finds keys, and its name in zones that name no server.
pub fn config() -> ZonesConfig {
    ZonesConfig { namespace: NAMESPACE.to_owned(), server: format!("ns.dns.{}", place::CLUSTER_DOMAIN) }
}

/// All that zones need.
pub fn objects() -> Result<Vec<Value>> {
    let definitions: Vec<Value> =
        serde_saphyr::from_multiple(dhow_dns::zones::kinds::DEFINITIONS).context("read the built-in definitions")?;
    let meta = json!({"name": USER, "namespace": NAMESPACE});
    let rbac = "rbac.authorization.k8s.io";
    let own = [
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}),
        json!({
            "apiVersion": format!("{rbac}/v1"), "kind": "Role", "metadata": meta,
            "rules": [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["create", "list", "watch"]}],
        }),
        json!({
            "apiVersion": format!("{rbac}/v1"), "kind": "RoleBinding", "metadata": meta,
            "roleRef": {"apiGroup": rbac, "kind": "Role", "name": USER},
            "subjects": [{"apiGroup": rbac, "kind": "User", "name": USER}],
        }),
    ];
    Ok(definitions.into_iter().chain(own).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_definitions_are_two_kinds() {
        let names: Vec<String> =
            objects().unwrap().iter().map(|object| object["metadata"]["name"].to_string()).collect();
        assert_eq!(names[..2], ["\"zones.dns.dhow.io\"", "\"records.dns.dhow.io\""]);
    }
}
