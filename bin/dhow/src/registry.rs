//! The cluster's own registry of images on a server: its listener, its objects in the API, its names.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use dhow_apiserver::{ApiServer, UserInfo};
use dhow_client::leader::LeaseSpec;
use dhow_image::Registries;
use dhow_registry::cloud::{self, ApiAccess, kinds};
use dhow_registry::{Config, Keeping, Registry};
use dhow_store::{Blob, FsBlob, Kv};
use rustls::ServerConfig;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::builtins::{Parts, any_address, part};
use crate::keys::{Keys, MASTERS};
use crate::place::{self, Place};
use crate::registry_settings::{Bucket, Resolved, Storage};
use crate::settings::Settings;
use crate::{leading, publish};

/// Its records in the store, outside of what the API server keeps.
const RECORDS: &str = "/images/";
/// Below these lies what signs its tokens.
pub const TOKEN_KEYS: &str = "/images/k/";
pub const NAMESPACE: &str = "dhow-registry";
pub const SERVICE: &str = "registry";
/// On its EndpointSlices: what else references may call it, separated by commas.
pub const HOSTS: &str = "registry.dhow.io/hosts";
const USER: &str = "system:dhow:registry";
const RBAC: &str = "rbac.authorization.k8s.io";

/// What is made before the API is served, as its certificate is renewed with the others.
pub struct Prepared {
    settings: Resolved,
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    kv: Arc<dyn Kv>,
    registries: Arc<Registries>,
    pub hosts: Vec<String>,
}

/// `None`: this server has none.
pub async fn prepare(place: &Place, settings: &Settings, keys: &mut Keys, kv: Arc<dyn Kv>) -> Result<Option<Prepared>> {
    // Of its own: those of the node know this registry by other means.
    let registries = Registries::new(settings.registries.clone())?;
    let Some(settings) = settings.registry.resolve(place)? else { return Ok(None) };
    let address = any_address(place, settings.port);
    let listener = match TcpListener::bind(address).await {
        Ok(listener) => listener,
        Err(error) if settings.port_is_asked => {
            return Err(error).with_context(|| format!("listen on {address} for the registry (registry.port)"));
        }
        // Nobody may want one.
        Err(error) => {
            tracing::warn!(%error, %address, "no registry of images: set registry.port to a free port");
            return Ok(None);
        }
    };
    let tls = keys.open_registry(place, &names(place))?;
    let hosts = hosts(place, settings.port);
    Ok(Some(Prepared { settings, listener, tls, kv, registries, hosts }))
}

impl Prepared {
    /// Serves it until `shutdown`. `shared`: other servers use the store, too.
    pub async fn start(
        self,
        place: &Place,
        server: &Arc<ApiServer>,
        shared: bool,
        shutdown: &CancellationToken,
        parts: &mut Parts,
    ) -> Result<Registry> {
        let Self { settings, listener, tls, kv, registries, hosts } = self;
        let (blobs, folder) = open_blobs(settings.storage).await?;
        let client = server.client(UserInfo::new(USER, &[]));
        let access = ApiAccess::new(client.clone(), hosts.clone());
        let config = Config {
            prefix: RECORDS.to_owned(),
            grace: settings.grace,
            keep_untagged: settings.keep_untagged,
            registries,
            metrics: server.metrics().clone(),
            ..Config::default()
        };
        let registry = Registry::open(config, kv, blobs, Arc::clone(&access) as _).await;
        let registry = registry.map_err(|error| anyhow!("{error}")).context("open the registry")?;
        let disk = folder.filter(|_| settings.collect_at < 100).map(|folder| (folder, settings.collect_at));
        let keeping = Keeping { every: settings.collect_every, disk };
        let administrator = server.client(UserInfo::new("system:dhow", &[MASTERS]));
        parts.spawn(part("registry", registry.clone().serve(listener, Some(tls), shutdown.clone())));
        let lease = shared.then(|| LeaseSpec {
            namespace: NAMESPACE.to_owned(),
            name: "registry-replication".to_owned(),
            identity: format!("{}_{}", place.node_name, uuid::Uuid::new_v4()),
            timing: leading::timing(place.leader_lease),
        });
        let running = cloud::run(registry.clone(), access, client, credentials_for(&hosts), lease, shutdown.clone());
        let (objects, stop) = (objects(place, settings.port, &hosts)?, shutdown.clone());
        let projects = async move {
            // Its rights come first.
            tokio::select! {
                () = publish::publish(&administrator, &objects) => running.await,
                () = stop.cancelled() => {}
            }
        };
        parts.spawn(part("registry's projects", projects));
        parts.spawn(part("registry's usage", registry.clone().keep_usage(shutdown.clone())));
        parts.spawn(part("registry's collection", registry.clone().keep_collected(keeping, shutdown.clone())));
        Ok(registry)
    }
}

