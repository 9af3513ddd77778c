//! Volumes, claims and the group storage.k8s.io.

use serde_json::Value;

use super::common::{amount, node_selector, parameters, positive, quantity, selector};
use super::field::{Field, IMMUTABLE};
use super::{Errors, FieldError};
use crate::meta::{at, text};
use crate::names;

const MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];

/// Every source that a persistent volume may have.
const SOURCES: [&str; 22] = [
    "awsElasticBlockStore",
    "azureDisk",
    "azureFile",
    "cephfs",
    "cinder",
    "csi",
    "fc",
    "flexVolume",
    "flocker",
    "gcePersistentDisk",
    "glusterfs",
    "hostPath",
    "iscsi",
    "local",
    "nfs",
    "photonPersistentDisk",
    "portworxVolume",
    "quobyte",
    "rbd",
    "scaleIO",
    "storageos",
    "vsphereVolume",
];

/// Fields that a source cannot do without.
const NEEDED: [(&str, &[&str]); 7] = [
    ("csi", &["driver", "volumeHandle"]),
    ("hostPath", &["path"]),
    ("iscsi", &["targetPortal", "iqn"]),
    ("local", &["path"]),
    ("nfs", &["server", "path"]),
    ("cephfs", &["monitors"]),
    ("rbd", &["monitors", "image"]),
];

