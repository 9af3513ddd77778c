//! The node agent: registers the node, runs the pods bound to it and reports on them.

mod actions;
mod admission;
mod backoff;
mod capacity;
mod cgroups;
mod conditions;
mod config;
mod containers;
mod csi;
mod devices;
mod disk;
mod dra;
mod env;
mod error;
mod eviction;
mod grpc;
mod hooks;
mod hosts;
mod http_check;
mod image_volumes;
mod objects;
mod options;
mod plugins;
mod probes;
mod pull_secrets;
mod pulls;
mod register;
mod resize;
mod resolver;
mod resources;
mod server;
mod settings;
mod shared;
mod shutdown;
mod start;
mod static_pods;
mod status;
mod stop;
#[cfg(test)]
mod testing;
mod volumes;
mod worker;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use dhow_client::{Change, Client, EventRecorder, Informer, ListParams};
use dhow_cri::Runtime;
pub use error::Error;
use futures::StreamExt;
use futures::future::BoxFuture;
use http_body_util::combinators::UnsyncBoxBody;
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

use cgroups::Cgroups;
use objects::Objects;
pub use options::NodeOptions;
use resources::NodeLimits;
pub use settings::{Amount, NodeSettings, ShutdownGroup, Signal, Threshold};
use shared::Shared;
use static_pods::StaticPods;
use worker::Worker;

#[derive(Clone)]
pub struct NodeConfig {
    pub name: String,
    pub client: Client,
    pub runtime: Arc<dyn Runtime>,
    pub root_dir: PathBuf,
    /// At least one; of each address family at most one, the primary family's first.
    pub node_ips: Vec<String>,
    /// The networks of its pods, as its object gets them when the node makes it.
    pub pod_cidrs: Vec<String>,
    /// Port the node's own server is reached at; 0 leaves it out of the node's status.
    pub kubelet_port: u16,
    /// Where the node's own server listens.
    pub listen: SocketAddr,
    /// The server's certificate and the authority of its clients; without it no server runs.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    pub cluster_dns: String,
    pub cluster_domain: String,
    pub labels: BTreeMap<String, String>,
    /// What serves `/images` of the node's server, when the runtime has more to offer there than to list and import.
    pub image_api: Option<ImageApi>,
    /// How registries are reached; what is the cluster's own gets a token of the pod's account.
    pub registries: Arc<dhow_image::Registries>,
    /// Address of the bus on which systemd and logind are, for shutdowns in order.
    pub system_bus: Option<String>,
    pub settings: NodeSettings,
}

impl NodeConfig {
    /// The node's address in the primary family.
    pub(crate) fn node_ip(&self) -> &str {
        self.node_ips.first().map_or("", String::as_str)
    }
}

/// Answers requests below `/images`.
pub type ImageApi = Arc<
    dyn Fn(
            http::Request<hyper::body::Incoming>,
        ) -> BoxFuture<'static, http::Response<UnsyncBoxBody<bytes::Bytes, std::io::Error>>>
        + Send
        + Sync,
>;

pub struct Node;

struct Handle {
    pod: watch::Sender<Option<Arc<Pod>>>,
    wake: Arc<Notify>,
}

