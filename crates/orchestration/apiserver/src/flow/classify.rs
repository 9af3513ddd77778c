//! Which FlowSchema a request belongs to, and which of its flows.

use k8s_openapi::api::flowcontrol::v1::{
    FlowSchema, FlowSchemaSpec, NonResourcePolicyRule, PolicyRulesWithSubjects, ResourcePolicyRule, Subject,
};

use crate::identity::UserInfo;
use crate::rbac::Attributes;

/// A schema as requests are compared with it.
pub struct Schema {
    pub name: String,
    pub uid: String,
    pub level: String,
    spec: FlowSchemaSpec,
}

impl Schema {
    pub fn new(object: FlowSchema) -> Option<Self> {
        let spec = object.spec?;
        let level = spec.priority_level_configuration.name.clone();
        let (name, uid) = (object.metadata.name?, object.metadata.uid.unwrap_or_default());
        Some(Self { name, uid, level, spec })
    }

    /// Lower comes first; of the same precedence, the name decides.
    pub fn order(&self) -> (i32, &str) {
        (self.spec.matching_precedence.unwrap_or(1000), &self.name)
    }

    pub fn matches(&self, user: &UserInfo, attributes: &Attributes) -> bool {
        self.spec
            .rules
            .iter()
            .flatten()
            .any(|rule| rule.subjects.iter().any(|subject| is(subject, user)) && covers(rule, attributes))
    }

    /// What tells the flows of the schema apart.
    pub fn distinguisher<'a>(&self, user: &'a UserInfo, attributes: &'a Attributes) -> &'a str {
        match self.spec.distinguisher_method.as_ref().map(|method| method.type_.as_str()) {
            Some("ByUser") => &user.name,
            Some("ByNamespace") => match attributes {
                Attributes::Resource { namespace, .. } => namespace,
                Attributes::Path { .. } => "",
            },
            _ => "",
        }
    }
}

fn is(subject: &Subject, user: &UserInfo) -> bool {
    if let Some(wanted) = &subject.user {
        return wanted.name == "*" || wanted.name == user.name;
    }
    if let Some(wanted) = &subject.group {
        return wanted.name == "*" || user.groups.contains(&wanted.name);
    }
    let Some(wanted) = &subject.service_account else { return false };
    let account = user.name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    account
        .is_some_and(|(namespace, name)| namespace == wanted.namespace && (wanted.name == "*" || wanted.name == name))
}

fn covers(rule: &PolicyRulesWithSubjects, attributes: &Attributes) -> bool {
    match attributes {
        Attributes::Path { verb, path } => rule.non_resource_rules.iter().flatten().any(|rule| leads(rule, verb, path)),
        Attributes::Resource { .. } => rule.resource_rules.iter().flatten().any(|rule| names(rule, attributes)),
    }
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|entry| entry == "*" || entry == wanted)
}

fn leads(rule: &NonResourcePolicyRule, verb: &str, path: &str) -> bool {
    has(&rule.verbs, verb)
        && rule.non_resource_urls.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(prefix) => path.starts_with(prefix),
            None => path == pattern,
        })
}

fn names(rule: &ResourcePolicyRule, attributes: &Attributes) -> bool {
    let Attributes::Resource { verb, group, resource, subresource, namespace, .. } = attributes else { return false };
    let whole = if subresource.is_empty() { resource.clone() } else { format!("{resource}/{subresource}") };
    let place = match namespace.as_str() {
        "" => rule.cluster_scope == Some(true),
        namespace => has(rule.namespaces.as_deref().unwrap_or_default(), namespace),
    };
    place && has(&rule.verbs, verb) && has(&rule.api_groups, group) && has(&rule.resources, &whole)
}
