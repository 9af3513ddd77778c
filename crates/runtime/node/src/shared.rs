//! What the workers of all pods share: clients, watches, and what the node as a whole has decided.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use dhow_client::{EventRecorder, EventType, Informer};
use k8s_openapi::api::core::v1::{Node, ObjectReference, Pod, PodSpec, Service};
use k8s_openapi::api::node::v1::RuntimeClass;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::NodeConfig;
use crate::admission::{self, NodeFacts};
use crate::cgroups::Cgroups;
use crate::csi::Csi;
use crate::devices::Devices;
use crate::disk::DiskMeter;
use crate::dra::Dra;
use crate::objects::Objects;
use crate::probes::{Kind, Report};
use crate::resources::{List, NodeLimits};
use crate::shutdown;
use crate::static_pods::Mirrors;
use crate::status::Ended;
use crate::volumes::pod_certificate::Certificates;

/// Checks of one probe so far: namespace, pod, container, kind, whether they passed.
pub type ProbeKey = (String, String, String, Kind, bool);

pub struct Shared {
    pub config: NodeConfig,
    pub services: Informer<Service>,
    /// This node's own object.
    pub node: Informer<Node>,
    pub events: EventRecorder,
    pub objects: Objects,
    pub limits: NodeLimits,
    pub cgroups: Option<Cgroups>,
    /// What `containerID` begins with.
    pub runtime_name: String,
    /// The wall clock, or a test's.
    pub now: fn() -> SystemTime,
    /// Specs of the pods that were let in, with the resources they were given, by uid.
    admitted: Mutex<BTreeMap<String, PodSpec>>,
    /// Why the node ends a pod, and how long it gets, by uid.
    verdicts: Mutex<HashMap<String, (Ended, Option<Duration>)>>,
    /// Wakes the worker of a pod, by uid.
    workers: Mutex<HashMap<String, Arc<Notify>>>,
    probed: Mutex<BTreeMap<ProbeKey, u64>>,
    pub mirrors: Mirrors,
    pub csi: Csi,
    pub devices: Arc<Devices>,
    pub dra: Arc<Dra>,
    pub disk: DiskMeter,
    pub certificates: Certificates,
    /// The node's conditions of being short of something.
    pressures: watch::Sender<BTreeSet<&'static str>>,
    /// The machine goes down.
    shutting_down: watch::Sender<bool>,
}

/// What the agent has around it when it starts.
pub struct Around {
    pub services: Informer<Service>,
    pub node: Informer<Node>,
    pub events: EventRecorder,
    pub objects: Objects,
    pub limits: NodeLimits,
    pub cgroups: Option<Cgroups>,
    pub runtime_name: String,
}

impl Shared {
    pub fn new(config: NodeConfig, around: Around, now: fn() -> SystemTime) -> Self {
        let Around { services, node, events, objects, limits, cgroups, runtime_name } = around;
        let csi = Csi::new(&config.root_dir);
        let devices = Arc::new(Devices::new(&config.root_dir));
        let dra = Arc::new(Dra::new(&config.root_dir));
        Self {
            config,
            services,
            node,
            events,
            objects,
            limits,
            cgroups,
            runtime_name,
            now,
            admitted: Mutex::default(),
            verdicts: Mutex::default(),
            workers: Mutex::default(),
            probed: Mutex::default(),
            mirrors: Mirrors::default(),
            csi,
            devices,
            dra,
            disk: DiskMeter::default(),
            certificates: Certificates::default(),
            pressures: watch::Sender::default(),
            shutting_down: watch::Sender::default(),
        }
    }

    /// The node's object as it is known here, if it is.
    fn own(&self) -> Option<Arc<Node>> {
        self.node.list().into_iter().next()
    }

    /// What pods may use of the node.
    pub fn allocatable(&self) -> List {
        let known = self.own().and_then(|node| node.status.as_ref()?.allocatable.clone());
        known.unwrap_or_else(|| crate::capacity::allocatable(&self.config))
    }

    /// Lets a pod in, or says why not. One that is `running` was let in before, and stays.
    pub fn admit(&self, pod: &Pod, running: bool) -> Result<(), Ended> {
        let Some(spec) = &pod.spec else { return Ok(()) };
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        if !running && *self.shutting_down.borrow() {
            return Err(Ended { reason: "NodeShutdown", message: shutdown::REFUSED.to_owned() });
        }
        let node = self.own();
        let labels = node.and_then(|node| node.metadata.labels.clone()).unwrap_or_default();
        let allocatable = self.allocatable();
        let facts = NodeFacts {
            name: &self.config.name,
            labels: &labels,
            allocatable: &allocatable,
            unsafe_sysctls: &self.config.settings.allowed_unsafe_sysctls,
            pressures: &self.pressures.borrow().clone(),
            apparmor: admission::has_apparmor(),
        };
        // Held until the pod is in, so that two pods are never let into the same room.
        let mut admitted = self.admitted.lock();
        if !running && !admitted.contains_key(&uid) {
            let others: Vec<&PodSpec> = admitted.values().collect();
            admission::admit(&facts, &others, pod)?;
        }
        admitted.insert(uid, spec.clone());
        Ok(())
    }

