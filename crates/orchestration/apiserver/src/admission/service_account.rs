//! ServiceAccount: every pod runs as one, and finds its token in a volume.

use dhow_api::registry::Subresource;
use dhow_api::{Status, meta};
use serde_json::{Value, json};

use super::{Attributes, Operation, cached};
use crate::ApiServer;

/// Where pods find their token, the cluster's CA and their namespace.
const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME: &str = "kube-api-access-";
/// Seconds a projected token lives; the node renews it in time.
const TOKEN_LIFE: u32 = 3607;

/// A service account with this annotation lets its pods use the secrets it lists only.
const ENFORCED: &str = "kubernetes.io/enforce-mountable-secrets";

/// Sets the default service account and mounts its token, as upstream's ServiceAccount plugin does.
pub fn mutate(server: &ApiServer, attributes: &mut Attributes<'_>) -> Result<(), Status> {
    if attributes.operation != Operation::Create || !attributes.is("", "Pod") || attributes.subresource.is_some() {
        return Ok(());
    }
    if is_mirror(&attributes.object) {
        return mirror(attributes);
    }
    let namespace = attributes.namespace.unwrap_or_default();
    let spec = meta::child_mut(&mut attributes.object, "spec");
    let name = match spec.get("serviceAccountName").and_then(Value::as_str) {
        Some(name) if !name.is_empty() => name.to_owned(),
        _ => "default".to_owned(),
    };
    spec.insert("serviceAccountName".into(), json!(name));
    spec.insert("serviceAccount".into(), json!(name));
    let account = account(server, attributes, namespace, &name)?;
    let spec = meta::child_mut(&mut attributes.object, "spec");
    if spec.get("imagePullSecrets").and_then(Value::as_array).is_none_or(Vec::is_empty)
        && let Some(secrets) = account.get("imagePullSecrets")
    {
        spec.insert("imagePullSecrets".into(), secrets.clone());
    }
    let own = spec.get("automountServiceAccountToken").and_then(Value::as_bool);
    if own.or(account["automountServiceAccountToken"].as_bool()).unwrap_or(true) {
        mount_token(spec);
    }
    Ok(())
}

fn account(server: &ApiServer, attributes: &Attributes<'_>, namespace: &str, name: &str) -> Result<Value, Status> {
    match cached(server, "", "serviceaccounts", Some(namespace), name) {
        Some(account) => account.value(),
        None => Err(attributes.forbidden(&format!(
            "error looking up service account {namespace}/{name}: serviceaccount \"{name}\" not found"
        ))),
    }
}

fn is_mirror(pod: &Value) -> bool {
    meta::at(pod, &["metadata", "annotations", "kubernetes.io/config.mirror"]).is_some()
}

/// What a node runs on its own account has no identity in the cluster.
fn mirror(attributes: &Attributes<'_>) -> Result<(), Status> {
    let spec = &attributes.object["spec"];
    if !meta::text(spec, &["serviceAccountName"]).is_empty() {
        return Err(attributes.forbidden("a mirror pod may not reference service accounts"));
    }
    let projects = |volume: &Value| {
        meta::items(volume, &["projected", "sources"]).iter().any(|source| source["serviceAccountToken"].is_object())
    };
    if meta::items(spec, &["volumes"]).iter().any(projects) {
        return Err(attributes.forbidden("a mirror pod may not use ServiceAccountToken volume projections"));
    }
    Ok(())
}

/// The account still has to be there, and may limit which secrets its pods use.
pub fn validate(server: &ApiServer, attributes: &Attributes<'_>) -> Result<(), Status> {
    let creates = attributes.operation == Operation::Create && attributes.subresource.is_none();
    let debugs = attributes.subresource == Some(Subresource::EphemeralContainers);
    let pod = &attributes.object;
    if !attributes.is("", "Pod") || !(creates || debugs) || is_mirror(pod) {
        return Ok(());
    }
    let name = meta::text(pod, &["spec", "serviceAccountName"]);
    let account = account(server, attributes, attributes.namespace.unwrap_or_default(), name)?;
    if meta::text(&account, &["metadata", "annotations", ENFORCED]) != "true" {
        return Ok(());
    }
    match unlisted_secret(pod, &account, debugs) {
        Some(what) => Err(attributes.forbidden(&what)),
        None => Ok(()),
    }
}

