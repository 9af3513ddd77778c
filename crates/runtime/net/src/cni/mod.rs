//! Standard CNI plugins in the place of our own bridge: pods' interfaces, addresses and host ports are theirs, services and
//! policies stay ours where the traffic passes the node.
//!
//! Who was connected is on disk before the plugins are asked, so that what they did is undone whatever happens: on failure, after
//! a crash, and again and again where they fail to undo it.

mod attachment;
mod call;
mod list;
mod state;
mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use dhow_cri::{NetworkRequest, PodNetwork};
use serde_json::{Map, Value, json};
use tokio::sync::{Notify, watch};

use crate::cni::attachment::{Attachment, Attachments};
use crate::cni::call::{Container, Plugins, Verb};
use crate::cni::list::NetworkList;
use crate::shape::Bandwidth;
use crate::{Family, Net, Result};

const INTERFACE: &str = "eth0";
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(60);

/// Where things are.
#[derive(Debug, Clone)]
pub struct CniConfig {
    /// Network configurations; the first by name counts.
    pub conf_dir: PathBuf,
    /// Where plugins are looked for.
    pub bin_dirs: Vec<PathBuf>,
    /// Records of connected pods: outlive the daemon.
    pub state_dir: PathBuf,
    /// Pods' network namespaces: go with the machine.
    pub netns_dir: PathBuf,
}

/// The pod network that plugins make.
pub struct CniNetwork {
    net: Arc<Net>,
    config: CniConfig,
    plugins: Plugins,
    attachments: Attachments,
    /// Whoever changes a sandbox' network holds its own; they are few, and go with their sandboxes.
    locks: parking_lot::Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>,
    telling: tokio::sync::Mutex<()>,
    /// Sandboxes that are gone, but what plugins did for them is not.
    leaving: parking_lot::Mutex<BTreeSet<String>>,
    left: Arc<Notify>,
    problem: watch::Receiver<Option<String>>,
}

impl CniNetwork {
    /// Follows the folder of configurations from now on. That it holds none is a problem of pods, not of the node.
    ///
    /// # Errors
    /// Where the records or namespaces of pods cannot be.
    pub fn open(net: Arc<Net>, config: CniConfig) -> Result<Arc<Self>> {
        let host_netns = net.kernel.namespace()?;
        let attachments = Attachments::open(config.state_dir.clone(), config.netns_dir.clone())?;
        let this = Arc::new(Self {
            plugins: Plugins { folders: config.bin_dirs.clone(), host_netns },
            attachments,
            locks: parking_lot::Mutex::default(),
            telling: tokio::sync::Mutex::default(),
            leaving: parking_lot::Mutex::default(),
            left: Arc::new(Notify::new()),
            problem: state::follow(config.conf_dir.clone())?,
            net,
            config,
        });
        tokio::spawn(keep_leaving(Arc::downgrade(&this), Arc::clone(&this.left)));
        Ok(this)
    }

    fn lock(&self, sandbox: &str) -> Arc<tokio::sync::Mutex<()>> {
        Arc::clone(self.locks.lock().entry(sandbox.to_owned()).or_default())
    }

    async fn add(&self, netns: BorrowedFd<'_>, request: &NetworkRequest) -> Result<Vec<IpAddr>, dhow_cri::Error> {
        let id = request.sandbox_id.as_str();
        let setup = |why: String| failure(format!("failed to setup network for sandbox {id:?}: {why}"));
        if let Some(known) = self.attachments.get(id)?.filter(|known| known.result.is_some()) {
            return Ok(self.ordered(known.addresses()));
        }
        let list = NetworkList::find(&self.config.conf_dir).map_err(setup)?;
        // In a version that every plugin of that name knows, whatever the list is in.
        let loopback = json!({"cniVersion": "0.3.1", "name": "cni-loopback", "type": "loopback"});
        // One that never was here could not undo anything, either.
        for plugin in list.plugins.iter().chain([&loopback]) {
            self.plugins.find(Verb::Add, plugin).map_err(setup)?;
        }
        let capabilities = self.capabilities(request)?;
        let netns = self.attachments.pin(id, netns)?;
        let mut attachment = Attachment {
            list: list.document(),
            interface: INTERFACE.to_owned(),
            args: arguments(request),
            capabilities,
            result: None,
        };
        self.attachments.put(id, &attachment)?;
        let container = Container { id, netns: Some(&netns), interface: &attachment.interface, args: &attachment.args };
        let own = Container { interface: "lo", ..container.clone() };
        self.plugins.call(Verb::Add, &own, &loopback).await.map_err(setup)?;
        let mut result: Option<Value> = None;
        for plugin in &list.plugins {
            let told = list.told(plugin, &attachment.capabilities, result.as_ref());
            result = Some(self.plugins.call(Verb::Add, &container, &told).await.map_err(setup)?);
        }
        attachment.result = result;
        self.attachments.put(id, &attachment)?;
        let addresses = self.ordered(attachment.addresses());
        if addresses.is_empty() {
            return Err(setup("failed to find network info for sandbox: the plugins gave no address".to_owned()));
        }
        self.tell_table().await?;
        self.net.gate.pass(request, &addresses).await?;
        Ok(addresses)
    }