impl Node {
    /// Runs until `stop`; containers go on without it and are adopted by the next run. Calls `ready` once the
    /// node is registered as Ready, its server answers, and it knows its pods.
    pub async fn run(config: NodeConfig, stop: CancellationToken, ready: impl FnOnce()) -> Result<(), Error> {
        // What is done for pods goes on for a moment when the agent is to end with its machine.
        let shutdown = CancellationToken::new();
        let _ends_with_us = shutdown.clone().drop_guard();
        import_images(&config).await;
        // What drivers mount has to be seen here, and what is mounted here by drivers.
        volumes::share(&config.root_dir.join("pods"))?;
        volumes::share(&config.root_dir.join("plugins"))?;
        // Bound before the node is announced, so that nobody is sent to a port where nothing listens.
        let listener = match &config.tls {
            Some(tls) => {
                let listen = |error| Error::io(format!("listen on {}", config.listen))(error);
                Some((tokio::net::TcpListener::bind(config.listen).await.map_err(listen)?, Arc::clone(tls)))
            }
            None => None,
        };
        let registered = register::register(&config).await?;

        let mut runtime_events = config.runtime.events();
        let scope = ListParams { field_selector: Some(format!("spec.nodeName={}", config.name)), ..Default::default() };
        let pods = Informer::<Pod>::start(config.client.clone(), scope, None, shutdown.clone());
        let services = Informer::start(config.client.clone(), ListParams::default(), None, shutdown.clone());
        pods.synced().await;
        services.synced().await;
        let own = ListParams { field_selector: Some(format!("metadata.name={}", config.name)), ..Default::default() };
        let own = Informer::start(config.client.clone(), own, None, shutdown.clone());
        own.synced().await;
        let limits = NodeLimits {
            memory: capacity::memory_bytes(),
            pod_pids: config.settings.pod_pids,
            huge_pages: capacity::huge_pages()
                .into_iter()
                .filter(|(_, bytes)| *bytes > 0)
                .map(|(size, _)| size)
                .collect(),
        };
        let around = shared::Around {
            services,
            node: own,
            events: EventRecorder::new(config.client.clone(), "kubelet").on_host(&config.name),
            objects: Objects::new(config.client.clone(), &config.name, shutdown.clone()),
            cgroups: pod_cgroups(&config, &limits)?,
            limits,
            runtime_name: config.runtime.version().await?.name,
        };
        let shared = Arc::new(Shared::new(config, around, std::time::SystemTime::now));
        let facts = register::Changing {
            pressures: shared.pressures(),
            in_use: shared.csi.in_use(),
            devices: shared.devices.counts(),
            shutting_down: shared.shutting_down(),
            network: shared.config.runtime.network_problem(),
        };
        tokio::spawn(register::heartbeat(
            shared.config.clone(),
            registered,
            Informer::clone(&shared.node),
            facts,
            shutdown.clone(),
        ));
        start_plugins(&shared, &shutdown);
        tokio::spawn(eviction::run(Arc::clone(&shared), Informer::clone(&pods), shutdown.clone()));
        tokio::spawn(shutdown::run(Arc::clone(&shared), Informer::clone(&pods), shutdown.clone()));

        if let Some((listener, tls)) = listener {
            let (known, counting) = (Informer::clone(&pods), Arc::clone(&shared));
            let (counted, measured) = (Informer::clone(&pods), Arc::clone(&shared));
            let registries = Arc::clone(&shared.config.registries);
            let server = Arc::new(server::Server {
                node: shared.config.name.clone(),
                root_dir: shared.config.root_dir.clone(),
                runtime: Arc::clone(&shared.config.runtime),
                pods: Box::new(move || known.list()),
                image_api: shared.config.image_api.clone(),
                image_traffic: Box::new(move || registries.traffic()),
                probes: Box::new(move || counting.probe_counts()),
                settings: shared.config.settings.clone(),
                meter: server::Meter::default(),
                volumes: volume_stats(&shared),
                disks: Box::new(move || disk::DiskMeter::known(&measured, &counted.list())),
            });
            let shutdown = shutdown.clone();
            tokio::spawn(async move { server::serve(listener, &tls, server, shutdown).await });
        }
        let (changes, mut changed) = mpsc::unbounded_channel();
        pods.on_change(move |change| {
            let gone = matches!(change, Change::Deleted(_));
            let _ = changes.send((Arc::clone(change.object()), gone));
        });
        let mut workers: HashMap<String, Handle> = HashMap::new();
        let (statics, mut static_changed) = mpsc::unbounded_channel();
        // Known before what is found running, and before their mirrors.
        if let Some(found) = StaticPods::open(&shared.config)? {
            for (uid, pod) in &found.known {
                workers.insert(uid.clone(), spawn(&shared, Some(Arc::clone(pod)), uid.clone(), &shutdown));
            }
            tokio::spawn(found.follow(statics.clone(), shutdown.clone()));
        }
        for sandbox in shared.config.runtime.list_sandboxes().await? {
            let known = pods.list().iter().any(|p| p.metadata.uid.as_ref() == Some(&sandbox.pod.uid));
            if !known {
                workers
                    .entry(sandbox.pod.uid.clone())
                    .or_insert_with(|| spawn(&shared, None, sandbox.pod.uid, &shutdown));
            }
        }
        for (pod, _) in csi::record::all(&shared.config.root_dir) {
            let uid = pod.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if !pods.list().iter().any(|p| p.metadata.uid.as_ref() == Some(&uid)) {
                workers.entry(uid.clone()).or_insert_with(|| spawn(&shared, None, uid, &shutdown));
            }
        }
        // What was prepared for pods that are gone is undone.
        for uid in shared.dra.pods().await? {
            if !pods.list().iter().any(|p| p.metadata.uid.as_ref() == Some(&uid)) {
                workers.entry(uid.clone()).or_insert_with(|| spawn(&shared, None, uid, &shutdown));
            }
        }
        let mut known: BTreeSet<String> = workers.keys().cloned().collect();
        known.extend(pods.list().iter().filter_map(|pod| pod.metadata.uid.clone()));
        shared.devices.keep_only(&known);
        tokio::spawn(volumes::local::run(Arc::clone(&shared), shutdown.clone()));
        ready();
        let ending = async {
            stop.cancelled().await;
            shutdown::at_the_end(&shared, &pods).await;
        };
        tokio::pin!(ending);
        loop {
            tokio::select! {
                () = &mut ending => return Ok(()),
                Some(pod) = static_changed.recv() => {
                    let uid = pod.metadata.uid.clone().unwrap_or_default();
                    workers.retain(|_, handle| !handle.pod.is_closed());
                    match workers.get(&uid) {
                        Some(handle) => drop(handle.pod.send_replace(Some(pod))),
                        None => drop(workers.insert(uid.clone(), spawn(&shared, Some(pod), uid, &shutdown))),
                    }
                }
                Some((pod, gone)) = changed.recv() => {
                    if let Some(uid) = static_pods::mirrored(&pod) {
                        mirror_changed(&shared, uid, &pod, gone, workers.get(uid));
                        continue;
                    }
                    let uid = pod.metadata.uid.clone().unwrap_or_default();
                    if let Some(cgroups) = &shared.cgroups {
                        cgroups.share(&pods.list());
                    }
                    let value = (!gone).then(|| Arc::clone(&pod));
                    workers.retain(|_, handle| !handle.pod.is_closed());
                    match workers.get(&uid) {
                        Some(handle) => drop(handle.pod.send_replace(value)),
                        None if gone => {}
                        None => drop(workers.insert(uid.clone(), spawn(&shared, value, uid, &shutdown))),
                    }
                }
                event = runtime_events.next() => {
                    let Some(event) = event else {
                        // The stream ended or fell behind: subscribe anew and let every worker look again.
                        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                        runtime_events = shared.config.runtime.events();
                        workers.values().for_each(|handle| handle.wake.notify_one());
                        continue;
                    };
                    if let Some(handle) = workers.get(&event.pod.uid) {
                        handle.wake.notify_one();
                    }
                }
            }
        }
    }
}

