//! The daemon's side: answers the plugin from the pod network, and tells runtimes of the plugin.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use super::{
    Failure, INCOMPATIBLE_VERSION, INVALID_CONFIG, INVALID_ENVIRONMENT, NETWORK_FAILURE, Request, TYPE, VERSIONS,
};
use crate::cri_client::CniFolders;
use crate::runtime::{PodIdentity, PortMapping};
use crate::{Error, NetworkRequest, PodNetwork, socket};

/// Longest request; a configuration with every port mapped stays far below.
const MAX_REQUEST: u64 = 1 << 20;
/// Before any other configuration: runtimes take the first by name.
const CONFIGURATION: &str = "00-dhow.conflist";

/// Answers plugins.
pub struct Server {
    listener: UnixListener,
    network: Arc<dyn PodNetwork>,
}

impl Server {
    /// Listens at `socket`, for root only.
    pub fn bind(socket: &Path, network: Arc<dyn PodNetwork>) -> Result<Self, Error> {
        let listener = socket::listen(socket)?;
        Ok(Self { listener, network })
    }

    /// Runs until dropped.
    pub async fn run(self) {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let network = Arc::clone(&self.network);
                    tokio::spawn(async move {
                        if let Err(error) = serve(stream, network.as_ref()).await {
                            tracing::warn!(%error, "cannot answer the CNI plugin");
                        }
                    });
                }
                Err(error) => {
                    // Out of file descriptors: the next call may find some.
                    tracing::warn!(%error, "cannot accept the CNI plugin");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            }
        }
    }
}

async fn serve(mut stream: UnixStream, network: &dyn PodNetwork) -> io::Result<()> {
    let mut text = Vec::new();
    (&mut stream).take(MAX_REQUEST).read_to_end(&mut text).await?;
    let answer = match serde_json::from_slice::<Request>(&text) {
        Ok(request) => answer(&request, network).await,
        Err(error) => Err(Failure::new(INVALID_CONFIG, "read the plugin's request", error)),
    };
    stream.write_all(&serde_json::to_vec(&answer)?).await?;
    stream.shutdown().await
}

async fn answer(request: &Request, network: &dyn PodNetwork) -> Result<Value, Failure> {
    let version = request.config["cniVersion"].as_str().unwrap_or("0.3.1");
    if !VERSIONS.contains(&version) {
        return Err(Failure::new(INCOMPATIBLE_VERSION, "unsupported CNI version", version));
    }
    if request.container.is_empty() {
        return Err(Failure::new(INVALID_ENVIRONMENT, "CNI_CONTAINERID is not set", ""));
    }
    let failed = |error: Error| Failure::new(NETWORK_FAILURE, "set up the pod network", error);
    match request.command.as_str() {
        "ADD" => {
            let netns = fs::File::open(&request.netns).map_err(|error| {
                Failure::new(INVALID_ENVIRONMENT, "open CNI_NETNS", format!("{}: {error}", request.netns))
            })?;
            let wanted = network_request(request);
            let ips = network.attach(netns.as_fd(), &wanted).await.map_err(failed)?;
            Ok(result(version, request, &ips))
        }
        // Interfaces vanish with their namespace only, so one that is there is whole.
        "CHECK" if Path::new(&request.netns).exists() => Ok(Value::Null),
        "CHECK" => Err(Failure::new(INVALID_ENVIRONMENT, "CNI_NETNS does not exist", &request.netns)),
        "DEL" => network.detach(&request.container).await.map(|()| Value::Null).map_err(failed),
        other => Err(Failure::new(INVALID_ENVIRONMENT, "unknown CNI_COMMAND", other)),
    }
}

fn result(version: &str, request: &Request, ips: &[IpAddr]) -> Value {
    let ips: Vec<Value> = ips
        .iter()
        .map(|ip| {
            let mut entry = json!({"address": format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 }), "interface": 0});
            // Versions before 1.0 said this too.
            if version != "1.0.0" {
                entry["version"] = if ip.is_ipv4() { "4" } else { "6" }.into();
            }
            entry
        })
        .collect();
    json!({
        "cniVersion": version,
        "interfaces": [{"name": request.interface, "sandbox": request.netns}],
        "ips": ips,
    })
}

