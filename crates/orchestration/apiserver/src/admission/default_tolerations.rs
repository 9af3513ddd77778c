//! DefaultTolerationSeconds: a pod stays five minutes on a node that does not answer.

use dhow_api::meta;
use serde_json::json;

use super::{Attributes, Operation};

/// Adds the two tolerations a pod does not speak of itself.
pub fn mutate(attributes: &mut Attributes<'_>) {
    let written = matches!(attributes.operation, Operation::Create | Operation::Update);
    if !written || !attributes.is("", "Pod") || attributes.subresource.is_some() {
        return;
    }
    let spec = meta::child_mut(&mut attributes.object, "spec");
    let tolerations = spec.entry("tolerations").or_insert_with(|| json!([]));
    if tolerations.is_null() {
        *tolerations = json!([]);
    }
    let Some(list) = tolerations.as_array_mut() else { return };
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let tolerated = list.iter().any(|entry| {
            let of_key = entry["key"] == key || entry["key"].as_str().unwrap_or_default().is_empty();
            let of_effect = entry["effect"] == "NoExecute" || entry["effect"].as_str().unwrap_or_default().is_empty();
            of_key && of_effect
        });
        if !tolerated {
            list.push(json!({
                "key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300
            }));
        }
    }
}
