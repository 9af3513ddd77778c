//! What one metric proposes.

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
    /// A value of an object, or from outside; how many pods are ready, and how many there are.
    Whole { value: f64, ready: i32, pods: i32 },
}

/// How large a change has to be, as a part of the size, to be one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tolerance {
    pub up: f64,
    pub down: f64,
}

impl Default for Tolerance {
    fn default() -> Self {
        Self { up: 0.1, down: 0.1 }
    }
}

/// The replicas that bring a metric to its target, and where it is now.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Proposal {
    pub replicas: i32,
    /// The mean over the pods, or the one value of all.
    pub value: f64,
    /// Percent of what the pods request.
    pub utilization: Option<i32>,
}

/// `None` where nothing was measured.
pub fn proposal(target: Target, measured: &Measured, current: i32, tolerance: Tolerance) -> Option<Proposal> {
    let plain = |replicas, value| Some(Proposal { replicas, value, utilization: None });
    match (target, measured) {
        (Target::Value(wanted), Measured::Whole { value, ready, .. }) => {
            let ratio = ratio(*value, wanted)?;
            let replicas = match current {
                // Nobody is ready: the value alone says how many.
                0 => up(ratio),
                _ if tolerance.holds(ratio) => current,
                _ => up(ratio * f64::from(*ready)),
            };
            plain(replicas, *value)
        }
        (Target::AverageValue(wanted), Measured::Whole { value, pods, .. }) => {
            let each = ratio(*value, wanted)?;
            if *pods == 0 {
                return plain(up(each), *value);
            }
            let replicas = if tolerance.holds(each / f64::from(*pods)) { *pods } else { up(each) };
            plain(replicas, value / f64::from(*pods))
        }
        (_, Measured::Pods(pods)) => from_pods(target, pods, current, tolerance),
        (Target::Utilization(_), Measured::Whole { .. }) => None,
    }
}

fn from_pods(target: Target, pods: &[PodState], current: i32, tolerance: Tolerance) -> Option<Proposal> {
    // Value and measure of each pod that counts.
    let share = |pod: &PodState| match target {
        Target::Utilization(percent) => pod.request * percent / 100.0,
        Target::AverageValue(value) | Target::Value(value) => value,
    };
    let counted = || pods.iter().filter(|pod| !pod.unready && pod.value.is_some());
    let known: Vec<_> = counted().filter_map(|pod| Some((pod.value?, share(pod)))).collect();
    if known.is_empty() {
        return None;
    }
    let sums = |all: &[(f64, f64)]| all.iter().fold((0.0, 0.0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    let (value, wanted) = sums(&known);
    let before = ratio(value, wanted)?;
    let requested: f64 = counted().map(|pod| pod.request).sum();
    let utilization = matches!(target, Target::Utilization(_)).then(|| whole(value * 100.0 / requested));
    let average = value / count(known.len());
    let proposed = |replicas| Some(Proposal { replicas, value: average, utilization });
    let missing: Vec<_> = pods.iter().filter(|pod| !pod.unready && pod.value.is_none()).collect();
    let unready: Vec<_> = pods.iter().filter(|pod| pod.unready).collect();
    let joins = !unready.is_empty() && before > 1.0;
    if missing.is_empty() && !joins {
        return proposed(if tolerance.holds(before) { current } else { up(before * count(known.len())) });
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
    proposed(if tolerance.holds(after) || turned || against { current } else { replicas })
}

fn ratio(value: f64, wanted: f64) -> Option<f64> {
    (wanted > 0.0).then(|| value / wanted)
}

impl Tolerance {
    /// Whether so near to the target is at it.
    fn holds(self, ratio: f64) -> bool {
        ratio >= 1.0 - self.down - NOISE && ratio <= 1.0 + self.up + NOISE
    }
}

#[expect(clippy::cast_precision_loss, reason = "pods are few")]
fn count(number: usize) -> f64 {
    number as f64
}

#[expect(clippy::cast_possible_truncation, reason = "saturates")]
fn up(replicas: f64) -> i32 {
    (replicas - NOISE).ceil() as i32
}

#[expect(clippy::cast_possible_truncation, reason = "saturates")]
fn whole(percent: f64) -> i32 {
    (percent + NOISE) as i32
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

    fn ask(target: Target, measured: &Measured, current: i32) -> Option<i32> {
        proposal(target, measured, current, Tolerance::default()).map(|proposal| proposal.replicas)
    }

    fn at(percent: f64, pods: Vec<PodState>) -> Option<i32> {
        let current = i32::try_from(pods.len()).unwrap_or(0);
        ask(Target::Utilization(percent), &Measured::Pods(pods), current)
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
        let whole = |value| Measured::Whole { value, ready: 3, pods: 3 };
        assert_eq!(ask(Target::Value(10.0), &whole(20.0), 3), Some(6));
        assert_eq!(ask(Target::AverageValue(10.0), &whole(95.0), 3), Some(10));
        assert_eq!(ask(Target::AverageValue(10.0), &whole(31.0), 3), Some(3));
        let pods = Measured::Pods(vec![pod(Some(30.0)); 2]);
        assert_eq!(ask(Target::AverageValue(10.0), &pods, 2), Some(6));
    }

    #[test]
    fn from_zero_the_value_alone_says_how_many() {
        let none = |value| Measured::Whole { value, ready: 0, pods: 0 };
        assert_eq!(ask(Target::Value(10.0), &none(25.0), 0), Some(3));
        assert_eq!(ask(Target::AverageValue(10.0), &none(25.0), 0), Some(3));
        assert_eq!(ask(Target::AverageValue(10.0), &none(0.0), 0), Some(0));
        assert_eq!(ask(Target::Value(10.0), &Measured::Whole { value: 0.0, ready: 2, pods: 2 }, 2), Some(0));
    }

    #[test]
    fn a_tolerance_of_its_own_for_each_way() {
        let tolerance = Tolerance { up: 0.0, down: 0.5 };
        let ask = |value| {
            let pods = Measured::Pods(vec![pod(Some(value)); 4]);
            proposal(Target::AverageValue(100.0), &pods, 4, tolerance).map(|proposal| proposal.replicas)
        };
        assert_eq!((ask(101.0), ask(60.0), ask(40.0)), (Some(5), Some(4), Some(2)));
    }

    #[test]
    fn it_says_where_the_metric_is() {
        let pods = Measured::Pods(vec![pod(Some(30.0)), pod(Some(50.0)), starting()]);
        let said =
            proposal(Target::Utilization(50.0), &pods, 3, Tolerance::default()).map(|p| (p.value, p.utilization));
        assert_eq!(said, Some((40.0, Some(40))));
    }
}
