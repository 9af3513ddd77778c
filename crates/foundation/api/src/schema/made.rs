//! Writes `definitions.json.gz` from the typed definitions, and proves that it is up to date:
//! `DHOW_UPDATE=1 cargo test -p dhow-api schema::made` writes it anew.
#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use k8s_openapi::api;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as metav1;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use k8s_openapi::apimachinery::pkg::version;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

use super::{WRITTEN_PREFIX, definitions};

#[test]
fn definitions_are_those_of_the_types() {
    let described = describe(WRITTEN_PREFIX);
    if std::env::var_os("DHOW_UPDATE").is_some() {
        let mut packed = GzEncoder::new(Vec::new(), Compression::best());
        packed.write_all(&serde_json::to_vec(&described).unwrap()).unwrap();
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/schema/definitions.json.gz");
        std::fs::write(path, packed.finish().unwrap()).unwrap();
        return;
    }
    let written = definitions(WRITTEN_PREFIX);
    for (name, one) in &described {
        assert_eq!(written.get(name), Some(one), "{name} is out of date: run this test with DHOW_UPDATE=1");
    }
    assert_eq!(written.len(), described.len(), "there are definitions of no type: run this test with DHOW_UPDATE=1");
}

#[test]
fn references_lead_where_they_are_asked_to() {
    let elsewhere = definitions("#/components/schemas/");
    let pod = &elsewhere["io.k8s.api.core.v1.Pod"]["properties"]["spec"].to_string();
    assert!(pod.contains("#/components/schemas/io.k8s.api.core.v1.PodSpec"), "{pod}");
    assert!(!serde_json::to_string(&elsewhere).unwrap().contains(WRITTEN_PREFIX));
}

/// Every definition reachable from the built-in kinds, with references under `path`.
fn describe(prefix: &'static str) -> Map<String, Value> {
    let settings = SchemaSettings::draft07().with(|s| s.definitions_path = prefix.into());
    let mut generator = SchemaGenerator::new(settings);
    macro_rules! add {
        ($($group:ident :: $version:ident { $($kind:ident),* $(,)? })*) => {
            $($(
                generator.subschema_for::<api::$group::$version::$kind>();
            )*)*
        };
    }
    add! {
        core::v1 { Namespace, Node, Pod, PodTemplate, Service, Endpoints, ConfigMap, Secret, ServiceAccount, Event,
            PersistentVolume, PersistentVolumeClaim, ResourceQuota, LimitRange, ReplicationController, ComponentStatus }
        apps::v1 { Deployment, ReplicaSet, StatefulSet, DaemonSet, ControllerRevision }
        batch::v1 { Job, CronJob }
        networking::v1 { Ingress, IngressClass, IPAddress, NetworkPolicy, ServiceCIDR }
        policy::v1 { PodDisruptionBudget }
        rbac::v1 { ClusterRole, ClusterRoleBinding, Role, RoleBinding }
        storage::v1 { CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment, VolumeAttributesClass }
        scheduling::v1 { PriorityClass }
        coordination::v1 { Lease }
        node::v1 { RuntimeClass }
        discovery::v1 { EndpointSlice }
        events::v1 { Event }
        certificates::v1 { CertificateSigningRequest }
        certificates::v1beta1 { ClusterTrustBundle, PodCertificateRequest }
        admissionregistration::v1 { MutatingWebhookConfiguration, ValidatingAdmissionPolicy,
            ValidatingAdmissionPolicyBinding, ValidatingWebhookConfiguration }
        admissionregistration::v1beta1 { MutatingAdmissionPolicy, MutatingAdmissionPolicyBinding }
        flowcontrol::v1 { FlowSchema, PriorityLevelConfiguration }
        resource::v1 { DeviceClass, ResourceClaim, ResourceClaimTemplate, ResourceSlice }
        resource::v1alpha3 { DeviceTaintRule }
        storagemigration::v1beta1 { StorageVersionMigration }
    }
    add! {
        core::v1 { Binding }
        autoscaling::v1 { HorizontalPodAutoscaler, Scale }
        autoscaling::v2 { HorizontalPodAutoscaler }
        policy::v1 { Eviction }
        authentication::v1 { TokenReview, TokenRequest, SelfSubjectReview }
        authorization::v1 { LocalSubjectAccessReview, SelfSubjectAccessReview, SelfSubjectRulesReview, SubjectAccessReview }
    }
    generator.subschema_for::<CustomResourceDefinition>();
    generator.subschema_for::<APIService>();
    generator.subschema_for::<metav1::DeleteOptions>();
    generator.subschema_for::<metav1::Status>();
    generator.subschema_for::<metav1::APIResourceList>();
    generator.subschema_for::<metav1::APIGroupList>();
    generator.subschema_for::<metav1::APIVersions>();
    generator.subschema_for::<metav1::Patch>();
    generator.subschema_for::<version::Info>();
    generator.subschema_for::<metav1::WatchEvent<RawExtension>>();
    generator.take_definitions(true)
}
