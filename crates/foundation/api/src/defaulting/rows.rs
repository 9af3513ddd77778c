//! The kinds whose defaults are no more than rows.

use super::table::Default::{Empty, Flag, Int, Null, Text};
use super::table::{Row, fill};
use crate::meta::{default_to, each_mut};
use serde_json::{Map, Value};

/// Defines the function that a row of the registry names.
macro_rules! defaults {
    ($($(#[$doc:meta])* $name:ident: $rows:expr;)*) => {
        $($(#[$doc])* pub(crate) fn $name(object: &mut Value) {
            fill(object, $rows);
        })*
    };
}

defaults! {
    disruption_budget: &[
        ("status!.disruptionsAllowed", Int(0)),
        ("status!.currentHealthy", Int(0)),
        ("status!.desiredHealthy", Int(0)),
        ("status!.expectedPods", Int(0)),
    ];
    ingress: &[("status!.loadBalancer", Empty)];
    ingress_class: &[("spec.parameters.scope", Text("Cluster"))];
    csi_driver: &[
        ("spec!.attachRequired", Flag(true)),
        ("spec!.podInfoOnMount", Flag(false)),
        ("spec!.storageCapacity", Flag(false)),
        ("spec!.fsGroupPolicy", Text("ReadWriteOnceWithFSType")),
        ("spec!.requiresRepublish", Flag(false)),
        ("spec!.seLinuxMount", Flag(false)),
    ];
    attachment: &[("status!.attached", Flag(false))];
    mutating_webhooks: &[
        ("webhooks[].failurePolicy", Text("Fail")),
        ("webhooks[].matchPolicy", Text("Equivalent")),
        ("webhooks[].namespaceSelector", Empty),
        ("webhooks[].objectSelector", Empty),
        ("webhooks[].timeoutSeconds", Int(10)),
        ("webhooks[].reinvocationPolicy", Text("Never")),
        ("webhooks[].rules[].scope", Text("*")),
        ("webhooks[].clientConfig.service.port", Int(443)),
    ];
    validating_webhooks: &[
        ("webhooks[].failurePolicy", Text("Fail")),
        ("webhooks[].matchPolicy", Text("Equivalent")),
        ("webhooks[].namespaceSelector", Empty),
        ("webhooks[].objectSelector", Empty),
        ("webhooks[].timeoutSeconds", Int(10)),
        ("webhooks[].rules[].scope", Text("*")),
        ("webhooks[].clientConfig.service.port", Int(443)),
    ];
    admission_policy: &[
        ("spec!.failurePolicy", Text("Fail")),
        ("spec.matchConstraints.matchPolicy", Text("Equivalent")),
        ("spec.matchConstraints.namespaceSelector", Empty),
        ("spec.matchConstraints.objectSelector", Empty),
        ("spec.matchConstraints.resourceRules[].scope", Text("*")),
        ("spec.matchConstraints.excludeResourceRules[].scope", Text("*")),
    ];
    mutating_policy: &[
        ("spec!.failurePolicy", Text("Fail")),
        ("spec.reinvocationPolicy", Text("Never")),
        ("spec.matchConstraints.matchPolicy", Text("Equivalent")),
        ("spec.matchConstraints.namespaceSelector", Empty),
        ("spec.matchConstraints.objectSelector", Empty),
        ("spec.matchConstraints.resourceRules[].scope", Text("*")),
        ("spec.matchConstraints.excludeResourceRules[].scope", Text("*")),
    ];
    admission_policy_binding: &[
        ("spec.matchResources.matchPolicy", Text("Equivalent")),
        ("spec.matchResources.namespaceSelector", Empty),
        ("spec.matchResources.objectSelector", Empty),
        ("spec.matchResources.resourceRules[].scope", Text("*")),
        ("spec.matchResources.excludeResourceRules[].scope", Text("*")),
    ];
    api_service: &[("spec.service.port", Int(443))];
    flow_schema: &[("spec!.matchingPrecedence", Int(1000))];
    priority_level: &[
        ("spec.exempt.nominalConcurrencyShares", Int(0)),
        ("spec.exempt.lendablePercent", Int(0)),
        ("spec.limited.nominalConcurrencyShares", Int(30)),
        ("spec.limited.lendablePercent", Int(0)),
        ("spec.limited.limitResponse.queuing.queues", Int(64)),
        ("spec.limited.limitResponse.queuing.handSize", Int(8)),
        ("spec.limited.limitResponse.queuing.queueLengthLimit", Int(50)),
    ];
}

/// A driver that does not say otherwise keeps volumes that outlive their pods.
pub(crate) fn csi_driver_modes(object: &mut Value) {
    csi_driver(object);
    let spec = crate::meta::child_mut(object, "spec");
    if spec.get("volumeLifecycleModes").and_then(Value::as_array).is_none_or(Vec::is_empty) {
        spec.insert("volumeLifecycleModes".into(), serde_json::json!(["Persistent"]));
    }
}

/// An exempt level without parameters has them written out, as it takes part in the sharing of seats too.
pub(crate) fn priority_level_exempt(object: &mut Value) {
    if object["spec"]["type"] == "Exempt" && object["spec"]["exempt"].is_null() {
        object["spec"]["exempt"] = serde_json::json!({});
    }
    priority_level(object);
}

/// Names that follow from the kind, and a status that its readers can decode.
pub(crate) fn definition(object: &mut Value) {
    if let Some(names) = object["spec"].get_mut("names").and_then(Value::as_object_mut) {
        let kind = names.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
        for (key, value) in [("singular", kind.to_lowercase()), ("listKind", format!("{kind}List"))] {
            if !kind.is_empty() && names.get(key).and_then(Value::as_str).is_none_or(str::is_empty) {
                names.insert(key.into(), value.into());
            }
        }
    }
    fill(
        object,
        &[
            ("spec!.conversion!.strategy", Text("None")),
            ("spec.conversion.webhook.clientConfig.service.port", Int(443)),
            ("status!.acceptedNames!.kind", Text("")),
            ("status!.acceptedNames!.plural", Text("")),
            ("status!.conditions", Null),
        ],
    );
}

pub(crate) fn resource_claim(object: &mut Value) {
    if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
        device_claim(spec);
    }
}

pub(crate) fn resource_claim_template(object: &mut Value) {
    if let Some(spec) = object["spec"].get_mut("spec").and_then(Value::as_object_mut) {
        device_claim(spec);
    }
}

fn device_claim(spec: &mut Map<String, Value>) {
    let Some(devices) = spec.get_mut("devices").and_then(Value::as_object_mut) else { return };
    for request in each_mut(devices, "requests") {
        if let Some(exactly) = request.get_mut("exactly").and_then(Value::as_object_mut) {
            device_request(exactly);
        }
        each_mut(request, "firstAvailable").for_each(device_request);
    }
}

fn device_request(request: &mut Map<String, Value>) {
    default_to(request, "allocationMode", "ExactCount");
    if request["allocationMode"] == "ExactCount" && request.get("count").and_then(Value::as_i64).unwrap_or(0) == 0 {
        request.insert("count".into(), 1.into());
    }
    for toleration in each_mut(request, "tolerations") {
        default_to(toleration, "operator", "Equal");
    }
}

/// Zeroes that upstream always writes into a new status, by what they count.
pub(crate) const REPLICAS: &[Row] = &[("status!.replicas", Int(0))];
pub(crate) const STATEFUL_SET: &[Row] = &[("status!.replicas", Int(0)), ("status!.availableReplicas", Int(0))];
pub(crate) const DAEMON_SET: &[Row] = &[
    ("status!.currentNumberScheduled", Int(0)),
    ("status!.numberMisscheduled", Int(0)),
    ("status!.desiredNumberScheduled", Int(0)),
    ("status!.numberReady", Int(0)),
];
pub(crate) const AUTOSCALER: &[Row] = &[("status!.desiredReplicas", Int(0)), ("status!.currentMetrics", Null)];
pub(crate) const AUTOSCALER_V1: &[Row] =
    &[("spec!.minReplicas", Int(1)), ("status!.currentReplicas", Int(0)), ("status!.desiredReplicas", Int(0))];
pub(crate) const FAILURE_POLICY: &[Row] = &[("podFailurePolicy.rules[].onPodConditions[].status", Text("True"))];

/// Defaults of the sources that volumes of pods and persistent volumes have in common.
pub(crate) const VOLUME: &[Row] = &[
    ("hostPath.type", Text("")),
    ("iscsi.iscsiInterface", Text("default")),
    ("rbd.pool", Text("rbd")),
    ("rbd.user", Text("admin")),
    ("rbd.keyring", Text("/etc/ceph/keyring")),
    ("azureDisk.cachingMode", Text("ReadWrite")),
    ("azureDisk.kind", Text("Shared")),
    ("azureDisk.fsType", Text("ext4")),
    ("azureDisk.readOnly", Flag(false)),
    ("scaleIO.storageMode", Text("ThinProvisioned")),
    ("scaleIO.fsType", Text("xfs")),
];

/// [`fill`] for a map.
pub(crate) fn fill_map(map: &mut Map<String, Value>, rows: &[Row]) {
    let mut value = Value::Object(std::mem::take(map));
    fill(&mut value, rows);
    if let Value::Object(filled) = value {
        *map = filled;
    }
}
