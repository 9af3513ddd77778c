//! Reads metrics: of pods' resources from `metrics.k8s.io`, of what applications tell from `custom.metrics.k8s.io`, of
//! what lies outside from `external.metrics.k8s.io`.

use std::collections::HashMap;
use std::sync::Arc;

use dhow_api::quantity::Quantity;
use dhow_client::{Client, Error, selector_text};
use http::Method;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::metric::PodState;
use crate::common::phase;
use crate::resources::{Resource, call};

/// A pod that started so lately may be busy with its start.
const CPU_INITIALIZATION: i64 = 5 * 60;
/// A pod that was unready since so soon after its start was never ready.
const INITIAL_READINESS: i64 = 30;

/// One pod's value, and the time that it is about.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    pub value: f64,
    pub at: Timestamp,
    /// Seconds.
    pub window: i64,
}

pub type Samples = HashMap<String, Sample>;

async fn get(client: &Client, path: &str) -> Result<Value, String> {
    match call(client, Method::GET, path, "", Vec::new()).await {
        // The API is not there, or its server is not.
        Err(Error::Api { code, message, .. }) => Err(format!("{message} (code {code})")),
        other => other.map_err(|error| error.to_string()),
    }
}

fn amount(value: &Value) -> Option<f64> {
    value.as_str()?.parse::<Quantity>().ok().map(|quantity| quantity.approximate())
}

fn time(value: &Value) -> Timestamp {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// What pods use of a resource, or one container of each does.
pub async fn resource(
    client: &Client,
    namespace: &str,
    selector: &str,
    name: &str,
    container: Option<&str>,
) -> Result<Samples, String> {
    let path = format!("/apis/metrics.k8s.io/v1beta1/namespaces/{namespace}/pods?labelSelector={}", escape(selector));
    let list = get(client, &path)
        .await
        .map_err(|error| format!("unable to fetch metrics from resource metrics API: {error}"))?;
    let samples = resource_samples(&list, name, container)?;
    if samples.is_empty() {
        return Err("no metrics returned from resource metrics API".into());
    }
    Ok(samples)
}

fn resource_samples(list: &Value, name: &str, container: Option<&str>) -> Result<Samples, String> {
    let mut samples = Samples::new();
    for item in list["items"].as_array().into_iter().flatten() {
        let pod = item["metadata"]["name"].as_str().unwrap_or_default();
        let containers = item["containers"].as_array().map(Vec::as_slice).unwrap_or_default();
        let wanted: Vec<&Value> =
            containers.iter().filter(|one| container.is_none_or(|wanted| one["name"] == wanted)).collect();
        if let Some(container) = container.filter(|_| wanted.is_empty()) {
            let namespace = item["metadata"]["namespace"].as_str().unwrap_or_default();
            return Err(format!("container {container} not present in metrics for pod {namespace}/{pod}"));
        }
        // Half of a pod is none of it.
        let Some(value) = wanted.iter().map(|one| amount(&one["usage"][name])).sum::<Option<f64>>() else { continue };
        let window = item["window"].as_str().and_then(|text| text.parse::<SignedDuration>().ok());
        let window = window.map_or(60, |window| window.as_secs());
        samples.insert(pod.to_owned(), Sample { value, at: time(&item["timestamp"]), window });
    }
    Ok(samples)
}

/// What pods tell of themselves.
pub async fn pods(
    client: &Client,
    namespace: &str,
    selector: &str,
    metric: &str,
    labels: Option<&LabelSelector>,
) -> Result<Samples, String> {
    let about = format!("namespaces/{namespace}/pods/*/{metric}?labelSelector={}", escape(selector));
    let list = custom(client, &about, labels).await?;
    let samples: Samples = list["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|item| {
            let pod = item["describedObject"]["name"].as_str()?.to_owned();
            let window = item["windowSeconds"].as_i64().unwrap_or(60);
            Some((pod, Sample { value: amount(&item["value"])?, at: time(&item["timestamp"]), window }))
        })
        .collect();
    if samples.is_empty() {
        return Err("no metrics returned from custom metrics API".into());
    }
    Ok(samples)
}

/// What is told of one object.
pub async fn object(
    client: &Client,
    namespace: &str,
    of: &Resource,
    name: &str,
    metric: &str,
    labels: Option<&LabelSelector>,
) -> Result<f64, String> {
    let group = of.api_version.rsplit_once('/').map_or(String::new(), |(group, _)| format!(".{group}"));
    let about = match of.kind.as_str() {
        "Namespace" if group.is_empty() => format!("namespaces/{name}/metrics/{metric}?"),
        _ if of.namespaced => format!("namespaces/{namespace}/{}{group}/{name}/{metric}?", of.plural),
        _ => format!("{}{group}/{name}/{metric}?", of.plural),
    };
    let list = custom(client, &about, labels).await?;
    let first = list["items"].as_array().and_then(|items| items.first());
    first.and_then(|item| amount(&item["value"])).ok_or_else(|| "no metrics returned from custom metrics API".into())
}

