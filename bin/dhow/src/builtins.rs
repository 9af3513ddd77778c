//! The only place where parts are plugged together.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use dhow_apiserver::{AccessConfig, ApiServer, BackupSource, ServiceRange, UserInfo};
use dhow_base::pki::SaKey;
use dhow_builder::Builder;
use dhow_builder::cloud::Door;
use dhow_client::{Client, Informer, ListParams};
use dhow_image::{ImageStore, Registries};
use dhow_net::{Cidr, Net, NetConfig};
use dhow_node::{Node, NodeConfig};
use dhow_registry::cloud::judge::Judge;
use dhow_store::Kv;
use k8s_openapi::api::core::v1::Node as NodeObject;
use rustix::mount::UnmountFlags;
use tokio::net::TcpListener;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::access;
use crate::image_peers::ImagePeers;
use crate::keys::{self, Keys};
use crate::leading::Leading;
use crate::node_access::NodeAccess;
use crate::place::{self, Place};
use crate::runtimes::{Opened, RuntimeChoice};
use crate::settings::Settings;
use crate::store::{self, Store};
use crate::{
    backups, build_kinds, builds, dns_zones, image_policies, nameserver, pod_network, publish, registry,
    registry_trust, runtimes,
};

/// Parts that run until told to stop; one that ends by itself is an error.
pub type Parts = JoinSet<Result<()>>;

/// Runs server and node on this machine until `shutdown`; calls `ready` once the node takes pods.
///
/// What touches the disk and what touches the kernel start beside each other; the rest needs only the in-process API.
/// At the end those who use the API stop first, then the API.
pub async fn run(place: &Place, shutdown: CancellationToken, ready: impl FnOnce()) -> Result<()> {
    // Before anything is made: whether we may listen at all.
    let listener = listen(place, place.api_port).await?;
    let known = pod_network::known(place)?;
    let early = async {
        match known {
            Some(networks) => open_net(place, &networks).await.map(Some),
            None => Ok(None),
        }
    };
    let ((store, mut keys, sa_key), net, images) =
        tokio::try_join!(open_state(place), early, blocking(place, "open the image store", open_images),)?;
    let node_keys = keys.open_node(place)?;
    let prepared = registry::prepare(place, &images.settings, &mut keys, Arc::clone(&store.kv)).await?;
    let judge = Judge::new(Registries::new(images.settings.registries.clone())?);
    let (api_shutdown, users_shutdown) = (CancellationToken::new(), CancellationToken::new());
    let (mut api, mut users) = (Parts::new(), Parts::new());
    let (shared, backup) = (store.shared.clone(), store.backup.clone());
    let server = start_api(place, listener, (store, sa_key), &mut keys, &judge, &api_shutdown, &mut api).await?;
    image_policies::start(Arc::clone(&judge), &server, &users_shutdown, &mut users);
    let is_shared = shared.is_some();
    let (here, beside) = watch::channel(None);
    let pushes = registry::pushes(beside);
    start_leading(place, &images.settings, &server, &keys, (shared, pushes), &users_shutdown, &mut users)?;
    if let Some(prepared) = prepared {
        let hosts = prepared.hosts.clone();
        let registry = prepared.start(place, &server, is_shared, &users_shutdown, &mut users).await?;
        here.send_replace(Some(registry.clone()));
        images.store.live_beside(registry.neighbour(&hosts));
        judge.live_beside(registry, hosts);
    }
    start_backups(place, &images.settings, &server, backup, &users_shutdown, &mut users)?;
    let access = NodeAccess::Here(Arc::clone(&server));
    let client = access.node(&place.node_name);
    let networks = tokio::select! {
        networks = pod_network::obtain(&client, place) => networks?,
        () = shutdown.cancelled() => {
            stop(users_shutdown, users, api_shutdown, api).await;
            return Ok(());
        }
    };
    let net = match net {
        Some(net) => net,
        None => open_net(place, &networks).await?,
    };
    let nodes = start_network(place, &access, &node_keys.nameserver_renewed, &net, &users_shutdown, &mut users)?;
    let (tell_ready, is_ready) = oneshot::channel();
    let identity = NodeIdentity {
        client,
        tls: node_keys.tls,
        to_nodes: node_keys.to_nodes,
        ca_pem: keys.ca.cert_pem().to_owned(),
    };
    let around = Around { proxy: access.client("system:kube-proxy")?, nodes };
    users.spawn(run_node(place.clone(), identity, around, net, images, users_shutdown.clone(), tell_ready));

    tokio::select! {
        ended = users.join_next() => return Err(ended_early(ended)),
        ended = api.join_next() => return Err(ended_early(ended)),
        () = shutdown.cancelled() => {}
        Ok(()) = is_ready => {
            ready();
            tracing::info!(api = place.api_url(), node = place.node_name, "ready");
        }
    }
    let ended = until_end(&mut api, &mut users, &shutdown).await;
    stop(users_shutdown, users, api_shutdown, api).await;
    ended
}

