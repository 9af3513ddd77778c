//! Columns of the group autoscaling.

use serde_json::{Value, json};

use super::cells::Cell::{Age, Int, Name, Of};
use super::cells::scalar;
use super::{Column, column};
use crate::meta::{at, items, text};

const REFERENCE: Column = column(
    "Reference",
    Of(|h| {
        let of = |field: &str| text(h, &["spec", "scaleTargetRef", field]);
        json!(format!("{}/{}", of("kind"), of("name")))
    }),
);
const MIN_PODS: Column = column("MinPods", Of(|h| json!(scalar(at(h, &["spec", "minReplicas"]), "<unset>"))));

pub(crate) const AUTOSCALER: &[Column] = &[
    column("Name", Name),
    REFERENCE,
    column("Targets", Of(targets)),
    MIN_PODS,
    column("MaxPods", Int(&["spec", "maxReplicas"])),
    column("Replicas", Int(&["status", "currentReplicas"])),
    column("Age", Age),
];

/// The same of v1: the targets are read from the form they are stored in.
pub(crate) const AUTOSCALER_V1: &[Column] = &[
    column("Name", Name),
    REFERENCE,
    column(
        "Targets",
        Of(|h| {
            let mut stored = h.clone();
            (crate::conversion::AUTOSCALER_V1.to_storage)(&mut stored);
            targets(&stored)
        }),
    ),
    MIN_PODS,
    column("MaxPods", Int(&["spec", "maxReplicas"])),
    column("Replicas", Int(&["status", "currentReplicas"])),
    column("Age", Age),
];

/// `cpu: 3%/80%, 5/10 (avg)`: each metric as it is beside what it should be.
fn targets(autoscaler: &Value) -> Value {
    let metrics = items(autoscaler, &["spec", "metrics"]);
    let current = items(autoscaler, &["status", "currentMetrics"]);
    let shown: Vec<String> =
        metrics.iter().enumerate().map(|(index, metric)| target(metric, current.get(index))).collect();
    match shown.len() {
        0 => json!("<none>"),
        more if more > 2 => json!(format!("{} + {} more...", shown[..2].join(", "), more - 2)),
        _ => json!(shown.join(", ")),
    }
}

fn target(metric: &Value, current: Option<&Value>) -> String {
    let (source, named) = match text(metric, &["type"]) {
        "Resource" => ("resource", true),
        "ContainerResource" => ("containerResource", true),
        "Pods" => ("pods", false),
        "Object" => ("object", false),
        "External" => ("external", false),
        _ => return "<unknown type>".into(),
    };
    let now = |field: &str| scalar(current.and_then(|one| at(one, &[source, "current", field])), "<unknown>");
    let wanted = |field: &str| at(metric, &[source, "target", field]);
    let pair = match (wanted("averageValue"), source) {
        (Some(average), "external" | "object") => {
            format!("{}/{} (avg)", now("averageValue"), scalar(Some(average), ""))
        }
        (Some(average), _) => format!("{}/{}", now("averageValue"), scalar(Some(average), "")),
        (None, _) if named => {
            let percent = |text: String| if text.starts_with('<') { text } else { format!("{text}%") };
            let target = percent(scalar(wanted("averageUtilization"), "<auto>"));
            format!("{}/{target}", percent(now("averageUtilization")))
        }
        (None, _) => format!("{}/{}", now("value"), scalar(wanted("value"), "<nil>")),
    };
    if named { format!("{}: {pair}", text(metric, &[source, "name"])) } else { pair }
}