    /// Asks the plugins to undo it, last to first. Repeating it is fine.
    async fn del(&self, id: &str) -> Result<(), dhow_cri::Error> {
        self.net.gate.forget(id);
        let Some(attachment) = self.attachments.get(id)? else { return Ok(self.attachments.unpin(id)?) };
        let destroy = |why: String| failure(format!("failed to destroy network for sandbox {id:?}: {why}"));
        let list = NetworkList::parse(attachment.list.to_string().as_bytes()).map_err(destroy)?;
        let netns = self.attachments.netns(id);
        let container =
            Container { id, netns: netns.as_deref(), interface: &attachment.interface, args: &attachment.args };
        let previous = attachment.result.as_ref().filter(|_| list.remembers());
        for plugin in list.plugins.iter().rev() {
            let told = list.told(plugin, &attachment.capabilities, previous);
            self.plugins.call(Verb::Del, &container, &told).await.map_err(destroy)?;
        }
        self.attachments.remove(id)?;
        self.tell_table().await?;
        Ok(())
    }

    /// Asks whether everything is as it was made.
    async fn check(&self, id: &str) -> Result<(), String> {
        let attachment = self.attachments.get(id).map_err(|error| error.to_string())?;
        let Some(attachment) = attachment.filter(|attachment| attachment.result.is_some()) else { return Ok(()) };
        let list = NetworkList::parse(attachment.list.to_string().as_bytes())?;
        if !list.checks() {
            return Ok(());
        }
        let netns = self.attachments.netns(id);
        let container =
            Container { id, netns: netns.as_deref(), interface: &attachment.interface, args: &attachment.args };
        for plugin in &list.plugins {
            let told = list.told(plugin, &attachment.capabilities, attachment.result.as_ref());
            self.plugins.call(Verb::Check, &container, &told).await?;
        }
        Ok(())
    }

    /// Tells the plugins of today's list which pods there are, so that they free the rest.
    async fn collect_garbage(&self) -> Result<(), String> {
        // Without a list there is nobody to tell.
        let Ok(list) = NetworkList::find(&self.config.conf_dir) else { return Ok(()) };
        if !list.collects_garbage() {
            return Ok(());
        }
        let all = self.attachments.all().map_err(|error| error.to_string())?;
        let valid: Vec<Value> =
            all.iter().map(|(id, held)| json!({"containerID": id, "ifname": held.interface})).collect();
        for plugin in &list.plugins {
            let mut told = list.told(plugin, &Map::new(), None);
            told["cni.dev/valid-attachments"] = valid.clone().into();
            self.plugins.call(Verb::Gc, &Container::default(), &told).await?;
        }
        Ok(())
    }

    async fn leave(&self, id: &str) -> Result<(), dhow_cri::Error> {
        let lock = self.lock(id);
        let _changing = lock.lock().await;
        let undone = self.del(id).await;
        match &undone {
            Ok(()) => {
                self.leaving.lock().remove(id);
                self.locks.lock().remove(id);
            }
            Err(_) => {
                self.leaving.lock().insert(id.to_owned());
                self.left.notify_one();
            }
        }
        undone
    }

    /// Has our table know all pods that plugins connected.
    async fn tell_table(&self) -> Result<()> {
        // Read and written by one at a time, or the last one might know less than the one before.
        let _telling = self.telling.lock().await;
        let pods = self.attachments.all()?.values().flat_map(Attachment::addresses).collect();
        self.net.set_plugin_pods(&pods).await
    }

    /// The primary family's first.
    fn ordered(&self, mut addresses: Vec<IpAddr>) -> Vec<IpAddr> {
        let primary = self.net.config().pod_cidr.family();
        addresses.sort_by_key(|address| Family::of(*address) != primary);
        addresses
    }

