//! The core group.

use super::*;
use crate::table::{core as t, workloads as tw};
use crate::{defaulting, strategy, validation};

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
    "status.podIPs",
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

pub(super) const KINDS: &[Kind] = &[
    kind!("", "v1", "Namespace", "namespaces", "namespace", "core")
        .short(&["ns"])
        .cluster()
        .subs(&[Sub::Finalize, Sub::Status])
        .verbs(NAMESPACE_VERBS)
        .fields(&["status.phase"])
        .named(names::dns1123_label)
        .columns(t::NAMESPACE)
        .defaults(defaulting::namespace)
        .creating(strategy::namespace_create)
        .updating(strategy::namespace_update),
    kind!("", "v1", "Node", "nodes", "node", "core")
        .short(&["no"])
        .cluster()
        .subs(&[Sub::Proxy, Sub::Status])
        .fields(&["spec.unschedulable"])
        .columns(t::NODE)
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
        .columns(crate::table::pod::COLUMNS)
        .defaults(defaulting::pod::object)
        .creating(strategy::pod_create)
        .rules(validation::pod::rules)
        .new_rules(validation::pod::create)
        .update_rules(validation::pod::update),
    kind!("", "v1", "PodTemplate", "podtemplates", "podtemplate", "core")
        .columns(tw::POD_TEMPLATE)
        .defaults(defaulting::pod::pod_template_object)
        .rules(validation::core::pod_template),
    kind!("", "v1", "Service", "services", "service", "core")
        .short(&["svc"])
        .all()
        .subs(&[Sub::Proxy, Sub::Status])
        .named(names::dns1035_label)
        .fields(&["spec.clusterIP", "spec.type"])
        .upsert()
        .columns(t::SERVICE)
        .defaults(defaulting::service::object)
        .updating(strategy::service_update)
        .rules(validation::service::create)
        .update_rules(validation::service::update),
    kind!("", "v1", "Endpoints", "endpoints", "endpoints", "core")
        .short(&["ep"])
        .upsert()
        .columns(t::ENDPOINTS)
        .defaults(defaulting::service::endpoints)
        .rules(validation::core::endpoints),
    kind!("", "v1", "ConfigMap", "configmaps", "configmap", "core")
        .short(&["cm"])
        .columns(t::CONFIG_MAP)
        .rules(validation::config::config_map)
        .update_rules(validation::config::config_map_update),
    kind!("", "v1", "Secret", "secrets", "secret", "core")
        .fields(&["type"])
        .columns(t::SECRET)
        .defaults(defaulting::secret)
        .creating(strategy::secret)
        .updating(strategy::secret_update)
        .rules(validation::config::secret)
        .update_rules(validation::config::secret_update),
    kind!("", "v1", "ServiceAccount", "serviceaccounts", "serviceaccount", "core")
        .short(&["sa"])
        .subs(&[Sub::Token])
        .columns(t::SERVICE_ACCOUNT),
    kind!("", "v1", "Event", "events", "event", "core")
        .short(&["ev"])
        .fields(EVENT_FIELDS)
        .upsert()
        .columns(t::EVENT)
        .rules(validation::system::event),
    kind!("", "v1", "PersistentVolume", "persistentvolumes", "persistentvolume", "core")
        .short(&["pv"])
        .cluster()
        .subs(STATUS)
        .columns(crate::table::storage::VOLUME)
        .defaults(defaulting::storage::volume)
        .rules(validation::storage::volume)
        .update_rules(validation::storage::volume_update),
    kind!("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims", "persistentvolumeclaim", "core")
        .short(&["pvc"])
        .subs(STATUS)
        .columns(crate::table::storage::CLAIM)
        .defaults(defaulting::storage::claim)
        .rules(validation::storage::claim)
        .update_rules(validation::storage::claim_update),
    kind!("", "v1", "ResourceQuota", "resourcequotas", "resourcequota", "core")
        .short(&["quota"])
        .subs(STATUS)
        .columns(t::RESOURCE_QUOTA)
        .defaults(defaulting::resource_quota)
        .rules(validation::core::resource_quota)
        .update_rules(validation::core::resource_quota_update),
    kind!("", "v1", "LimitRange", "limitranges", "limitrange", "core")
        .short(&["limits"])
        .upsert()
        .defaults(defaulting::limit_range)
        .rules(validation::core::limit_range),
    kind!("", "v1", "ReplicationController", "replicationcontrollers", "replicationcontroller", "core")
        .short(&["rc"])
        .all()
        .subs(SCALED)
        .counted()
        .fields(&["status.replicas"])
        .columns(tw::REPLICA_SET)
        .defaults(defaulting::workload::replication_controller)
        .rules(validation::workload::replication_controller),
    kind!("", "v1", "ComponentStatus", "componentstatuses", "componentstatus", "core")
        .short(&["cs"])
        .cluster()
        .verbs(&["get", "list"])
        .columns(t::COMPONENT_STATUS),
    kind!("", "v1", "Binding", "bindings", "binding", "core").review(),
];
