//! The audit policy file (`audit.k8s.io/v1`): which requests are recorded, and how much of them.

use serde::Deserialize;

use crate::Error;
use crate::identity::UserInfo;
use crate::rbac::Attributes;

/// How much is recorded; each level includes the ones before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub enum Level {
    None,
    Metadata,
    Request,
    RequestResponse,
}

impl Level {
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Metadata => "Metadata",
            Self::Request => "Request",
            Self::RequestResponse => "RequestResponse",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Stage {
    RequestReceived,
    ResponseStarted,
    ResponseComplete,
    Panic,
}

impl Stage {
    pub fn name(self) -> &'static str {
        match self {
            Self::RequestReceived => "RequestReceived",
            Self::ResponseStarted => "ResponseStarted",
            Self::ResponseComplete => "ResponseComplete",
            Self::Panic => "Panic",
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Policy {
    api_version: String,
    kind: String,
    #[serde(default)]
    #[allow(dead_code, reason = "a file may carry it")]
    metadata: serde_json::Value,
    rules: Vec<Rule>,
    #[serde(default)]
    omit_stages: Vec<Stage>,
    #[serde(default)]
    omit_managed_fields: bool,
}

/// Every list that is not empty has to name what the request has.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rule {
    level: Level,
    #[serde(default)]
    users: Vec<String>,
    #[serde(default)]
    user_groups: Vec<String>,
    #[serde(default)]
    verbs: Vec<String>,
    #[serde(default)]
    resources: Vec<GroupResources>,
    #[serde(default)]
    namespaces: Vec<String>,
    #[serde(default, rename = "nonResourceURLs")]
    non_resource_urls: Vec<String>,
    #[serde(default)]
    omit_stages: Vec<Stage>,
    #[serde(default)]
    omit_managed_fields: Option<bool>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct GroupResources {
    #[serde(default)]
    group: String,
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    resource_names: Vec<String>,
}

/// What the policy says about one request.
#[derive(Debug, Clone)]
pub struct Decision {
    pub level: Level,
    pub omitted: Vec<Stage>,
    pub omit_managed_fields: bool,
}

impl Policy {
    /// Reads and checks a file in YAML or JSON. The error names the rule.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let bad = |why: String| Error::Configuration(format!("audit policy: {why}"));
        let policy: Self = serde_saphyr::from_str(text).map_err(|error| bad(error.to_string()))?;
        if policy.kind != "Policy" || policy.api_version != "audit.k8s.io/v1" {
            return Err(bad(format!("cannot read {} of {}", policy.kind, policy.api_version)));
        }
        if policy.rules.is_empty() {
            return Err(bad("there are no rules".into()));
        }
        for (at, rule) in policy.rules.iter().enumerate() {
            let resources = !rule.resources.is_empty() || !rule.namespaces.is_empty();
            if resources && !rule.non_resource_urls.is_empty() {
                return Err(bad(format!("rules[{at}]: rules cannot apply to both resources and nonResourceURLs")));
            }
            for url in &rule.non_resource_urls {
                let stars = url.trim_end_matches('*').contains('*') || url.ends_with("**");
                if url != "*" && (!url.starts_with('/') || stars) {
                    return Err(bad(format!(
                        "rules[{at}].nonResourceURLs: {url:?} is no path, with * at its end only"
                    )));
                }
            }
        }
        Ok(policy)
    }

    /// The first rule that matches decides; where none does, nothing is recorded.
    pub fn decide(&self, user: &UserInfo, attributes: &Attributes) -> Decision {
        let rule = self.rules.iter().find(|rule| rule.matches(user, attributes));
        let Some(rule) = rule else {
            return Decision { level: Level::None, omitted: Vec::new(), omit_managed_fields: false };
        };
        Decision {
            level: rule.level,
            omitted: [self.omit_stages.as_slice(), &rule.omit_stages].concat(),
            omit_managed_fields: rule.omit_managed_fields.unwrap_or(self.omit_managed_fields),
        }
    }
}

fn among(list: &[String], wanted: &str) -> bool {
    list.is_empty() || list.iter().any(|entry| entry == wanted)
}

impl Rule {
    fn matches(&self, user: &UserInfo, attributes: &Attributes) -> bool {
        let groups = self.user_groups.is_empty() || user.groups.iter().any(|group| self.user_groups.contains(group));
        if !groups || !among(&self.users, &user.name) {
            return false;
        }
        match attributes {
            Attributes::Path { verb, path } => {
                among(&self.verbs, verb)
                    && self.resources.is_empty()
                    && self.namespaces.is_empty()
                    && (self.non_resource_urls.is_empty() || self.non_resource_urls.iter().any(|url| leads(url, path)))
            }
            Attributes::Resource { verb, group, resource, subresource, namespace, name } => {
                among(&self.verbs, verb)
                    && self.non_resource_urls.is_empty()
                    && among(&self.namespaces, namespace)
                    && (self.resources.is_empty()
                        || self.resources.iter().any(|entry| entry.covers(group, resource, subresource, name)))
            }
        }
    }
}

/// Whether a path is the pattern, or begins with it where the pattern ends in `*`.
fn leads(pattern: &str, path: &str) -> bool {
    pattern.strip_suffix('*').map_or(path == pattern, |prefix| path.starts_with(prefix))
}

impl GroupResources {
    /// `pods`, `pods/log`, `pods/*`, `*/scale`, `*`; no resources are all of the group.
    fn covers(&self, group: &str, resource: &str, subresource: &str, name: &str) -> bool {
        if self.group != group {
            return false;
        }
        let covers = |entry: &str| match entry.split_once('/') {
            None => entry == "*" || entry == resource && subresource.is_empty(),
            Some((parent, "*")) => parent == resource,
            Some((parent, sub)) => (parent == "*" || parent == resource) && !sub.is_empty() && sub == subresource,
        };
        self.resources.is_empty()
            || among(&self.resource_names, name) && self.resources.iter().any(|entry| covers(entry))
    }
}
