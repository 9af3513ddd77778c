//! Pods that standard CNI plugins connect: the real ones, on a node in a network namespace of its own.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod support;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use dhow_cri::PodNetwork;
use dhow_cri::runtime::PortMapping;
use dhow_net::cni::{CniConfig, CniNetwork};
use dhow_net::policy::{Objects, Policies};
use dhow_net::proxy::Proxy;
use serde_json::{Value, json};
use support::{Netns, Node, Pod, connect_outside, greeting, privileged, request, service, slice};

const PLUGINS: &str = "/usr/lib/cni";
const VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 43, 0, 80));
const LIMIT: Duration = Duration::from_secs(20);

/// A node whose pods plugins connect, and the folders that this takes. What is mounted goes with it.
struct Plugged {
    node: Node,
    folder: tempfile::TempDir,
    network: Arc<CniNetwork>,
}

impl Plugged {
    async fn new(list: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("conf")).unwrap();
        let text = list.replace("DATA", folder.path().join("ipam").to_str().unwrap());
        std::fs::write(folder.path().join("conf/10-pods.conflist"), text).unwrap();
        let node = Node::open(&["10.42.0.0/24"], |config| config.plugins = true).await;
        let network = CniNetwork::open(node.net.clone(), config(folder.path())).unwrap();
        Self { node, folder, network }
    }

    fn path(&self, of: &str) -> PathBuf {
        self.folder.path().join(of)
    }

    /// What a restarted daemon does.
    async fn restart(&mut self, live: &[&Pod]) {
        self.network = CniNetwork::open(self.node.net.clone(), config(self.folder.path())).unwrap();
        let live: Vec<String> = live.iter().map(|pod| pod.sandbox.clone()).collect();
        self.network.retain(&live).await.unwrap();
    }

    async fn pod(&self, sandbox: &str, ports: Vec<PortMapping>) -> Result<Pod, String> {
        let (netns, request) = (Netns::new(), request(sandbox, ports));
        let ips = self.network.attach(netns.fd(), &request).await.map_err(|error| error.to_string())?;
        Ok(Pod { netns, ip: ips[0], ips, sandbox: sandbox.to_owned(), request })
    }

    fn files(&self, of: &str) -> Vec<String> {
        let names = std::fs::read_dir(self.path(of)).into_iter().flatten().flatten();
        let mut names: Vec<String> = names.map(|entry| entry.file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Addresses that the plugins hold.
    fn reserved(&self) -> Vec<String> {
        let mut names = self.files("ipam/pods");
        names.retain(|name| name.parse::<IpAddr>().is_ok());
        names
    }

    /// Our own rules; those of iptables count packets.
    fn rules(&self) -> String {
        self.node.netns.command("nft", &["list", "table", "inet", "dhow"])
    }

    fn iptables(&self) -> String {
        self.node.netns.command("iptables-save", &["-t", "nat"])
    }

    /// Nothing of any pod is left, with the node or with the plugins.
    fn ensure_left(&self) {
        assert_eq!(self.reserved(), [""; 0]);
        assert_eq!(self.files("netns"), [""; 0], "namespaces");
        assert_eq!(self.files("state"), [""; 0], "records");
        // Chains of pods say whose they are.
        assert!(!self.iptables().contains("id: "), "{}", self.iptables());
        let links = self.node.links();
        assert!(!links.iter().any(|link| link.starts_with("veth")), "{links:?}");
        let known = self.node.netns.command("nft", &["list", "set", "inet", "dhow", "plugin_pods"]);
        assert!(!known.contains("elements"), "{known}");
    }
}

impl Drop for Plugged {
    fn drop(&mut self) {
        let netns = self.path("netns");
        for name in self.files("netns") {
            let _ = Command::new("umount").arg("-l").arg(netns.join(name)).status();
        }
        let _ = Command::new("umount").arg("-l").arg(netns).status();
    }
}

fn config(folder: &Path) -> CniConfig {
    CniConfig {
        conf_dir: folder.join("conf"),
        bin_dirs: vec![folder.join("bin"), PLUGINS.into()],
        state_dir: folder.join("state"),
        netns_dir: folder.join("netns"),
    }
}

const BRIDGE: &str = r#"{"cniVersion": "1.0.0", "name": "pods", "plugins": [
    {"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true, "ipMasq": true, "capabilities": {"ipRanges": true},
     "ipam": {"type": "host-local", "dataDir": "DATA", "routes": [{"dst": "0.0.0.0/0"}]}},
    {"type": "portmap", "snat": true, "capabilities": {"portMappings": true}},
    {"type": "bandwidth", "capabilities": {"bandwidth": true}}
]}"#;