/// A secret that the pod uses and its account does not list, in upstream's words.
fn unlisted_secret(pod: &Value, account: &Value, debugs: bool) -> Option<String> {
    let owner = meta::name(account);
    let spec = &pod["spec"];
    let listed = |list: &str, name: &str| meta::items(account, &[list]).iter().any(|secret| secret["name"] == name);
    let refused =
        |what: String| format!("{what} is not allowed because service account {owner} does not reference that");
    let unlisted = |name: &Value| name.as_str().filter(|name| !listed("secrets", name)).map(str::to_owned);
    let lists: &[&str] = if debugs { &["ephemeralContainers"] } else { &["initContainers", "containers"] };
    for container in lists.iter().flat_map(|list| meta::items(spec, &[list])) {
        let title = container["name"].as_str().unwrap_or_default();
        for variable in meta::items(container, &["env"]) {
            if let Some(name) = unlisted(&variable["valueFrom"]["secretKeyRef"]["name"]) {
                let of = variable["name"].as_str().unwrap_or_default();
                let what = format!("container {title} with envVar {of} referencing secret.secretName={name:?}");
                return Some(refused(what) + " secret");
            }
        }
        for source in meta::items(container, &["envFrom"]) {
            if let Some(name) = unlisted(&source["secretRef"]["name"]) {
                let what = format!("container {title} with envFrom referencing secret.secretName={name:?}");
                return Some(refused(what) + " secret");
            }
        }
    }
    if debugs {
        return None;
    }
    for volume in meta::items(spec, &["volumes"]) {
        if let Some(name) = unlisted(&volume["secret"]["secretName"]) {
            return Some(refused(format!("volume with secret.secretName={name:?}")) + " secret");
        }
    }
    for (index, secret) in meta::items(spec, &["imagePullSecrets"]).iter().enumerate() {
        let name = secret["name"].as_str().unwrap_or_default();
        if !listed("imagePullSecrets", name) {
            return Some(refused(format!("imagePullSecrets[{index}].name={name:?}")) + " imagePullSecret");
        }
    }
    None
}

fn mount_token(spec: &mut serde_json::Map<String, Value>) {
    // There already when a webhook has added a container since.
    let there = meta::each_mut(spec, "volumes")
        .filter_map(|volume| volume.get("name").and_then(Value::as_str).map(str::to_owned))
        .find(|name| name.starts_with(VOLUME));
    let made = there.is_some();
    let random = uuid::Uuid::new_v4().simple().to_string();
    let volume = there.unwrap_or_else(|| format!("{VOLUME}{}", &random[..5]));
    let mut used = false;
    for list in ["initContainers", "containers"] {
        for container in meta::each_mut(spec, list) {
            let mounts = container.entry("volumeMounts").or_insert_with(|| json!([]));
            let Some(mounts) = mounts.as_array_mut() else { continue };
            if mounts.iter().all(|mount| mount["mountPath"] != TOKEN_PATH) {
                mounts.push(json!({"name": volume, "readOnly": true, "mountPath": TOKEN_PATH}));
                used = true;
            }
        }
    }
    if !used || made {
        return;
    }
    let sources = json!([
        {"serviceAccountToken": {"expirationSeconds": TOKEN_LIFE, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [
            {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}
        ]}},
    ]);
    let volumes = spec.entry("volumes").or_insert_with(|| json!([]));
    if let Some(volumes) = volumes.as_array_mut() {
        volumes.push(json!({"name": volume, "projected": {"sources": sources, "defaultMode": 420}}));
    }
}
