//! Machines whose pods have addresses of both families, and machines with IPv6 alone: pods, services and names between
//! them, by routes and through the tunnel; and services that keep their clients to a zone or a node.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dhow_e2e::machines::{Addresses, Machine, Machines};
use dhow_e2e::{eventually, in_turn, run, workspace};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(60);

type Step = fn(&Machines) -> Result<()>;

fn take(machines: &Machines, steps: &[(&str, Step)]) {
    in_turn(steps, |step| step(machines)).unwrap();
}

#[test]
fn machines_of_both_families() {
    // m0 and m1 share a link, m2 is behind a router.
    let machines = Machines::with(2, Addresses::FourAndSix).unwrap();
    take(
        &machines,
        &[
            ("starts and joins", starts_and_joins),
            ("gives each node a network of each family", gives_each_node_its_networks),
            ("chooses the way of each family", chooses_the_way_of_each_family),
            ("runs pods everywhere", runs_pods_everywhere),
            ("pods reach each other", pods_reach_each_other),
            ("services reach every node", services_reach_every_node),
            ("names resolve everywhere", names_resolve_everywhere),
            ("services prefer what is near", services_prefer_what_is_near),
            ("services are shared out among zones", services_are_shared_out_among_zones),
            ("purges", purges),
        ],
    );
}

#[test]
fn machines_of_ipv6_alone() {
    // m0 is on the link, m1 behind the router: all goes through the tunnel, whose outside is IPv6, too.
    let machines = Machines::with(1, Addresses::Six).unwrap();
    take(
        &machines,
        &[
            ("starts and joins", starts_and_joins),
            ("gives each node a network", gives_each_node_its_networks),
            ("goes through the tunnel", goes_through_the_tunnel),
            ("runs pods everywhere", runs_pods_everywhere),
            ("pods reach each other", pods_reach_each_other),
            ("services reach every node", services_reach_every_node),
            ("names resolve everywhere", names_resolve_everywhere),
            ("purges", purges),
        ],
    );
}

/// An address as it stands in a URL.
fn host(address: &str) -> String {
    if address.contains(':') { format!("[{address}]") } else { address.to_owned() }
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|text| text.as_str().map(str::to_owned)).collect()
}

fn starts_and_joins(machines: &Machines) -> Result<()> {
    let said = machines.server().dhow_said(&["up"])?;
    let url = format!("https://{}:6443", host(&machines.server().address));
    ensure!(said.contains(&format!("dhow join {url} --token K10")), "{said}");
    let token = machines.server().dhow(&["token", "create", "--ttl", "1h"])?;
    for machine in &machines.all[1..] {
        machine.dhow(&["join", &url, "--token", token.trim()])?;
    }
    for machine in &machines.all {
        machines.kubectl(&["wait", "--for=condition=Ready", &format!("node/{}", machine.name), "--timeout=60s"])?;
        let node = machines.get(&["get", "node", &machine.name])?;
        let addresses = node["status"]["addresses"].as_array().context("no addresses")?;
        let internal = addresses.iter().filter(|one| one["type"] == "InternalIP");
        let internal: Vec<&str> = internal.filter_map(|one| one["address"].as_str()).collect();
        ensure!(internal == machine.addresses, "{internal:?}");
    }
    Ok(())
}

fn networks_of(machines: &Machines, node: &str) -> Result<Vec<String>> {
    Ok(texts(&machines.get(&["get", "node", node])?["spec"]["podCIDRs"]))
}

fn gives_each_node_its_networks(machines: &Machines) -> Result<()> {
    let mut all = BTreeSet::new();
    for machine in &machines.all {
        let networks = networks_of(machines, &machine.name)?;
        ensure!(networks.len() == machine.addresses.len(), "{}: {networks:?}", machine.name);
        for (network, address) in networks.iter().zip(&machine.addresses) {
            ensure!(network.contains(':') == address.contains(':'), "{networks:?}");
        }
        all.extend(networks);
    }
    ensure!(all.len() == machines.all.iter().map(|machine| machine.addresses.len()).sum::<usize>(), "{all:?}");
    Ok(())
}

