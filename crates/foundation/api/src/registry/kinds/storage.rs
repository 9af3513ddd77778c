//! The group storage.k8s.io.

use super::*;
use crate::defaulting;
use crate::table::storage as t;

pub(super) const KINDS: &[Kind] = &[
    kind!("storage.k8s.io", "v1", "CSIDriver", "csidrivers", "csidriver", "storage")
        .cluster()
        .conditional()
        .columns(t::CSI_DRIVER)
        .defaults(defaulting::rows::csi_driver_modes),
    kind!("storage.k8s.io", "v1", "CSINode", "csinodes", "csinode", "storage")
        .cluster()
        .conditional()
        .columns(t::CSI_NODE),
    kind!("storage.k8s.io", "v1", "CSIStorageCapacity", "csistoragecapacities", "csistoragecapacity", "storage")
        .conditional()
        .columns(t::CSI_CAPACITY),
    kind!("storage.k8s.io", "v1", "StorageClass", "storageclasses", "storageclass", "storage")
        .short(&["sc"])
        .cluster()
        .columns(t::CLASS)
        .defaults(defaulting::storage::class),
    kind!("storage.k8s.io", "v1", "VolumeAttachment", "volumeattachments", "volumeattachment", "storage")
        .cluster()
        .subs(STATUS)
        .conditional()
        .columns(t::ATTACHMENT)
        .defaults(defaulting::rows::attachment),
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
    .columns(t::ATTRIBUTES_CLASS),
];
