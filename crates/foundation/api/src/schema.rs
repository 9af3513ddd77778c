//! The shapes of all types, compacted from the typed definitions: which field holds which type.
//!
//! Descriptions are dropped, so the table stays small; the full documents are made on request by [`crate::openapi`].

use crate::registry::{KINDS, Subresource, builtin};
use k8s_openapi::api;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as metav1;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use k8s_openapi::apimachinery::pkg::version;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::sync::LazyLock;

/// What a field holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Shape {
    /// Free-form, or a scalar.
    Any,
    /// Another type, by name.
    Ref(Box<str>),
    List(Box<Shape>),
    Map(Box<Shape>),
}

impl Shape {
    /// The type name that items of a list or values of a map have, or the type itself.
    pub fn type_name(&self) -> Option<&str> {
        match self {
            Self::Any => None,
            Self::Ref(name) => Some(name),
            Self::List(inner) | Self::Map(inner) => inner.type_name(),
        }
    }
}

/// One type: its fields, or none when it is free-form or a scalar.
#[derive(Debug, Default)]
pub struct Type {
    pub fields: HashMap<Box<str>, Shape>,
}

/// All types by definition name, such as `io.k8s.api.core.v1.PodSpec`.
pub struct Types(HashMap<Box<str>, Type>);

impl Types {
    pub fn get(&self, definition: &str) -> Option<&Type> {
        self.0.get(definition)
    }

    pub fn field(&self, definition: &str, field: &str) -> Option<&Shape> {
        self.0.get(definition)?.fields.get(field)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &Type)> {
        self.0.iter().map(|(name, one)| (name.as_ref(), one))
    }
}

/// The shared table, built on first use.
pub fn types() -> &'static Types {
    static TYPES: LazyLock<Types> = LazyLock::new(|| {
        let definitions = definitions("/$defs");
        Types(definitions.into_iter().map(|(name, schema)| (name.into(), compact(&schema))).collect())
    });
    &TYPES
}

fn compact(schema: &Value) -> Type {
    let properties = schema["properties"].as_object().into_iter().flatten();
    Type { fields: properties.map(|(name, schema)| (name.as_str().into(), shape(schema))).collect() }
}

fn shape(schema: &Value) -> Shape {
    if let Some(name) = schema["$ref"].as_str() {
        return Shape::Ref(name.rsplit('/').next().unwrap_or(name).into());
    }
    if let Some(one) = schema["allOf"].get(0) {
        return shape(one);
    }
    if schema["items"].is_object() {
        return Shape::List(Box::new(shape(&schema["items"])));
    }
    if schema["additionalProperties"].is_object() {
        return Shape::Map(Box::new(shape(&schema["additionalProperties"])));
    }
    Shape::Any
}

/// Every definition reachable from the built-in kinds, with references under `path`.
pub(crate) fn definitions(path: &'static str) -> Map<String, Value> {
    let settings = SchemaSettings::draft07().with(|s| s.definitions_path = path.into());
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

/// Group, version and kind of every top-level definition, by definition name.
pub(crate) fn top_level() -> Vec<(String, &'static str, &'static str, String)> {
    let mut rows = Vec::new();
    for kind in KINDS.iter() {
        rows.push((kind.definition.to_owned(), kind.group, kind.version, kind.kind.to_owned()));
        if kind.stored {
            rows.push((format!("{}List", kind.definition), kind.group, kind.version, kind.list_kind.to_owned()));
        }
    }
    for (definition, subresource) in [
        ("io.k8s.api.autoscaling.v1.Scale", Subresource::Scale),
        ("io.k8s.api.policy.v1.Eviction", Subresource::Eviction),
        ("io.k8s.api.authentication.v1.TokenRequest", Subresource::Token),
    ] {
        if let Some((group, version, kind)) = subresource.response_kind() {
            rows.push((definition.to_owned(), group, version, kind.to_owned()));
        }
    }
    let meta = |kind: &str| format!("io.k8s.apimachinery.pkg.apis.meta.v1.{kind}");
    for kind in ["APIGroup", "APIGroupList", "APIResourceList", "APIVersions", "Status"] {
        rows.push((meta(kind), "", "v1", kind.to_owned()));
    }
    // These are said to be of every group version, and have the same form in each.
    for group in builtin().groups() {
        for version in &group.versions {
            for kind in ["DeleteOptions", "WatchEvent"] {
                rows.push((meta(kind), group.name, version, kind.to_owned()));
            }
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn follows_types() {
        let spec = types().field("io.k8s.api.core.v1.Pod", "spec").unwrap();
        assert_eq!(spec.type_name(), Some("io.k8s.api.core.v1.PodSpec"));
        let containers = types().field("io.k8s.api.core.v1.PodSpec", "containers").unwrap();
        assert_eq!(*containers, Shape::List(Box::new(Shape::Ref("io.k8s.api.core.v1.Container".into()))));
    }
}
