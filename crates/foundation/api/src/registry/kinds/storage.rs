//! The group storage.k8s.io.

use super::*;
use crate::defaulting;
use crate::table::storage as t;
use crate::validation::storage as rules;

pub(super) const KINDS: &[Kind] = &[
    kind!("storage.k8s.io", "v1", "CSIDriver", "csidrivers", "csidriver", "storage")
        .cluster()
        .conditional()
        .columns(t::CSI_DRIVER)
        .defaults(defaulting::rows::csi_driver_modes)
        .rules(rules::csi_driver)
        .update_rules(rules::csi_driver_update),
    kind!("storage.k8s.io", "v1", "CSINode", "csinodes", "csinode", "storage")
        .cluster()
        .conditional()
        .columns(t::CSI_NODE)
        .rules(rules::csi_node)
        .update_rules(rules::csi_node_update),
    kind!("storage.k8s.io", "v1", "CSIStorageCapacity", "csistoragecapacities", "csistoragecapacity", "storage")
        .conditional()
        .columns(t::CSI_CAPACITY)
        .rules(rules::csi_capacity)
        .update_rules(rules::csi_capacity_update),
    kind!("storage.k8s.io", "v1", "StorageClass", "storageclasses", "storageclass", "storage")
        .short(&["sc"])
        .cluster()
        .columns(t::CLASS)
        .defaults(defaulting::storage::class)
        .rules(rules::class)
        .update_rules(rules::class_update),
    kind!("storage.k8s.io", "v1", "VolumeAttachment", "volumeattachments", "volumeattachment", "storage")
        .cluster()
        .subs(STATUS)
        .conditional()
        .columns(t::ATTACHMENT)
        .defaults(defaulting::rows::attachment)
        .rules(rules::attachment)
        .update_rules(rules::attachment_update),
    kind!(
        "storage.k8s.io",
        "v1",
        "VolumeAttributesClass",
        "volumeattributesclasses",
        "volumeattributesclass",
        "storage"
    )
    .short(&["vac"])
    .cluster()
    .conditional()
    .columns(t::ATTRIBUTES_CLASS)
    .rules(rules::attributes_class)
    .update_rules(rules::attributes_class_update),
];