fn way(machine: &Machine, network: &str) -> Result<String> {
    let routes = run(machine.command("ip").args(["route"]))? + &run(machine.command("ip").args(["-6", "route"]))?;
    let line = routes.lines().find(|line| line.starts_with(network));
    line.map(str::to_owned).with_context(|| format!("no way to {network}: {routes}"))
}

fn chooses_the_way_of_each_family(machines: &Machines) -> Result<()> {
    let (near, far) = (networks_of(machines, "m1")?, networks_of(machines, "m2")?);
    eventually(SOON, || {
        for (network, via) in near.iter().zip(&machines.all[1].addresses) {
            let way = way(machines.server(), network)?;
            ensure!(way.contains(&format!("via {via} dev eth0")), "{way}");
        }
        for network in &far {
            let way = way(machines.server(), network)?;
            ensure!(way.contains("dev dhow0-vx"), "{way}");
        }
        Ok(())
    })
}

fn goes_through_the_tunnel(machines: &Machines) -> Result<()> {
    let far = networks_of(machines, "m1")?;
    eventually(SOON, || {
        let way = way(machines.server(), &far[0])?;
        ensure!(way.contains("dev dhow0-vx"), "{way}");
        let link = run(machines.server().command("ip").args(["-d", "link", "show", "dhow0-vx"]))?;
        ensure!(link.contains("local 2001:db8:18::1") && link.contains("mtu 1430"), "{link}");
        Ok(())
    })
}

