//! Both address families in one cloud, IPv6 alone in another, and load balancers' addresses, seen by kubectl, curl and a
//! machine on the same network.
#![allow(clippy::unwrap_used)]

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dhow_e2e::{HOST_IP, Host, eventually, run};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(30);
const HOST_IP6: &str = "2001:db8:18::1";

const WEB: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - name: web
      image: docker.io/library/busybox:latest
      imagePullPolicy: Never
      command: [sh, -c, "mkdir /www; echo $POD_IPS of $HOST_IPS > /www/index.html; httpd -f -p 8080 -h /www"]
      env:
        - {name: POD_IPS, valueFrom: {fieldRef: {fieldPath: status.podIPs}}}
        - {name: HOST_IPS, valueFrom: {fieldRef: {fieldPath: status.hostIPs}}}
      readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  ipFamilyPolicy: PreferDualStack
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080}]
"#;

fn host(pods: &str, services: &str, node: &str) -> Result<Host> {
    let mut host = Host::new()?;
    run(host.command("ip").args(["addr", "add", &format!("{HOST_IP6}/64"), "dev", "host0", "nodad"]))?;
    host.set("DHOW_POD_CIDR", pods);
    host.set("DHOW_SERVICE_CIDR", services);
    host.set("DHOW_NODE_IP", node);
    Ok(host)
}

fn starts(host: &Host) -> Result<()> {
    host.dhow(&["up"])?;
    host.import(&["busybox"])?;
    eventually(SOON, || host.apply(WEB))?;
    host.kubectl(&["wait", "--for=condition=Ready", "pod/web", "--timeout=60s"])?;
    Ok(())
}

fn texts(value: &Value) -> Vec<&str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

#[test]
fn two_families_and_load_balancers() {
    let nodes = format!("{HOST_IP},{HOST_IP6}");
    let mut host = host("10.42.0.0/16,fd42::/56", "10.43.0.0/16,fd43::/112", &nodes).unwrap();
    let config = host.folder().join("config.yaml");
    let pools = json!({"loadBalancer": {"pools": [
        {"name": "public", "addresses": ["198.18.0.32/30", "2001:db8:18::32-2001:db8:18::33"]},
        {"name": "spare", "addresses": ["198.18.0.40"], "autoAssign": false},
    ]}});
    std::fs::write(&config, pools.to_string()).unwrap();
    host.set("DHOW_CONFIG", config.to_str().unwrap());
    starts(&host).unwrap();
    pods_have_two_addresses(&host).unwrap();
    services_gain_and_lose_a_family(&host).unwrap();
    node_ports_answer_in_both(&host).unwrap();
    let neighbour = Neighbour::new(&host).unwrap();
    balancers_have_addresses_of_pools(&host, &neighbour).unwrap();
    a_restart_changes_nothing(&host, &neighbour).unwrap();
    drop(neighbour);
    host.dhow(&["down", "--purge"]).unwrap();
    host.ensure_purged().unwrap();
    let addresses = run(host.command("ip").args(["addr", "show", "dev", "host0"])).unwrap();
    assert!(!addresses.contains("198.18.0.3") && !addresses.contains("18::3"), "{addresses}");
}

fn pods_have_two_addresses(host: &Host) -> Result<()> {
    let pod = host.get(&["get", "pod", "web"])?;
    let list = |field: &str| -> Vec<String> {
        pod["status"][field].as_array().unwrap().iter().map(|ip| ip["ip"].as_str().unwrap().to_owned()).collect()
    };
    let (pod_ips, host_ips) = (list("podIPs"), list("hostIPs"));
    ensure!(
        pod_ips.len() == 2 && pod_ips[0].starts_with("10.42.0.") && pod_ips[1].starts_with("fd42::"),
        "{pod_ips:?}"
    );
    ensure!(host_ips == [HOST_IP, HOST_IP6], "{host_ips:?}");
    // Each leads to the pod, and the pod knows both.
    for address in [pod_ips[0].clone(), format!("[{}]", pod_ips[1])] {
        let page = host.curl(&[&format!("http://{address}:8080/")])?;
        ensure!(page.trim() == format!("{} of {}", pod_ips.join(","), host_ips.join(",")), "{page}");
    }
    let node = host.get(&["get", "node", "e2e"])?;
    ensure!(texts(&node["spec"]["podCIDRs"]) == ["10.42.0.0/24", "fd42::/64"], "{}", node["spec"]);
    Ok(())
}

