//! How fast an autoscaler may move: stabilization windows, and policies per period.

use k8s_openapi::api::autoscaling::v2::{HPAScalingRules, HorizontalPodAutoscalerSpec};
use k8s_openapi::jiff::Timestamp;

/// What one autoscaler recommended and did lately. Lives in memory only, as upstream's does.
#[derive(Debug, Default)]
pub struct History {
    recommended: Vec<(Timestamp, i32)>,
    done: Vec<Scaled>,
}

/// A change of size; negative on the way down.
#[derive(Debug, Clone, Copy)]
pub struct Scaled {
    pub at: Timestamp,
    pub by: i32,
}

/// Nothing older is looked at: the longest window and period that the API lets anyone ask for.
const LONGEST: i64 = 3600;

impl History {
    /// What an autoscaler finds when it begins counts as recommended, so that nothing shrinks at once.
    pub fn begin(&mut self, current: i32, now: Timestamp) {
        if self.recommended.is_empty() {
            self.recommended.push((now, current));
        }
    }

    /// Remembers a change that was made.
    pub fn scaled(&mut self, from: i32, to: i32, at: Timestamp) {
        self.done.push(Scaled { at, by: to - from });
    }

    fn forget(&mut self, now: Timestamp) {
        let recent = |at: Timestamp| now.as_second() - at.as_second() <= LONGEST;
        self.recommended.retain(|(at, _)| recent(*at));
        self.done.retain(|one| recent(one.at));
    }

    /// Replicas added and removed in the last `seconds`.
    fn moved(&self, seconds: i32, now: Timestamp) -> (i32, i32) {
        let begin = now.as_second() - i64::from(seconds);
        let recent = self.done.iter().filter(|one| one.at.as_second() > begin).map(|one| one.by);
        recent.fold((0, 0), |(up, down), by| if by > 0 { (up + by, down) } else { (up, down - by) })
    }
}

fn rules(spec: &HorizontalPodAutoscalerSpec, up: bool) -> Option<&HPAScalingRules> {
    let behavior = spec.behavior.as_ref()?;
    if up { behavior.scale_up.as_ref() } else { behavior.scale_down.as_ref() }
}

fn window(spec: &HorizontalPodAutoscalerSpec, up: bool) -> i64 {
    let given = rules(spec, up).and_then(|rules| rules.stabilization_window_seconds);
    i64::from(given.unwrap_or(if up { 0 } else { 300 }))
}

/// Goes up no further than the least, and down no further than the greatest, recommended within the windows.
pub fn stabilize(
    spec: &HorizontalPodAutoscalerSpec,
    current: i32,
    wanted: i32,
    history: &mut History,
    now: Timestamp,
) -> (i32, &'static str) {
    history.forget(now);
    let within = |seconds: i64| {
        let recent = history.recommended.iter().filter(move |(at, _)| now.as_second() - at.as_second() < seconds);
        recent.map(|(_, replicas)| *replicas)
    };
    let floor = within(window(spec, true)).fold(wanted, i32::min);
    let ceiling = within(window(spec, false)).fold(wanted, i32::max);
    history.recommended.push((now, wanted));
    if spec.behavior.is_none() {
        return (ceiling, if ceiling == wanted { "ReadyForNewScale" } else { "ScaleDownStabilized" });
    }
    let settled = current.max(floor).min(ceiling);
    let why = match settled {
        _ if settled == wanted => "ReadyForNewScale",
        _ if wanted > current => "ScaleUpStabilized",
        _ => "ScaleDownStabilized",
    };
    (settled, why)
}

/// Keeps a move within the bounds of the autoscaler and of its policies.
pub fn limit(
    spec: &HorizontalPodAutoscalerSpec,
    current: i32,
    wanted: i32,
    history: &History,
    now: Timestamp,
) -> (i32, (bool, &'static str)) {
    let least = spec.min_replicas.unwrap_or(1);
    if spec.behavior.is_none() {
        return limit_plainly(least, spec.max_replicas, current, wanted);
    }
    if wanted > current {
        let most = reach(spec, current, true, history, now).max(current);
        if wanted > most.min(spec.max_replicas) {
            let why = if most < spec.max_replicas { "ScaleUpLimit" } else { "TooManyReplicas" };
            return (most.min(spec.max_replicas), (true, why));
        }
    } else if wanted < current {
        let lowest = reach(spec, current, false, history, now).min(current);
        if wanted < lowest.max(least) {
            let why = if lowest > least { "ScaleDownLimit" } else { "TooFewReplicas" };
            return (lowest.max(least), (true, why));
        }
    }
    (wanted, (false, "DesiredWithinRange"))
}

/// Without a behavior: no faster up than twice the size, or four.
fn limit_plainly(least: i32, most: i32, current: i32, wanted: i32) -> (i32, (bool, &'static str)) {
    let reach = current.saturating_mul(2).max(4);
    if wanted < least {
        (least, (true, "TooFewReplicas"))
    } else if wanted > reach.min(most) {
        (reach.min(most), (true, if most > reach { "ScaleUpLimit" } else { "TooManyReplicas" }))
    } else {
        (wanted, (false, "DesiredWithinRange"))
    }
}

/// How far the policies let it go in one direction now.
fn reach(spec: &HorizontalPodAutoscalerSpec, current: i32, up: bool, history: &History, now: Timestamp) -> i32 {
    let rules = rules(spec, up);
    let select = rules.and_then(|rules| rules.select_policy.as_deref()).unwrap_or("Max");
    if select == "Disabled" {
        return current;
    }
    // (kind, value, period): as upstream fills them in.
    let standard: &[(&str, i32, i32)] =
        if up { &[("Pods", 4, 15), ("Percent", 100, 15)] } else { &[("Percent", 100, 15)] };
    let given = rules.and_then(|rules| rules.policies.as_ref()).filter(|policies| !policies.is_empty());
    let policies: Vec<(&str, i32, i32)> = match given {
        Some(given) => given.iter().map(|one| (one.type_.as_str(), one.value, one.period_seconds)).collect(),
        None => standard.to_vec(),
    };
    let ends = policies.into_iter().map(|(kind, value, period)| {
        let (added, removed) = history.moved(period, now);
        let begin = i64::from(current - added + removed);
        let value = i64::from(value);
        let end = match (kind, up) {
            ("Pods", true) => begin + value,
            ("Pods", false) => begin - value,
            // Away from where it began: rounded up either way.
            (_, true) => (begin * (100 + value) + 99) / 100,
            (_, false) => begin * (100 - value).max(0) / 100,
        };
        i32::try_from(end).unwrap_or(if up { i32::MAX } else { 0 })
    });
    // The policy that moves most is the greatest on the way up, the least on the way down.
    let found = if (select == "Min") != up { ends.max() } else { ends.min() };
    found.unwrap_or(current)
}