fn network_request(request: &Request) -> NetworkRequest {
    let argument = |name: &str| {
        let pairs = request.args.split(';').filter_map(|pair| pair.split_once('='));
        pairs.into_iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_owned()).unwrap_or_default()
    };
    let mappings = request.config["runtimeConfig"]["portMappings"].as_array();
    NetworkRequest {
        sandbox_id: request.container.clone(),
        pod: PodIdentity {
            namespace: argument("K8S_POD_NAMESPACE"),
            name: argument("K8S_POD_NAME"),
            uid: argument("K8S_POD_UID"),
            attempt: 0,
        },
        port_mappings: mappings.into_iter().flatten().filter_map(mapping).collect(),
        ..NetworkRequest::default()
    }
}

fn mapping(entry: &Value) -> Option<PortMapping> {
    let port = |name: &str| entry[name].as_u64().and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0);
    Some(PortMapping {
        protocol: entry["protocol"].as_str().unwrap_or("tcp").to_ascii_uppercase(),
        container_port: port("containerPort")?,
        host_port: port("hostPort")?,
        host_ip: entry["hostIP"].as_str().and_then(|ip| ip.parse().ok()).filter(|ip: &IpAddr| !ip.is_unspecified()),
    })
}

/// Puts the plugin, which is `program`, and its configuration where a runtime looks for them.
pub fn install(folders: &CniFolders, program: &Path, socket: &Path) -> Result<(), Error> {
    let failed = |path: &Path, error: io::Error| Error::internal(format!("write {}", path.display()), error);
    for folder in [&folders.configuration, &folders.plugins] {
        fs::create_dir_all(folder).map_err(|error| failed(folder, error))?;
    }
    let plugin = folders.plugins.join(TYPE);
    link(program, &plugin).map_err(|error| failed(&plugin, error))?;
    let loopback = folders.plugins.join("loopback");
    if !loopback.exists() {
        link(program, &loopback).map_err(|error| failed(&loopback, error))?;
    }
    let configuration = folders.configuration.join(CONFIGURATION);
    let text = json!({
        "cniVersion": "1.0.0",
        "name": "dhow",
        "plugins": [{"type": TYPE, "socket": socket, "capabilities": {"portMappings": true}}],
    });
    // Whole or not at all: runtimes watch the folder.
    let draft = configuration.with_extension("new");
    fs::write(&draft, format!("{text:#}\n"))
        .and_then(|()| fs::rename(&draft, &configuration))
        .map_err(|error| failed(&configuration, error))
}

/// Takes away what [`install`] put there; what others put there stays.
pub fn uninstall(folders: &CniFolders) -> Result<(), Error> {
    let plugin = folders.plugins.join(TYPE);
    let mut ours = vec![folders.configuration.join(CONFIGURATION)];
    let loopback = folders.plugins.join("loopback");
    if let (Ok(target), Ok(program)) = (fs::read_link(&loopback), fs::read_link(&plugin))
        && target == program
    {
        ours.push(loopback);
    }
    ours.push(plugin);
    for path in ours {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::internal(format!("remove {}", path.display()), error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Points a link somewhere, wherever it pointed before.
fn link(target: &Path, path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    symlink(target, path)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn requests_name_the_pod_and_its_ports() {
        let request = Request {
            command: "ADD".into(),
            container: "c1".into(),
            netns: "/run/netns/x".into(),
            interface: "eth0".into(),
            args: "IgnoreUnknown=1;K8S_POD_NAMESPACE=web;K8S_POD_NAME=front;K8S_POD_UID=u1".into(),
            config: json!({"runtimeConfig": {"portMappings": [
                {"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": ""},
                {"hostPort": 0, "containerPort": 81, "protocol": "udp"},
            ]}}),
        };
        let wanted = network_request(&request);
        assert_eq!((wanted.pod.namespace.as_str(), wanted.pod.name.as_str()), ("web", "front"));
        assert_eq!(wanted.port_mappings.len(), 1);
        assert_eq!((wanted.port_mappings[0].host_port, wanted.port_mappings[0].protocol.as_str()), (8080, "TCP"));
        let result = result("1.0.0", &request, &["10.42.0.7".parse().unwrap()]);
        assert_eq!(result["ips"][0], json!({"address": "10.42.0.7/32", "interface": 0}));
        assert_eq!(result["interfaces"][0]["name"], "eth0");
    }
}