/// Tells builds of what is pushed to the registry beside them, once there is one.
pub fn pushes(beside: watch::Receiver<Option<Registry>>) -> dhow_builder::cloud::Pushes {
    Arc::new(move || {
        let mut beside = beside.clone();
        Box::pin(async move {
            let registry = beside.wait_for(Option::is_some).await.ok().and_then(|found| found.clone());
            // This server has none.
            let Some(registry) = registry else { return std::future::pending().await };
            let tagged = registry.tagged().await;
            tagged.inspect_err(|error| tracing::warn!(%error, "follow what is pushed; trying again")).ok()
        })
    })
}

/// The blobs, and the folder they lie in if they do.
async fn open_blobs(storage: Storage) -> Result<(Arc<dyn Blob>, Option<PathBuf>)> {
    match storage {
        Storage::Folder(folder) => {
            let path = folder.clone();
            let blobs = tokio::task::spawn_blocking(move || FsBlob::open(path)).await?;
            Ok((Arc::new(blobs.with_context(|| format!("open {}", folder.display()))?), Some(folder)))
        }
        Storage::S3(Bucket { s3 }) => {
            let blobs = s3.open("registry.storage.s3")?;
            let checked = blobs.clone();
            // The cluster does without its registry better than the other way round.
            tokio::spawn(async move {
                if let Err(error) = checked.check().await {
                    tracing::error!(error = dhow_base::chain(&error), "the registry's bucket cannot be used");
                }
            });
            Ok((Arc::new(blobs), None))
        }
    }
}

/// What pods call it.
pub fn service_names() -> [String; 3] {
    let short = format!("{SERVICE}.{NAMESPACE}");
    [format!("{short}.svc.{}", place::CLUSTER_DOMAIN), format!("{short}.svc"), short]
}

/// What its certificate is for.
fn names(place: &Place) -> Vec<String> {
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned(), place.node_name.clone()];
    names.extend(service_names());
    names.extend(place.tls_sans.iter().cloned());
    names.extend(place.node_ips.iter().map(ToString::to_string));
    names.dedup();
    names
}

/// What references call it: the machine's addresses first.
fn hosts(place: &Place, port: u16) -> Vec<String> {
    let mut hosts: Vec<String> = place.node_ips.iter().map(|ip| SocketAddr::new(*ip, port).to_string()).collect();
    let named = [place.node_name.as_str(), "localhost", "127.0.0.1"].into_iter();
    let named = place.tls_sans.iter().map(String::as_str).chain(named);
    hosts.extend(named.map(|name| match name.parse::<IpAddr>() {
        Ok(address) => SocketAddr::new(address, port).to_string(),
        Err(_) => format!("{name}:{port}"),
    }));
    hosts.extend(service_names());
    hosts.dedup();
    hosts
}

/// Names that mean another registry on another machine are no hosts for credentials.
fn credentials_for(hosts: &[String]) -> Vec<String> {
    hosts.iter().filter(|host| !is_local(host)).cloned().collect()
}

pub fn is_local(host: &str) -> bool {
    host.starts_with("localhost:") || host.starts_with("127.")
}

