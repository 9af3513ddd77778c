//! Tells in a policy's status which of its expressions do not fit what the policy is about.
//!
//! An expression may speak of several kinds, so that this refuses nothing: it warns.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use dhow_api::Status;
use dhow_api::cel::admission::Names;
use dhow_api::cel::{Environment, Program, Type, declared};
use dhow_api::custom::Catalog;
use dhow_api::meta::{self, items, text};
use dhow_api::registry::Kind;
use serde_json::{Value, json};

use crate::ApiServer;
use crate::store::Written;

/// Kinds that a policy is checked against at most.
const MOST_KINDS: usize = 10;
/// Until a status that could not be written is written again.
const PAUSE: Duration = Duration::from_secs(1);

/// Keeps the status of all policies, until the server ends.
pub async fn follow(server: Arc<ApiServer>) {
    let Some(kind) = super::KINDS[0] else { return };
    loop {
        let Ok((snapshot, mut changes)) = server.store.cache.snapshot_and_subscribe(kind) else { return };
        let mut settled = Ok(());
        for stored in snapshot.objects.values() {
            let result = match stored.value() {
                Ok(policy) => settle(&server, kind, stored, policy).await,
                Err(status) => Err(status),
            };
            settled = settled.and(result);
        }
        if let Err(status) = &settled {
            tracing::warn!(message = status.message, "cannot write what was found in admission policies");
        }
        tokio::select! {
            _ = changes.recv() => {}
            () = tokio::time::sleep(PAUSE), if settled.is_err() => {}
            () = server.shutdown.cancelled() => return,
        }
    }
}

async fn settle(
    server: &Arc<ApiServer>,
    kind: &Kind,
    stored: &Arc<crate::object::Stored>,
    mut policy: Value,
) -> Result<(), Status> {
    let generation = policy["metadata"]["generation"].as_i64().unwrap_or(0);
    if policy["status"]["observedGeneration"].as_i64() == Some(generation) {
        return Ok(());
    }
    let found = warnings(&policy, &server.definitions.catalog());
    let status = meta::child_mut(&mut policy, "status");
    status.insert("observedGeneration".into(), json!(generation));
    let checked = if found.is_empty() { json!({}) } else { json!({"expressionWarnings": found}) };
    status.insert("typeChecking".into(), checked);
    match server.store.update(kind, stored, &policy).await? {
        // One that changed meanwhile comes back.
        Written::Done(_) | Written::Changed | Written::Moved => Ok(()),
    }
}

/// What does not fit, by the field that says it.
fn warnings(policy: &Value, catalog: &Catalog) -> Vec<Value> {
    let spec = &policy["spec"];
    let kinds = kinds(spec, catalog);
    let param = &spec["paramKind"];
    let param = catalog.by_api_version(text(param, &["apiVersion"]), text(param, &["kind"]));
    let params = spec["paramKind"].is_object().then(|| param.map_or(Type::Any, |kind| declared::of_kind(&kind)));
    // Field, expression, and how many of the variables it may read.
    let variables = items(spec, &["variables"]);
    let mut expressions: Vec<(String, &str, usize)> = Vec::new();
    for (index, validation) in items(spec, &["validations"]).iter().enumerate() {
        for field in ["expression", "messageExpression"] {
            let place = format!("spec.validations[{index}].{field}");
            expressions.push((place, text(validation, &[field]), variables.len()));
        }
    }
    for (index, variable) in variables.iter().enumerate() {
        expressions.push((format!("spec.variables[{index}].expression"), text(variable, &["expression"]), index));
    }
    let environments: Vec<(String, Vec<Environment>)> =
        kinds.into_iter().map(|(name, of)| (name, environments(&of, params.as_ref(), variables))).collect();
    let mut found = Vec::new();
    for (place, expression, known) in expressions.iter().filter(|(_, expression, _)| !expression.is_empty()) {
        let misfits: Vec<String> = environments
            .iter()
            .filter_map(|(name, environments)| {
                let error = Program::compile(expression, environments.get(*known)?).err()?;
                Some(format!("{name}: {error}\n"))
            })
            .collect();
        if !misfits.is_empty() {
            found.push(json!({"fieldRef": place, "warning": misfits.join("\n")}));
        }
    }
    found
}