    /// The pods that are in, but for one.
    pub fn others(&self, uid: &str) -> Vec<PodSpec> {
        self.admitted.lock().iter().filter(|(other, _)| *other != uid).map(|(_, spec)| spec.clone()).collect()
    }

    /// Counts a pod that is in with what it was given now.
    pub fn give(&self, uid: &str, spec: PodSpec) {
        self.admitted.lock().insert(uid.to_owned(), spec);
    }

    /// A pod uses nothing of the node any more; those that wait for room look again.
    pub fn leave(&self, uid: &str) {
        self.devices.take_back(uid);
        if self.admitted.lock().remove(uid).is_some() {
            self.wake_all();
        }
    }

    /// Nothing is left of a pod.
    pub fn forget(&self, uid: &str) {
        self.objects.forget(uid);
        self.certificates.forget(uid);
        self.leave(uid);
        self.verdicts.lock().remove(uid);
        self.workers.lock().remove(uid);
    }

    /// Ends a pod, within `grace` or else its own.
    pub fn end(&self, uid: &str, ended: Ended, grace: Option<Duration>) {
        self.verdicts.lock().entry(uid.to_owned()).or_insert((ended, grace));
        self.wake(uid);
    }

    pub fn verdict(&self, uid: &str) -> Option<Ended> {
        self.verdicts.lock().get(uid).map(|(ended, _)| ended.clone())
    }

    pub fn verdict_grace(&self, uid: &str) -> Option<Duration> {
        self.verdicts.lock().get(uid).and_then(|(_, grace)| *grace)
    }

    pub fn register(&self, uid: &str, wake: &Arc<Notify>) {
        self.workers.lock().insert(uid.to_owned(), Arc::clone(wake));
    }

    pub fn wake(&self, uid: &str) {
        if let Some(worker) = self.workers.lock().get(uid) {
            worker.notify_one();
        }
    }

    pub fn wake_all(&self) {
        self.workers.lock().values().for_each(|worker| worker.notify_one());
    }

    /// The handler that a pod's runtime class names; none for a pod without one. The error is for the pod's events.
    pub async fn runtime_handler(&self, spec: &PodSpec) -> Result<String, String> {
        let failed = |error: &dyn std::fmt::Display| format!("failed to get sandbox runtime: {error}");
        let handler = match spec.runtime_class_name.as_deref().filter(|name| !name.is_empty()) {
            Some(name) => {
                let found = self.config.client.get::<RuntimeClass>(None, name).await;
                found.map_err(|error| failed(&error))?.handler
            }
            None => String::new(),
        };
        if spec.host_users == Some(false) {
            // A runtime that does not know of them would run the pod as the host's root.
            let all = self.config.runtime.handlers().await.map_err(|error| failed(&error))?;
            if all.iter().any(|one| one.name == handler && !one.user_namespaces) || all.is_empty() {
                return Err(format!("RuntimeClass handler {handler:?} does not support user namespaces"));
            }
        }
        Ok(handler)
    }

    /// What the node is short of, in the names of its conditions.
    pub fn set_pressures(&self, now: BTreeSet<&'static str>) {
        self.pressures.send_if_modified(|old| {
            let changed = *old != now;
            *old = now;
            changed
        });
    }

    pub fn set_shutting_down(&self, now: bool) {
        self.shutting_down.send_if_modified(|old| std::mem::replace(old, now) != now);
    }

    pub fn shutting_down(&self) -> watch::Receiver<bool> {
        self.shutting_down.subscribe()
    }

    pub fn pressures(&self) -> watch::Receiver<BTreeSet<&'static str>> {
        self.pressures.subscribe()
    }

    /// An event about the node itself.
    pub fn node_event(&self, kind: EventType, reason: &str, message: &str) {
        let about = ObjectReference {
            kind: Some("Node".into()),
            name: Some(self.config.name.clone()),
            uid: Some(self.config.name.clone()),
            ..ObjectReference::default()
        };
        self.events.event(about, kind, reason, message);
    }

    pub fn count_probe(&self, pod: &Pod, report: &Report) {
        let text = |s: &Option<String>| s.clone().unwrap_or_default();
        let meta = &pod.metadata;
        let (container, passed) = (report.container.clone(), report.outcome.is_ok());
        let key = (text(&meta.namespace), text(&meta.name), container, report.kind, passed);
        *self.probed.lock().entry(key).or_default() += 1;
    }

    /// Checks so far.
    pub fn probe_counts(&self) -> BTreeMap<ProbeKey, u64> {
        self.probed.lock().clone()
    }
}
