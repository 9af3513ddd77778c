//! What is attached to nodes: how many volumes of a driver a node may have, and disks that pods of a node cannot share.
//!
//! Volumes of drivers that were part of Kubernetes once count for the CSI driver that took them over, on nodes where it did.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use k8s_openapi::api::core::v1::{PersistentVolume, Pod, Volume};
use k8s_openapi::api::storage::v1::CSINode;

use super::matching::{annotation, volume_name};
use super::storage::{ClaimKey, Storage};
use crate::counts::Slot;
use crate::snapshot::Snapshot;

/// Annotation of a `CSINode`: the drivers that CSI took over on the node.
const MIGRATED: &str = "storage.alpha.kubernetes.io/migrated-plugins";

/// Drivers that were part of Kubernetes, with the CSI driver that took each over.
const TAKEN_OVER: [(&str, &str); 6] = [
    ("kubernetes.io/aws-ebs", "ebs.csi.aws.com"),
    ("kubernetes.io/azure-disk", "disk.csi.azure.com"),
    ("kubernetes.io/cinder", "cinder.csi.openstack.org"),
    ("kubernetes.io/gce-pd", "pd.csi.storage.gke.io"),
    ("kubernetes.io/portworx-volume", "pxd.portworx.com"),
    ("kubernetes.io/vsphere-volume", "csi.vsphere.vmware.com"),
];

/// One volume that takes one of its driver's places on a node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Attachable {
    /// What the driver was called before CSI: the volume only counts where that is migrated.
    migrated: Option<&'static str>,
    driver: String,
    handle: String,
}

impl Attachable {
    fn csi(driver: &str, handle: &str) -> Self {
        Self { migrated: None, driver: driver.to_owned(), handle: handle.to_owned() }
    }

    /// Of a driver that CSI took over.
    fn migrated(plugin: &str, handle: &str) -> Option<Self> {
        let (plugin, driver) = TAKEN_OVER.iter().find(|(name, _)| *name == plugin)?;
        // Identifiers may be whole paths, such as aws://zone/volume.
        let handle = handle.rsplit('/').next().unwrap_or(handle);
        Some(Self { migrated: Some(plugin), driver: (*driver).to_owned(), handle: handle.to_owned() })
    }

    fn of_volume(volume: &PersistentVolume) -> Option<Self> {
        let spec = volume.spec.as_ref()?;
        if let Some(csi) = &spec.csi {
            return Some(Self::csi(&csi.driver, &csi.volume_handle));
        }
        let old = [
            ("kubernetes.io/aws-ebs", spec.aws_elastic_block_store.as_ref().map(|disk| &disk.volume_id)),
            ("kubernetes.io/azure-disk", spec.azure_disk.as_ref().map(|disk| &disk.disk_uri)),
            ("kubernetes.io/cinder", spec.cinder.as_ref().map(|disk| &disk.volume_id)),
            ("kubernetes.io/gce-pd", spec.gce_persistent_disk.as_ref().map(|disk| &disk.pd_name)),
            ("kubernetes.io/portworx-volume", spec.portworx_volume.as_ref().map(|disk| &disk.volume_id)),
            ("kubernetes.io/vsphere-volume", spec.vsphere_volume.as_ref().map(|disk| &disk.volume_path)),
        ];
        old.into_iter().find_map(|(plugin, handle)| Self::migrated(plugin, handle?))
    }

    /// Of a claim, whether its volume is there already or yet to be made.
    pub fn of_claim(known: &Storage, key: &ClaimKey) -> Option<Self> {
        let claim = known.claims.get(key)?;
        if let Some(volume) = known.volumes.get(volume_name(claim)) {
            return Self::of_volume(volume);
        }
        if let Some(volume) = known.taken.get(key).and_then(|taken| known.volumes.get(taken.volume.as_ref()?)) {
            return Self::of_volume(volume);
        }
        let driver = known.class(claim)?.provisioner.as_str();
        // Not yet made, so it has no name of its own.
        let handle = format!("claim {}/{}", key.0, key.1);
        match TAKEN_OVER.iter().find(|(name, _)| *name == driver) {
            Some((plugin, driver)) => Some(Self { migrated: Some(plugin), driver: (*driver).to_owned(), handle }),
            None => Some(Self::csi(driver, &handle)),
        }
    }

    fn of_inline(volume: &Volume) -> Option<Self> {
        let old = [
            ("kubernetes.io/aws-ebs", volume.aws_elastic_block_store.as_ref().map(|disk| &disk.volume_id)),
            ("kubernetes.io/azure-disk", volume.azure_disk.as_ref().map(|disk| &disk.disk_uri)),
            ("kubernetes.io/cinder", volume.cinder.as_ref().map(|disk| &disk.volume_id)),
            ("kubernetes.io/gce-pd", volume.gce_persistent_disk.as_ref().map(|disk| &disk.pd_name)),
            ("kubernetes.io/portworx-volume", volume.portworx_volume.as_ref().map(|disk| &disk.volume_id)),
            ("kubernetes.io/vsphere-volume", volume.vsphere_volume.as_ref().map(|disk| &disk.volume_path)),
        ];
        old.into_iter().find_map(|(plugin, handle)| Self::migrated(plugin, handle?))
    }
}