/// Runs the control plane alone until `shutdown`; calls `ready` once the API answers.
pub async fn run_server(place: &Place, shutdown: CancellationToken, ready: impl FnOnce()) -> Result<()> {
    let listener = listen(place, place.api_port).await?;
    let (store, mut keys, sa_key) = open_state(place).await?;
    let settings = Settings::load(&place.config)?;
    let prepared = registry::prepare(place, &settings, &mut keys, Arc::clone(&store.kv)).await?;
    let judge = Judge::new(Registries::new(settings.registries.clone())?);
    let (api_shutdown, users_shutdown) = (CancellationToken::new(), CancellationToken::new());
    let (mut api, mut users) = (Parts::new(), Parts::new());
    let (shared, backup) = (store.shared.clone(), store.backup.clone());
    let server = start_api(place, listener, (store, sa_key), &mut keys, &judge, &api_shutdown, &mut api).await?;
    image_policies::start(Arc::clone(&judge), &server, &users_shutdown, &mut users);
    let is_shared = shared.is_some();
    let (here, beside) = watch::channel(None);
    let pushes = registry::pushes(beside);
    start_leading(place, &settings, &server, &keys, (shared, pushes), &users_shutdown, &mut users)?;
    if let Some(prepared) = prepared {
        let hosts = prepared.hosts.clone();
        let registry = prepared.start(place, &server, is_shared, &users_shutdown, &mut users).await?;
        here.send_replace(Some(registry.clone()));
        judge.live_beside(registry, hosts);
    }
    start_backups(place, &settings, &server, backup, &users_shutdown, &mut users)?;
    ready();
    tracing::info!(api = place.api_url(), "ready");
    let ended = until_end(&mut api, &mut users, &shutdown).await;
    stop(users_shutdown, users, api_shutdown, api).await;
    ended
}

/// Ends well at `shutdown`; without one of its parts the cloud would only seem to run.
pub async fn until_end(api: &mut Parts, users: &mut Parts, shutdown: &CancellationToken) -> Result<()> {
    tokio::select! {
        ended = users.join_next() => Err(ended_early(ended)),
        ended = api.join_next() => Err(ended_early(ended)),
        () = shutdown.cancelled() => Ok(()),
    }
}

/// Those who use the API stop first, then the API.
pub async fn stop(users_shutdown: CancellationToken, users: Parts, api_shutdown: CancellationToken, api: Parts) {
    for (token, mut parts) in [(users_shutdown, users), (api_shutdown, api)] {
        token.cancel();
        while let Some(ended) = parts.join_next().await {
            if let Err(error) = ended.context("a part panicked").and_then(|result| result) {
                tracing::warn!(error = format!("{error:#}"), "stop");
            }
        }
    }
}

/// What nobody asked to end did end, or failed.
pub fn ended_early(ended: Option<Result<Result<()>, tokio::task::JoinError>>) -> anyhow::Error {
    match ended {
        Some(Ok(Err(error))) => error,
        Some(Err(panic)) => anyhow::Error::new(panic).context("a part panicked"),
        Some(Ok(Ok(()))) | None => anyhow!("a part ended by itself"),
    }
}

