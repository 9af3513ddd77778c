//! One webhook, as its configuration says, and the connections to it.

use std::sync::Arc;

use dhow_api::registry::{self, Kind};
use dhow_api::selectors::LabelSelector;
use dhow_api::{Status, meta};
use serde_json::Value;

use super::conditions::{self, Condition};
use super::rules::Rule;
use crate::cache::Cache;
use crate::webhook::Endpoint;

/// Mutating first.
pub const PLURALS: [&str; 2] = ["mutatingwebhookconfigurations", "validatingwebhookconfigurations"];
pub const GROUP: &str = "admissionregistration.k8s.io";

const DEFAULT_TIMEOUT: u64 = 10;
const LONGEST_TIMEOUT: u64 = 30;

pub struct Hook {
    /// The configuration that it is part of.
    pub configuration: String,
    pub name: String,
    pub rules: Vec<Rule>,
    /// Whether rules also hold for other rows of what they name.
    pub equivalent: bool,
    pub namespaces: LabelSelector,
    pub objects: LabelSelector,
    pub conditions: Vec<Condition>,
    pub ignores_failure: bool,
    /// Whether it may be asked about writes that are only tried.
    pub dry_runs: bool,
    /// Whether it wants to be asked again when others changed the object later.
    pub reinvoked: bool,
    pub endpoint: Endpoint,
}

pub fn kind(plural: &str) -> Option<&'static Kind> {
    registry::builtin().get(GROUP, "v1", plural)
}

/// All webhooks of one kind of configuration, ordered by the configurations' names.
pub fn read(cache: &Arc<Cache>, plural: &str, known: &[&Hook]) -> Vec<Hook> {
    let objects = kind(plural).and_then(|kind| cache.objects(kind).ok()).unwrap_or_default();
    let mut hooks = Vec::new();
    // Keys end in names, so that this is their order.
    for object in objects.values() {
        let parsed = object.value().and_then(|object| {
            let name = meta::name(&object);
            meta::items(&object, &["webhooks"]).iter().map(|hook| Hook::read(name, hook, cache, known)).collect()
        });
        match parsed {
            Ok(more) => hooks.extend::<Vec<Hook>>(more),
            Err(status) => {
                tracing::error!(configuration = %object.key, message = status.message, "cannot read webhooks");
            }
        }
    }
    hooks
}

impl Hook {
    fn read(configuration: &str, hook: &Value, cache: &Arc<Cache>, known: &[&Self]) -> Result<Self, Status> {
        let text = |field: &str| hook[field].as_str().unwrap_or_default();
        // Absent selects everything here.
        let selector = |field: &str| match hook.get(field).filter(|selector| !selector.is_null()) {
            Some(selector) => LabelSelector::from_object(Some(selector)),
            None => Ok(LabelSelector::default()),
        };
        let seconds = hook["timeoutSeconds"].as_u64().unwrap_or(DEFAULT_TIMEOUT).clamp(1, LONGEST_TIMEOUT);
        let known: Vec<&Endpoint> = known.iter().map(|hook| &hook.endpoint).collect();
        let endpoint = Endpoint::read(&hook["clientConfig"], seconds, cache, &known);
        Ok(Self {
            configuration: configuration.to_owned(),
            name: text("name").into(),
            rules: meta::items(hook, &["rules"]).iter().map(Rule::read).collect(),
            equivalent: text("matchPolicy") != "Exact",
            namespaces: selector("namespaceSelector")?,
            objects: selector("objectSelector")?,
            conditions: conditions::read(hook),
            ignores_failure: text("failurePolicy") == "Ignore",
            dry_runs: matches!(text("sideEffects"), "None" | "NoneOnDryRun"),
            reinvoked: text("reinvocationPolicy") == "IfNeeded",
            endpoint,
        })
    }
}