fn objects(place: &Place, port: u16, hosts: &[String]) -> Result<Vec<Value>> {
    let definitions: Vec<Value> =
        serde_saphyr::from_multiple(kinds::DEFINITIONS).context("read the registry's definitions")?;
    let group = "registry.dhow.io";
    let rule = |groups: &[&str], resources: &[&str], verbs: &[&str]| json!({"apiGroups": groups, "resources": resources, "verbs": verbs});
    let own = json!({
        "apiVersion": format!("{RBAC}/v1"), "kind": "ClusterRole", "metadata": {"name": USER},
        "rules": [
            rule(&["authentication.k8s.io"], &["tokenreviews"], &["create"]),
            rule(&["authorization.k8s.io"], &["subjectaccessreviews"], &["create"]),
            rule(&["apiextensions.k8s.io"], &["customresourcedefinitions"], &["get", "list", "watch"]),
            rule(&[group], &["projects", "robotaccounts", "replicationrules"], &["get", "list", "watch"]),
            rule(
                &[group],
                &["projects/status", "robotaccounts/status", "replicationrules/status"],
                &["patch"],
            ),
            rule(&["", "events.k8s.io"], &["events"], &["create", "patch"]),
            rule(&["coordination.k8s.io"], &["leases"], &["get", "list", "watch", "create", "update"]),
            // Robots' credentials go where their owners want them.
            rule(&[""], &["secrets"], &["get", "create", "update"]),
            rule(&[group], &["robotaccounts/finalizers"], &["update"]),
        ],
    });
    let bound = json!({
        "apiVersion": format!("{RBAC}/v1"), "kind": "ClusterRoleBinding", "metadata": {"name": USER},
        "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": USER},
        "subjects": [{"apiGroup": RBAC, "kind": "User", "name": USER}],
    });
    // Who edits a namespace has robots there; what these may do is for projects to say.
    let aggregated = |to: &str, verbs: &[&str]| {
        json!({
            "apiVersion": format!("{RBAC}/v1"), "kind": "ClusterRole",
            "metadata": {
                "name": format!("dhow:registry:{to}"),
                "labels": {format!("{RBAC}/aggregate-to-{to}"): "true"},
            },
            "rules": [rule(&[group], &["robotaccounts"], verbs)],
        })
    };
    let changes = ["create", "delete", "deletecollection", "patch", "update"];
    let mut all = definitions;
    all.extend([own, bound, aggregated("edit", &changes), aggregated("view", &["get", "list", "watch"])]);
    all.extend(service(place, port, hosts));
    all.push(hosting(hosts));
    Ok(all)
}

/// The Service and this server's part in it. A machine that only knows itself by its loopback address is no endpoint.
fn service(place: &Place, port: u16, hosts: &[String]) -> Vec<Value> {
    let mut objects = vec![
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}),
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": SERVICE, "namespace": NAMESPACE},
            "spec": {"ports": [{"name": "https", "port": 443, "targetPort": port, "protocol": "TCP"}]},
        }),
    ];
    for address in place.node_ips.iter().filter(|address| !address.is_loopback()) {
        let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
        let name = format!("{SERVICE}-{}-{}", place.node_name, family.to_ascii_lowercase());
        objects.push(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": name, "namespace": NAMESPACE,
                "labels": {"kubernetes.io/service-name": SERVICE, "endpointslice.kubernetes.io/managed-by": "dhow"},
                "annotations": {HOSTS: hosts.join(",")},
            },
            "addressType": family,
            "endpoints": [{"addresses": [address], "conditions": {"ready": true}, "nodeName": place.node_name}],
            "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
        }));
    }
    objects
}

/// Where tools look for a cluster's registry (KEP-1755).
fn hosting(hosts: &[String]) -> Value {
    let [inside, ..] = service_names();
    let host = hosts.first().map(String::as_str).unwrap_or_default();
    let text = format!(
        "host: {}\nhostFromClusterNetwork: {}\nhelp: {}\n",
        json!(host),
        json!(inside),
        json!("docker login with any name and a token of the cluster, or with a RobotAccount's credentials")
    );
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "local-registry-hosting", "namespace": "kube-public"},
        "data": {"localRegistryHosting.v1": text},
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_has_its_kinds_roles_and_service() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place { node_ips: vec!["192.0.2.1".parse().unwrap()], ..place::tests::place(folder.path()) };
        let hosts = hosts(&place, 5443);
        assert_eq!(hosts[0], "192.0.2.1:5443");
        assert!(credentials_for(&hosts).iter().all(|host| !host.contains("localhost") && !host.contains("127.0.0.1")));
        let objects = objects(&place, 5443, &hosts).unwrap();
        let kinds: Vec<&str> = objects.iter().filter_map(|object| object["kind"].as_str()).collect();
        assert_eq!(kinds.iter().filter(|kind| **kind == "CustomResourceDefinition").count(), kinds::NAMES.len());
        let slice = objects.iter().find(|object| object["kind"] == "EndpointSlice").unwrap();
        assert_eq!(slice["endpoints"][0]["addresses"][0], "192.0.2.1");
        assert_eq!(objects[0]["metadata"]["name"], kinds::NAMES[0]);
    }
}