/// The store and the server's keys. Those of a cluster in etcd are there.
async fn open_state(place: &Place) -> Result<(Store, Keys, SaKey)> {
    let open_keys = blocking(place, "open keys and certificates", Keys::open);
    let (store, (keys, sa_key)) = match place.etcd {
        Some(_) => (store::open(place).await?, open_keys.await?),
        None => tokio::try_join!(store::open(place), open_keys)?,
    };
    Ok((store, keys, sa_key))
}

pub async fn part(name: &'static str, run: impl Future<Output = ()>) -> Result<()> {
    run.await;
    tracing::debug!(part = name, "ended");
    Ok(())
}

/// Runs what waits for the disk on a thread that may.
pub async fn blocking<T: Send + 'static>(
    place: &Place,
    what: &'static str,
    work: impl FnOnce(&Place) -> Result<T> + Send + 'static,
) -> Result<T> {
    let place = place.clone();
    tokio::task::spawn_blocking(move || work(&place)).await.context(what)?.context(what)
}

/// Listens on all addresses of the machine, in the family of the node's.
async fn listen(place: &Place, port: u16) -> Result<TcpListener> {
    let address = any_address(place, port);
    TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))
}

pub fn any_address(place: &Place, port: u16) -> SocketAddr {
    let any = match place.node_ip {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    SocketAddr::new(any, port)
}

fn service_ranges(place: &Place) -> Vec<ServiceRange> {
    place
        .networks
        .services
        .iter()
        .map(|range| ServiceRange { first: range.network(), prefix: range.prefix() })
        .collect()
}

/// `pods` are the networks of this node's pods, one of each family.
pub async fn open_net(place: &Place, pods: &[Cidr]) -> Result<Arc<Net>> {
    let state_dir = place.data_dir.join("net");
    fs::create_dir_all(&state_dir).with_context(|| format!("create {}", state_dir.display()))?;
    place.networks.record(&place.data_dir)?;
    let mut networks = place.networks.of_node(pods)?.into_iter();
    let primary = networks.next().context("no pod network")?;
    let mut config = NetConfig::new(primary.pods, state_dir);
    (config.mode, config.mtu) = (place.pod_network, 0);
    config.node_ips = place.node_ips.iter().copied().filter(|address| !address.is_loopback()).collect();
    config.bridge = place::BRIDGE.to_owned();
    config.table = place::TABLE.to_owned();
    config.cluster_cidr = primary.cluster;
    config.service_cidr = primary.services;
    config.secondary = networks.next();
    config.node_port_range = place::NODE_PORTS.0..=place::NODE_PORTS.1;
    config.node_port_addresses = place.nodeport_addresses.clone();
    config.plugins = runtimes::uses_plugins(place)?;
    Net::open(config).await.context("set up the pod network")
}

/// The image store, how it reaches registries, and the settings that say so.
pub struct Images {
    pub store: ImageStore,
    pub registries: Arc<Registries>,
    pub settings: Settings,
}

pub fn open_images(place: &Place) -> Result<Images> {
    let settings = Settings::load(&place.config)?;
    let registries = Registries::new(settings.registries.clone())?;
    let store = ImageStore::open(&place.data_dir.join("images"))?;
    Ok(Images { store, registries, settings })
}

/// Starts the API server and the renewal of certificates.
async fn start_api(
    place: &Place,
    listener: TcpListener,
    (store, sa_key): (Store, SaKey),
    keys: &mut Keys,
    judge: &Arc<Judge>,
    shutdown: &CancellationToken,
    parts: &mut Parts,
) -> Result<Arc<ApiServer>> {
    let config = dhow_apiserver::Config {
        advertise: SocketAddr::new(place.node_ip, place.api_port),
        service_ranges: service_ranges(place),
        api_service_ip: place.networks.api_service_ip(),
        node_ports: place::NODE_PORTS.0..=place::NODE_PORTS.1,
        sa_key,
        node_tls: Arc::clone(&keys.to_nodes),
        member_ttl: store.shared.as_ref().map(|_| place.leader_lease.as_secs()),
        backup: store.backup,
        image_judge: Some(Arc::new(image_policies::Asking(Arc::clone(judge)))),
        access: AccessConfig {
            front_proxy: Some(dhow_apiserver::FrontProxy {
                ca_pem: keys.front_proxy_ca.cert_pem().to_owned(),
                client: Arc::clone(&keys.front_proxy),
            }),
            ..access::config(place, keys.ca.cert_pem())?
        },
    };
    let server = ApiServer::new(store.kv, config, shutdown.clone()).await.context("start the API server")?;
    let serving = Arc::clone(&server).serve(listener, Arc::clone(&keys.api_tls), shutdown.clone());
    parts.spawn(part("API server", serving));
    parts.spawn(part("certificate renewal", keys.keep_renewed(place, shutdown)));
    Ok(server)
}

fn start_leading(
    place: &Place,
    settings: &Settings,
    server: &Arc<ApiServer>,
    keys: &Keys,
    (shared, pushes): (Option<Arc<dyn Kv>>, dhow_builder::cloud::Pushes),
    shutdown: &CancellationToken,
    parts: &mut Parts,
) -> Result<()> {
    let administrator = server.client(UserInfo::new("system:dhow", &[keys::MASTERS]));
    let mut objects = dns_zones::objects()?;
    objects.extend(image_policies::objects()?);
    objects.extend(build_kinds::objects()?);
    objects.extend(dhow_net::policy::definitions());
    parts.spawn(publish::keep(administrator, objects, shutdown.clone()));
    server.extend(Door::new(server.client(UserInfo::new(build_kinds::USER, &[]))));
    let leading = Leading {
        builds: settings.build_runs.resolve()?,
        pushes,
        server: Arc::clone(server),
        ca: Arc::clone(&keys.ca),
        balancer_pools: settings.load_balancer.pools().map_err(anyhow::Error::msg)?,
        cluster_autoscaler: settings.cluster_autoscaler.settings().map_err(anyhow::Error::msg)?,
        shared,
        schedulers: settings.schedulers()?,
    };
    parts.spawn(part("controllers and scheduler", leading.run(place.clone(), shutdown.clone())));
    Ok(())
}

/// Starts the scheduled backups, if the settings want some.
fn start_backups(
    place: &Place,
    settings: &Settings,
    server: &Arc<ApiServer>,
    store: Option<BackupSource>,
    shutdown: &CancellationToken,
    parts: &mut Parts,
) -> Result<()> {
    let plan = backups::plan(&settings.backups, store.as_ref())?;
    let (Some(plan), Some(store)) = (plan, store) else { return Ok(()) };
    let client = server.client(UserInfo::new("system:dhow", &[keys::MASTERS]));
    let sources = backups::Sources { store, keys: place.pki_dir(), scratch: place.data_dir.clone(), client };
    parts.spawn(part("backups", backups::keep(plan, sources, server.metrics().clone(), shutdown.clone())));
    Ok(())
}

/// Starts what makes the node's network of what the API says; returns the cluster's Nodes, which are followed for that.
/// `renewed` is told when the name server's kubeconfig has a new certificate.
pub fn start_network(
    place: &Place,
    access: &NodeAccess,
    renewed: &Arc<Notify>,
    net: &Arc<Net>,
    shutdown: &CancellationToken,
    parts: &mut Parts,
) -> Result<Informer<NodeObject>> {
    let client = access.client("system:kube-proxy")?;
    let (net_, node, stop) = (Arc::clone(net), place.node_name.clone(), shutdown.clone());
    let nodes = Informer::<NodeObject>::start(client.clone(), ListParams::default(), None, shutdown.clone());
    let peers = nodes.clone();
    parts
        .spawn(async move { dhow_net::proxy::run(client, net_, &node, stop).await.context("keep the service tables") });
    let (net_, node, stop) = (Arc::clone(net), place.node_name.clone(), shutdown.clone());
    parts.spawn(async move {
        dhow_net::peers::run(peers, net_, &node, stop).await.context("keep the ways to other nodes' pods")
    });
    let (client, net_, stop) = (access.client("system:kube-proxy")?, Arc::clone(net), shutdown.clone());
    parts.spawn(
        async move { dhow_net::service_ranges::run(client, net_, stop).await.context("keep the ways to services") },
    );
    let client = access.client("system:dhow:network-policy")?;
    // Begins here, before the node: new pods wait for their policies.
    let policies = dhow_net::policy::run(client, Arc::clone(net), &place.node_name, shutdown.clone());
    parts.spawn(part("network policies", policies));
    let client = access.client("system:dhow:load-balancer")?;
    let (net_, node, stop) = (Arc::clone(net), place.node_name.clone(), shutdown.clone());
    parts.spawn(async move {
        dhow_net::announce::run(client, net_, &node, stop).await.context("answer for load balancers")
    });
    let gateways = net.bridge_gateways();
    parts.spawn(nameserver::keep_running(place.clone(), gateways, Arc::clone(renewed), shutdown.clone()));
    Ok(nodes)
}

/// As what a node is known, and whom it believes.
pub struct NodeIdentity {
    /// Calls the API as the node.
    pub client: Client,
    pub tls: Arc<rustls::ServerConfig>,
    /// As a client of other nodes.
    pub to_nodes: Arc<rustls::ClientConfig>,
    /// The cluster's authority.
    pub ca_pem: String,
}

/// What a node learns of the cluster around it.
pub struct Around {
    /// May see Services and their endpoints.
    pub proxy: Client,
    pub nodes: Informer<NodeObject>,
}

pub async fn run_node(
    place: Place,
    identity: NodeIdentity,
    Around { proxy, nodes }: Around,
    net: Arc<Net>,
    images: Images,
    shutdown: CancellationToken,
    ready: oneshot::Sender<()>,
) -> Result<()> {
    let root_dir = place.data_dir.join("node");
    fs::create_dir_all(&root_dir).with_context(|| format!("create {}", root_dir.display()))?;
    let networks = net.config().networks().map(|networks| networks.pods.to_string()).collect();
    let runtime = runtimes::open(&place, &images, net).await?;
    let NodeIdentity { client, tls, to_nodes, ca_pem } = identity;
    let (registries, certs) = (Arc::clone(&images.registries), runtime.certs_folder().await?);
    let trust = registry_trust::follow(proxy, place.clone(), Arc::clone(&registries), ca_pem, certs, shutdown.clone());
    let mut settings = images.settings.node.settings().map_err(anyhow::Error::msg).context("read the settings")?;
    settings.cgroup_root = Some(place.cgroup());
    settings.static_pods.get_or_insert_with(|| place.data_dir.join("static-pods"));
    // Other runtimes keep their images themselves.
    let image_api = match &runtime {
        Opened::Embedded(runtime) => {
            let peers = ImagePeers { nodes, own: place.node_name.clone() };
            images.registries.set_nodes(Arc::new(peers), &to_nodes);
            let builder = builds::open(&place, &images, runtime.network()).await?;
            Some(image_api(images, builder, &shutdown))
        }
        _ => None,
    };
    let config = NodeConfig {
        name: place.node_name.clone(),
        client,
        runtime: runtime.runtime(),
        root_dir,
        node_ips: place.node_ips.iter().map(ToString::to_string).collect(),
        pod_cidrs: networks,
        kubelet_port: place.node_port,
        listen: any_address(&place, place.node_port),
        tls: Some(tls),
        cluster_dns: place.networks.dns_service_ip().to_string(),
        cluster_domain: place::CLUSTER_DOMAIN.to_owned(),
        labels: BTreeMap::from([(place::SERVES_DNS.to_owned(), "true".to_owned())]),
        image_api,
        registries,
        system_bus: system_bus(),
        settings,
    };
    let node = Node::run(config, shutdown, || {
        let _ = ready.send(());
    });
    tokio::try_join!(async { node.await.context("run the node") }, trust).map(drop)
}

/// Where systemd is to be asked, by the variable that everyone uses for it or in its usual place; `None` without it.
fn system_bus() -> Option<String> {
    const SOCKET: &str = "/run/dbus/system_bus_socket";
    let usual = || Path::new(SOCKET).exists().then(|| format!("unix:path={SOCKET}"));
    std::env::var("DBUS_SYSTEM_BUS_ADDRESS").ok().filter(|address| !address.is_empty()).or_else(usual)
}

/// Serves our image store and builder to whoever administers the node, and keeps it from filling the disk.
fn image_api(images: Images, builder: Builder, shutdown: &CancellationToken) -> dhow_node::ImageApi {
    tokio::spawn(images.store.clone().keep_room(images.settings.images, shutdown.clone()));
    let api = dhow_image::api::Api { store: images.store, registries: images.registries };
    Arc::new(move |request| {
        let (api, builder) = (api.clone(), builder.clone());
        Box::pin(async move {
            match request.uri().path() {
                path if Builder::owns(path) => builder.serve(request).await,
                _ => api.serve(request).await,
            }
        })
    })
}

/// Stops all containers of a cloud whose daemon is down, and with `remove` forgets them; returns how many pod sandboxes
/// there were.
pub async fn stop_containers(place: &Place, remove: bool) -> Result<usize> {
    // Nothing was ever started here: then nothing is to be made, either.
    let choice = runtimes::choose(place)?;
    if !place.data_dir.exists() || choice == RuntimeChoice::Embedded && !runtimes::embedded_dir(place).exists() {
        return Ok(0);
    }
    let net = open_net(place, &known_networks(place)?).await?;
    let images = blocking(place, "open the image store", open_images).await?;
    fs::create_dir_all(&place.run_dir).with_context(|| format!("create {}", place.run_dir.display()))?;
    let runtime = runtimes::open(place, &images, net).await?;
    if let Opened::Embedded(runtime) = &runtime {
        // Steps that a killed daemon left.
        builds::sandboxes(place, runtime.network(), &images.settings.builds).await?;
    }
    let stopped = runtime.stop_all(place, remove).await?;
    if remove {
        runtime.leave().await?;
    }
    Ok(stopped)
}

/// The node's networks, or any if it never had some: then nothing is in them.
fn known_networks(place: &Place) -> Result<Vec<Cidr>> {
    Ok(pod_network::known(place)?.unwrap_or_else(|| place.networks.first()))
}

/// Removes all network state and mounts of a cloud whose containers are stopped. Its folders are the caller's.
pub async fn purge(place: &Place) -> Result<()> {
    // A network is opened to be removed, so that nothing of it needs to be remembered.
    open_net(place, &known_networks(place)?).await?.purge().await.context("remove the pod network")?;
    registry_trust::forget(place)?;
    unmount_below(&[&place.data_dir, &place.run_dir])
}

/// Unmounts what is mounted below these folders, newest first.
fn unmount_below(folders: &[&Path]) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("read the mounts")?;
    for line in mounts.lines().rev() {
        let Some(point) = line.split(' ').nth(4).map(unescape) else { continue };
        if folders.iter().any(|folder| point.starts_with(folder)) {
            rustix::mount::unmount(&point, UnmountFlags::DETACH)
                .with_context(|| format!("unmount {}", point.display()))?;
        }
    }
    Ok(())
}

/// The kernel writes white space and backslashes of mount points as `\ooo`.
fn unescape(field: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let mut bytes = Vec::new();
    let mut rest = field.as_bytes();
    while let [first, tail @ ..] = rest {
        let code = tail.get(..3).and_then(|d| std::str::from_utf8(d).ok()).and_then(|d| u8::from_str_radix(d, 8).ok());
        match code.filter(|_| *first == b'\\') {
            Some(code) => (bytes.push(code), rest = &tail[3..]),
            None => (bytes.push(*first), rest = tail),
        };
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_unescaped() {
        assert_eq!(unescape("/a\\040b/c\\134d/e"), PathBuf::from("/a b/c\\d/e"));
        assert_eq!(unescape("/plain"), PathBuf::from("/plain"));
    }
}