const PTP: &str = r#"{"cniVersion": "0.4.0", "name": "pods", "plugins": [
    {"type": "ptp", "ipMasq": true, "capabilities": {"ipRanges": true},
     "ipam": {"type": "host-local", "dataDir": "DATA", "routes": [{"dst": "0.0.0.0/0"}]}},
    {"type": "portmap", "snat": true, "capabilities": {"portMappings": true}},
    {"type": "firewall"}
]}"#;

fn mapping(host_port: u16, container_port: u16) -> PortMapping {
    PortMapping { protocol: "TCP".to_owned(), container_port, host_port, host_ip: None }
}

async fn eventually(what: &str, done: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + LIMIT;
    while !done() {
        assert!(tokio::time::Instant::now() < deadline, "{what}: still not so");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn reaches(from: &Netns, to: (IpAddr, u16)) -> bool {
    let to = SocketAddr::from(to);
    from.run(move || std::net::TcpStream::connect_timeout(&to, Duration::from_millis(400)).is_ok())
}

async fn serves_pods(list: &str) {
    let mut plugged = Plugged::new(list).await;
    let outside = Netns::new();
    outside.command("ip", &["link", "set", "lo", "up"]);
    connect_outside(&plugged.node.netns, &outside);
    outside.command("ip", &["route", "add", "default", "via", "192.0.2.1"]);
    let web = plugged.pod("web", vec![mapping(8088, 8080)]).await.unwrap();
    let client = plugged.pod("client", vec![]).await.unwrap();
    web.serve(8080, "web");
    assert_eq!(plugged.reserved(), [web.ip.to_string(), client.ip.to_string()]);
    assert_eq!(greeting(&client.netns, (web.ip, 8080)).unwrap().0, "web");
    assert!(reaches(&plugged.node.netns, (web.ip, 8080)), "the node itself");
    assert!(reaches(&outside, (IpAddr::from([192, 0, 2, 1]), 8088)), "the host port");
    let listener = outside.run(|| std::net::TcpListener::bind("192.0.2.2:443").unwrap());
    assert!(reaches(&client.netns, (IpAddr::from([192, 0, 2, 2]), 443)), "the way out");

    // Services are ours, with and without frames on bridges passing the tables.
    let mut proxy = Proxy::open(plugged.node.net.clone(), "node");
    let spec = json!({"type": "NodePort", "clusterIP": VIP, "ports": [{"port": 80, "nodePort": 30080}]});
    proxy.sync(&[service("web", spec)], &[slice("web", 8080, "TCP", &[web.ip])]).await.unwrap();
    for filtered in [true, false] {
        plugged.node.filter_bridged(filtered);
        assert_eq!(greeting(&client.netns, (VIP, 80)).unwrap().0, "web", "filtered: {filtered}");
        assert_eq!(greeting(&web.netns, (VIP, 80)).unwrap().0, "web", "itself, filtered: {filtered}");
        assert!(reaches(&plugged.node.netns, (VIP, 80)) && reaches(&outside, (IpAddr::from([192, 0, 2, 1]), 30080)));
    }
    // So are policies, where the traffic passes the node: a service's does.
    let object = |pod: &Pod, app: &str| {
        let object = json!({
            "metadata": {"namespace": "default", "name": app, "labels": {"app": app}},
            "spec": {"nodeName": "node", "containers": []}, "status": {"phase": "Running", "podIP": pod.ip},
        });
        Arc::new(serde_json::from_value(object).unwrap())
    };
    let policy = json!({
        "metadata": {"namespace": "default", "name": "p"},
        "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"]},
    });
    let mut policies = Policies::open(plugged.node.net.clone(), "node");
    let mut objects = Objects {
        pods: vec![object(&web, "web"), object(&client, "client")],
        policies: vec![Arc::new(serde_json::from_value(policy).unwrap())],
        ..Objects::default()
    };
    policies.sync(&objects).await.unwrap();
    assert!(!reaches(&client.netns, (VIP, 80)));
    assert!(reaches(&web.netns, (VIP, 80)), "itself through a service");
    assert!(reaches(&plugged.node.netns, (web.ip, 8080)), "probes");
    plugged.node.filter_bridged(true);
    if list == PTP || Path::new("/proc/sys/net/bridge").exists() {
        assert!(!reaches(&client.netns, (web.ip, 8080)), "also from pod to pod, where frames pass the tables");
    }
    objects.policies.clear();
    policies.sync(&objects).await.unwrap();

    // A restart finds both as they were made.
    let before = plugged.rules();
    plugged.restart(&[&web, &client]).await;
    assert_eq!(plugged.rules(), before);
    assert_eq!(greeting(&client.netns, (VIP, 80)).unwrap().0, "web");
    let again = plugged.network.attach(web.netns.fd(), &web.request).await.unwrap();
    assert_eq!(again, web.ips, "attaching again changes nothing");

    // One goes as pods do, when its processes are gone already; the other while nobody watches.
    plugged.network.detach(&client.sandbox).await.unwrap();
    plugged.network.detach(&client.sandbox).await.unwrap();
    assert_eq!(plugged.reserved(), [web.ip.to_string()]);
    drop(web);
    plugged.restart(&[]).await;
    plugged.ensure_left();
    assert!(!reaches(&outside, (IpAddr::from([192, 0, 2, 1]), 8088)));
    drop(listener);
}