/// What a volume source lacks or has that it must not.
pub(super) fn source(name: &str, source: &Field, errors: &mut Errors) {
    for (kind, fields) in NEEDED {
        if kind == name {
            for field in fields {
                errors.need(&source.at(field));
            }
        }
    }
    let path = source.at("path");
    if matches!(name, "hostPath" | "local") && path.text().split('/').any(|part| part == "..") {
        errors.bad(&path, "must not contain '..'");
    }
    if name == "nfs" && !path.text().is_empty() && !path.text().starts_with('/') {
        errors.bad(&path, "must be an absolute path");
    }
    if name == "hostPath" {
        const TYPES: &[&str] =
            &["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
        errors.known(&source.at("type"), TYPES);
    }
}

pub fn volume(value: &Value, errors: &mut Errors) {
    let spec = Field::spec(value);
    access_modes(&spec, errors);
    let capacity = spec.at("capacity");
    if capacity.len() == 0 {
        errors.missing(&capacity, "");
    } else if capacity.len() > 1 || !capacity.at("storage").present() {
        errors.known(&capacity, &["storage"]);
    }
    positive(&capacity.key("storage"), errors);
    errors.known(&spec.at("persistentVolumeReclaimPolicy"), &["Delete", "Recycle", "Retain"]);
    errors.known(&spec.at("volumeMode"), &["Block", "Filesystem"]);
    node_selector(&spec.at("nodeAffinity").at("required"), errors);
    let given: Vec<&str> = SOURCES.into_iter().filter(|name| spec.at(name).present()).collect();
    match given.as_slice() {
        [] => errors.missing(&spec, "must specify a volume type"),
        [first, rest @ ..] => {
            source(first, &spec.at(first), errors);
            for other in rest {
                errors.deny(&spec.at(other), "may not specify more than 1 volume type");
            }
        }
    }
    if spec.at("local").present() && !spec.at("nodeAffinity").present() {
        errors.missing(&Field::top(value, "metadata").at("annotations"), "Local volume requires node affinity");
    }
    let policy = spec.at("persistentVolumeReclaimPolicy");
    if policy.is("Recycle") && spec.at("hostPath").at("path").is("/") {
        errors.deny(&policy, "may not be 'recycle' for a hostPath mount of '/'");
    }
    if !spec.at("storageClassName").text().is_empty() {
        errors.name(&spec.at("storageClassName"), names::dns1123_subdomain);
    }
}

pub fn volume_update(new: &Value, old: &Value, errors: &mut Errors) {
    for name in SOURCES {
        // The secret that a driver expands with may be filled in later; nothing else of the source may change.
        let plain = |value: &Value| {
            let mut source = value["spec"][name].clone();
            if let Some(csi) = source.as_object_mut() {
                for secret in ["controllerExpandSecretRef", "nodeExpandSecretRef", "controllerPublishSecretRef"] {
                    csi.remove(secret);
                }
            }
            source
        };
        if plain(new) != plain(old) {
            let why = "spec.persistentvolumesource is immutable after creation";
            return errors.deny(&Field { value: &new["spec"], path: "spec.persistentvolumesource".into() }, why);
        }
    }
    errors.fixed(new, old, &["volumeMode"]);
    if at(old, &["spec", "nodeAffinity"]).is_some() {
        errors.fixed(new, old, &["nodeAffinity"]);
    }
}

pub fn claim(value: &Value, errors: &mut Errors) {
    claim_spec(&Field::spec(value), errors);
}

/// Also the template of a claim in a pod.
pub(super) fn claim_spec(spec: &Field, errors: &mut Errors) {
    access_modes(spec, errors);
    selector(&spec.at("selector"), errors);
    let size = Field {
        value: at(spec.value, &["resources", "requests", "storage"]).unwrap_or(&Value::Null),
        path: format!("{}.resources[storage]", spec.path),
    };
    if size.present() {
        positive(&size, errors);
    } else {
        errors.missing(&size, "");
    }
    for name in ["storageClassName", "volumeAttributesClassName"] {
        if !spec.at(name).text().is_empty() {
            errors.name(&spec.at(name), names::dns1123_subdomain);
        }
    }
    errors.known(&spec.at("volumeMode"), &["Block", "Filesystem"]);
    let (old, new) = (spec.at("dataSource"), spec.at("dataSourceRef"));
    let differs = |field: &str| old.at(field).text() != new.at(field).text();
    if old.present() && new.present() {
        if !new.at("namespace").text().is_empty() {
            errors.bad_value(&old.path, old.value, "may not be specified when dataSourceRef.namespace is specified");
        } else if ["apiGroup", "kind", "name"].into_iter().any(differs) {
            errors.bad_value(&old.path, old.value, "must match dataSourceRef");
        }
    }
    for name in ["dataSource", "dataSourceRef"] {
        let source = spec.at(name);
        if !source.present() {
            continue;
        }
        errors.need(&source.at("name"));
        errors.need(&source.at("kind"));
        let group = source.at("apiGroup");
        if group.text().is_empty() && !source.at("kind").is("PersistentVolumeClaim") {
            let why = "must be 'PersistentVolumeClaim' when referencing the default apiGroup";
            errors.bad_value(&source.path, source.at("kind").value, why);
        }
        if !group.text().is_empty() {
            errors.name(&group, names::dns1123_subdomain);
        }
    }
}

fn access_modes(spec: &Field, errors: &mut Errors) {
    let modes = spec.at("accessModes");
    if modes.len() == 0 {
        errors.missing(&modes, "at least 1 access mode is required");
    }
    for mode in modes.items() {
        errors.known(&Field { value: mode.value, path: modes.path.clone() }, MODES);
    }
    if modes.contains("ReadWriteOncePod") && modes.len() > 1 {
        errors.deny(&modes, "may not use ReadWriteOncePod with other access modes");
    }
}

/// A claim's specification stays, but for the size and the attributes of one that is bound.
pub fn claim_update(new: &Value, old: &Value, errors: &mut Errors) {
    let bound = text(new, &["status", "phase"]) == "Bound";
    let unnamed = text(old, &["spec", "volumeName"]).is_empty();
    let annotated = "volume.beta.kubernetes.io/storage-class";
    // A default class may be set afterwards, once.
    let classless = at(old, &["spec", "storageClassName"]).is_none()
        && text(old, &["metadata", "annotations", annotated]).is_empty();
    let rest = |claim: &Value| {
        let mut spec = claim["spec"].clone();
        if let Some(fields) = spec.as_object_mut() {
            fields.remove("volumeAttributesClassName");
            if unnamed {
                fields.remove("volumeName");
            }
            if classless {
                fields.remove("storageClassName");
            }
            let requests = fields.get_mut("resources").and_then(|resources| resources.get_mut("requests"));
            if bound && let Some(requests) = requests.and_then(Value::as_object_mut) {
                requests.remove("storage");
            }
        }
        spec
    };
    if rest(new) != rest(old) {
        let why =
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
        errors.push(FieldError::forbidden("spec", why));
    }
    let size = |claim: &Value, path: &[&str]| {
        quantity(&Field { value: at(claim, path).unwrap_or(&Value::Null), path: String::new() })
    };
    let requests = ["spec", "resources", "requests", "storage"];
    if let (Some(wanted), Some(before)) = (size(new, &requests), size(old, &requests))
        && wanted < before
    {
        // What was granted already is not taken back; a wish that was not may be taken down to it.
        let granted = size(old, &["status", "capacity", "storage"]);
        if granted.is_none_or(|granted| wanted <= granted) {
            errors.push(FieldError::forbidden(
                "spec.resources.requests.storage",
                "field can not be less than status.capacity",
            ));
        }
    }
    let class = |claim: &Value| at(claim, &["spec", "volumeAttributesClassName"]).cloned();
    if class(old).is_some() && class(new).is_none() {
        let why = "update from non-nil value to nil is forbidden";
        errors.push(FieldError::forbidden("spec.volumeAttributesClassName", why));
    }
}

pub fn class(value: &Value, errors: &mut Errors) {
    provisioner(&Field::top(value, "provisioner"), errors);
    parameters(&Field::top(value, "parameters"), errors);
    errors.known(&Field::top(value, "reclaimPolicy"), &["Delete", "Retain"]);
    errors.need_known(&Field::top(value, "volumeBindingMode"), &["Immediate", "WaitForFirstConsumer"]);
    for term in Field::top(value, "allowedTopologies").items() {
        for requirement in term.at("matchLabelExpressions").items() {
            errors.name(&requirement.at("key"), names::qualified_name);
            if requirement.at("values").len() == 0 {
                errors.missing(&requirement.at("values"), "");
            }
        }
    }
}

fn provisioner(field: &Field, errors: &mut Errors) {
    if errors.need(field) {
        errors.complaints(&field.path, field.text(), names::qualified_name(&field.text().to_lowercase()));
    }
}

/// These fields may not change, in the words of the classes.
fn settled(new: &Value, old: &Value, fields: &[&str], errors: &mut Errors) {
    for field in fields {
        if new[field] != old[field] {
            errors.deny(&Field::top(new, field), &format!("updates to {field} are forbidden."));
        }
    }
}

pub fn class_update(new: &Value, old: &Value, errors: &mut Errors) {
    settled(new, old, &["parameters", "provisioner", "reclaimPolicy"], errors);
    errors.same(&Field::top(new, "volumeBindingMode"), &Field::top(old, "volumeBindingMode"));
}

pub fn attributes_class(value: &Value, errors: &mut Errors) {
    provisioner(&Field::top(value, "driverName"), errors);
    let map = Field::top(value, "parameters");
    parameters(&map, errors);
    if map.len() == 0 {
        errors.missing(&map, "must contain at least one key/value pair");
    }
}

pub fn attributes_class_update(new: &Value, old: &Value, errors: &mut Errors) {
    settled(new, old, &["driverName", "parameters"], errors);
}

pub fn attachment(value: &Value, errors: &mut Errors) {
    let spec = Field::spec(value);
    driver_name(&spec.at("attacher"), errors);
    let source = spec.at("source");
    let (named, inline) = (source.at("persistentVolumeName"), source.at("inlineVolumeSpec"));
    let one = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
    match (named.present(), inline.present()) {
        (false, false) => errors.missing(&source, one),
        (true, true) => errors.deny(&source, one),
        (true, false) if named.text().is_empty() => {
            errors.missing(&named, "must specify non empty persistentVolumeName");
        }
        _ => errors.name(&named, names::dns1123_subdomain),
    }
    errors.need_name(&spec.at("nodeName"), names::dns1123_subdomain);
}

pub fn attachment_update(new: &Value, old: &Value, errors: &mut Errors) {
    errors.same(&Field::spec(new), &Field::spec(old));
}

/// `[domain.]name`, not more than 63 characters, in either case.
fn driver_name(field: &Field, errors: &mut Errors) {
    if !errors.need(field) {
        return;
    }
    errors.at_most_bytes(field, 63);
    let lower = field.text().to_lowercase();
    errors.complaints(&field.path, field.text(), names::dns1123_subdomain(&lower));
}

pub fn csi_node(value: &Value, errors: &mut Errors) {
    let drivers = Field::spec(value).at("drivers");
    for driver in drivers.items() {
        driver_name(&driver.at("name"), errors);
        let id = driver.at("nodeID");
        if errors.need(&id) && id.text().len() > 256 {
            errors.bad(&id, "must be 256 characters or less");
        }
        errors.not_negative(&driver.at("allocatable").at("count"));
        for key in driver.at("topologyKeys").items() {
            errors.complaints(&driver.path, key.text(), names::qualified_name(key.text()));
        }
    }
    errors.distinct(&drivers, "name");
}

pub fn csi_node_update(new: &Value, old: &Value, errors: &mut Errors) {
    let plain = |driver: &Value| {
        let mut driver = driver.clone();
        driver.as_object_mut().map(|fields| fields.remove("allocatable"));
        driver
    };
    let drivers = Field::spec(new).at("drivers");
    for driver in drivers.items() {
        let before = crate::meta::items(old, &["spec", "drivers"]);
        let before = before.iter().find(|other| other["name"] == driver.value["name"]);
        if before.is_some_and(|before| plain(before) != plain(driver.value)) {
            errors.bad_value(&drivers.path, driver.value, IMMUTABLE);
        }
    }
}

pub fn csi_driver(value: &Value, errors: &mut Errors) {
    let spec = Field::spec(value);
    errors.known(&spec.at("fsGroupPolicy"), &["File", "None", "ReadWriteOnceWithFSType"]);
    let modes = spec.at("volumeLifecycleModes");
    for mode in modes.items() {
        errors.known(&Field { value: mode.value, path: modes.path.clone() }, &["Persistent", "Ephemeral"]);
    }
    let period = spec.at("nodeAllocatableUpdatePeriodSeconds");
    if period.int().is_some_and(|seconds| seconds < 10) {
        errors.bad(&period, "must be greater than or equal to 10 seconds");
    }
    let requests = spec.at("tokenRequests");
    errors.distinct(&requests, "audience");
    for request in requests.items() {
        let seconds = request.at("expirationSeconds");
        match seconds.int() {
            Some(number) if number < 600 => errors.bad(&seconds, "may not specify a duration less than 10 minutes"),
            Some(number) if number > 1 << 32 => {
                errors.bad(&seconds, "may not specify a duration larger than 2^32 seconds");
            }
            _ => {}
        }
    }
}

pub fn csi_driver_update(new: &Value, old: &Value, errors: &mut Errors) {
    let attach = Field { value: &new["spec"]["attachRequired"], path: "spec.attachedRequired".into() };
    errors.same_as(&attach, &old["spec"]["attachRequired"]);
    errors.fixed(new, old, &["volumeLifecycleModes"]);
}

pub fn csi_capacity(value: &Value, errors: &mut Errors) {
    selector(&Field::top(value, "nodeTopology"), errors);
    errors.need_name(&Field::top(value, "storageClassName"), names::dns1123_subdomain);
    amount(&Field::top(value, "capacity"), errors);
}

pub fn csi_capacity_update(new: &Value, old: &Value, errors: &mut Errors) {
    for field in ["nodeTopology", "storageClassName"] {
        errors.same(&Field::top(new, field), &Field::top(old, field));
    }
}
