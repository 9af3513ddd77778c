//! What zones of users need of the API: their kinds, and a namespace whose Secrets the name servers may use.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use bytes::Bytes;
use dhow_client::Client;
use dhow_dns::ZonesConfig;
use http::{Request, header};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::place;

/// Keys of zones and of their secondaries; nothing else.
const NAMESPACE: &str = "dhow-dns";
const USER: &str = "system:kube-dns";
const RETRY: Duration = Duration::from_secs(5);

/// Where the name server finds keys, and its name in zones that name no server.
pub fn config() -> ZonesConfig {
    ZonesConfig { namespace: NAMESPACE.to_owned(), server: format!("ns.dns.{}", place::CLUSTER_DOMAIN) }
}

/// Applies all of it, and the kinds of policies for the whole cluster, then waits for the end. A cloud without either is still
/// one, so this ends nothing.
pub async fn keep(administrator: Client, shutdown: CancellationToken) -> Result<()> {
    let mut objects = objects()?;
    objects.extend(dhow_net::policy::definitions());
    let publish = async {
        while let Err(error) = apply_all(&administrator, &objects).await {
            tracing::warn!(
                error = format!("{error:#}"),
                "cannot publish kinds of DNS zones and policies; trying again"
            );
            tokio::time::sleep(RETRY).await;
        }
    };
    tokio::select! {
        () = publish => shutdown.cancelled().await,
        () = shutdown.cancelled() => {}
    }
    Ok(())
}

async fn apply_all(client: &Client, objects: &[Value]) -> Result<()> {
    for object in objects {
        apply(client, object).await?;
    }
    Ok(())
}

fn objects() -> Result<Vec<Value>> {
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

/// Server-side apply: what an older version of us left is brought up to date.
async fn apply(client: &Client, object: &Value) -> Result<()> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (version, kind, name) = (text(&object["apiVersion"]), text(&object["kind"]), text(&object["metadata"]["name"]));
    let root = if version.contains('/') { format!("/apis/{version}") } else { format!("/api/{version}") };
    let scope = object["metadata"]["namespace"].as_str().map(|ns| format!("/namespaces/{ns}")).unwrap_or_default();
    let path = format!("{root}{scope}/{}s/{name}?fieldManager=dhow&force=true", kind.to_ascii_lowercase());
    let request = Request::patch(&path)
        .header(header::CONTENT_TYPE, "application/apply-patch+yaml")
        .header(header::ACCEPT, "application/json")
        .body(Bytes::from(object.to_string()))?;
    let response = client.request(request).await.with_context(|| format!("apply {kind} {name}"))?;
    let status = response.status();
    if status.is_success() {
        return Ok(());
    }
    let body = response.into_body().collect().await.map_err(|error| anyhow!("{error}"))?.to_bytes();
    bail!("apply {kind} {name}: {status}: {}", String::from_utf8_lossy(&body))
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