    /// What plugins may ask for.
    fn capabilities(&self, request: &NetworkRequest) -> Result<Map<String, Value>> {
        /// What is left to the plugin: as much as it takes.
        const BURST: u64 = u32::MAX as u64;
        let mut all = Map::new();
        let ranges: Vec<Value> =
            self.net.config().networks().map(|networks| json!([{"subnet": networks.pods.to_string()}])).collect();
        all.insert("ipRanges".to_owned(), ranges.into());
        let mapped = request.port_mappings.iter().filter(|mapping| mapping.host_port != 0);
        let mapped: Vec<Value> = mapped
            .map(|mapping| {
                let protocol = if mapping.protocol.is_empty() { "tcp".into() } else { mapping.protocol.to_lowercase() };
                let mut one = json!({"hostPort": mapping.host_port, "containerPort": mapping.container_port});
                one["protocol"] = protocol.into();
                if let Some(ip) = mapping.host_ip.filter(|ip| !ip.is_unspecified()) {
                    one["hostIP"] = ip.to_string().into();
                }
                one
            })
            .collect();
        if !mapped.is_empty() {
            all.insert("portMappings".to_owned(), mapped.into());
        }
        let bandwidth = Bandwidth::parse(&request.annotations)?;
        if bandwidth.is_limited() {
            let mut limits = Map::new();
            for (direction, rate) in [("ingress", bandwidth.ingress), ("egress", bandwidth.egress)] {
                if let Some(rate) = rate {
                    limits.insert(format!("{direction}Rate"), rate.into());
                    limits.insert(format!("{direction}Burst"), BURST.into());
                }
            }
            all.insert("bandwidth".to_owned(), limits.into());
        }
        Ok(all)
    }
}

#[async_trait::async_trait]
impl PodNetwork for CniNetwork {
    async fn attach(&self, netns: BorrowedFd<'_>, request: &NetworkRequest) -> Result<Vec<IpAddr>, dhow_cri::Error> {
        let lock = self.lock(&request.sandbox_id);
        let added = {
            let _changing = lock.lock().await;
            self.add(netns, request).await
        };
        if added.is_err()
            && let Err(error) = self.leave(&request.sandbox_id).await
        {
            tracing::warn!(sandbox = request.sandbox_id, %error, "cannot undo a failed attach; trying again later");
        }
        added
    }

    async fn detach(&self, sandbox_id: &str) -> Result<(), dhow_cri::Error> {
        self.leave(sandbox_id).await
    }

    fn problem(&self) -> Option<watch::Receiver<Option<String>>> {
        Some(self.problem.clone())
    }

    async fn retain(&self, live_sandboxes: &[String]) -> Result<(), dhow_cri::Error> {
        let live: BTreeSet<&str> = live_sandboxes.iter().map(String::as_str).collect();
        let known = self.attachments.all()?;
        let here = self.attachments.pinned()?;
        let all: BTreeSet<&String> = known.keys().chain(&here).collect();
        for id in all.into_iter().filter(|id| !live.contains(id.as_str())) {
            if let Err(error) = self.leave(id).await {
                tracing::warn!(sandbox = id, %error, "cannot free the network of a pod that is gone; trying again later");
            }
        }
        self.tell_table().await?;
        for id in live_sandboxes {
            if let Err(error) = self.check(id).await {
                tracing::warn!(sandbox = id, error, "a pod's network is not as it was made");
            }
        }
        if let Err(error) = self.collect_garbage().await {
            tracing::warn!(error, "plugins do not free what belongs to no pod");
        }
        Ok(())
    }
}

/// Tries again what plugins failed to undo, for as long as the network is there.
async fn keep_leaving(network: Weak<CniNetwork>, left: Arc<Notify>) {
    let mut pause = FIRST_RETRY;
    loop {
        left.notified().await;
        loop {
            tokio::time::sleep(pause).await;
            let Some(network) = network.upgrade() else { return };
            let leaving: Vec<String> = network.leaving.lock().iter().cloned().collect();
            for id in leaving {
                if let Err(error) = network.leave(&id).await {
                    tracing::warn!(sandbox = id, %error, "cannot free the network of a pod that is gone");
                }
            }
            if network.leaving.lock().is_empty() {
                pause = FIRST_RETRY;
                break;
            }
            pause = (pause * 2).min(LAST_RETRY);
        }
    }
}

impl Drop for CniNetwork {
    fn drop(&mut self) {
        // Whoever tries again looks once more, and finds nobody to do it for.
        self.left.notify_one();
    }
}

/// In the words that events have.
fn failure(text: String) -> dhow_cri::Error {
    dhow_cri::Error::Internal { context: text, source: None }
}

/// What plugins are told of the pod. Values with a semicolon would be two.
fn arguments(request: &NetworkRequest) -> String {
    let pod = &request.pod;
    [
        ("IgnoreUnknown", "1"),
        ("K8S_POD_NAMESPACE", &pod.namespace),
        ("K8S_POD_NAME", &pod.name),
        ("K8S_POD_INFRA_CONTAINER_ID", &request.sandbox_id),
        ("K8S_POD_UID", &pod.uid),
    ]
    .map(|(key, value)| format!("{key}={value}"))
    .join(";")
}