async fn custom(client: &Client, about: &str, labels: Option<&LabelSelector>) -> Result<Value, String> {
    let selector = labels.map(selector_text).filter(|text| !text.is_empty());
    let selector = selector.map_or(String::new(), |text| format!("&metricLabelSelector={}", escape(&text)));
    let path = |version: &str| format!("/apis/custom.metrics.k8s.io/{version}/{about}{selector}");
    let answer = match call(client, Method::GET, &path("v1beta2"), "", Vec::new()).await {
        // Older adapters have the older version only. Where neither has it, the newer one says so best.
        Err(missing) if missing.is_not_found() => {
            let older = call(client, Method::GET, &path("v1beta1"), "", Vec::new()).await;
            if older.as_ref().is_err_and(Error::is_not_found) { Err(missing) } else { older }
        }
        other => other,
    };
    answer.map_err(|error| format!("unable to fetch metrics from custom metrics API: {error}"))
}

/// The sum of what lies outside.
pub async fn external(
    client: &Client,
    namespace: &str,
    metric: &str,
    labels: Option<&LabelSelector>,
) -> Result<f64, String> {
    let selector = labels.map(selector_text).unwrap_or_default();
    let path = format!(
        "/apis/external.metrics.k8s.io/v1beta1/namespaces/{namespace}/{metric}?labelSelector={}",
        escape(&selector)
    );
    let list = get(client, &path)
        .await
        .map_err(|error| format!("unable to fetch metrics from external metrics API: {error}"))?;
    let items = list["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    if items.is_empty() {
        return Err("no metrics returned from external metrics API".into());
    }
    Ok(items.iter().filter_map(|item| amount(&item["value"])).sum())
}

/// What one container uses.
#[derive(Debug, Clone, PartialEq)]
pub struct Usage {
    pub pod: String,
    pub container: String,
    pub at: Timestamp,
    /// Processors.
    pub cpu: f64,
    /// Bytes.
    pub memory: f64,
}

/// What the containers of pods use.
pub async fn usage(client: &Client, namespace: &str, selector: &str) -> Result<Vec<Usage>, String> {
    let path = format!("/apis/metrics.k8s.io/v1beta1/namespaces/{namespace}/pods?labelSelector={}", escape(selector));
    let list = get(client, &path).await?;
    let mut all = Vec::new();
    for item in list["items"].as_array().into_iter().flatten() {
        for one in item["containers"].as_array().into_iter().flatten() {
            let (Some(cpu), Some(memory)) = (amount(&one["usage"]["cpu"]), amount(&one["usage"]["memory"])) else {
                continue;
            };
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let (pod, container) = (text(&item["metadata"]["name"]), text(&one["name"]));
            all.push(Usage { pod, container, at: time(&item["timestamp"]), cpu, memory });
        }
    }
    Ok(all)
}