fn volume_stats(shared: &Arc<Shared>) -> server::VolumeStats {
    let shared = Arc::clone(shared);
    Box::new(move |uid| {
        let shared = Arc::clone(&shared);
        Box::pin(async move { csi::stats::of_pod(&shared, &uid).await })
    })
}

/// Listens for CSI drivers, device plugins and drivers of dynamic resource allocation.
fn start_plugins(shared: &Arc<Shared>, shutdown: &CancellationToken) {
    csi::follow(shared);
    dra::clean_up(&shared.dra, &shared.config.client, &shared.config.name, shutdown);
    let weak = Arc::downgrade(shared);
    shared.devices.on_change(move |uid| {
        if let Some(shared) = weak.upgrade() {
            shared.wake(uid);
        }
    });
    let watching = plugins::run(Arc::clone(shared), shutdown.clone());
    tokio::spawn(async move {
        if let Err(error) = watching.await {
            tracing::error!(%error, "plugins are not looked for any more");
        }
    });
    let listening = devices::run(Arc::clone(&shared.devices), shutdown.clone());
    tokio::spawn(async move {
        if let Err(error) = listening.await {
            tracing::error!(%error, "device plugins cannot present themselves");
        }
    });
}

/// Takes note of a mirror pod. One that somebody deletes, or that mirrors nothing any more, goes at once; what is still
/// there to be mirrored gets another.
fn mirror_changed(shared: &Arc<Shared>, uid: &str, mirror: &Arc<Pod>, gone: bool, worker: Option<&Handle>) {
    shared.mirrors.set(uid, (!gone).then(|| Arc::clone(mirror)));
    if !gone && (worker.is_none() || mirror.metadata.deletion_timestamp.is_some()) {
        let (shared, mirror) = (Arc::clone(shared), Arc::clone(mirror));
        tokio::spawn(async move { static_pods::delete_mirror(&shared, &mirror).await });
        return;
    }
    if let Some(worker) = worker {
        worker.wake.notify_one();
    }
}

fn spawn(shared: &Arc<Shared>, pod: Option<Arc<Pod>>, uid: String, shutdown: &CancellationToken) -> Handle {
    let (sender, receiver) = watch::channel(pod);
    let wake = Arc::new(Notify::new());
    shared.register(&uid, &wake);
    let worker = Worker::new(Arc::clone(shared), uid, receiver, Arc::clone(&wake));
    tokio::spawn(worker.run(shutdown.clone()));
    Handle { pod: sender, wake }
}

/// The control groups above the pods', where they are this agent's to keep.
fn pod_cgroups(config: &NodeConfig, limits: &NodeLimits) -> Result<Option<Cgroups>, Error> {
    let Some(root) = &config.settings.cgroup_root else { return Ok(None) };
    let allocatable = capacity::allocatable(config);
    let cpu = resources::amount(Some(&allocatable), "cpu").unwrap_or(0);
    let memory = allocatable.get("memory").and_then(|q| resources::whole(&q.0));
    let memory = memory.filter(|_| config.settings.reserved.contains_key("memory"));
    Cgroups::new(root, limits.clone(), cpu, memory).map(Some)
}

/// Loads `<root>/images/*.tar*`, so that a node without a registry has images.
async fn import_images(config: &NodeConfig) {
    for entry in std::fs::read_dir(config.root_dir.join("images")).into_iter().flatten().flatten() {
        let path = entry.path();
        if !entry.file_name().to_string_lossy().contains(".tar") {
            continue;
        }
        let result = match tokio::fs::File::open(&path).await {
            Ok(file) => config.runtime.import_image(Box::new(file)).await.map_err(Error::from),
            Err(error) => Err(Error::io("open archive")(error)),
        };
        match result {
            Ok(names) => tracing::info!(archive = %path.display(), ?names, "imported images"),
            Err(error) => tracing::warn!(archive = %path.display(), %error, "cannot import images"),
        }
    }
}