#[tokio::test]
async fn pods_on_a_bridge_of_plugins() {
    if privileged() {
        serves_pods(BRIDGE).await;
    }
}

#[tokio::test]
async fn pods_on_links_of_plugins() {
    if privileged() {
        serves_pods(PTP).await;
    }
}

#[tokio::test]
async fn failures_are_in_the_plugins_words_and_leave_nothing() {
    if !privileged() {
        return;
    }
    let two = r#"{"cniVersion": "1.0.0", "name": "pods", "plugins": [
        {"type": "bridge", "bridge": "cni0", "ipam": {"type": "host-local", "dataDir": "DATA",
            "ranges": [[{"subnet": "10.42.0.0/30"}]]}}
    ]}"#;
    let plugged = Plugged::new(two).await;
    let first = plugged.pod("first", vec![]).await.unwrap();
    let error = plugged.pod("second", vec![]).await.err().unwrap();
    assert_eq!(
        error,
        "failed to setup network for sandbox \"second\": plugin type=\"bridge\" failed (add): failed to allocate for range \
         0: no IP addresses available in range set: 10.42.0.1-10.42.0.2"
    );
    assert_eq!(plugged.files("state"), ["first.json"]);
    assert_eq!(plugged.files("netns"), ["first"]);
    plugged.network.detach(&first.sandbox).await.unwrap();
    plugged.pod("second", vec![]).await.unwrap();
    plugged.network.detach("second").await.unwrap();
    plugged.ensure_left();

    // Without a configuration there is a reason; with one again there is none.
    let mut problem = plugged.network.problem().unwrap();
    assert_eq!(*problem.borrow_and_update(), None);
    let list = plugged.path("conf/10-pods.conflist");
    let text = std::fs::read(&list).unwrap();
    std::fs::remove_file(&list).unwrap();
    let told = tokio::time::timeout(LIMIT, problem.wait_for(Option::is_some)).await.unwrap().unwrap().clone().unwrap();
    assert!(
        told.starts_with("Network plugin returns error: ") && told.contains("cni plugin not initialized"),
        "{told}"
    );
    let error = plugged.pod("third", vec![]).await.err().unwrap();
    assert!(error.contains("cni plugin not initialized"), "{error}");
    // A plugin that is not there was never asked, and is not waited for.
    let absent = String::from_utf8(text.clone()).unwrap().replace("\"bridge\", \"bridge\"", "\"brigde\", \"bridge\"");
    std::fs::write(&list, absent).unwrap();
    let error = plugged.pod("fourth", vec![]).await.err().unwrap();
    assert!(
        error.contains("plugin type=\"brigde\" failed (add): failed to find plugin \"brigde\" in path ["),
        "{error}"
    );
    plugged.ensure_left();
    std::fs::write(&list, text).unwrap();
    tokio::time::timeout(LIMIT, problem.wait_for(Option::is_none)).await.unwrap().unwrap();
    plugged.pod("third", vec![]).await.unwrap();
    plugged.network.detach("third").await.unwrap();
    plugged.ensure_left();
}

