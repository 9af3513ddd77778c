//! Scores of one node that need no other node: how full it gets, how evenly, and which images it has. Each up to 100.

use crate::profile::{Profile, Strategy};
use crate::shape::Shape;
use crate::snapshot::{NodeInfo, Snapshot};

pub(crate) const MAX: i64 = 100;

/// The weighted sum.
pub(crate) fn local(profile: &Profile, shape: &Shape, info: &NodeInfo, snapshot: &Snapshot) -> i64 {
    let weights = &profile.weights;
    let mut sum = 0;
    if weights.fit != 0 {
        sum += weights.fit * fit(profile, shape, info);
    }
    if weights.balance != 0 {
        sum += weights.balance * balance(profile, shape, info);
    }
    if weights.images != 0 && !shape.images.is_empty() && !info.images.is_empty() {
        sum += weights.images * images(shape, info, snapshot);
    }
    sum
}

/// What the node has of a resource, and what of it is taken with the pod; `None` if that says nothing.
fn use_of(name: &str, shape: &Shape, info: &NodeInfo, with_defaults: bool) -> Option<(i64, i64)> {
    let has = info.capacity.amounts.get(name);
    let asked = shape.request.amounts.get(name);
    let taken = match name {
        "cpu" if with_defaults => info.scored_cpu.saturating_add(shape.request.scored_cpu),
        "memory" if with_defaults => info.scored_memory.saturating_add(shape.request.scored_memory),
        "cpu" | "memory" | "ephemeral-storage" => info.used.get(name).saturating_add(asked),
        // Nodes with devices are not better or worse for pods that want none.
        _ if asked == 0 => return None,
        _ => info.used.get(name).saturating_add(asked),
    };
    (has > 0).then_some((has, taken))
}

fn fit(profile: &Profile, shape: &Shape, info: &NodeInfo) -> i64 {
    let (mut sum, mut weights) = (0, 0);
    for (name, weight) in &profile.fit_resources {
        let Some((has, taken)) = use_of(name, shape, info, true) else { continue };
        let score = match &profile.strategy {
            Strategy::Least if taken > has => 0,
            Strategy::Least => share(has - taken, has),
            Strategy::Most => share(taken.min(has), has),
            Strategy::ByRatio(points) => {
                let score = on_line(points, if taken > has { MAX } else { share(taken, has) });
                // What scores nothing does not count.
                if score == 0 {
                    continue;
                }
                score
            }
        };
        sum += score * weight;
        weights += weight;
    }
    match (weights, &profile.strategy) {
        (0, _) => 0,
        (_, Strategy::ByRatio(_)) => (sum as f64 / weights as f64).round() as i64,
        _ => sum / weights,
    }
}

fn share(part: i64, whole: i64) -> i64 {
    (i128::from(part) * i128::from(MAX) / i128::from(whole)) as i64
}

fn on_line(points: &[(i64, i64)], x: i64) -> i64 {
    let Some(after) = points.iter().position(|(at, _)| x <= *at) else {
        return points.last().map_or(0, |(_, score)| *score);
    };
    let (at, score) = points[after];
    match after.checked_sub(1).map(|before| points[before]) {
        Some((from, base)) => base + (score - base) * (x - from) / (at - from),
        None => score,
    }
}

/// Less, the more unevenly the node's resources are used.
fn balance(profile: &Profile, shape: &Shape, info: &NodeInfo) -> i64 {
    let resources = &profile.balance_resources;
    // For pods that ask for nothing the most loaded node may be the most even one.
    if resources.iter().all(|name| shape.request.amounts.get(name) == 0) {
        return 0;
    }
    let (mut shares, mut known) = ([0.0_f64; 8], 0);
    for name in resources.iter().take(8) {
        if let Some((has, taken)) = use_of(name, shape, info, false) {
            shares[known] = (taken as f64 / has as f64).min(1.0);
            known += 1;
        }
    }
    let shares = &shares[..known];
    let deviation = match shares {
        [] | [_] => 0.0,
        [a, b] => ((a - b) / 2.0).abs(),
        _ => {
            let mean = shares.iter().sum::<f64>() / shares.len() as f64;
            (shares.iter().map(|s| (s - mean) * (s - mean)).sum::<f64>() / shares.len() as f64).sqrt()
        }
    };
    ((1.0 - deviation) * MAX as f64) as i64
}

/// Images below this in sum are not worth a detour, and above it (per container) nothing is.
const SMALL: i64 = 23 << 20;
const LARGE: i64 = 1000 << 20;

fn images(shape: &Shape, info: &NodeInfo, snapshot: &Snapshot) -> i64 {
    let total = snapshot.live().max(1) as f64;
    // An image that few nodes have counts less, so that these few are not overrun.
    let scaled = |name: &String| {
        let size = info.images.get(name).copied().unwrap_or(0);
        (size as f64 * (snapshot.nodes_with_image(name) as f64 / total)) as i64
    };
    let sum: i64 = shape.images.iter().map(scaled).sum();
    let most = LARGE * shape.images.len() as i64;
    MAX * (sum.clamp(SMALL, most) - SMALL) / (most - SMALL)
}
