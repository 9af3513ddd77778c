//! The status of an autoscaler: conditions, and where its metrics are.

use dhow_api::quantity::Quantity;
use k8s_openapi::api::autoscaling::v2::{
    ContainerResourceMetricStatus, ExternalMetricStatus, HorizontalPodAutoscalerCondition,
    HorizontalPodAutoscalerStatus, MetricSpec, MetricStatus, MetricValueStatus, ObjectMetricStatus, PodsMetricStatus,
    ResourceMetricStatus,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use super::metric::{Proposal, Target};

/// Sets a condition; the time is that of the last change between true and false. Tells whether anything new is said.
pub fn set_condition(
    status: &mut HorizontalPodAutoscalerStatus,
    now: Timestamp,
    kind: &str,
    state: &str,
    reason: &str,
    message: &str,
) -> bool {
    let conditions = status.conditions.get_or_insert_default();
    let made = |since| HorizontalPodAutoscalerCondition {
        type_: kind.into(),
        status: state.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_transition_time: since,
    };
    match conditions.iter_mut().find(|condition| condition.type_ == kind) {
        Some(known) => {
            let since = if known.status == state { known.last_transition_time.clone() } else { Some(Time(now)) };
            let said = std::mem::replace(known, made(since));
            said.status != state || said.reason.as_deref() != Some(reason) || said.message.as_deref() != Some(message)
        }
        None => {
            conditions.push(made(Some(Time(now))));
            true
        }
    }
}

/// What upstream says for a reason.
pub fn message(reason: &str) -> &'static str {
    match reason {
        "ScaleUpStabilized" => {
            "recent recommendations were lower than current one, applying the lowest recent recommendation"
        }
        "ScaleDownStabilized" => {
            "recent recommendations were higher than current one, applying the highest recent recommendation"
        }
        "ReadyForNewScale" => "recommended size matches current size",
        "ScaleUpLimit" => "the desired replica count is increasing faster than the maximum scale rate",
        "ScaleDownLimit" => "the desired replica count is decreasing faster than the maximum scale rate",
        "TooManyReplicas" => "the desired replica count is more than the maximum replica count",
        "TooFewReplicas" => "the desired replica count is less than the minimum replica count",
        _ => "the desired count is within the acceptable range",
    }
}

/// How a metric is spoken of.
pub fn name(spec: &MetricSpec) -> String {
    let resource = |name: &str, what: &str, utilization: bool| {
        let how = if utilization { " utilization (percentage of request)" } else { "" };
        format!("{name} {what}{how}")
    };
    if let Some(own) = &spec.resource {
        resource(&own.name, "resource", own.target.average_utilization.is_some())
    } else if let Some(own) = &spec.container_resource {
        resource(&own.name, "container resource", own.target.average_utilization.is_some())
    } else if let Some(own) = &spec.pods {
        format!("pods metric {}", own.metric.name)
    } else if let Some(own) = &spec.object {
        format!("{} metric {}", own.described_object.kind, own.metric.name)
    } else if let Some(own) = &spec.external {
        format!("external metric {}", own.metric.name)
    } else {
        spec.type_.clone()
    }
}

#[expect(clippy::cast_possible_truncation, reason = "saturates")]
fn quantity(value: f64) -> Text {
    Text(Quantity::from_millis((value * 1000.0 + 1e-6).floor() as i64).to_string())
}

/// Where a metric is now.
pub fn current(spec: &MetricSpec, target: Target, proposal: &Proposal) -> MetricStatus {
    let current = match target {
        Target::Value(_) => MetricValueStatus { value: Some(quantity(proposal.value)), ..Default::default() },
        _ => MetricValueStatus {
            average_value: Some(quantity(proposal.value)),
            average_utilization: proposal.utilization,
            ..Default::default()
        },
    };
    let mut status = MetricStatus { type_: spec.type_.clone(), ..MetricStatus::default() };
    if let Some(own) = &spec.resource {
        status.resource = Some(ResourceMetricStatus { name: own.name.clone(), current });
    } else if let Some(own) = &spec.container_resource {
        let (name, container) = (own.name.clone(), own.container.clone());
        status.container_resource = Some(ContainerResourceMetricStatus { name, container, current });
    } else if let Some(own) = &spec.pods {
        status.pods = Some(PodsMetricStatus { metric: own.metric.clone(), current });
    } else if let Some(own) = &spec.object {
        let (metric, described_object) = (own.metric.clone(), own.described_object.clone());
        status.object = Some(ObjectMetricStatus { metric, described_object, current });
    } else if let Some(own) = &spec.external {
        status.external = Some(ExternalMetricStatus { metric: own.metric.clone(), current });
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_keeps_the_time_of_its_state_and_tells_news() {
        let mut status = HorizontalPodAutoscalerStatus::default();
        let at = |second| Timestamp::from_second(second).unwrap_or(Timestamp::UNIX_EPOCH);
        assert!(set_condition(&mut status, at(1), "AbleToScale", "True", "a", "m"));
        assert!(!set_condition(&mut status, at(2), "AbleToScale", "True", "a", "m"));
        assert!(set_condition(&mut status, at(3), "AbleToScale", "True", "b", "m"));
        let time = |status: &HorizontalPodAutoscalerStatus| {
            status.conditions.as_ref().and_then(|all| all[0].last_transition_time.clone()).map(|time| time.0)
        };
        assert_eq!(time(&status), Some(at(1)));
        assert!(set_condition(&mut status, at(4), "AbleToScale", "False", "b", "m"));
        assert_eq!(time(&status), Some(at(4)));
    }

    #[test]
    fn values_are_told_in_thousandths() {
        assert_eq!((quantity(0.25).0, quantity(3.0).0), ("250m".into(), "3".into()));
    }
}