fn script(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[tokio::test]
async fn what_plugins_fail_to_undo_is_tried_again() {
    if !privileged() {
        return;
    }
    let list = r#"{"cniVersion": "1.0.0", "name": "pods", "plugins": [
        {"type": "bridge", "bridge": "cni0", "capabilities": {"ipRanges": true}, "ipam": {"type": "host-local", "dataDir": "DATA"}},
        {"type": "stubborn"}
    ]}"#;
    let mut plugged = Plugged::new(list).await;
    let stuck = plugged.path("stuck");
    let says = r#"told=$(cat); case $CNI_COMMAND in
        DEL) if [ -e STUCK ]; then echo '{"code": 11, "msg": "the switch is away"}'; exit 1; fi;;
        ADD) echo "$told" | sed 's/.*"prevResult"://; s/}$//' | sed 's/,"type":"stubborn"//';;
        esac"#;
    script(&plugged.path("bin/stubborn"), &says.replace("STUCK", stuck.to_str().unwrap()));
    let web = plugged.pod("web", vec![]).await.unwrap();
    std::fs::write(&stuck, "").unwrap();
    let error = plugged.network.detach(&web.sandbox).await.unwrap_err().to_string();
    assert_eq!(
        error,
        "failed to destroy network for sandbox \"web\": plugin type=\"stubborn\" failed (delete): the switch is away"
    );
    assert_eq!(plugged.reserved(), [web.ip.to_string()], "nothing is forgotten");
    // Nobody asks again, not even about a pod that was there before a restart.
    let lost = plugged.pod("lost", vec![]).await.unwrap();
    drop((web, lost));
    plugged.restart(&[]).await;
    assert_eq!(plugged.reserved().len(), 2);
    std::fs::remove_file(&stuck).unwrap();
    eventually("addresses are free", || plugged.reserved().is_empty() && plugged.files("state").is_empty()).await;
    plugged.ensure_left();
}

#[tokio::test]
async fn plugins_of_the_newest_version_hear_which_pods_there_are() {
    if !privileged() {
        return;
    }
    let mut plugged = Plugged::new(r#"{"cniVersion": "1.1.0", "name": "pods", "plugins": [{"type": "tells"}]}"#).await;
    let log = plugged.path("log");
    let says = r#"told=$(cat); echo "$CNI_COMMAND $CNI_CONTAINERID $CNI_ARGS $told" >> LOG
        if [ $CNI_COMMAND = ADD ]; then
            echo '{"cniVersion": "1.1.0", "interfaces": [{"name": "eth0", "sandbox": "x"}], "ips": [{"address": "10.42.0.7/24", "interface": 0}]}'
        fi"#;
    script(&plugged.path("bin/tells"), &says.replace("LOG", log.to_str().unwrap()));
    let web = plugged.pod("web", vec![]).await.unwrap();
    assert_eq!(web.ip, IpAddr::from([10, 42, 0, 7]));
    plugged.restart(&[&web]).await;
    plugged.network.detach("web").await.unwrap();
    let log = std::fs::read_to_string(log).unwrap();
    let lines: Vec<Vec<&str>> = log.lines().map(|line| line.splitn(4, ' ').collect()).collect();
    let verbs: Vec<&str> = lines.iter().map(|line| line[0]).collect();
    assert_eq!(verbs, ["ADD", "CHECK", "GC", "DEL"]);
    assert_eq!(
        lines[0][2],
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=web;K8S_POD_UID=web"
    );
    let told = |index: usize| -> Value { serde_json::from_str(lines[index][3]).unwrap() };
    assert_eq!(told(1)["prevResult"]["ips"][0]["address"], "10.42.0.7/24");
    assert_eq!(told(2)["cni.dev/valid-attachments"], json!([{"containerID": "web", "ifname": "eth0"}]));
    assert_eq!(told(3)["prevResult"]["ips"][0]["address"], "10.42.0.7/24");
}