fn escape(text: &str) -> String {
    let keeps = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|byte| if keeps(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// The pods of a target as one metric sees them. Those that go or failed are none of it.
pub fn states(
    pods: &[Arc<Pod>],
    samples: &Samples,
    cpu: bool,
    request: impl Fn(&Pod) -> Result<f64, String>,
    now: Timestamp,
) -> Result<Vec<PodState>, String> {
    let counted = pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none() && phase(pod) != "Failed");
    counted
        .map(|pod| {
            let sample = samples.get(pod.metadata.name.as_deref().unwrap_or_default());
            let unready = phase(pod) == "Pending" || cpu && sample.is_some_and(|sample| is_starting(pod, sample, now));
            Ok(PodState { value: sample.map(|sample| sample.value), request: request(pod)?, unready })
        })
        .collect()
}

/// Whether what a pod burns now may be of its start.
fn is_starting(pod: &Pod, sample: &Sample, now: Timestamp) -> bool {
    let Some(status) = &pod.status else { return true };
    let ready = status.conditions.iter().flatten().find(|condition| condition.type_ == "Ready");
    let (Some(ready), Some(start)) = (ready, &status.start_time) else { return true };
    let since = ready.last_transition_time.as_ref().map_or(0, |time| time.0.as_second());
    let start = start.0.as_second();
    if start + CPU_INITIALIZATION > now.as_second() {
        return ready.status == "False" || sample.at.as_second() < since + sample.window;
    }
    ready.status == "False" && start + INITIAL_READINESS > since
}

/// How many of the pods serve.
pub fn ready(pods: &[Arc<Pod>]) -> i32 {
    let serving = pods.iter().filter(|pod| phase(pod) == "Running" && crate::common::is_ready(pod));
    i32::try_from(serving.count()).unwrap_or(i32::MAX)
}

/// What a pod, or one of its containers, asks for of a resource.
pub fn request(pod: &Pod, resource: &str, container: Option<&str>) -> Result<f64, String> {
    let asked = |resources: Option<&ResourceRequirements>| {
        let quantity = resources?.requests.as_ref()?.get(resource)?;
        quantity.0.parse::<Quantity>().ok().map(|quantity| quantity.approximate())
    };
    let Some(spec) = &pod.spec else { return Err("a pod without a spec".into()) };
    if let Some(whole) = asked(spec.resources.as_ref()).filter(|_| container.is_none()) {
        return Ok(whole);
    }
    let sidecars = spec.init_containers.iter().flatten().filter(|one| one.restart_policy.as_deref() == Some("Always"));
    let counted = |one: &&Container| container.is_none_or(|wanted| one.name == wanted);
    let mut sum = 0.0;
    for one in spec.containers.iter().chain(sidecars).filter(counted) {
        sum += asked(one.resources.as_ref()).ok_or_else(|| {
            let pod = pod.metadata.name.as_deref().unwrap_or_default();
            format!("missing request for {resource} in container {} of Pod {pod}", one.name)
        })?;
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn pod(name: &str, status: Value) -> Arc<Pod> {
        let container = json!({"name": "c", "resources": {"requests": {"cpu": "200m"}}});
        let pod = json!({"metadata": {"name": name}, "spec": {"containers": [container]}, "status": status});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    const NOW: &str = "2026-01-01T01:00:00Z";

    fn sample(seconds_ago: i64) -> Sample {
        let now: Timestamp = NOW.parse().unwrap();
        Sample { value: 0.1, at: now - SignedDuration::from_secs(seconds_ago), window: 15 }
    }

    #[test]
    fn usage_is_summed_over_containers_that_all_have_it() {
        let item = |name: &str, usage: Value| {
            json!({"metadata": {"name": name, "namespace": "n"}, "timestamp": NOW, "window": "15s", "containers": [
                {"name": "a", "usage": {"cpu": "100m"}}, {"name": "b", "usage": usage}]})
        };
        let list = json!({"items": [item("p", json!({"cpu": "250000000n"})), item("q", json!({"memory": "1Ki"}))]});
        let all = resource_samples(&list, "cpu", None).unwrap();
        assert_eq!(all.len(), 1);
        assert!((all["p"].value - 0.35).abs() < 1e-9 && all["p"].window == 15);
        let one = resource_samples(&list, "cpu", Some("a")).unwrap();
        assert!(one.len() == 2 && (one["q"].value - 0.1).abs() < 1e-9);
        let error = resource_samples(&list, "cpu", Some("c")).unwrap_err();
        assert_eq!(error, "container c not present in metrics for pod n/p");
    }

    #[test]
    fn what_starts_says_nothing_of_its_cpu() {
        let ready = |state: &str, since: &str, start: &str| {
            json!({"phase": "Running", "startTime": start,
                "conditions": [{"type": "Ready", "status": state, "lastTransitionTime": since}]})
        };
        let cases = [
            (
                "just started, measured before it was ready",
                ready("True", "2026-01-01T00:59:50Z", "2026-01-01T00:59:00Z"),
                true,
            ),
            ("just started, measured since", ready("True", "2026-01-01T00:59:20Z", "2026-01-01T00:59:00Z"), false),
            ("just started, not ready", ready("False", "2026-01-01T00:59:05Z", "2026-01-01T00:59:00Z"), true),
            ("never ready", ready("False", "2026-01-01T00:00:10Z", "2026-01-01T00:00:00Z"), true),
            ("lost its readiness", ready("False", "2026-01-01T00:30:00Z", "2026-01-01T00:00:00Z"), false),
            ("not known yet", json!({"phase": "Running"}), true),
        ];
        for (what, status, wanted) in cases {
            let samples = Samples::from([("p".to_owned(), sample(5))]);
            let states = |cpu| {
                let pods = [pod("p", status.clone())];
                states(&pods, &samples, cpu, |pod| request(pod, "cpu", None), NOW.parse().unwrap()).unwrap()
            };
            assert_eq!(states(true)[0].unready, wanted, "{what}");
            assert!(!states(false)[0].unready, "{what}: only of CPU");
        }
    }

    #[test]
    fn pods_that_end_are_left_out_and_those_that_wait_are_not_ready() {
        let pods = [pod("a", json!({"phase": "Failed"})), pod("b", json!({"phase": "Pending"}))];
        let states = states(&pods, &Samples::new(), true, |_| Ok(1.0), NOW.parse().unwrap()).unwrap();
        assert_eq!(states, [PodState { value: None, request: 1.0, unready: true }]);
    }

    #[test]
    fn what_is_asked_for_must_be_said() {
        let pod = pod("p", json!({}));
        assert_eq!(request(&pod, "cpu", None), Ok(0.2));
        let missing = Err("missing request for memory in container c of Pod p".to_owned());
        assert_eq!(request(&pod, "memory", None), missing);
    }

    #[test]
    fn selectors_become_queries() {
        let selector = json!({"matchLabels": {"a": "b"}, "matchExpressions": [
            {"key": "c", "operator": "In", "values": ["d", "e"]}, {"key": "f", "operator": "DoesNotExist"}]});
        let text = selector_text(&serde_json::from_value(selector).unwrap());
        assert_eq!(text, "a=b,c in (d,e),!f");
        assert_eq!(escape(&text), "a%3Db%2Cc%20in%20%28d%2Ce%29%2C%21f");
    }
}
