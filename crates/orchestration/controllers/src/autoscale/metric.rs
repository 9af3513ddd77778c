//! What one metric proposes.

use super::TOLERANCE;

/// The last digits of a product of doubles mean nothing.
const NOISE: f64 = 1e-9;

/// A pod of the target, as far as one metric is concerned.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PodState {
    /// The measured value; `None` where there is none yet.
    pub value: Option<f64>,
    /// What the pod requests of the resource; the measure of utilization.
    pub request: f64,
    /// Not ready, or just started: its value says nothing yet.
    pub unready: bool,
}

/// What a metric is to be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Target {
    /// Percent of what the pods request.
    Utilization(f64),
    /// The mean over the pods.
    AverageValue(f64),
    /// One value for all, however many there are.
    Value(f64),
}

/// What was measured.
#[derive(Debug, Clone, PartialEq)]
pub enum Measured {
    /// Pods that are neither going nor failed.
    Pods(Vec<PodState>),
    /// A value of an object, or from outside, and how many pods are ready.
    Whole { value: f64, ready: i32 },
}

/// The replicas that bring the metric to its target; `None` where nothing was measured.
pub fn proposal(target: Target, measured: &Measured, current: i32) -> Option<i32> {
    match (target, measured) {
        (Target::Value(wanted), Measured::Whole { value, ready }) => {
            let ratio = ratio(*value, wanted)?;
            Some(if near(ratio) { current } else { up(ratio * f64::from(*ready)) })
        }
        (Target::AverageValue(wanted), Measured::Whole { value, .. }) => {
            let ratio = ratio(*value, wanted * f64::from(current))?;
            Some(if near(ratio) { current } else { up(value / wanted) })
        }
        (_, Measured::Pods(pods)) => from_pods(target, pods, current),
        (Target::Utilization(_), Measured::Whole { .. }) => None,
    }
}

fn from_pods(target: Target, pods: &[PodState], current: i32) -> Option<i32> {
    // Value and measure of each pod that counts.
    let share = |pod: &PodState| match target {
        Target::Utilization(percent) => pod.request * percent / 100.0,
        Target::AverageValue(value) | Target::Value(value) => value,
    };
    let known: Vec<_> =
        pods.iter().filter(|pod| !pod.unready).filter_map(|pod| Some((pod.value?, share(pod)))).collect();
    if known.is_empty() {
        return None;
    }
    let sums = |all: &[(f64, f64)]| all.iter().fold((0.0, 0.0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    let (value, wanted) = sums(&known);
    let before = ratio(value, wanted)?;
    let missing: Vec<_> = pods.iter().filter(|pod| !pod.unready && pod.value.is_none()).collect();
    let unready: Vec<_> = pods.iter().filter(|pod| pod.unready).collect();
    let joins = !unready.is_empty() && before > 1.0;
    if missing.is_empty() && !joins {
        return Some(if near(before) { current } else { up(before * count(known.len())) });
    }
    // What is not known is taken to speak against the move: as busy on the way down, as idle on the way up.
    let mut all = known;
    all.extend(missing.into_iter().map(|pod| {
        let busy = match target {
            Target::Utilization(percent) => pod.request * percent.max(100.0) / 100.0,
            _ => share(pod),
        };
        (if before < 1.0 { busy } else { 0.0 }, share(pod))
    }));
    if joins {
        all.extend(unready.into_iter().map(|pod| (0.0, share(pod))));
    }
    let (value, wanted) = sums(&all);
    let after = ratio(value, wanted)?;
    let replicas = up(after * count(all.len()));
    let turned = (before < 1.0 && after > 1.0) || (before > 1.0 && after < 1.0);
    let against = (after < 1.0 && replicas > current) || (after > 1.0 && replicas < current);
    Some(if near(after) || turned || against { current } else { replicas })
}

fn ratio(value: f64, wanted: f64) -> Option<f64> {
    (wanted > 0.0).then(|| value / wanted)
}

fn near(ratio: f64) -> bool {
    (ratio - 1.0).abs() <= TOLERANCE + NOISE
}

#[expect(clippy::cast_precision_loss, reason = "pods are few")]
fn count(number: usize) -> f64 {
    number as f64
}

#[expect(clippy::cast_possible_truncation, reason = "saturates")]
fn up(replicas: f64) -> i32 {
    (replicas - NOISE).ceil() as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(value: Option<f64>) -> PodState {
        PodState { value, request: 100.0, unready: false }
    }

    fn starting() -> PodState {
        PodState { value: Some(500.0), request: 100.0, unready: true }
    }

    fn at(percent: f64, pods: Vec<PodState>) -> Option<i32> {
        let current = i32::try_from(pods.len()).unwrap_or(0);
        proposal(Target::Utilization(percent), &Measured::Pods(pods), current)
    }

    #[test]
    fn utilization_moves_in_proportion_beyond_the_tolerance() {
        assert_eq!(at(50.0, vec![pod(Some(100.0)); 3]), Some(6));
        assert_eq!(at(50.0, vec![pod(Some(55.0)); 3]), Some(3), "within a tenth");
        assert_eq!(at(80.0, vec![pod(Some(20.0)); 4]), Some(1));
        assert_eq!(at(50.0, vec![pod(None); 3]), None);
    }

    #[test]
    fn what_is_unknown_speaks_against_the_move() {
        // Two at twice the target, one unknown: taken as idle.
        assert_eq!(at(50.0, vec![pod(Some(100.0)), pod(Some(100.0)), pod(None)]), Some(4));
        // Two at half the target, one unknown: taken as fully busy.
        assert_eq!(at(80.0, vec![pod(Some(40.0)), pod(Some(40.0)), pod(None)]), Some(3));
        // Pods that start are left out on the way down, and idle on the way up.
        assert_eq!(at(80.0, vec![pod(Some(40.0)), pod(Some(40.0)), starting()]), Some(1));
        assert_eq!(at(50.0, vec![pod(Some(100.0)), starting()]), Some(2));
    }

    #[test]
    fn values_of_objects() {
        let whole = |value| Measured::Whole { value, ready: 3 };
        assert_eq!(proposal(Target::Value(10.0), &whole(20.0), 3), Some(6));
        assert_eq!(proposal(Target::AverageValue(10.0), &whole(95.0), 3), Some(10));
        assert_eq!(proposal(Target::AverageValue(10.0), &whole(31.0), 3), Some(3));
        let pods = Measured::Pods(vec![pod(Some(30.0)); 2]);
        assert_eq!(proposal(Target::AverageValue(10.0), &pods, 2), Some(6));
    }
}