/// What expressions may name about one kind: before the first variable, after it, and so on.
fn environments(of: &Type, params: Option<&Type>, variables: &[Value]) -> Vec<Environment> {
    let mut types: Vec<(Arc<str>, Type)> = Vec::new();
    let mut all = Vec::new();
    for next in variables.iter().map(Some).chain([None]) {
        let names =
            Names { params: params.is_some(), authorizer: true, mutation: false, variables: Some(types.clone()) };
        let mut environment = names.environment().with("object", of.clone()).with("oldObject", of.clone());
        if let Some(params) = params {
            environment = environment.with("params", params.clone());
        }
        if let Some(variable) = next {
            let program = Program::compile(text(variable, &["expression"]), &environment);
            // What does not fit itself is no reason to complain of all that names it.
            let result = program.map_or(Type::Any, |program| program.result().clone());
            types.push((text(variable, &["name"]).into(), result));
        }
        all.push(environment);
    }
    all
}

/// The kinds that a policy names one by one, in order; what it matches by wildcards may be anything.
fn kinds(spec: &Value, catalog: &Catalog) -> BTreeMap<String, Type> {
    let mut found = BTreeMap::new();
    for rule in items(spec, &["matchConstraints", "resourceRules"]) {
        let words = |field: &str| -> Vec<&str> {
            let words: Vec<&str> = items(rule, &[field]).iter().filter_map(Value::as_str).collect();
            if words.contains(&"*") { Vec::new() } else { words }
        };
        let (groups, versions, resources) = (words("apiGroups"), words("apiVersions"), words("resources"));
        for group in &groups {
            for version in &versions {
                for resource in resources.iter().filter(|resource| !resource.contains('/')) {
                    let Some(kind) = catalog.get(group, version, resource) else { continue };
                    if found.len() < MOST_KINDS {
                        let name = format!("{}/{}, Kind={}", kind.group, kind.version, kind.kind);
                        found.entry(name).or_insert_with(|| declared::of_kind(&kind));
                    }
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn found(spec: Value) -> Vec<(String, String)> {
        let catalog = Catalog::new([]);
        let found = warnings(&json!({"spec": spec}), &catalog);
        found.iter().map(|one| (text(one, &["fieldRef"]).to_owned(), text(one, &["warning"]).to_owned())).collect()
    }

    fn matching(resources: &[&str]) -> Value {
        json!({"resourceRules": [{"apiGroups": ["apps"], "apiVersions": ["v1"], "resources": resources, "operations": ["*"]}]})
    }

    #[test]
    fn fields_that_a_kind_does_not_have() {
        let found = found(json!({
            "matchConstraints": matching(&["deployments", "replicasets"]),
            "variables": [{"name": "n", "expression": "object.spec.replicas"}, {"name": "bad", "expression": "object.nope"}],
            "validations": [
                {"expression": "object.replicas > 1"},
                {"expression": "variables.n > 1 && variables.bad == 1", "messageExpression": "object.metadata.name + 1"},
                {"expression": "object.spec.strategy.type == 'Recreate' && object.metadata.labels['a'] == 'b'"},
            ],
        }));
        let fields: Vec<&str> = found.iter().map(|(field, _)| field.as_str()).collect();
        assert_eq!(
            fields,
            [
                "spec.validations[0].expression",
                "spec.validations[1].messageExpression",
                "spec.validations[2].expression",
                "spec.variables[1].expression"
            ]
        );
        let expected = "apps/v1, Kind=Deployment: ERROR: <input>:1:7: undefined field 'replicas'\n | object.replicas > 1\n | ......^\n";
        assert!(found[0].1.starts_with(expected), "{}", found[0].1);
        assert!(found[0].1.contains("apps/v1, Kind=ReplicaSet: ERROR"));
        // Only one of the two has no strategy.
        assert!(found[2].1.starts_with("apps/v1, Kind=ReplicaSet: ERROR") && !found[2].1.contains("Deployment"));
    }

    #[test]
    fn what_fits_and_what_may_be_anything() {
        let validations = json!([
            {"expression": "object.spec.template.spec.containers.all(c, !has(c.securityContext) || c.image.startsWith('x'))"},
            {"expression": "oldObject == null || object.spec.replicas >= oldObject.spec.replicas"},
            {"expression": "object.spec.template.spec.containers.all(c, quantity(c.resources.limits['cpu']).isLessThan(quantity('2')))"},
            {"expression": "object.spec.strategy.?rollingUpdate.maxSurge.orValue('1') != '0' || object.metadata.annotations.exists(k, k == 'a')"},
            {"expression": "timestamp(object.metadata.creationTimestamp) < timestamp('2030-01-01T00:00:00Z')"},
            {"expression": "object.spec.template.spec.volumes.exists(v, has(v.configMap) && v.configMap.name == params.data['x'])"},
        ]);
        let spec = json!({"matchConstraints": matching(&["deployments"]), "validations": validations,
            "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"}});
        assert_eq!(found(spec), []);
        let any = json!({"matchConstraints": matching(&["*"]), "validations": [{"expression": "object.anything"}]});
        assert_eq!(found(any), []);
    }
}
