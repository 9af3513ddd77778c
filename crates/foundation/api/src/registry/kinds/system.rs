//! Small groups: events, scheduling, coordination, node, discovery and flowcontrol.

use super::*;
use crate::table::{core as tc, networking as tn, system as t};
use crate::{conversion, defaulting, strategy, validation};

const EVENT_FIELDS: &[&str] = &[
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

pub(super) const EVENTS: &[Kind] = &[kind!("events.k8s.io", "v1", "Event", "events", "event", "events")
    .short(&["ev"])
    .fields(EVENT_FIELDS)
    .stored_as("", "events", conversion::EVENT)
    .upsert()
    .columns(tc::NEW_EVENT)
    .new_rules(validation::system::new_event)];

pub(super) const KINDS: &[Kind] = &[
    kind!("scheduling.k8s.io", "v1", "PriorityClass", "priorityclasses", "priorityclass", "scheduling")
        .short(&["pc"])
        .cluster()
        .counted()
        .columns(t::PRIORITY_CLASS)
        .defaults(defaulting::priority_class)
        .creating(strategy::priority_class_create)
        .rules(validation::system::priority_class)
        .update_rules(validation::system::priority_class_update),
    kind!("coordination.k8s.io", "v1", "Lease", "leases", "lease", "coordination")
        .upsert()
        .conditional()
        .columns(t::LEASE)
        .rules(validation::system::lease),
    kind!("node.k8s.io", "v1", "RuntimeClass", "runtimeclasses", "runtimeclass", "node")
        .cluster()
        .conditional()
        .columns(t::RUNTIME_CLASS)
        .rules(validation::system::runtime_class)
        .update_rules(validation::system::runtime_class_update),
    kind!("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices", "endpointslice", "discovery")
        .counted()
        .columns(tn::ENDPOINT_SLICE)
        .defaults(defaulting::service::endpoint_slice)
        .rules(validation::system::endpoint_slice)
        .update_rules(validation::system::endpoint_slice_update),
];

pub(super) const FLOW_CONTROL: &[Kind] = &[
    kind!("flowcontrol.apiserver.k8s.io", "v1", "FlowSchema", "flowschemas", "flowschema", "flowcontrol")
        .cluster()
        .subs(STATUS)
        .counted()
        .conditional()
        .columns(t::FLOW_SCHEMA)
        .defaults(defaulting::rows::flow_schema)
        .rules(validation::system::flow_schema),
    kind!(
        "flowcontrol.apiserver.k8s.io",
        "v1",
        "PriorityLevelConfiguration",
        "prioritylevelconfigurations",
        "prioritylevelconfiguration",
        "flowcontrol"
    )
    .cluster()
    .subs(STATUS)
    .counted()
    .conditional()
    .columns(t::PRIORITY_LEVEL)
    .defaults(defaulting::rows::priority_level_exempt)
    .rules(validation::system::priority_level),
];

pub(super) const STORAGE_MIGRATION: &[Kind] = &[kind!(
    "storagemigration.k8s.io",
    "v1beta1",
    "StorageVersionMigration",
    "storageversionmigrations",
    "storageversionmigration",
    "storagemigration"
)
.cluster()
.subs(STATUS)
.rules(validation::system::storage_migration)
.update_rules(validation::system::storage_migration_update)];
