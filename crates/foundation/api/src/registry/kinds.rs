//! The rows. Order matters: it is the order of groups and of kinds in discovery.

use super::{Kind, Subresource as Sub};
use crate::validation::Errors;
use crate::{defaulting, names, strategy, validation};
use serde_json::Value;

const CRUD: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
const NAMESPACE_VERBS: &[&str] = &["create", "delete", "get", "list", "patch", "update", "watch"];
const REVIEW: &[&str] = &["create"];

fn no_defaults(_: &mut Value) {}
fn no_rules(_: &Value, _: &mut Errors) {}
fn no_update_rules(_: &Value, _: &Value, _: &mut Errors) {}
fn no_update(_: &mut Value, _: &Value) {}

macro_rules! kind {
    ($group:literal, $version:literal, $kind:literal, $plural:literal, $singular:literal, $schema:literal) => {
        Kind {
            group: $group,
            version: $version,
            kind: $kind,
            list_kind: concat!($kind, "List"),
            plural: $plural,
            singular: $singular,
            short_names: &[],
            categories: &[],
            namespaced: true,
            subresources: &[],
            verbs: CRUD,
            definition: concat!("io.k8s.api.", $schema, ".", $version, ".", $kind),
            storage: ($group, $plural),
            stored: true,
            generation: false,
            graceful_delete: false,
            selectable_fields: &[],
            create_on_update: false,
            unconditional_update: true,
            name_format: names::dns1123_subdomain,
            defaults: no_defaults,
            validate: no_rules,
            validate_update: no_update_rules,
            prepare_create: no_defaults,
            prepare_update: no_update,
        }
    };
}

impl Kind {
    const fn short(mut self, short_names: &'static [&'static str]) -> Self {
        self.short_names = short_names;
        self
    }
    const fn all(mut self) -> Self {
        self.categories = &["all"];
        self
    }
    const fn cluster(mut self) -> Self {
        self.namespaced = false;
        self
    }
    const fn subs(mut self, subresources: &'static [Sub]) -> Self {
        self.subresources = subresources;
        self
    }
    const fn counted(mut self) -> Self {
        self.generation = true;
        self
    }
    const fn fields(mut self, fields: &'static [&'static str]) -> Self {
        self.selectable_fields = fields;
        self
    }
    const fn named(mut self, format: fn(&str) -> Vec<String>) -> Self {
        self.name_format = format;
        self
    }
    const fn defaults(mut self, f: fn(&mut Value)) -> Self {
        self.defaults = f;
        self
    }
    const fn rules(mut self, f: fn(&Value, &mut Errors)) -> Self {
        self.validate = f;
        self
    }
    const fn update_rules(mut self, f: fn(&Value, &Value, &mut Errors)) -> Self {
        self.validate_update = f;
        self
    }
    const fn creating(mut self, f: fn(&mut Value)) -> Self {
        self.prepare_create = f;
        self
    }
    const fn updating(mut self, f: fn(&mut Value, &Value)) -> Self {
        self.prepare_update = f;
        self
    }
    const fn verbs(mut self, verbs: &'static [&'static str]) -> Self {
        self.verbs = verbs;
        self
    }
    const fn review(mut self) -> Self {
        self.verbs = REVIEW;
        self.stored = false;
        self
    }
    const fn stored_as(mut self, group: &'static str, plural: &'static str) -> Self {
        self.storage = (group, plural);
        self
    }
    const fn graceful(mut self) -> Self {
        self.graceful_delete = true;
        self
    }
    const fn upsert(mut self) -> Self {
        self.create_on_update = true;
        self
    }
    const fn conditional(mut self) -> Self {
        self.unconditional_update = false;
        self
    }
}

const POD_SUBS: &[Sub] = &[
    Sub::Attach,
    Sub::Binding,
    Sub::EphemeralContainers,
    Sub::Eviction,
    Sub::Exec,
    Sub::Log,
    Sub::PortForward,
    Sub::Proxy,
    Sub::Resize,
    Sub::Status,
];
const POD_FIELDS: &[&str] = &[
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.schedulerName",
    "spec.serviceAccountName",
    "spec.hostNetwork",
    "status.phase",
    "status.podIP",
    "status.nominatedNodeName",
];
const EVENT_FIELDS: &[&str] = &[
    "involvedObject.kind",
    "involvedObject.namespace",
    "involvedObject.name",
    "involvedObject.uid",
    "involvedObject.apiVersion",
    "involvedObject.resourceVersion",
    "involvedObject.fieldPath",
    "reason",
    "reportingComponent",
    "source",
    "type",
];
const NEW_EVENT_FIELDS: &[&str] = &[
    "regarding.kind",
    "regarding.namespace",
    "regarding.name",
    "regarding.uid",
    "regarding.apiVersion",
    "regarding.resourceVersion",
    "regarding.fieldPath",
    "reason",
    "reportingController",
    "type",
];
const SCALED: &[Sub] = &[Sub::Scale, Sub::Status];
const STATUS: &[Sub] = &[Sub::Status];