fn pod(node: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: Pod
metadata: {{name: on-{node}, labels: {{app: web, on: {node}}}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 0
  containers:
    - name: web
      image: docker.io/library/python:latest
      imagePullPolicy: Never
      command: [sh, -c, "mkdir /www; cd /www; echo from {node} > index.html; head -c 300000 /dev/zero > large; exec python3 -u -m http.server --bind :: 8080"]
      readinessProbe: {{httpGet: {{path: /, port: 8080}}, periodSeconds: 1}}
"#
    )
}

fn runs_pods_everywhere(machines: &Machines) -> Result<()> {
    let archive = workspace().join("target/images/python.tar");
    let archive = archive.to_str().context("path")?;
    for machine in &machines.all {
        machines.server().dhow(&["image", "import", "--node", &machine.name, archive])?;
        machines.apply(&pod(&machine.name))?;
    }
    machines.kubectl(&["wait", "--for=condition=Ready", "pod", "-l", "app=web", "--timeout=120s"])?;
    Ok(())
}

fn ips(machines: &Machines, pod: &str) -> Result<Vec<String>> {
    let pod = machines.get(&["get", "pod", pod])?;
    let ips = pod["status"]["podIPs"].as_array().context("no addresses")?;
    Ok(ips.iter().filter_map(|ip| ip["ip"].as_str().map(str::to_owned)).collect())
}

fn pods_reach_each_other(machines: &Machines) -> Result<()> {
    for to in &machines.all {
        let of_target = ips(machines, &format!("on-{}", to.name))?;
        ensure!(of_target.len() == to.addresses.len(), "{of_target:?}");
        for from in &machines.all {
            let pod = format!("on-{}", from.name);
            for (own, target) in ips(machines, &pod)?.iter().zip(&of_target) {
                let what = format!("{} to {target}", from.name);
                let url = format!("http://{}:8080", host(target));
                let page = eventually(SOON, || machines.fetch(&pod, &format!("{url}/"), 5));
                let page = page.with_context(|| what.clone())?;
                ensure!(page == format!("from {}\n", to.name), "{what}: {page}");
                let large = machines.fetch(&pod, &format!("{url}/large"), 10).with_context(|| what.clone())?;
                ensure!(large.len() == 300_000, "{what}: {} bytes", large.len());
                // With its own address: what listens sees the pod.
                let seen = machines.kubectl(&["logs", &format!("on-{}", to.name)])?;
                ensure!(seen.contains(own.as_str()), "on-{} has not seen {own}: {seen}", to.name);
            }
        }
    }
    Ok(())
}

/// Who answers at a URL, of so many times asked.
fn answers(machines: &Machines, pod: &str, url: &str, times: u32) -> Result<BTreeSet<String>> {
    let get = "import sys, urllib.request as u\n\
               for _ in range(int(sys.argv[2])):\n    \
               try: sys.stdout.write(u.urlopen(sys.argv[1], timeout=5).read().decode())\n    \
               except OSError: print(\"nobody\")";
    let ask = format!("python3 -c '{get}' {url} {times}");
    Ok(machines.exec(pod, &ask)?.lines().map(|line| line.trim_start_matches("from ").to_owned()).collect())
}

fn names(machines: &Machines) -> BTreeSet<String> {
    machines.all.iter().map(|machine| machine.name.clone()).collect()
}

fn service(machines: &Machines, name: &str, annotations: Value, more: Value) -> Result<Vec<String>> {
    let mut spec = json!({
        "selector": {"app": "web"}, "ipFamilyPolicy": "PreferDualStack", "ports": [{"port": 80, "targetPort": 8080}]
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    let metadata = json!({"name": name, "annotations": annotations});
    let object = json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec});
    machines.apply(&object.to_string())?;
    Ok(texts(&machines.get(&["get", "service", name])?["spec"]["clusterIPs"]))
}

fn services_reach_every_node(machines: &Machines) -> Result<()> {
    let cluster_ips = service(machines, "web", json!({}), json!({"type": "NodePort"}))?;
    ensure!(cluster_ips.len() == machines.server().addresses.len(), "{cluster_ips:?}");
    let port = machines.get(&["get", "service", "web"])?["spec"]["ports"][0]["nodePort"].to_string();
    for machine in &machines.all {
        let pod = format!("on-{}", machine.name);
        for ip in &cluster_ips {
            let url = format!("http://{}/", host(ip));
            eventually(SOON, || {
                let seen = answers(machines, &pod, &url, 40)?;
                ensure!(seen == names(machines), "{pod} sees {seen:?} at {url}");
                Ok(())
            })?;
        }
        // From another machine, through a node that may not run the endpoint.
        for address in &machine.addresses {
            let url = format!("http://{}:{port}/", host(address));
            for _ in 0..10 {
                let page = run(machines.server().command("curl").args(["-gsf", "--max-time", "5", &url]))?;
                ensure!(page.starts_with("from "), "{page}");
            }
        }
    }
    // The API under its service address, from a machine that joined.
    let api = texts(&machines.get(&["get", "service", "kubernetes"])?["spec"]["clusterIPs"]);
    let url = format!("https://{}/livez", host(&api[0]));
    let last = machines.all.last().context("no machine")?;
    let said = run(last.command("curl").args(["-gsfk", "--max-time", "5", &url]))?;
    ensure!(said == "ok", "{said}");
    Ok(())
}

fn names_resolve_everywhere(machines: &Machines) -> Result<()> {
    let dns = machines.get(&["-n", "kube-system", "get", "service", "kube-dns"])?;
    let dns = format!("@{}", dns["spec"]["clusterIP"].as_str().context("no address")?);
    let addresses = texts(&machines.get(&["get", "service", "web"])?["spec"]["clusterIPs"]);
    for machine in &machines.all {
        let pod = format!("on-{}", machine.name);
        let page = machines.fetch(&pod, "http://web.default.svc.cluster.local/", 5)?;
        ensure!(page.starts_with("from "), "{page}");
        for address in &addresses {
            let kind = if address.contains(':') { "AAAA" } else { "A" };
            let name = "web.default.svc.cluster.local";
            let answer = run(machine.command("dig").args(["+short", "+time=2", &dns, name, kind]))?;
            ensure!(answer.trim() == address, "{} has {answer} for {kind}", machine.name);
        }
    }
    Ok(())
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// Waits until a pod sees exactly these answer, in each family.
fn sees(machines: &Machines, node: &str, ips: &[String], expected: &[&str]) -> Result<()> {
    let pod = format!("on-{node}");
    for ip in ips {
        let url = format!("http://{}/", host(ip));
        eventually(SOON, || {
            let seen = answers(machines, &pod, &url, 30)?;
            ensure!(seen == set(expected), "{pod} sees {seen:?} at {url}, not {expected:?}");
            Ok(())
        })?;
    }
    Ok(())
}

fn services_prefer_what_is_near(machines: &Machines) -> Result<()> {
    for (node, zone) in [("m0", "east"), ("m1", "east"), ("m2", "west")] {
        machines.kubectl(&["label", "node", node, &format!("topology.kubernetes.io/zone={zone}")])?;
    }
    for distribution in ["PreferClose", "PreferSameZone"] {
        let name = distribution.to_lowercase();
        let ips = service(machines, &name, json!({}), json!({"trafficDistribution": distribution}))?;
        sees(machines, "m2", &ips, &["m2"])?;
        sees(machines, "m0", &ips, &["m0", "m1"])?;
    }
    let ips = service(machines, "samenode", json!({}), json!({"trafficDistribution": "PreferSameNode"}))?;
    for node in ["m0", "m1", "m2"] {
        sees(machines, node, &ips, &[node])?;
    }
    // Nobody is left in the zone: all the others do. From the machine itself, for its pod is gone.
    machines.kubectl(&["delete", "pod", "on-m2"])?;
    let near = texts(&machines.get(&["get", "service", "preferclose"])?["spec"]["clusterIPs"]);
    for ip in near.iter().chain(&ips) {
        let url = format!("http://{}/", host(ip));
        eventually(SOON, || {
            let mut seen = BTreeSet::new();
            for _ in 0..30 {
                seen.insert(run(machines.all[2].command("curl").args(["-gsf", "--max-time", "5", &url]))?);
            }
            ensure!(seen == set(&["from m0\n", "from m1\n"]), "{seen:?}");
            Ok(())
        })?;
    }
    machines.apply(&pod("m2"))?;
    machines.kubectl(&["wait", "--for=condition=Ready", "pod/on-m2", "--timeout=60s"])?;
    sees(machines, "m2", &near, &["m2"])
}

fn said(machines: &Machines, service: &str) -> Result<String> {
    machines.kubectl(&["get", "events", "--field-selector", &format!("involvedObject.name={service}")])
}

fn services_are_shared_out_among_zones(machines: &Machines) -> Result<()> {
    // Two of three processors are in the east, and so are two of three pods.
    let auto = json!({"service.kubernetes.io/topology-mode": "Auto"});
    let ips = service(machines, "shared", auto, json!({}))?;
    sees(machines, "m2", &ips, &["m2"])?;
    sees(machines, "m1", &ips, &["m0", "m1"])?;
    eventually(SOON, || {
        let said = said(machines, "shared")?;
        ensure!(said.contains("TopologyAwareHintsEnabled") && said.contains("addressType: IPv6"), "{said}");
        Ok(())
    })?;
    let hints = |machines: &Machines| -> Result<usize> {
        let slices = machines.get(&["get", "endpointslices", "-l", "kubernetes.io/service-name=shared"])?;
        let endpoints = slices["items"]
            .as_array()
            .into_iter()
            .flatten()
            .flat_map(|slice| slice["endpoints"].as_array().cloned().unwrap_or_default());
        Ok(endpoints.filter(|endpoint| !endpoint["hints"].is_null()).count())
    };
    ensure!(hints(machines)? == 6, "not all endpoints have hints");
    // A machine whose zone nobody knows spoils it, and everybody has all endpoints again.
    machines.kubectl(&["label", "node", "m1", "topology.kubernetes.io/zone-"])?;
    eventually(SOON, || {
        ensure!(hints(machines)? == 0, "hints are left");
        let said = said(machines, "shared")?;
        ensure!(
            said.contains("TopologyAwareHintsDisabled") && said.contains("Insufficient Node information"),
            "{said}"
        );
        Ok(())
    })?;
    sees(machines, "m2", &ips, &["m0", "m1", "m2"])?;
    machines.kubectl(&["label", "node", "m1", "topology.kubernetes.io/zone=east"])?;
    sees(machines, "m2", &ips, &["m2"])?;
    // Two endpoints are too few: the east would do far more than its share.
    machines.kubectl(&["delete", "pod", "on-m1"])?;
    eventually(SOON, || {
        let said = said(machines, "shared")?;
        ensure!(said.contains("overload threshold (2 endpoints, 2 zones)"), "{said}");
        Ok(())
    })?;
    sees(machines, "m2", &ips, &["m0", "m2"])
}

fn purges(machines: &Machines) -> Result<()> {
    machines.purge()
}
