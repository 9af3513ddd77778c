//! Roles and bindings that every cluster has, brought up to what this version expects, as upstream does at start: what
//! is missing is added, what an administrator added stays, and an object that says so itself is left alone.

use dhow_api::{Status, meta};
use dhow_client::Client;
use http::Method;
use k8s_openapi::api::rbac::v1::PolicyRule;
use serde_json::{Value, json};

use crate::bootstrap::{failed, send};
use crate::escalation;

/// The annotation with which an object asks to be left alone: "false".
pub const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";
const JSON: &str = "application/json";
/// How often a write that met another is tried again.
const TRIES: usize = 5;

/// Makes a role or a binding what it should be.
pub async fn ensure(client: &Client, collection: &str, wanted: Value) -> Result<(), Status> {
    let path = format!("{collection}/{}", meta::name(&wanted));
    for _ in 0..TRIES {
        let (code, answer) = send(client, Method::GET, &path, "", &Value::Null).await?;
        let (code, answer) = match code {
            404 => send(client, Method::POST, collection, JSON, &wanted).await?,
            200 => {
                let found: Value =
                    serde_json::from_slice(&answer).map_err(|error| Status::internal(error.to_string()))?;
                match plan(&wanted, found) {
                    Plan::Keep => return Ok(()),
                    Plan::Update(object) => send(client, Method::PUT, &path, JSON, &object).await?,
                    Plan::Replace => match send(client, Method::DELETE, &path, JSON, &json!({})).await? {
                        (200 | 404, _) => send(client, Method::POST, collection, JSON, &wanted).await?,
                        refused => refused,
                    },
                }
            }
            _ => (code, answer),
        };
        match code {
            ..300 => return Ok(()),
            409 => {}
            _ => return Err(failed(&answer)),
        }
    }
    Err(Status::internal(format!("{path} keeps changing")))
}

enum Plan {
    Keep,
    Update(Value),
    /// What a binding leads to cannot be changed.
    Replace,
}

fn plan(wanted: &Value, found: Value) -> Plan {
    if meta::text(&found, &["metadata", "annotations", AUTOUPDATE]) == "false" {
        return Plan::Keep;
    }
    if wanted["roleRef"] != found["roleRef"] {
        return Plan::Replace;
    }
    let mut fresh = found.clone();
    for field in ["labels", "annotations"] {
        for (key, value) in wanted["metadata"][field].as_object().into_iter().flatten() {
            let own = meta::child_mut(&mut fresh["metadata"], field);
            own.entry(key.as_str()).or_insert_with(|| value.clone());
        }
    }
    if fresh["aggregationRule"].is_null() && !wanted["aggregationRule"].is_null() {
        fresh["aggregationRule"] = wanted["aggregationRule"].clone();
    }
    for (field, missing) in [("rules", rules(wanted, &found)), ("subjects", subjects(wanted, &found))] {
        if missing.is_empty() {
            continue;
        }
        match fresh[field].as_array_mut() {
            Some(list) => list.extend(missing),
            None => fresh[field] = json!(missing),
        }
    }
    if meta::name(wanted) == "system:node"
        && let Some(subjects) = fresh["subjects"].as_array_mut()
    {
        // Older versions gave every node the role. A node is authorised by what runs on it.
        subjects.retain(|subject| !(subject["kind"] == "Group" && subject["name"] == "system:nodes"));
    }
    if fresh == found { Plan::Keep } else { Plan::Update(fresh) }
}

/// Rules that do not follow from those that are there.
fn rules(wanted: &Value, found: &Value) -> Vec<Value> {
    let read = |rule: &Value| serde_json::from_value::<PolicyRule>(rule.clone()).ok();
    let held: Vec<PolicyRule> = meta::items(found, &["rules"]).iter().filter_map(read).collect();
    let missing = |rule: &&Value| read(rule).is_some_and(|rule| escalation::missing(&rule, &held).is_some());
    meta::items(wanted, &["rules"]).iter().filter(missing).cloned().collect()
}

fn subjects(wanted: &Value, found: &Value) -> Vec<Value> {
    let same =
        |one: &Value, other: &Value| ["kind", "name", "namespace"].iter().all(|field| one[field] == other[field]);
    let there = meta::items(found, &["subjects"]);
    meta::items(wanted, &["subjects"]).iter().filter(|one| !there.iter().any(|own| same(one, own))).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(wanted: &Value, found: Value) -> Option<Value> {
        match plan(wanted, found) {
            Plan::Update(object) => Some(object),
            Plan::Keep | Plan::Replace => None,
        }
    }

    #[test]
    fn what_is_missing_is_added() {
        let pods = json!({"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]});
        let nodes = json!({"apiGroups": [""], "resources": ["nodes"], "verbs": ["get"]});
        let wanted = json!({"metadata": {"name": "view", "annotations": {AUTOUPDATE: "true"}}, "rules": [pods, nodes]});
        let wide = json!({"apiGroups": ["*"], "resources": ["pods"], "verbs": ["*"]});
        let found = json!({"metadata": {"name": "view", "annotations": {"own": "1"}}, "rules": [wide]});
        let fresh = update(&wanted, found.clone()).unwrap_or_default();
        assert_eq!(fresh["rules"], json!([wide, nodes]));
        assert_eq!(fresh["metadata"]["annotations"], json!({"own": "1", AUTOUPDATE: "true"}));
        assert!(update(&wanted, fresh).is_none());
        let mut left_alone = found;
        left_alone["metadata"]["annotations"][AUTOUPDATE] = json!("false");
        assert!(update(&wanted, left_alone).is_none());
    }

    #[test]
    fn nodes_have_no_role_any_more() {
        let role = json!({"kind": "ClusterRole", "name": "system:node"});
        let wanted = json!({"metadata": {"name": "system:node"}, "roleRef": role});
        let (nodes, other) =
            (json!({"kind": "Group", "name": "system:nodes"}), json!({"kind": "User", "name": "mine"}));
        let found = json!({"metadata": {"name": "system:node"}, "roleRef": role, "subjects": [nodes, other]});
        assert_eq!(update(&wanted, found).unwrap_or_default()["subjects"], json!([other]));
        let elsewhere =
            json!({"metadata": {"name": "system:node"}, "roleRef": {"kind": "ClusterRole", "name": "view"}});
        assert!(matches!(plan(&wanted, elsewhere), Plan::Replace));
    }
}
