//! What a Job's policies say of failed pods and of succeeded indexes.

use k8s_openapi::api::batch::v1::{Job, PodFailurePolicyOnExitCodesRequirement, PodFailurePolicyRule};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use super::indexes::{Indexes, parse};
use crate::common::phase;

/// What follows from a failed pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Counts towards the limit.
    Count,
    /// Does not count.
    Ignore,
    /// Its index has failed for good.
    FailIndex,
    /// The job has failed, for this reason.
    FailJob(String),
}

/// The first rule that matches decides.
pub fn verdict(job: &Job, pod: &Pod) -> Verdict {
    let spec = job.spec.as_ref();
    let per_index = spec.is_some_and(|spec| spec.backoff_limit_per_index.is_some());
    let rules = spec.and_then(|spec| spec.pod_failure_policy.as_ref()).map(|policy| policy.rules.as_slice());
    if phase(pod) != "Failed" {
        return Verdict::Count;
    }
    for (number, rule) in rules.unwrap_or_default().iter().enumerate() {
        let Some(why) = matches(rule, pod) else { continue };
        match rule.action.as_str() {
            "Ignore" => return Verdict::Ignore,
            "Count" => return Verdict::Count,
            "FailIndex" if per_index => return Verdict::FailIndex,
            "FailJob" => {
                return Verdict::FailJob(format!("{why} matching {} rule at index {number}", rule.action));
            }
            _ => {}
        }
    }
    Verdict::Count
}

/// Why a rule matches a pod, if it does.
fn matches(rule: &PodFailurePolicyRule, pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    if let Some(codes) = &rule.on_exit_codes {
        let all = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
        let (container, code) = all.filter_map(|one| exit(codes, one)).next()?;
        return Some(format!("Container {container} for pod {namespace}/{name} failed with exit code {code}"));
    }
    rule.on_pod_conditions.iter().flatten().find_map(|pattern| {
        let wanted = pattern.status.as_deref().unwrap_or("True");
        let found = status
            .conditions
            .iter()
            .flatten()
            .any(|condition| condition.type_ == pattern.type_ && condition.status == wanted);
        found.then(|| format!("Pod {namespace}/{name} has condition {}", pattern.type_))
    })
}

fn exit<'a>(codes: &PodFailurePolicyOnExitCodesRequirement, of: &'a ContainerStatus) -> Option<(&'a str, i32)> {
    if codes.container_name.as_ref().is_some_and(|name| name != &of.name) {
        return None;
    }
    // Success is no failure, whatever the operator says.
    let code = of.state.as_ref()?.terminated.as_ref()?.exit_code;
    let listed = codes.values.contains(&code);
    let met = if codes.operator == "NotIn" { !listed } else { listed };
    (code != 0 && met).then_some((of.name.as_str(), code))
}

/// The rule of the success policy that the succeeded indexes meet.
pub fn success(job: &Job, completions: i32, succeeded: &Indexes) -> Option<usize> {
    let policy = job.spec.as_ref()?.success_policy.as_ref()?;
    policy.rules.iter().position(|rule| {
        let named = rule.succeeded_indexes.as_deref().map(|text| parse(Some(text), completions));
        let count = match &named {
            Some(named) => named.intersection(succeeded).count(),
            None => succeeded.len(),
        };
        let needed = match (rule.succeeded_count, &named) {
            (Some(needed), _) => usize::try_from(needed).unwrap_or(0),
            (None, Some(named)) => named.len(),
            (None, None) => return false,
        };
        count >= needed
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::{Value, json};

    fn job(spec: Value) -> Job {
        let mut whole = json!({"template": {"spec": {"containers": []}}});
        whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        serde_json::from_value(json!({"metadata": {"name": "j"}, "spec": whole})).unwrap()
    }

    fn failed(code: i32, condition: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "a"},
            "status": {
                "phase": "Failed", "conditions": [{"type": condition, "status": "True"}],
                "containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                    "state": {"terminated": {"exitCode": code}}}]
            }
        }))
        .unwrap()
    }

    #[test]
    fn the_first_matching_rule_decides() {
        let job = job(json!({"backoffLimitPerIndex": 1, "podFailurePolicy": {"rules": [
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            {"action": "FailJob", "onExitCodes": {"containerName": "c", "operator": "In", "values": [42]}},
            {"action": "FailIndex", "onExitCodes": {"operator": "NotIn", "values": [1]}},
        ]}}));
        assert_eq!(verdict(&job, &failed(42, "DisruptionTarget")), Verdict::Ignore);
        let text = "Container c for pod a/p failed with exit code 42 matching FailJob rule at index 1";
        assert_eq!(verdict(&job, &failed(42, "Ready")), Verdict::FailJob(text.into()));
        assert_eq!(verdict(&job, &failed(3, "Ready")), Verdict::FailIndex);
        assert_eq!(verdict(&job, &failed(1, "Ready")), Verdict::Count);
        assert_eq!(verdict(&job, &failed(0, "Ready")), Verdict::Count, "an exit with zero matches no rule");
    }

    #[test]
    fn success_by_indexes_by_count_or_both() {
        let met = |rule: Value, succeeded: &[i32]| {
            let job = job(json!({"successPolicy": {"rules": [rule]}}));
            success(&job, 10, &succeeded.iter().copied().collect()).is_some()
        };
        assert!(met(json!({"succeededIndexes": "0,2-3"}), &[0, 2, 3, 9]));
        assert!(!met(json!({"succeededIndexes": "0,2-3"}), &[0, 2]));
        assert!(met(json!({"succeededCount": 2}), &[5, 6]));
        assert!(met(json!({"succeededIndexes": "0-4", "succeededCount": 1}), &[4]));
        assert!(!met(json!({"succeededIndexes": "0-4", "succeededCount": 1}), &[5]));
    }
}
