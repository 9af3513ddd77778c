//! What makes a StatefulSet's pod and its claims its own: names, labels, host name, volumes, owners.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use crate::history::POD_REVISION;
use crate::pods::from_template;

pub const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
pub const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

fn set_name(set: &StatefulSet) -> &str {
    set.metadata.name.as_deref().unwrap_or_default()
}

pub fn pod_name(set: &StatefulSet, ordinal: i32) -> String {
    format!("{}-{ordinal}", set_name(set))
}

/// The ordinal at the end of a pod's name, if the rest is the set's.
pub fn ordinal(set: &StatefulSet, pod: &Pod) -> Option<i32> {
    let rest = pod.metadata.name.as_deref()?.strip_prefix(set_name(set))?.strip_prefix('-')?;
    // One way to write a number: `01` is another pod.
    rest.parse().ok().filter(|ordinal: &i32| *ordinal >= 0 && ordinal.to_string() == rest)
}

pub fn first(set: &StatefulSet) -> i32 {
    let ordinals = set.spec.as_ref().and_then(|spec| spec.ordinals.as_ref());
    ordinals.and_then(|ordinals| ordinals.start).unwrap_or(0)
}

/// The revision a pod was made of.
pub fn revision(pod: &Pod) -> &str {
    pod.metadata.labels.as_ref().and_then(|labels| labels.get(POD_REVISION)).map_or("", String::as_str)
}

pub fn new_pod(set: &StatefulSet, template: &PodTemplateSpec, revision: &str, ordinal: i32) -> Pod {
    let mut pod = from_template(set, template);
    pod.metadata.generate_name = None;
    pod.metadata.name = Some(pod_name(set, ordinal));
    pod.metadata.labels.get_or_insert_default().insert(POD_REVISION.into(), revision.into());
    identify(set, &mut pod, ordinal);
    let spec = pod.spec.get_or_insert_default();
    spec.hostname = Some(pod_name(set, ordinal));
    spec.subdomain = set.spec.as_ref().and_then(|spec| spec.service_name.clone()).filter(|name| !name.is_empty());
    for template in templates(set) {
        let name = template.metadata.name.clone().unwrap_or_default();
        let volumes = spec.volumes.get_or_insert_default();
        volumes.retain(|volume| volume.name != name);
        volumes.push(Volume {
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: claim_name(set, template, ordinal),
                read_only: None,
            }),
            name,
            ..Volume::default()
        });
    }
    pod
}

/// Gives a pod the labels of its place; says whether it lacked one.
pub fn identify(set: &StatefulSet, pod: &mut Pod, ordinal: i32) -> bool {
    let labels = pod.metadata.labels.get_or_insert_default();
    let name = labels.insert(POD_NAME.into(), pod_name(set, ordinal));
    let index = labels.insert(POD_INDEX.into(), ordinal.to_string());
    name != Some(pod_name(set, ordinal)) || index != Some(ordinal.to_string())
}

pub fn templates(set: &StatefulSet) -> &[PersistentVolumeClaim] {
    set.spec.as_ref().and_then(|spec| spec.volume_claim_templates.as_deref()).unwrap_or_default()
}

pub fn claim_name(set: &StatefulSet, template: &PersistentVolumeClaim, ordinal: i32) -> String {
    format!("{}-{}", template.metadata.name.as_deref().unwrap_or_default(), pod_name(set, ordinal))
}

/// The claims of one pod.
pub fn claims(set: &StatefulSet, ordinal: i32) -> Vec<PersistentVolumeClaim> {
    let selector = set.spec.as_ref().and_then(|spec| spec.selector.match_labels.clone()).unwrap_or_default();
    templates(set)
        .iter()
        .map(|template| {
            let mut labels = template.metadata.labels.clone().unwrap_or_default();
            labels.extend(selector.clone());
            PersistentVolumeClaim {
                metadata: ObjectMeta {
                    name: Some(claim_name(set, template, ordinal)),
                    namespace: set.metadata.namespace.clone(),
                    labels: Some(labels),
                    annotations: template.metadata.annotations.clone(),
                    finalizers: template.metadata.finalizers.clone(),
                    ..ObjectMeta::default()
                },
                spec: template.spec.clone(),
                status: None,
            }
        })
        .collect()
}

/// The owners a claim is to have under the set's retention policy, others kept. `pod` is the claim's pod, and whether
/// the set is scaled down below it.
pub fn claim_owners(
    set: &StatefulSet,
    claim: &PersistentVolumeClaim,
    pod: &Pod,
    condemned: bool,
) -> Vec<OwnerReference> {
    let policy = set.spec.as_ref().and_then(|spec| spec.persistent_volume_claim_retention_policy.as_ref());
    let deletes = |when: Option<&String>| when.is_some_and(|when| when == "Delete");
    let scaled = deletes(policy.and_then(|policy| policy.when_scaled.as_ref()));
    let deleted = deletes(policy.and_then(|policy| policy.when_deleted.as_ref()));
    let mut owners = claim.metadata.owner_references.clone().unwrap_or_default();
    let by_pod = scaled && condemned;
    let mut want = |wanted: bool, kind: &str, version: &str, metadata: &ObjectMeta| {
        let uid = metadata.uid.clone().unwrap_or_default();
        let name = metadata.name.clone().unwrap_or_default();
        // An older pod or set of this name must not take the claim along.
        owners.retain(|owner| owner.kind != kind || owner.name != name || (wanted && owner.uid == uid));
        if wanted && !owners.iter().any(|owner| owner.uid == uid) {
            owners.push(OwnerReference {
                api_version: version.into(),
                kind: kind.into(),
                name,
                uid,
                controller: None,
                block_owner_deletion: None,
            });
        }
    };
    want(deleted && !by_pod, "StatefulSet", "apps/v1", &set.metadata);
    want(by_pod, "Pod", "v1", &pod.metadata);
    owners
}
