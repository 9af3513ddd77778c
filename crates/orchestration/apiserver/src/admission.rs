//! Built-in admission: what users rely on without naming it. Each rule is one function.

use dhow_api::registry::{self, Kind};
use dhow_api::{Status, meta};
use serde_json::{Value, json};

use crate::ApiServer;
use crate::identity::UserInfo;

/// Namespaces that cannot be deleted.
const PROTECTED: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

/// Rules for new objects, in upstream's order.
pub async fn create(
    server: &ApiServer,
    user: &UserInfo,
    kind: &Kind,
    namespace: Option<&str>,
    object: &mut Value,
) -> Result<(), Status> {
    namespace_lifecycle(server, kind, namespace, object)?;
    node_restriction(user, kind, object)?;
    if kind.kind == "CertificateSigningRequest" {
        requester(user, object);
    }
    if kind.kind == "Pod" {
        service_account(server, namespace.unwrap_or_default(), object)?;
        default_tolerations(object);
        priority(server, object)?;
    }
    Ok(())
}

/// Rules for changed objects.
pub fn update(
    _server: &ApiServer,
    user: &UserInfo,
    kind: &Kind,
    object: &mut Value,
    _old: &Value,
) -> Result<(), Status> {
    node_restriction(user, kind, object)
}

/// Rules for deletions.
pub fn delete(kind: &Kind, name: &str) -> Result<(), Status> {
    if kind.kind == "Namespace" && PROTECTED.contains(&name) {
        return Err(Status::forbidden("", "namespaces", name, "this namespace may not be deleted"));
    }
    Ok(())
}

/// Who asks for a certificate is for the server to say.
fn requester(user: &UserInfo, object: &mut Value) {
    let spec = meta::child_mut(object, "spec");
    for field in ["username", "uid", "groups", "extra"] {
        spec.remove(field);
    }
    spec.insert("username".into(), json!(user.name));
    spec.insert("groups".into(), json!(user.groups));
    if !user.uid.is_empty() {
        spec.insert("uid".into(), json!(user.uid));
    }
    if !user.extra.is_empty() {
        spec.insert("extra".into(), json!(user.extra));
    }
}

/// Nothing new in a namespace that is missing or going away.
fn namespace_lifecycle(server: &ApiServer, kind: &Kind, namespace: Option<&str>, object: &Value) -> Result<(), Status> {
    let Some(namespace) = namespace.filter(|_| kind.namespaced) else { return Ok(()) };
    let Some(found) = cached(server, "", "namespaces", None, namespace) else {
        return Err(Status::not_found("", "namespaces", namespace));
    };
    if found.header.deletion_timestamp.is_some() && kind.kind != "Event" {
        let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
        return Err(Status::forbidden(kind.group, kind.plural, meta::name(object), &why));
    }
    Ok(())
}

/// A node writes its own Node and Lease, and pods bound to it.
fn node_restriction(user: &UserInfo, kind: &Kind, object: &Value) -> Result<(), Status> {
    let Some(node) = user.name.strip_prefix("system:node:") else { return Ok(()) };
    let name = meta::name(object);
    let allowed = match kind.kind {
        "Node" | "Lease" => name == node,
        "Pod" => meta::text(object, &["spec", "nodeName"]) == node,
        _ => true,
    };
    if allowed {
        return Ok(());
    }
    let why = format!("node {node:?} is not allowed to modify what belongs to another node");
    Err(Status::forbidden(kind.group, kind.plural, name, &why))
}

/// Where pods find their token, the cluster's CA and their namespace.
const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Seconds a projected token lives; the node renews it in time.
const TOKEN_LIFE: u32 = 3607;

/// Sets the default service account and mounts its token, as upstream's ServiceAccount plugin does.
fn service_account(server: &ApiServer, namespace: &str, pod: &mut Value) -> Result<(), Status> {
    if meta::at(pod, &["metadata", "annotations", "kubernetes.io/config.mirror"]).is_some() {
        return Ok(());
    }
    let spec = meta::child_mut(pod, "spec");
    let name = match spec.get("serviceAccountName").and_then(Value::as_str) {
        Some(name) if !name.is_empty() => name.to_owned(),
        _ => "default".to_owned(),
    };
    spec.insert("serviceAccountName".into(), json!(name));
    spec.insert("serviceAccount".into(), json!(name));
    let Some(account) = cached(server, "", "serviceaccounts", Some(namespace), &name) else {
        let why = format!("error looking up service account {namespace}/{name}: serviceaccount \"{name}\" not found");
        return Err(Status::forbidden("", "pods", meta::name(pod), &why));
    };
    let account = account.value()?;
    let spec = meta::child_mut(pod, "spec");
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

fn mount_token(spec: &mut serde_json::Map<String, Value>) {
    let random = uuid::Uuid::new_v4().simple().to_string();
    let volume = format!("kube-api-access-{}", &random[..5]);
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
    if !used {
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

/// A pod stays five minutes on a node that does not answer.
fn default_tolerations(pod: &mut Value) {
    let spec = meta::child_mut(pod, "spec");
    let tolerations = spec.entry("tolerations").or_insert_with(|| json!([]));
    if tolerations.is_null() {
        *tolerations = json!([]);
    }
    let Some(list) = tolerations.as_array_mut() else { return };
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let tolerated = list.iter().any(|entry| {
            let of_key = entry["key"] == key || entry["key"].as_str().unwrap_or_default().is_empty();
            let of_effect = entry["effect"] == "NoExecute" || entry["effect"].as_str().unwrap_or_default().is_empty();
            of_key && of_effect
        });
        if !tolerated {
            list.push(json!({
                "key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300
            }));
        }
    }
}

/// Resolves the priority class, or takes the default one.
fn priority(server: &ApiServer, pod: &mut Value) -> Result<(), Status> {
    let name = meta::text(pod, &["spec", "priorityClassName"]).to_owned();
    let (name, value, policy) = if name.is_empty() {
        match default_priority_class(server) {
            Some(class) => (meta::name(&class).to_owned(), class["value"].clone(), class["preemptionPolicy"].clone()),
            None => (String::new(), json!(0), Value::Null),
        }
    } else {
        let found = cached(server, "scheduling.k8s.io", "priorityclasses", None, &name).ok_or_else(|| {
            Status::forbidden("", "pods", meta::name(pod), &format!("no PriorityClass with name {name} was found"))
        })?;
        let class = found.value()?;
        (name, class["value"].clone(), class["preemptionPolicy"].clone())
    };
    let spec = meta::child_mut(pod, "spec");
    if !name.is_empty() {
        spec.insert("priorityClassName".into(), json!(name));
    }
    spec.insert("priority".into(), value);
    let policy = if policy.is_null() { json!("PreemptLowerPriority") } else { policy };
    meta::default_to(spec, "preemptionPolicy", policy);
    Ok(())
}

fn default_priority_class(server: &ApiServer) -> Option<Value> {
    let kind = registry::builtin().get("scheduling.k8s.io", "v1", "priorityclasses")?;
    let snapshot = server.store.cache.snapshot(kind).ok()?;
    let classes = snapshot.objects.values().filter_map(|class| class.value().ok());
    classes.filter(|class| class["globalDefault"] == true).max_by_key(|class| class["value"].as_i64())
}

fn cached(
    server: &ApiServer,
    group: &str,
    plural: &str,
    namespace: Option<&str>,
    name: &str,
) -> Option<std::sync::Arc<crate::object::Stored>> {
    let kind = registry::builtin().get(group, "v1", plural)?;
    server.store.cache.get(kind, &kind.storage_key(namespace, name))
}
