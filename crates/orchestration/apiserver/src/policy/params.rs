//! The parameters of a binding: objects that the policy's author leaves to whoever binds it.

use dhow_api::header::split_api_version;
use dhow_api::meta::text;
use dhow_api::registry::KindRef;
use dhow_api::selectors::LabelSelector;
use serde_json::Value;

use super::compile::{Binding, Policy};
use crate::ApiServer;

fn row(server: &ApiServer, (api_version, kind): &(String, String)) -> Option<KindRef> {
    server.definitions.catalog().by_api_version(api_version, kind).filter(|row| row.stored)
}

/// Why a kind cannot be a parameter, if it cannot.
pub fn unknown(server: &ApiServer, kind: &(String, String)) -> Option<String> {
    if row(server, kind).is_some() {
        return None;
    }
    let (group, version) = split_api_version(&kind.0);
    let version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    Some(format!("failed to find resource referenced by paramKind: '{version}, Kind={}'", kind.1))
}

/// Each object the policy is to be evaluated with; `None` for once without.
pub fn collect(
    server: &ApiServer,
    policy: &Policy,
    binding: &Binding,
    namespace: Option<&str>,
) -> Result<Vec<Option<Value>>, String> {
    let (Some(kind), Some(reference)) = (policy.param_kind.as_ref().and_then(|kind| row(server, kind)), &binding.param)
    else {
        return Ok(vec![None]);
    };
    let given = Some(text(reference, &["namespace"])).filter(|given| !given.is_empty());
    let namespace = match (kind.namespaced, given, namespace) {
        (false, Some(_), _) => {
            return Err("paramRef.namespace must not be provided for a cluster-scoped `paramKind`".into());
        }
        (false, None, _) => None,
        (true, Some(given), _) => Some(given),
        (true, None, Some(namespace)) => Some(namespace),
        (true, None, None) => {
            return Err("cannot use namespaced paramRef in policy binding that matches cluster-scoped resources".into());
        }
    };
    let found: Vec<Value> = match text(reference, &["name"]) {
        "" => {
            let selector = LabelSelector::from_object(reference.get("selector")).map_err(|error| error.to_string())?;
            let objects = server.store.cache.objects(&kind).map_err(|status| status.message)?;
            let within = objects.values().filter(|object| namespace.is_none_or(|name| object.header.namespace == name));
            within.filter_map(|object| object.value().ok()).filter(|object| selector.matches_value(object)).collect()
        }
        name => {
            let found = server.store.cache.get(&kind, &kind.storage_key(namespace, name));
            found.and_then(|object| object.value().ok()).into_iter().collect()
        }
    };
    if found.is_empty() && text(reference, &["parameterNotFoundAction"]) == "Deny" {
        return Err("no params found for policy binding with `Deny` parameterNotFoundAction".into());
    }
    Ok(found.into_iter().map(Some).collect())
}
