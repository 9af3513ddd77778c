//! A node and its pods in network namespaces of their own: nothing here touches the machine's network.
#![allow(clippy::unwrap_used, clippy::print_stderr, dead_code, unsafe_code)]

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dhow_cri::runtime::{PodIdentity, PortMapping};
use dhow_cri::{NetworkRequest, PodNetwork};
use dhow_net::{Net, NetConfig, Networks};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
use serde_json::{Value, json};

/// Tests need root; without it they say so and pass.
pub fn privileged() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}

/// A network namespace that lives as long as this value.
pub struct Netns(OwnedFd);

impl Netns {
    pub fn new() -> Self {
        let made = std::thread::spawn(|| {
            // SAFETY: the thread shares nothing that depends on its network namespace, and ends here.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
            OwnedFd::from(std::fs::File::open("/proc/thread-self/ns/net").unwrap())
        });
        Self(made.join().unwrap())
    }

    pub fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }

    pub fn try_clone(&self) -> OwnedFd {
        self.0.try_clone().unwrap()
    }

    /// Runs `f` on a thread of its own inside the namespace.
    pub fn run<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> T {
        self.spawn(f).join().unwrap()
    }

    pub fn spawn<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> std::thread::JoinHandle<T> {
        let fd = self.try_clone();
        std::thread::spawn(move || {
            move_into_link_name_space(fd.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            f()
        })
    }

    /// The output of a command run inside.
    pub fn command(&self, program: &'static str, args: &'static [&'static str]) -> String {
        let output = self.run(move || Command::new(program).args(args).output().unwrap());
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

/// A node with its network open.
pub struct Node {
    pub netns: Netns,
    pub net: Arc<Net>,
    state: tempfile::TempDir,
    cidrs: Vec<&'static str>,
}

static SANDBOXES: AtomicU64 = AtomicU64::new(0);

impl Node {
    pub async fn new() -> Self {
        Self::with_pods_in("10.42.0.0/24").await
    }

    pub async fn with_pods_in(cidr: &'static str) -> Self {
        Self::open(&[cidr], |_| {}).await
    }

    /// Pods have addresses in each of these networks, the first one's family being the primary one.
    pub async fn open(cidrs: &[&'static str], adjust: impl Fn(&mut NetConfig)) -> Self {
        let netns = Netns::new();
        netns.command("ip", &["link", "set", "lo", "up"]);
        // A new namespace forwards if the machine does.
        netns.run(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap());
        let state = tempfile::tempdir().unwrap();
        let mut config = config(&netns, state.path(), cidrs);
        adjust(&mut config);
        let net = Net::open(config).await.unwrap();
        Self { netns, net, state, cidrs: cidrs.to_vec() }
    }

    /// A node in a namespace that has links already, with pods as large as those allow.
    pub async fn at(netns: Netns, cidrs: &[&'static str], addresses: &[IpAddr], mode: dhow_net::peers::Mode) -> Self {
        netns.command("ip", &["link", "set", "lo", "up"]);
        let state = tempfile::tempdir().unwrap();
        let mut config = config(&netns, state.path(), cidrs);
        (config.node_ips, config.mode, config.mtu) = (addresses.to_vec(), mode, 0);
        let net = Net::open(config).await.unwrap();
        Self { netns, net, state, cidrs: cidrs.to_vec() }
    }

    /// Whether frames on the bridge pass through the tables, too; nothing where `br_netfilter` is not loaded.
    pub fn filter_bridged(&self, on: bool) {
        let value = if on { "1" } else { "0" };
        self.netns.run(move || {
            let path = std::path::Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables");
            if path.exists() {
                std::fs::write(path, value).unwrap();
            }
        });
    }

    /// What a restarted daemon does.
    pub async fn reopen(&mut self) {
        self.net = Net::open(config(&self.netns, self.state.path(), &self.cidrs)).await.unwrap();
    }

    pub async fn pod(&self) -> Pod {
        self.pod_with_ports(vec![]).await
    }

    pub async fn pod_with_ports(&self, port_mappings: Vec<PortMapping>) -> Pod {
        let netns = Netns::new();
        let sandbox = format!("sandbox-{}", SANDBOXES.fetch_add(1, Ordering::Relaxed));
        let request = request(&sandbox, port_mappings);
        let ips = self.net.attach(netns.fd(), &request).await.unwrap();
        Pod { netns, ip: ips[0], ips, sandbox, request }
    }

    pub fn ruleset(&self) -> Value {
        serde_json::from_str(&self.netns.command("nft", &["-j", "list", "ruleset"])).unwrap()
    }

    pub fn ruleset_text(&self) -> String {
        self.netns.command("nft", &["list", "ruleset"])
    }

    pub fn links(&self) -> Vec<String> {
        let links: Value = serde_json::from_str(&self.netns.command("ip", &["-j", "link"])).unwrap();
        links.as_array().unwrap().iter().map(|l| l["ifname"].as_str().unwrap().to_owned()).collect()
    }
}

fn config(netns: &Netns, state: &std::path::Path, cidrs: &[&str]) -> NetConfig {
    let networks = |pods: &str| {
        let (cluster, services) = match pods.contains(':') {
            true => ("fd42::/56", "fd43::/112"),
            false => ("10.42.0.0/16", "10.43.0.0/16"),
        };
        let [pods, cluster, services] = [pods, cluster, services].map(|cidr| cidr.parse().unwrap());
        Networks { pods, cluster, services }
    };
    let primary = networks(cidrs[0]);
    let mut config = NetConfig::new(primary.pods, state);
    (config.cluster_cidr, config.service_cidr) = (primary.cluster, primary.services);
    config.secondary = cidrs.get(1).map(|pods| networks(pods));
    config.host_netns = Some(netns.try_clone());
    config
}

pub fn request(sandbox: &str, port_mappings: Vec<PortMapping>) -> NetworkRequest {
    let pod =
        PodIdentity { namespace: "default".to_owned(), name: sandbox.to_owned(), uid: sandbox.to_owned(), attempt: 0 };
    NetworkRequest { sandbox_id: sandbox.to_owned(), pod, port_mappings, ..NetworkRequest::default() }
}

pub struct Pod {
    pub netns: Netns,
    /// The first of its addresses.
    pub ip: IpAddr,
    pub ips: Vec<IpAddr>,
    pub sandbox: String,
    pub request: NetworkRequest,
}

impl Pod {
    /// Serves TCP on `port`: says `name` and the client's address, then echoes lines until the client ends.
    pub fn serve(&self, port: u16, name: &'static str) {
        let listener = self.netns.run(move || TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                std::thread::spawn(move || {
                    let Ok(peer) = stream.peer_addr().map(|peer| peer.ip().to_canonical()) else { return };
                    let _ = writeln!(stream, "{name} {peer}");
                    let mut buffer = [0; 256];
                    while let Ok(count @ 1..) = stream.read(&mut buffer) {
                        if stream.write_all(&buffer[..count]).is_err() {
                            return;
                        }
                    }
                });
            }
        });
    }

    /// Answers UDP datagrams on `port` with `name`.
    pub fn serve_udp(&self, port: u16, name: &'static str) {
        let socket = self.netns.run(move || UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap());
        std::thread::spawn(move || {
            let mut buffer = [0; 256];
            while let Ok((_, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(name.as_bytes(), from);
            }
        });
    }
}

/// A connection made inside a namespace; it stays in it.
pub struct Client(TcpStream);

impl Client {
    pub fn connect(from: &Netns, to: (impl Into<IpAddr>, u16)) -> std::io::Result<Self> {
        let to = SocketAddr::new(to.0.into(), to.1);
        let stream = from.run(move || TcpStream::connect_timeout(&to, Duration::from_secs(5)))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        Ok(Self(stream))
    }

    pub fn line(&mut self) -> std::io::Result<String> {
        let (mut line, mut byte) = (Vec::new(), [0]);
        while self.0.read(&mut byte)? == 1 && byte[0] != b'\n' {
            line.push(byte[0]);
        }
        Ok(String::from_utf8(line).unwrap())
    }

    pub fn echo(&mut self, text: &str) -> std::io::Result<String> {
        self.0.write_all(format!("{text}\n").as_bytes())?;
        self.line()
    }
}

/// The greeting: who answered, and the address it saw.
pub fn greeting(from: &Netns, to: (impl Into<IpAddr>, u16)) -> std::io::Result<(String, IpAddr)> {
    let line = Client::connect(from, to)?.line()?;
    let (name, peer) = line.split_once(' ').ok_or_else(|| std::io::Error::other(format!("greeting {line:?}")))?;
    Ok((name.to_owned(), peer.parse().unwrap()))
}

pub fn service(name: &str, spec: Value) -> Arc<Service> {
    let object = json!({"metadata": {"namespace": "default", "name": name}, "spec": spec});
    Arc::new(serde_json::from_value(object).unwrap())
}

pub fn slice(service: &str, port: u16, protocol: &str, ips: &[IpAddr]) -> Arc<EndpointSlice> {
    let endpoints: Vec<Value> = ips.iter().map(|ip| json!({"addresses": [ip], "nodeName": "node"})).collect();
    let object = json!({
        "metadata": {
            "namespace": "default", "name": format!("{service}-{}", ips.first().is_some_and(IpAddr::is_ipv6)),
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": if ips.first().is_some_and(IpAddr::is_ipv6) { "IPv6" } else { "IPv4" },
        "endpoints": endpoints,
        "ports": [{"port": port, "protocol": protocol}],
    });
    Arc::new(serde_json::from_value(object).unwrap())
}

/// A link between two machines: 192.0.2.1 and 2001:db8::1 on the `node`, 192.0.2.2 and 2001:db8::2 on the other.
pub fn connect_outside(node: &Netns, outside: &Netns) {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/{}/fd/{}", std::process::id(), outside.fd().as_raw_fd());
    node.run(move || {
        let status = Command::new("ip")
            .args(["link", "add", "up0", "type", "veth", "peer", "name", "up1", "netns", &path])
            .status()
            .unwrap();
        assert!(status.success());
    });
    node.command("ip", &["addr", "add", "192.0.2.1/24", "dev", "up0"]);
    node.command("ip", &["link", "set", "up0", "up"]);
    outside.command("ip", &["addr", "add", "192.0.2.2/24", "dev", "up1"]);
    outside.command("ip", &["link", "set", "up1", "up"]);
    node.command("ip", &["addr", "add", "2001:db8::1/64", "dev", "up0", "nodad"]);
    outside.command("ip", &["addr", "add", "2001:db8::2/64", "dev", "up1", "nodad"]);
}
