//! Autoscales by HorizontalPodAutoscalers (autoscaling/v2): what was measured and what was done lately decide how many
//! replicas there are to be.

mod behavior;
mod controller;
mod metric;
pub mod read;
mod status;

use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscalerSpec;
use k8s_openapi::jiff::Timestamp;

use behavior::History;
pub use controller::Autoscalers;

/// Why a size is changed without a look at any metric, or never looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outside {
    /// Switched off by hand: at zero, where zero is not allowed.
    Disabled,
    Above,
    Below,
}

fn outside(spec: &HorizontalPodAutoscalerSpec, current: i32) -> Option<Outside> {
    let least = spec.min_replicas.unwrap_or(1);
    if current == 0 && least != 0 {
        Some(Outside::Disabled)
    } else if current > spec.max_replicas {
        Some(Outside::Above)
    } else if current < least {
        Some(Outside::Below)
    } else {
        None
    }
}

/// The size to go to, and why it is not another.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Decision {
    /// What the metrics ask for.
    wanted: i32,
    replicas: i32,
    /// For the condition `AbleToScale`.
    able: &'static str,
    /// For the condition `ScalingLimited`, and whether it is.
    limited: (bool, &'static str),
}

/// Decides from one proposal per metric; a metric that could not be read proposes nothing. `None` where nothing can
/// be said: nothing was read, or what was not read may be what needs the present size.
fn decide(
    spec: &HorizontalPodAutoscalerSpec,
    current: i32,
    proposals: &[Option<i32>],
    history: &mut History,
    now: Timestamp,
) -> Option<Decision> {
    let wanted = proposals.iter().flatten().copied().max()?;
    if wanted < current && proposals.contains(&None) {
        return None;
    }
    let (settled, able) = behavior::stabilize(spec, current, wanted, history, now);
    let (replicas, limited) = behavior::limit(spec, current, settled, history, now);
    Some(Decision { wanted, replicas, able, limited })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::{Value, json};
    use std::time::Duration;

    fn spec(more: Value) -> HorizontalPodAutoscalerSpec {
        let mut spec =
            json!({"minReplicas": 2, "maxReplicas": 20, "scaleTargetRef": {"kind": "Deployment", "name": "d"}});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(spec).unwrap()
    }

    fn start() -> Timestamp {
        "2026-01-01T00:00:00Z".parse().unwrap()
    }

    fn ask(more: Value, current: i32, proposals: &[Option<i32>]) -> Option<(i32, &'static str)> {
        let decision = decide(&spec(more), current, proposals, &mut History::default(), start());
        decision.map(|decision| (decision.replicas, decision.limited.1))
    }

    #[test]
    fn bounds_and_unread_metrics() {
        assert_eq!(outside(&spec(json!({})), 0), Some(Outside::Disabled));
        assert_eq!(outside(&spec(json!({"minReplicas": 0})), 0), None);
        assert_eq!(outside(&spec(json!({})), 30), Some(Outside::Above));
        assert_eq!(outside(&spec(json!({})), 1), Some(Outside::Below));
        assert_eq!(outside(&spec(json!({})), 2), None);
        assert_eq!(ask(json!({}), 4, &[Some(5), Some(6)]), Some((6, "DesiredWithinRange")), "the greatest counts");
        assert_eq!(ask(json!({}), 4, &[Some(3), None]), None, "no way down half blind");
        assert_eq!(ask(json!({}), 4, &[Some(6), None]), Some((6, "DesiredWithinRange")));
        assert_eq!(ask(json!({}), 4, &[None]), None);
        assert_eq!(ask(json!({}), 18, &[Some(50)]), Some((20, "TooManyReplicas")));
        assert_eq!(ask(json!({}), 2, &[Some(0)]), Some((2, "TooFewReplicas")));
        let instant = json!({"behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}}});
        assert_eq!(ask(instant, 3, &[Some(0)]), Some((2, "TooFewReplicas")));
    }

    #[test]
    fn going_up_doubles_or_adds_four_at_most() {
        let standard = json!({"behavior": {}});
        assert_eq!(ask(standard.clone(), 2, &[Some(20)]), Some((6, "ScaleUpLimit")));
        assert_eq!(ask(standard, 8, &[Some(20)]), Some((16, "ScaleUpLimit")));
        // Where nothing is said of it, to twice the size or to four.
        assert_eq!(ask(json!({}), 1, &[Some(20)]), Some((4, "ScaleUpLimit")));
        assert_eq!(ask(json!({}), 8, &[Some(20)]), Some((16, "ScaleUpLimit")));
        let policies = json!({"behavior": {"scaleUp": {"selectPolicy": "Min", "policies": [
            {"type": "Pods", "value": 1, "periodSeconds": 60}, {"type": "Percent", "value": 100, "periodSeconds": 60}]}}});
        assert_eq!(ask(policies, 4, &[Some(20)]), Some((5, "ScaleUpLimit")));
        assert_eq!(
            ask(json!({"behavior": {"scaleUp": {"selectPolicy": "Disabled"}}}), 4, &[Some(9)]),
            Some((4, "ScaleUpLimit"))
        );
    }

    #[test]
    fn a_period_counts_what_was_done_in_it() {
        let policies = json!({"behavior": {"scaleDown": {"stabilizationWindowSeconds": 0, "policies": [
            {"type": "Pods", "value": 2, "periodSeconds": 60}]}}});
        let spec = spec(policies);
        let mut history = History::default();
        let at = |seconds| start() + Duration::from_secs(seconds);
        let first = decide(&spec, 10, &[Some(2)], &mut history, start()).unwrap();
        assert_eq!((first.replicas, first.limited.1), (8, "ScaleDownLimit"));
        history.scaled(10, 8, start());
        assert_eq!(decide(&spec, 8, &[Some(2)], &mut history, at(30)).unwrap().replicas, 8);
        assert_eq!(decide(&spec, 8, &[Some(2)], &mut history, at(61)).unwrap().replicas, 6);
    }

    #[test]
    fn going_down_waits_for_the_window() {
        let spec = spec(json!({}));
        let mut history = History::default();
        let at = |seconds| start() + Duration::from_secs(seconds);
        assert_eq!(decide(&spec, 10, &[Some(10)], &mut history, start()).unwrap().replicas, 10);
        let held = decide(&spec, 10, &[Some(4)], &mut history, at(100)).unwrap();
        assert_eq!((held.replicas, held.able), (10, "ScaleDownStabilized"));
        assert_eq!(decide(&spec, 10, &[Some(5)], &mut history, at(301)).unwrap().replicas, 5);

        // What was found at the start holds too.
        let mut history = History::default();
        history.begin(10, start());
        assert_eq!(decide(&spec, 10, &[Some(4)], &mut history, at(20)).unwrap().replicas, 10);
    }
}