fn services_gain_and_lose_a_family(host: &Host) -> Result<()> {
    let service = host.get(&["get", "service", "web"])?;
    ensure!(texts(&service["spec"]["ipFamilies"]) == ["IPv4", "IPv6"], "{}", service["spec"]);
    let ips = texts(&service["spec"]["clusterIPs"]);
    let [four, six] = ips.as_slice() else { anyhow::bail!("{ips:?}") };
    for address in [(*four).to_owned(), format!("[{six}]")] {
        eventually(SOON, || host.curl(&[&format!("http://{address}/")]))?;
        // From a pod, too: here from the one it leads to.
        let ask = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 2 {} 80", address.trim_matches(['[', ']']));
        eventually(SOON, || {
            let page = host.kubectl(&["exec", "web", "--", "sh", "-c", &ask])?;
            ensure!(page.contains(" of "), "{page}");
            Ok(())
        })?;
    }
    let slices = host.get(&["get", "endpointslices", "-l", "kubernetes.io/service-name=web"])?;
    let mut kinds: Vec<&str> =
        slices["items"].as_array().context("items")?.iter().filter_map(|slice| slice["addressType"].as_str()).collect();
    kinds.sort_unstable();
    ensure!(kinds == ["IPv4", "IPv6"], "{kinds:?}");
    // The cluster's names have addresses of both families, asked for in either.
    for server in ["@10.42.0.1", "@fd42::1"] {
        let answer = eventually(SOON, || {
            let answer = run(host.command("dig").args(["+short", server, "web.default.svc.cluster.local", "AAAA"]))?;
            ensure!(!answer.trim().is_empty(), "no answer from {server}");
            Ok(answer)
        })?;
        ensure!(answer.trim() == *six, "{answer}");
    }
    let patch = |policy: &str| {
        let patch = json!({"spec": {"ipFamilyPolicy": policy}}).to_string();
        host.kubectl(&["patch", "service", "web", "-p", &patch])?;
        host.get(&["get", "service", "web"])
    };
    let single = patch("SingleStack")?;
    ensure!(texts(&single["spec"]["clusterIPs"]) == [*four], "{}", single["spec"]);
    eventually(SOON, || {
        ensure!(host.curl(&[&format!("http://[{six}]/")]).is_err(), "the second address is still served");
        Ok(())
    })?;
    let dual = patch("RequireDualStack")?;
    let ips = texts(&dual["spec"]["clusterIPs"]);
    ensure!(ips.len() == 2 && ips[0] == *four, "{}", dual["spec"]);
    eventually(SOON, || host.curl(&[&format!("http://[{}]/", ips[1])]))?;
    // The first family stays.
    let change = json!({"spec": {"ipFamilies": ["IPv6", "IPv4"], "clusterIPs": [ips[1], ips[0]], "clusterIP": ips[1]}});
    let refused = host.kubectl(&["patch", "service", "web", "-p", &change.to_string()]).unwrap_err().to_string();
    ensure!(refused.contains("field is immutable"), "{refused}");
    Ok(())
}

