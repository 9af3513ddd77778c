//! One webhook, as its configuration says, and the connections to it.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use dhow_api::registry::{self, Kind};
use dhow_api::selectors::LabelSelector;
use dhow_api::{Status, meta};
use http::Uri;
use serde_json::Value;

use super::call::Client;
use super::conditions::{self, Condition};
use super::rules::Rule;
use crate::cache::Cache;

/// Mutating first.
pub const PLURALS: [&str; 2] = ["mutatingwebhookconfigurations", "validatingwebhookconfigurations"];
pub const GROUP: &str = "admissionregistration.k8s.io";

const DEFAULT_TIMEOUT: u64 = 10;
const LONGEST_TIMEOUT: u64 = 30;

pub struct Hook {
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
    pub timeout: Duration,
    /// Where to post, with the timeout as a parameter.
    pub uri: Result<Uri, String>,
    pub client: Arc<Client>,
}

/// Where a webhook is and whom it has to be: hooks that agree on it share connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub host: String,
    pub port: u16,
    pub service: Option<Service>,
    /// Authorities in PEM; the system's when there are none.
    pub ca: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    pub namespace: String,
    pub name: String,
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
            meta::items(&object, &["webhooks"]).iter().map(|hook| Hook::read(hook, cache, known)).collect()
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
    fn read(hook: &Value, cache: &Arc<Cache>, known: &[&Self]) -> Result<Self, Status> {
        let text = |field: &str| hook[field].as_str().unwrap_or_default();
        // Absent selects everything here.
        let selector = |field: &str| match hook.get(field).filter(|selector| !selector.is_null()) {
            Some(selector) => LabelSelector::from_object(Some(selector)),
            None => Ok(LabelSelector::default()),
        };
        let seconds = hook["timeoutSeconds"].as_u64().unwrap_or(DEFAULT_TIMEOUT).clamp(1, LONGEST_TIMEOUT);
        let config = &hook["clientConfig"];
        let ca = config["caBundle"].as_str().unwrap_or_default();
        let ca = base64::engine::general_purpose::STANDARD.decode(ca).unwrap_or_default();
        let (place, uri) = place(config, String::from_utf8_lossy(&ca).into_owned(), seconds);
        let shared = known.iter().map(|hook| &hook.client).find(|client| *client.place() == place);
        let client = match shared {
            Some(client) => client.clone(),
            None => Arc::new(Client::new(place, cache.clone())),
        };
        Ok(Self {
            name: text("name").into(),
            rules: meta::items(hook, &["rules"]).iter().map(Rule::read).collect(),
            equivalent: text("matchPolicy") != "Exact",
            namespaces: selector("namespaceSelector")?,
            objects: selector("objectSelector")?,
            conditions: conditions::read(hook),
            ignores_failure: text("failurePolicy") == "Ignore",
            dry_runs: matches!(text("sideEffects"), "None" | "NoneOnDryRun"),
            reinvoked: text("reinvocationPolicy") == "IfNeeded",
            timeout: Duration::from_secs(seconds),
            uri,
            client,
        })
    }
}

fn place(config: &Value, ca: String, seconds: u64) -> (Place, Result<Uri, String>) {
    let service = &config["service"];
    if service.is_object() {
        let text = |field: &str| service[field].as_str().unwrap_or_default().to_owned();
        let (namespace, name) = (text("namespace"), text("name"));
        let port = service["port"].as_u64().and_then(|port| u16::try_from(port).ok()).unwrap_or(443);
        let host = format!("{name}.{namespace}.svc");
        let path = text("path");
        let uri = with_timeout(&format!("https://{host}:{port}/{}", path.trim_start_matches('/')), seconds);
        return (Place { host, port, service: Some(Service { namespace, name }), ca }, uri);
    }
    let uri = with_timeout(config["url"].as_str().unwrap_or_default(), seconds);
    let host = uri.as_ref().ok().and_then(Uri::host).unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = uri.as_ref().ok().and_then(Uri::port_u16).unwrap_or(443);
    (Place { host, port, service: None, ca }, uri)
}

fn with_timeout(url: &str, seconds: u64) -> Result<Uri, String> {
    let separator = if url.contains('?') { '&' } else { '?' };
    let uri: Uri =
        format!("{url}{separator}timeout={seconds}s").parse().map_err(|error| format!("{url:?}: {error}"))?;
    if uri.scheme_str() == Some("https") && uri.host().is_some() {
        Ok(uri)
    } else {
        Err(format!("{url:?} is not https"))
    }
}
