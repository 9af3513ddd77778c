//! The control groups above the containers': one for all pods, one for each quality of service, one for each pod.

use std::sync::Arc;

use dhow_oci::cgroup::Cgroup;
use dhow_oci::spec::Limits;
use k8s_openapi::api::core::v1::{Pod, PodSpec};
use parking_lot::Mutex;

use crate::Error;
use crate::resources::{self, NodeLimits, cgroup_parent, of_pod, shares};

pub struct Cgroups {
    /// Top group of the runtime that starts the containers.
    root: String,
    limits: NodeLimits,
    /// Shares that the burstable pods were given last.
    burstable: Mutex<Option<u64>>,
}

fn failed(error: dhow_oci::Error) -> Error {
    Error::io("set up control groups")(std::io::Error::other(error))
}

impl Cgroups {
    /// Makes the groups of all pods and of the qualities of service. `cpu` is in thousandths of a processor, `memory`
    /// in bytes: what pods may use together; memory is confined to that only where some is kept for others.
    pub fn new(root: &str, limits: NodeLimits, cpu: i128, memory: Option<u64>) -> Result<Self, Error> {
        let of = |path: &str| Cgroup::new(&format!("{root}/kubepods{path}"));
        let memory = memory.and_then(|bytes| i64::try_from(bytes).ok());
        of("").create(&Limits { cpu_shares: Some(shares(cpu)), memory, ..Limits::default() }).map_err(failed)?;
        of("/besteffort").create(&Limits { cpu_shares: Some(2), ..Limits::default() }).map_err(failed)?;
        of("/burstable").create(&Limits::default()).map_err(failed)?;
        Ok(Self { root: root.to_owned(), limits, burstable: Mutex::default() })
    }

    fn of_pod(&self, spec: &PodSpec, uid: &str) -> Cgroup {
        Cgroup::new(&format!("{}/{}", self.root, cgroup_parent(spec, uid)))
    }

    /// Makes a pod's group, or brings its limits up to its spec.
    pub fn prepare_pod(&self, spec: &PodSpec, uid: &str) -> Result<(), Error> {
        self.of_pod(spec, uid).create(&Limits::from(&of_pod(spec, &self.limits))).map_err(failed)
    }

    /// As [`Cgroups::prepare_pod`], but without its limits: for while those of its containers change.
    pub fn widen_pod(&self, spec: &PodSpec, uid: &str) -> Result<(), Error> {
        let shares = of_pod(spec, &self.limits).cpu_shares;
        let open = Limits { cpu_quota: Some(-1), memory: Some(-1), cpu_shares: shares, ..Limits::default() };
        self.of_pod(spec, uid).create(&open).map_err(failed)
    }

    /// Removes a pod's group; one with something in it stays.
    pub fn remove_pod(&self, spec: &PodSpec, uid: &str) {
        self.of_pod(spec, uid).remove();
    }

    /// What a pod uses as a whole.
    pub fn usage(&self, spec: &PodSpec, uid: &str) -> dhow_oci::cgroup::Usage {
        self.of_pod(spec, uid).usage()
    }

    /// Gives the burstable pods together what they ask for together.
    pub fn share(&self, pods: &[Arc<Pod>]) {
        let specs = pods.iter().filter_map(|pod| pod.spec.as_ref()).filter(|spec| resources::qos(spec) == "Burstable");
        let wanted = shares(specs.map(|spec| resources::pod_request(spec, "cpu")).sum());
        let mut last = self.burstable.lock();
        if last.replace(wanted) == Some(wanted) {
            return;
        }
        let group = Cgroup::new(&format!("{}/kubepods/burstable", self.root));
        if let Err(error) = group.apply(&Limits { cpu_shares: Some(wanted), ..Limits::default() }) {
            tracing::warn!(%error, "cannot set the burstable pods' share of processors");
        }
    }
}
