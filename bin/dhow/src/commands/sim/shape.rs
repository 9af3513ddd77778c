//! The shapes of Kubernetes' `scheduler_perf`.

use super::entry::{Entry, Kind, Size};
use crate::cli::SimShape;

/// Pods that fit nowhere, beside which others are placed.
const HOPELESS: usize = 200;
/// How long pods run that come and go.
const SHORT: f64 = 1.0;
/// Priority of pods for which others end.
const IMPORTANT: i32 = 1000;

/// Pods that are there first, and pods that are measured.
pub fn entries(shape: SimShape, nodes: usize, pods: usize, size: &Size, node: &Size) -> (Vec<Entry>, Vec<Entry>) {
    let plain = |count: usize, change: &dyn Fn(usize, &mut Entry)| -> Vec<Entry> {
        let pods = (0..count).map(|number| {
            let mut entry = Entry::new(format!("sim-{number}"), *size);
            change(number, &mut entry);
            entry
        });
        pods.collect()
    };
    let of_kind = |kind: Kind| plain(pods, &|_, entry| entry.kind = kind);
    let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let measured = match shape {
        SimShape::Basic | SimShape::Unschedulable => plain(pods, &|_, _| {}),
        SimShape::NodeAffinity => of_kind(Kind::NodeAffinity),
        SimShape::Affinity => of_kind(Kind::Affinity),
        SimShape::AntiAffinity => of_kind(Kind::AntiAffinity),
        SimShape::Spread => of_kind(Kind::Spread),
        SimShape::PreferredSpread => of_kind(Kind::PreferredSpread),
        SimShape::Churn => plain(pods, &|_, entry| entry.runs = Some(SHORT)),
        SimShape::Daemonset => plain(pods, &|i, entry| entry.kind = Kind::Node(number(i % nodes))),
        SimShape::Volumes => plain(pods, &|i, entry| entry.kind = Kind::Claim(number(i))),
        SimShape::Preemption => plain(pods, &|_, entry| {
            entry.priority = IMPORTANT;
            entry.size = Size { cpu: node.cpu * 3 / 4, ..*size };
        }),
    };
    let first = match shape {
        SimShape::Unschedulable => (0..HOPELESS)
            .map(|i| Entry::new(format!("sim-hopeless-{i}"), Size { cpu: node.cpu * 2 + 1, ..*size }))
            .collect(),
        // Four on each node leave a tenth of it.
        SimShape::Preemption => (0..nodes * 4)
            .map(|i| Entry::new(format!("sim-low-{i}"), Size { cpu: node.cpu * 9 / 40, ..*size }))
            .collect(),
        _ => Vec::new(),
    };
    (first, measured)
}
