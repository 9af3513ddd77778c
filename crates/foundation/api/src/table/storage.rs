//! Columns of volumes, claims and storage.k8s.io.

use serde_json::{Value, json};

use super::cells::Cell::{Age, Flag, Len, Name, Of, Or, Text};
use super::cells::{or_none, scalar};
use super::{Column, column, wide};
use crate::meta::{at, deletion_timestamp, items, text};

pub(crate) const VOLUME: &[Column] = &[
    column("Name", Name),
    column("Capacity", Of(|v| json!(scalar(at(v, &["spec", "capacity", "storage"]), "0")))),
    column("Access Modes", Of(|v| modes(v, &["spec", "accessModes"]))),
    column("Reclaim Policy", Text(&["spec", "persistentVolumeReclaimPolicy"])),
    column("Status", Of(phase)),
    column(
        "Claim",
        Of(|v| match at(v, &["spec", "claimRef"]) {
            Some(claim) => json!(format!("{}/{}", text(claim, &["namespace"]), text(claim, &["name"]))),
            None => json!(""),
        }),
    ),
    column("StorageClass", Of(class)),
    column("VolumeAttributesClass", Or(&["spec", "volumeAttributesClassName"], "<unset>")),
    column("Reason", Text(&["status", "reason"])),
    column("Age", Age),
    wide("VolumeMode", Or(&["spec", "volumeMode"], "<unset>")),
];

pub(crate) const CLAIM: &[Column] = &[
    column("Name", Name),
    column("Status", Of(phase)),
    column("Volume", Text(&["spec", "volumeName"])),
    column(
        "Capacity",
        Of(|c| match text(c, &["spec", "volumeName"]) {
            "" => json!(""),
            _ => json!(scalar(at(c, &["status", "capacity", "storage"]), "0")),
        }),
    ),
    column(
        "Access Modes",
        Of(|c| match text(c, &["spec", "volumeName"]) {
            "" => json!(""),
            _ => modes(c, &["status", "accessModes"]),
        }),
    ),
    column("StorageClass", Of(class)),
    column("VolumeAttributesClass", Or(&["spec", "volumeAttributesClassName"], "<unset>")),
    column("Age", Age),
    wide("VolumeMode", Or(&["spec", "volumeMode"], "<unset>")),
];

fn phase(object: &Value) -> Value {
    match deletion_timestamp(object) {
        Some(_) => json!("Terminating"),
        None => json!(text(object, &["status", "phase"])),
    }
}

/// The class by field, or by the annotation that came before it.
fn class(object: &Value) -> Value {
    match text(object, &["metadata", "annotations", "volume.beta.kubernetes.io/storage-class"]) {
        "" => json!(text(object, &["spec", "storageClassName"])),
        annotated => json!(annotated),
    }
}

const MODES: [(&str, &str); 4] =
    [("ReadWriteOnce", "RWO"), ("ReadOnlyMany", "ROX"), ("ReadWriteMany", "RWX"), ("ReadWriteOncePod", "RWOP")];

fn modes(object: &Value, path: &[&str]) -> Value {
    let given = items(object, path);
    let short = MODES.iter().filter(|(long, _)| given.iter().any(|mode| mode == long)).map(|(_, short)| *short);
    json!(short.collect::<Vec<_>>().join(","))
}

/// The name, marked when an annotation says that it is the default.
fn marked(object: &Value, annotations: &[&str]) -> Value {
    let name = crate::meta::name(object);
    let marked = annotations.iter().any(|key| text(object, &["metadata", "annotations", key]) == "true");
    json!(if marked { format!("{name} (default)") } else { name.to_owned() })
}

pub(crate) const CLASS: &[Column] = &[
    column(
        "Name",
        Of(|c| {
            marked(
                c,
                &["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"],
            )
        }),
    ),
    column("Provisioner", Text(&["provisioner"])),
    column("ReclaimPolicy", Or(&["reclaimPolicy"], "Delete")),
    column("VolumeBindingMode", Or(&["volumeBindingMode"], "Immediate")),
    column("AllowVolumeExpansion", Flag(&["allowVolumeExpansion"], false)),
    column("Age", Age),
];

pub(crate) const ATTRIBUTES_CLASS: &[Column] = &[
    column("Name", Of(|c| marked(c, &["volumeattributesclass.alpha.kubernetes.io/is-default-class"]))),
    column("DriverName", Text(&["driverName"])),
    column("Age", Age),
];

pub(crate) const ATTACHMENT: &[Column] = &[
    column("Name", Name),
    column("Attacher", Text(&["spec", "attacher"])),
    column("PV", Text(&["spec", "source", "persistentVolumeName"])),
    column("Node", Text(&["spec", "nodeName"])),
    column("Attached", Flag(&["status", "attached"], false)),
    column("Age", Age),
];

pub(crate) const CSI_NODE: &[Column] =
    &[column("Name", Name), column("Drivers", Len(&["spec", "drivers"])), column("Age", Age)];

pub(crate) const CSI_DRIVER: &[Column] = &[
    column("Name", Name),
    column("AttachRequired", Flag(&["spec", "attachRequired"], true)),
    column("PodInfoOnMount", Flag(&["spec", "podInfoOnMount"], false)),
    column("StorageCapacity", Flag(&["spec", "storageCapacity"], false)),
    column(
        "TokenRequests",
        Of(|d| match at(d, &["spec", "tokenRequests"]) {
            Some(_) => json!(super::cells::joined(d, &["spec", "tokenRequests"], "audience")),
            None => json!("<unset>"),
        }),
    ),
    column("RequiresRepublish", Flag(&["spec", "requiresRepublish"], false)),
    column(
        "Modes",
        Of(|d| {
            let modes: Vec<&str> =
                items(d, &["spec", "volumeLifecycleModes"]).iter().filter_map(Value::as_str).collect();
            or_none(&modes.join(","))
        }),
    ),
    column("Age", Age),
];

pub(crate) const CSI_CAPACITY: &[Column] = &[
    column("Name", Name),
    column("StorageClassName", Text(&["storageClassName"])),
    column("Capacity", Of(|c| json!(scalar(at(c, &["capacity"]), "<unset>")))),
];
