//! Nobody grants what they do not hold: checks on writes of roles and bindings.

use std::collections::BTreeSet;

use dhow_api::registry::Kind;
use dhow_api::{Status, meta};
use k8s_openapi::api::rbac::v1::PolicyRule;
use serde_json::Value;

use crate::identity::UserInfo;
use crate::rbac::{Attributes, Authorizer, GROUP};

/// Refuses a role with more rules than its author holds, and a binding to such a role, unless the author may
/// `escalate` or `bind` it.
pub fn check(
    authorizer: &Authorizer,
    user: &UserInfo,
    kind: &Kind,
    object: &Value,
    old: Option<&Value>,
) -> Result<(), Status> {
    if kind.group != GROUP || user.is_master() {
        return Ok(());
    }
    let (namespace, name) = (meta::namespace(object), meta::name(object));
    let allowed = |verb: &str, resource: &str, name: &str| {
        authorizer.allows(
            user,
            &Attributes::Resource {
                verb: verb.into(),
                group: GROUP.into(),
                resource: resource.into(),
                subresource: String::new(),
                namespace: namespace.into(),
                name: name.into(),
            },
        )
    };
    let unchanged =
        |fields: &[&str]| old.is_some_and(|old| fields.iter().all(|field| old.get(field) == object.get(field)));
    let wanted = match kind.kind {
        "Role" | "ClusterRole" => {
            if unchanged(&["rules", "aggregationRule"]) || allowed("escalate", kind.plural, name) {
                return Ok(());
            }
            // An aggregated role may come to hold anything.
            if object.get("aggregationRule").is_some_and(|rule| !rule.is_null()) {
                vec![everything()]
            } else {
                serde_json::from_value(object["rules"].clone()).unwrap_or_default()
            }
        }
        _ => {
            let role_kind = meta::text(object, &["roleRef", "kind"]);
            let role = meta::text(object, &["roleRef", "name"]);
            let plural = if role_kind == "ClusterRole" { "clusterroles" } else { "roles" };
            if unchanged(&["subjects", "roleRef"]) || allowed("bind", plural, role) {
                return Ok(());
            }
            authorizer.rules_of(role_kind, namespace, role).ok_or_else(|| Status::not_found(GROUP, plural, role))?
        }
    };
    let mut held = Vec::new();
    authorizer.each_rule(user, namespace, |rule| held.push(rule.clone()));
    let missing: BTreeSet<String> =
        wanted.iter().filter_map(|rule| missing(rule, &held)).map(|rule| printed(&rule)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let why = format!(
        "user {:?} (groups={}) is attempting to grant RBAC permissions not currently held:\n{}",
        user.name,
        quoted(&user.groups),
        missing.into_iter().collect::<Vec<_>>().join("\n")
    );
    Err(Status::forbidden(GROUP, kind.plural, name, &why))
}

fn everything() -> PolicyRule {
    let all = || Some(vec!["*".to_owned()]);
    PolicyRule { api_groups: all(), resources: all(), verbs: vec!["*".into()], ..PolicyRule::default() }
}

/// The part of a rule that the held rules do not cover: its verbs that are not covered everywhere.
pub fn missing(rule: &PolicyRule, held: &[PolicyRule]) -> Option<PolicyRule> {
    let verbs: Vec<String> = rule.verbs.iter().filter(|verb| !covered(rule, verb, held)).cloned().collect();
    (!verbs.is_empty()).then(|| PolicyRule { verbs, ..rule.clone() })
}

/// Whether one verb of a rule is held for all that the rule names.
fn covered(rule: &PolicyRule, verb: &str, held: &[PolicyRule]) -> bool {
    let has = |list: &[String], wanted: &str| list.iter().any(|entry| entry == "*" || entry == wanted);
    let with_verb = || held.iter().filter(|own| has(&own.verbs, verb));
    let urls = rule.non_resource_urls.iter().flatten().all(|url| {
        with_verb().any(|own| {
            own.non_resource_urls.iter().flatten().any(|mine| match mine.strip_suffix('*') {
                Some(prefix) => url.starts_with(prefix),
                None => url == mine,
            })
        })
    });
    let names = rule.resource_names.as_deref().unwrap_or_default();
    let resources = rule.api_groups.iter().flatten().all(|group| {
        rule.resources.iter().flatten().all(|resource| {
            let covers = |own: &&PolicyRule| {
                has(own.api_groups.as_deref().unwrap_or_default(), group)
                    && own.resources.iter().flatten().any(|mine| includes(mine, resource))
            };
            let named = |own: &PolicyRule, name: Option<&String>| {
                let mine = own.resource_names.as_deref().unwrap_or_default();
                mine.is_empty() || name.is_some_and(|name| mine.contains(name))
            };
            match names {
                [] => with_verb().filter(covers).any(|own| named(own, None)),
                names => names.iter().all(|name| with_verb().filter(covers).any(|own| named(own, Some(name)))),
            }
        })
    });
    urls && resources
}

/// Whether the resource of a held rule includes another: `*`, the same, or `*/scale`.
fn includes(mine: &str, wanted: &str) -> bool {
    mine == "*"
        || mine == wanted
        || mine.strip_prefix("*/").is_some_and(|sub| wanted.split_once('/').is_some_and(|(_, other)| other == sub))
}

/// `["a" "b"]`, as Go prints a list of strings.
fn quoted(list: &[String]) -> String {
    let items: Vec<String> = list.iter().map(|item| format!("{item:?}")).collect();
    format!("[{}]", items.join(" "))
}

fn printed(rule: &PolicyRule) -> String {
    let mut parts = Vec::new();
    for (name, list) in [
        ("APIGroups", rule.api_groups.as_deref()),
        ("Resources", rule.resources.as_deref()),
        ("NonResourceURLs", rule.non_resource_urls.as_deref()),
        ("ResourceNames", rule.resource_names.as_deref()),
        ("Verbs", Some(rule.verbs.as_slice())),
    ] {
        if let Some(list) = list.filter(|list| !list.is_empty()) {
            parts.push(format!("{name}:{}", quoted(list)));
        }
    }
    format!("{{{}}}", parts.join(", "))
}