/// A disk that a pod names itself, without a claim, and that is not for several pods of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Disk {
    kind: &'static str,
    name: String,
    /// Where it is to be found; any in common is the same disk.
    places: BTreeSet<String>,
    read_only: bool,
}

impl Disk {
    fn of(volume: &Volume) -> Option<Self> {
        let one =
            |kind, name: &str, read_only| Self { kind, name: name.to_owned(), places: BTreeSet::new(), read_only };
        if let Some(disk) = &volume.gce_persistent_disk {
            return Some(one("gce", &disk.pd_name, disk.read_only == Some(true)));
        }
        if let Some(disk) = &volume.aws_elastic_block_store {
            // Such a disk is never shared, not even to be read.
            return Some(one("aws", &disk.volume_id, false));
        }
        if let Some(disk) = &volume.iscsi {
            return Some(one("iscsi", &disk.iqn, disk.read_only == Some(true)));
        }
        let disk = volume.rbd.as_ref()?;
        let name = format!("{}/{}", disk.pool.as_deref().unwrap_or("rbd"), disk.image);
        let places = disk.monitors.iter().cloned().collect();
        Some(Self { kind: "rbd", name, places, read_only: disk.read_only == Some(true) })
    }

    fn clashes(&self, other: &Self) -> bool {
        let place = self.places.is_empty() || self.places.iter().any(|place| other.places.contains(place));
        self.kind == other.kind && self.name == other.name && place && !(self.read_only && other.read_only)
    }
}

/// What a pod's volumes that are no claims take.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Inline {
    pub attachables: Vec<Attachable>,
    pub disks: Vec<Disk>,
}

impl Inline {
    pub fn of(pod: &Pod) -> Self {
        let volumes = || pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
        Self {
            attachables: volumes().filter_map(Attachable::of_inline).collect(),
            disks: volumes().filter_map(Disk::of).collect(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.attachables.is_empty() && self.disks.is_empty()
    }

    /// Whether a pod of the node has one of these disks.
    pub fn clashes(&self, snapshot: &Snapshot, slot: Slot) -> bool {
        let residents = || snapshot.row(slot).residents.iter().filter_map(|key| snapshot.placed_pod(key));
        !self.disks.is_empty()
            && residents().any(|pod| pod.inline.disks.iter().any(|there| self.disks.iter().any(|d| d.clashes(there))))
    }
}

/// How many volumes of each driver a node may have; drivers that say nothing have no limit.
fn limits(node: &CSINode) -> HashMap<&str, usize> {
    let drivers = node.spec.drivers.iter().filter_map(|driver| {
        let count = driver.allocatable.as_ref()?.count?;
        Some((driver.name.as_str(), usize::try_from(count).unwrap_or(0)))
    });
    drivers.collect()
}

/// Whether a node has places left for these volumes, beside those that its pods use and those that are attached to it.
pub(crate) fn has_places(snapshot: &Snapshot, slot: Slot, wanted: &[Attachable]) -> bool {
    let (known, row) = (snapshot.storage(), snapshot.row(slot));
    let Some(csi) = known.csi_nodes.get(&*row.name) else { return true };
    let limits = limits(csi);
    let migrated = annotation(&csi.metadata, MIGRATED).unwrap_or_default();
    let counts = |one: &Attachable| {
        limits.contains_key(one.driver.as_str())
            && one.migrated.is_none_or(|plugin| migrated.split(',').any(|name| name.trim() == plugin))
    };
    let new: BTreeSet<(&str, &str)> =
        wanted.iter().filter(|one| counts(one)).map(|one| (one.driver.as_str(), one.handle.as_str())).collect();
    if new.is_empty() {
        return true;
    }
    let attached = known.attached.get(&*row.name);
    // Most nodes are far from any limit, and need not be counted exactly.
    let at_most = row.volumes + attached.map_or(0, |volumes| volumes.len()) + new.len();
    if new.iter().all(|(driver, _)| limits.get(driver).is_some_and(|limit| at_most <= *limit)) {
        return true;
    }
    let mut there: BTreeSet<(String, String)> = BTreeSet::new();
    for pod in row.residents.iter().filter_map(|key| snapshot.placed_pod(key)) {
        let claims = pod.claims.iter().filter_map(|key| Attachable::of_claim(known, key));
        let volumes = claims.chain(pod.inline.attachables.iter().cloned()).filter(|one| counts(one));
        there.extend(volumes.map(|one| (one.driver, one.handle)));
    }
    for (driver, volume) in attached.into_iter().flat_map(|volumes| volumes.values()) {
        let csi = known.volumes.get(volume).and_then(|volume| volume.spec.as_ref()?.csi.as_ref());
        there.extend(csi.map(|csi| (driver.clone(), csi.volume_handle.clone())));
    }
    let mut sums: BTreeMap<&str, usize> = BTreeMap::new();
    for (driver, _) in &there {
        *sums.entry(driver).or_default() += 1;
    }
    let mut more: BTreeMap<&str, usize> = BTreeMap::new();
    for (driver, handle) in new {
        if !there.contains(&(driver.to_owned(), handle.to_owned())) {
            *more.entry(driver).or_default() += 1;
        }
    }
    more.into_iter().all(|(driver, new)| {
        let old = sums.get(driver).copied().unwrap_or(0);
        limits.get(driver).is_none_or(|limit| old + new <= *limit)
    })
}