fn node_ports_answer_in_both(host: &Host) -> Result<()> {
    host.kubectl(&["patch", "service", "web", "-p", r#"{"spec": {"type": "NodePort"}}"#])?;
    let service = host.get(&["get", "service", "web"])?;
    let port = &service["spec"]["ports"][0]["nodePort"];
    for address in [HOST_IP.to_owned(), format!("[{HOST_IP6}]")] {
        eventually(SOON, || host.curl(&[&format!("http://{address}:{port}/")]))?;
    }
    // Nobody serves it any more: clients are told so at once.
    host.kubectl(&["patch", "service", "web", "-p", r#"{"spec": {"selector": {"app": "none"}}}"#])?;
    eventually(SOON, || {
        let refused = host.curl(&[&format!("http://[{HOST_IP6}]:{port}/")]).err().context("it is served")?.to_string();
        ensure!(refused.contains("refused") || refused.contains("Couldn't connect"), "{refused}");
        Ok(())
    })?;
    host.kubectl(&["patch", "service", "web", "-p", r#"{"spec": {"selector": {"app": "web"}}}"#])?;
    Ok(())
}

/// Another machine on the host's network.
struct Neighbour<'a> {
    host: &'a Host,
    namespace: String,
}

impl<'a> Neighbour<'a> {
    fn new(host: &'a Host) -> Result<Self> {
        let namespace = format!("{}-b", host.namespace());
        run(Command::new("ip").args(["netns", "add", &namespace]))?;
        let neighbour = Self { host, namespace };
        run(host.command("ip").args(["link", "set", "host1", "netns", &neighbour.namespace]))?;
        for args in [
            &["addr", "add", "198.18.0.2/24", "dev", "host1"][..],
            &["addr", "add", "2001:db8:18::2/64", "dev", "host1", "nodad"],
            &["link", "set", "host1", "up"],
        ] {
            run(neighbour.command("ip").args(args))?;
        }
        Ok(neighbour)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.namespace)).arg("--").arg(program).env("NO_PROXY", "*");
        command
    }

    fn curl(&self, url: &str) -> Result<String> {
        run(self.command("curl").args(["--noproxy", "*", "--fail", "--silent", "--show-error", "--max-time", "3", url]))
    }
}

impl Drop for Neighbour<'_> {
    fn drop(&mut self) {
        let _ = self.command("ip").args(["link", "set", "host1", "netns", self.host.namespace()]).status();
        let _ = Command::new("ip").args(["netns", "del", &self.namespace]).status();
    }
}

fn ingress(host: &Host, name: &str) -> Result<Vec<String>> {
    let service = host.get(&["get", "service", name])?;
    let ingress = service["status"]["loadBalancer"]["ingress"].as_array().cloned().unwrap_or_default();
    ensure!(ingress.iter().all(|ingress| ingress["ipMode"] == "VIP"), "{ingress:?}");
    Ok(ingress.iter().filter_map(|ingress| ingress["ip"].as_str()).map(str::to_owned).collect())
}

fn balancer(host: &Host, name: &str, annotations: Value, spec: Value) -> Result<()> {
    let mut whole =
        json!({"type": "LoadBalancer", "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]});
    for (key, value) in spec.as_object().unwrap() {
        whole[key] = value.clone();
    }
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "annotations": annotations}, "spec": whole});
    host.apply(&service.to_string()).map(drop)
}

fn balancers_have_addresses_of_pools(host: &Host, neighbour: &Neighbour<'_>) -> Result<()> {
    balancer(host, "dual", json!({}), json!({"ipFamilyPolicy": "RequireDualStack"}))?;
    let given = eventually(SOON, || {
        let given = ingress(host, "dual")?;
        ensure!(given == ["198.18.0.32", "2001:db8:18::32"], "{given:?}");
        Ok(given)
    })?;
    // The neighbour asks its network for the address; the node answers, with the service and nothing else.
    for address in [given[0].clone(), format!("[{}]", given[1])] {
        eventually(SOON, || neighbour.curl(&format!("http://{address}/")))?;
        let url = format!("https://{address}:6443/healthz");
        let refused = neighbour.curl(&url).unwrap_err().to_string();
        ensure!(refused.contains("refused") || refused.contains("Couldn't connect"), "the API at {address}: {refused}");
    }
    run(neighbour.command("ping").args(["-c", "1", "-W", "2", &given[0]]))?;
    // One that keeps its clients' addresses.
    balancer(host, "local", json!({}), json!({"externalTrafficPolicy": "Local"}))?;
    eventually(SOON, || {
        ensure!(ingress(host, "local")? == ["198.18.0.33"], "another address");
        neighbour.curl("http://198.18.0.33/")
    })?;
    // A pool of its own, by its name; another's address, by sharing it.
    balancer(host, "spare", json!({"dhow.io/load-balancer-pool": "spare"}), json!({}))?;
    eventually(SOON, || {
        ensure!(ingress(host, "spare")? == ["198.18.0.40"], "not of its pool");
        neighbour.curl("http://198.18.0.40/")
    })?;
    let taken = json!({"loadBalancerIP": "198.18.0.40"});
    balancer(host, "late", json!({}), taken)?;
    eventually(SOON, || {
        let events = host.kubectl(&["get", "events", "--field-selector", "involvedObject.name=late"])?;
        ensure!(events.contains("AllocationFailed") && events.contains("is that of service default/spare"), "{events}");
        Ok(())
    })?;
    // What one gives back the other gets.
    host.kubectl(&["delete", "service", "spare"])?;
    eventually(SOON, || {
        ensure!(ingress(host, "late")? == ["198.18.0.40"], "still waits");
        neighbour.curl("http://198.18.0.40/")
    })?;
    // Another class is another controller's.
    balancer(host, "foreign", json!({}), json!({"loadBalancerClass": "example.com/lb"}))?;
    host.kubectl(&["patch", "service", "local", "-p", r#"{"spec": {"type": "ClusterIP"}}"#])?;
    eventually(SOON, || {
        ensure!(ingress(host, "local")?.is_empty(), "it is no balancer any more");
        ensure!(neighbour.curl("http://198.18.0.33/").is_err(), "still answers");
        Ok(())
    })?;
    ensure!(ingress(host, "foreign")?.is_empty(), "not ours");
    Ok(())
}

fn a_restart_changes_nothing(host: &Host, neighbour: &Neighbour<'_>) -> Result<()> {
    let pid = host.daemon_pid()?.to_string();
    run(Command::new("kill").args(["-9", &pid]))?;
    neighbour.curl("http://198.18.0.32/").context("while the daemon is away")?;
    neighbour.curl("http://[2001:db8:18::32]/").context("while the daemon is away")?;
    host.dhow(&["up"])?;
    neighbour.curl("http://198.18.0.32/")?;
    eventually(SOON, || host.curl(&["http://198.18.0.40/"]))?;
    Ok(())
}

#[test]
fn ipv6_alone() {
    let host = host("fd42::/56", "fd43::/112", HOST_IP6).unwrap();
    starts(&host).unwrap();
    let pod = host.get(&["get", "pod", "web"]).unwrap();
    let ip = pod["status"]["podIP"].as_str().unwrap();
    assert!(ip.starts_with("fd42::") && pod["status"]["podIPs"].as_array().unwrap().len() == 1, "{}", pod["status"]);
    let service = host.get(&["get", "service", "web"]).unwrap();
    let address = service["spec"]["clusterIP"].as_str().unwrap();
    assert_eq!(texts(&service["spec"]["ipFamilies"]), ["IPv6"]);
    let page = eventually(SOON, || host.curl(&[&format!("http://[{address}]/")])).unwrap();
    assert_eq!(page.trim(), format!("{ip} of {HOST_IP6}"));
    // The name server is where pods look for it, and the API answers on its Service.
    let resolver = host.kubectl(&["exec", "web", "--", "cat", "/etc/resolv.conf"]).unwrap();
    assert!(resolver.contains("nameserver fd43::a"), "{resolver}");
    let lookup = ["+short", "@fd43::a", "web.default.svc.cluster.local", "AAAA"];
    let answer = eventually(SOON, || run(host.command("dig").args(lookup))).unwrap();
    assert_eq!(answer.trim(), address);
    let api = host.get(&["get", "service", "kubernetes"]).unwrap();
    assert_eq!(api["spec"]["clusterIP"], "fd43::1");
    host.curl(&["--insecure", "https://[fd43::1]/livez"]).unwrap();
    // No pool: a balancer has the node's address.
    balancer(&host, "balanced", json!({}), json!({"ports": [{"port": 8088, "targetPort": 8080}]})).unwrap();
    eventually(SOON, || {
        ensure!(ingress(&host, "balanced")? == [HOST_IP6], "no address");
        host.curl(&[&format!("http://[{HOST_IP6}]:8088/")])
    })
    .unwrap();
    host.dhow(&["down", "--purge"]).unwrap();
    host.ensure_purged().unwrap();
}
