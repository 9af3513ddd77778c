//! A node's trust in the cluster's registry: where it is is learnt from the API, that it is the one is proven by the cluster's
//! authority. Other runtimes pull by themselves; they find the authority where they look for registries' certificates.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use dhow_base::files;
use dhow_client::{Client, Informer, ListParams};
use dhow_image::{ClusterRegistry, Registries};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::place::Place;
use crate::registry::{self, HOSTS, NAMESPACE, SERVICE};

/// Keeps what the node knows of the registry as the API has it, until `shutdown`. `certs` is where the node's runtime looks for
/// certificates, if it is not our own.
pub async fn follow(
    client: Client,
    place: Place,
    registries: Arc<Registries>,
    ca_pem: String,
    certs: Option<PathBuf>,
    shutdown: CancellationToken,
) -> Result<()> {
    let of_registry =
        ListParams { label_selector: Some(format!("kubernetes.io/service-name={SERVICE}")), ..ListParams::default() };
    let slices = Informer::<EndpointSlice>::start(client, of_registry, Some(NAMESPACE), shutdown.clone());
    let changed = Arc::new(Notify::new());
    let wake = Arc::clone(&changed);
    slices.on_change(move |_| wake.notify_one());
    let mut known = None;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = changed.notified() => {}
        }
        let now = found(&slices.list(), &place.node_ips, &ca_pem);
        if now == known {
            continue;
        }
        if let (Some(folder), Some(cluster)) = (&certs, &now) {
            let (place, folder, cluster) = (place.clone(), folder.clone(), cluster.clone());
            let written = tokio::task::spawn_blocking(move || trust(&place, &folder, &cluster)).await?;
            if let Err(error) = written {
                tracing::warn!(error = format!("{error:#}"), "tell the container runtime of the cluster's registry");
            }
        }
        registries.set_cluster(now.clone());
        known = now;
    }
}

/// The registry, if there is one. `own` are the node's addresses: what is served there is `localhost`, too.
fn found(slices: &[Arc<EndpointSlice>], own: &[IpAddr], ca_pem: &str) -> Option<ClusterRegistry> {
    let (mut addresses, mut hosts) = (BTreeSet::new(), BTreeSet::from(registry::service_names()));
    for slice in slices {
        let port = slice.ports.iter().flatten().find_map(|port| u16::try_from(port.port?).ok());
        let Some(port) = port else { continue };
        let ips = slice.endpoints.iter().flat_map(|endpoint| &endpoint.addresses);
        let ips: Vec<IpAddr> = ips.filter_map(|text| text.parse().ok()).collect();
        let here = ips.iter().any(|ip| own.contains(ip));
        addresses.extend(ips.into_iter().map(|ip| (!own.contains(&ip), SocketAddr::new(ip, port))));
        let named = slice.metadata.annotations.as_ref().and_then(|all| all.get(HOSTS));
        let named = named.iter().flat_map(|text| text.split(',')).filter(|host| here || !registry::is_local(host));
        hosts.extend(named.map(str::to_owned));
    }
    // The nearest first.
    let addresses: Vec<String> = addresses.into_iter().map(|(_, address)| address.to_string()).collect();
    hosts.extend(addresses.iter().cloned());
    (!addresses.is_empty()).then(|| ClusterRegistry { hosts, addresses, ca_pem: ca_pem.to_owned() })
}

/// Files of ours in other programs' folders.
fn record(place: &Place) -> PathBuf {
    place.data_dir.join("registry-certs")
}

/// Puts the authority where the runtime looks for it when it is to pull from one of the addresses. Runtimes read such folders
/// whenever they pull.
fn trust(place: &Place, folder: &Path, cluster: &ClusterRegistry) -> Result<()> {
    // Clouds on one machine each have a file.
    let name = format!("{}.crt", place.cgroup());
    let wanted: Vec<PathBuf> = cluster.addresses.iter().map(|address| folder.join(address).join(&name)).collect();
    let before = files::read_optional(&record(place))?.unwrap_or_default();
    let list: BTreeSet<&Path> = before.lines().map(Path::new).chain(wanted.iter().map(PathBuf::as_path)).collect();
    let list: Vec<String> = list.into_iter().map(|path| path.display().to_string()).collect();
    // First, so that nothing is left behind.
    files::write_private(&record(place), (list.join("\n") + "\n").as_bytes())?;
    for path in &wanted {
        let parent = path.parent().context("no folder")?;
        fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
        fs::write(path, &cluster.ca_pem).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// Takes away what [`follow`] wrote for other runtimes.
pub fn forget(place: &Place) -> Result<()> {
    let Some(text) = files::read_optional(&record(place))? else { return Ok(()) };
    for path in text.lines().map(Path::new) {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("remove {}", path.display()));
            }
            _ => {}
        }
        // Others may have something in it.
        let _ = path.parent().map(fs::remove_dir);
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn slice(address: &str) -> Arc<EndpointSlice> {
        let object = json!({
            "metadata": {"annotations": {HOSTS: format!("{address}:5443,hub.example:5443,localhost:5443")}},
            "addressType": "IPv4", "endpoints": [{"addresses": [address]}], "ports": [{"port": 5443}],
        });
        Arc::new(serde_json::from_value(object).unwrap())
    }

    #[test]
    fn the_nearest_comes_first_and_localhost_is_here_only() {
        let own = ["192.0.2.9".parse().unwrap()];
        let slices = [slice("192.0.2.1"), slice("192.0.2.9")];
        let here = found(&slices, &own, "PEM").unwrap();
        assert_eq!(here.addresses, ["192.0.2.9:5443", "192.0.2.1:5443"]);
        assert!(here.hosts.contains("localhost:5443") && here.hosts.contains("registry.dhow-registry.svc"));
        let elsewhere = found(&slices[..1], &own, "PEM").unwrap();
        assert!(!elsewhere.hosts.contains("localhost:5443") && elsewhere.hosts.contains("hub.example:5443"));
        assert_eq!(found(&[], &own, "PEM"), None);
    }

    #[test]
    fn what_is_written_for_other_runtimes_goes_again() {
        let folder = tempfile::tempdir().unwrap();
        let place = crate::place::tests::place(&folder.path().join("cloud"));
        let certs = folder.path().join("certs.d");
        let cluster = found(&[slice("192.0.2.1")], &[], "PEM").unwrap();
        trust(&place, &certs, &cluster).unwrap();
        trust(&place, &certs, &cluster).unwrap();
        let file = certs.join("192.0.2.1:5443").join(format!("{}.crt", place.cgroup()));
        assert_eq!(fs::read_to_string(&file).unwrap(), "PEM");
        forget(&place).unwrap();
        assert!(!file.parent().unwrap().exists() && certs.exists());
    }
}