/// Every built-in kind.
pub static KINDS: &[Kind] = &[
    kind!("", "v1", "Namespace", "namespaces", "namespace", "core")
        .short(&["ns"])
        .cluster()
        .subs(&[Sub::Finalize, Sub::Status])
        .verbs(NAMESPACE_VERBS)
        .fields(&["status.phase"])
        .named(names::dns1123_label)
        .defaults(defaulting::namespace)
        .creating(strategy::namespace_create)
        .updating(strategy::namespace_update),
    kind!("", "v1", "Node", "nodes", "node", "core")
        .short(&["no"])
        .cluster()
        .subs(&[Sub::Proxy, Sub::Status])
        .fields(&["spec.unschedulable"])
        .defaults(defaulting::node)
        .rules(validation::node::create)
        .update_rules(validation::node::update),
    kind!("", "v1", "Pod", "pods", "pod", "core")
        .short(&["po"])
        .all()
        .subs(POD_SUBS)
        .fields(POD_FIELDS)
        .graceful()
        .counted()
        .defaults(defaulting::pod::object)
        .creating(strategy::pod_create)
        .rules(validation::pod::create)
        .update_rules(validation::pod::update),
    kind!("", "v1", "PodTemplate", "podtemplates", "podtemplate", "core")
        .defaults(defaulting::pod::pod_template_object),
    kind!("", "v1", "Service", "services", "service", "core")
        .short(&["svc"])
        .all()
        .subs(&[Sub::Proxy, Sub::Status])
        .named(names::dns1035_label)
        .fields(&["spec.clusterIP", "spec.type"])
        .defaults(defaulting::service::object)
        .updating(strategy::service_update)
        .rules(validation::service::create)
        .update_rules(validation::service::update),
    kind!("", "v1", "Endpoints", "endpoints", "endpoints", "core")
        .short(&["ep"])
        .upsert()
        .defaults(defaulting::service::endpoints),
    kind!("", "v1", "ConfigMap", "configmaps", "configmap", "core")
        .short(&["cm"])
        .rules(validation::config::config_map)
        .update_rules(validation::config::config_map_update),
    kind!("", "v1", "Secret", "secrets", "secret", "core")
        .fields(&["type"])
        .defaults(defaulting::secret)
        .creating(strategy::secret)
        .updating(strategy::secret_update)
        .rules(validation::config::secret)
        .update_rules(validation::config::secret_update),
    kind!("", "v1", "ServiceAccount", "serviceaccounts", "serviceaccount", "core").short(&["sa"]).subs(&[Sub::Token]),
    kind!("", "v1", "Event", "events", "event", "core").short(&["ev"]).fields(EVENT_FIELDS).upsert(),
    kind!("", "v1", "PersistentVolume", "persistentvolumes", "persistentvolume", "core")
        .short(&["pv"])
        .cluster()
        .subs(STATUS)
        .defaults(defaulting::storage::volume),
    kind!("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims", "persistentvolumeclaim", "core")
        .short(&["pvc"])
        .subs(STATUS)
        .defaults(defaulting::storage::claim)
        .update_rules(validation::config::claim_update),
    kind!("", "v1", "ResourceQuota", "resourcequotas", "resourcequota", "core").short(&["quota"]).subs(STATUS),
    kind!("", "v1", "LimitRange", "limitranges", "limitrange", "core")
        .short(&["limits"])
        .upsert()
        .defaults(defaulting::limit_range),
    kind!("", "v1", "ReplicationController", "replicationcontrollers", "replicationcontroller", "core")
        .short(&["rc"])
        .all()
        .subs(SCALED)
        .counted()
        .fields(&["status.replicas"])
        .defaults(defaulting::workload::replication_controller),
    kind!("", "v1", "Binding", "bindings", "binding", "core").review(),
    kind!("apps", "v1", "Deployment", "deployments", "deployment", "apps")
        .short(&["deploy"])
        .all()
        .subs(SCALED)
        .counted()
        .defaults(defaulting::workload::deployment)
        .rules(validation::workload::deployment)
        .update_rules(validation::workload::selector_immutable),
    kind!("apps", "v1", "ReplicaSet", "replicasets", "replicaset", "apps")
        .short(&["rs"])
        .all()
        .subs(SCALED)
        .counted()
        .fields(&["status.replicas"])
        .defaults(defaulting::workload::replica_set)
        .rules(validation::workload::replica_set)
        .update_rules(validation::workload::selector_immutable),
    kind!("apps", "v1", "StatefulSet", "statefulsets", "statefulset", "apps")
        .short(&["sts"])
        .all()
        .subs(SCALED)
        .counted()
        .defaults(defaulting::workload::stateful_set)
        .rules(validation::workload::stateful_set)
        .update_rules(validation::workload::stateful_set_update),
    kind!("apps", "v1", "DaemonSet", "daemonsets", "daemonset", "apps")
        .short(&["ds"])
        .all()
        .subs(STATUS)
        .counted()
        .defaults(defaulting::workload::daemon_set)
        .rules(validation::workload::daemon_set)
        .update_rules(validation::workload::selector_immutable),
    kind!("apps", "v1", "ControllerRevision", "controllerrevisions", "controllerrevision", "apps"),
    kind!("batch", "v1", "Job", "jobs", "job", "batch")
        .all()
        .subs(STATUS)
        .counted()
        .fields(&["status.successful"])
        .named(names::dns1123_subdomain)
        .defaults(defaulting::workload::job)
        .creating(strategy::job_create)
        .rules(validation::workload::job)
        .update_rules(validation::workload::job_update),
    kind!("batch", "v1", "CronJob", "cronjobs", "cronjob", "batch")
        .short(&["cj"])
        .all()
        .subs(STATUS)
        .counted()
        .defaults(defaulting::workload::cron_job)
        .rules(validation::workload::cron_job),
    kind!(
        "autoscaling",
        "v2",
        "HorizontalPodAutoscaler",
        "horizontalpodautoscalers",
        "horizontalpodautoscaler",
        "autoscaling"
    )
    .short(&["hpa"])
    .all()
    .subs(STATUS)
    .defaults(defaulting::workload::autoscaler),
    kind!("networking.k8s.io", "v1", "Ingress", "ingresses", "ingress", "networking")
        .short(&["ing"])
        .subs(STATUS)
        .counted(),
    kind!("networking.k8s.io", "v1", "IngressClass", "ingressclasses", "ingressclass", "networking")
        .cluster()
        .counted(),
    kind!("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies", "networkpolicy", "networking")
        .short(&["netpol"])
        .counted()
        .defaults(defaulting::service::network_policy),
    kind!("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets", "poddisruptionbudget", "policy")
        .short(&["pdb"])
        .subs(STATUS)
        .counted(),
    kind!("rbac.authorization.k8s.io", "v1", "ClusterRole", "clusterroles", "clusterrole", "rbac")
        .cluster()
        .named(names::path_segment),
    kind!("rbac.authorization.k8s.io", "v1", "ClusterRoleBinding", "clusterrolebindings", "clusterrolebinding", "rbac")
        .cluster()
        .named(names::path_segment)
        .defaults(defaulting::role_binding)
        .update_rules(validation::config::role_ref_immutable),
    kind!("rbac.authorization.k8s.io", "v1", "Role", "roles", "role", "rbac").named(names::path_segment),
    kind!("rbac.authorization.k8s.io", "v1", "RoleBinding", "rolebindings", "rolebinding", "rbac")
        .named(names::path_segment)
        .defaults(defaulting::role_binding)
        .update_rules(validation::config::role_ref_immutable),
    kind!("storage.k8s.io", "v1", "StorageClass", "storageclasses", "storageclass", "storage")
        .short(&["sc"])
        .cluster()
        .defaults(defaulting::storage::class),
    kind!("scheduling.k8s.io", "v1", "PriorityClass", "priorityclasses", "priorityclass", "scheduling")
        .short(&["pc"])
        .cluster()
        .defaults(defaulting::priority_class)
        .creating(strategy::priority_class_create)
        .update_rules(validation::config::priority_class_update),
    kind!("coordination.k8s.io", "v1", "Lease", "leases", "lease", "coordination").upsert().conditional(),
    kind!("node.k8s.io", "v1", "RuntimeClass", "runtimeclasses", "runtimeclass", "node").cluster(),
    kind!("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices", "endpointslice", "discovery")
        .counted()
        .defaults(defaulting::service::endpoint_slice)
        .update_rules(validation::service::endpoint_slice_update),
    kind!("events.k8s.io", "v1", "Event", "events", "event", "events")
        .short(&["ev"])
        .fields(NEW_EVENT_FIELDS)
        .stored_as("", "events")
        .upsert(),
    kind!(
        "certificates.k8s.io",
        "v1",
        "CertificateSigningRequest",
        "certificatesigningrequests",
        "certificatesigningrequest",
        "certificates"
    )
    .short(&["csr"])
    .cluster()
    .subs(&[Sub::Approval, Sub::Status])
    .fields(&["spec.signerName"]),
    kind!("authentication.k8s.io", "v1", "TokenReview", "tokenreviews", "tokenreview", "authentication")
        .cluster()
        .review(),
    kind!(
        "authentication.k8s.io",
        "v1",
        "SelfSubjectReview",
        "selfsubjectreviews",
        "selfsubjectreview",
        "authentication"
    )
    .cluster()
    .review(),
    kind!(
        "authorization.k8s.io",
        "v1",
        "LocalSubjectAccessReview",
        "localsubjectaccessreviews",
        "localsubjectaccessreview",
        "authorization"
    )
    .review(),
    kind!(
        "authorization.k8s.io",
        "v1",
        "SelfSubjectAccessReview",
        "selfsubjectaccessreviews",
        "selfsubjectaccessreview",
        "authorization"
    )
    .cluster()
    .review(),
    kind!(
        "authorization.k8s.io",
        "v1",
        "SelfSubjectRulesReview",
        "selfsubjectrulesreviews",
        "selfsubjectrulesreview",
        "authorization"
    )
    .cluster()
    .review(),
    kind!(
        "authorization.k8s.io",
        "v1",
        "SubjectAccessReview",
        "subjectaccessreviews",
        "subjectaccessreview",
        "authorization"
    )
    .cluster()
    .review(),
];
