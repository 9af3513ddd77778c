//! Several machines as one cluster: how they join, how their pods reach each other, and what becomes of all that when a
//! machine is lost, comes back or leaves.
//!
//! One test, because each step works on what the one before left, on one cluster.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use dhow_e2e::machines::Machines;
use dhow_e2e::{always, eventually, in_turn, run, workspace};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(60);
/// A lost node is found out after 40 s, and its pods leave after their 2 s of toleration.
const LOST: Duration = Duration::from_secs(120);

type Step = fn(&Machines) -> Result<()>;

#[test]
fn machines_are_a_cluster() {
    // m0 is the server; m0, m1 and m2 share a link; m3 is behind a router.
    let machines = Machines::new(3).unwrap();
    let steps: &[(&str, Step)] = &[
        ("starts", starts),
        ("refuses who is not believed", refuses_who_is_not_believed),
        ("joins", joins),
        ("gives each node its network", gives_each_node_its_network),
        ("chooses the way", chooses_the_way),
        ("runs pods everywhere", runs_pods_everywhere),
        ("pods reach each other", pods_reach_each_other),
        ("services reach every node", services_reach_every_node),
        ("names resolve everywhere", names_resolve_everywhere),
        ("policies hold between nodes", policies_hold_between_nodes),
        ("streams reach every node", streams_reach_every_node),
        ("renews certificates while running", renews_certificates_while_running),
        ("a narrow link is no black hole", a_narrow_link_is_no_black_hole),
        ("a balancer's address leaves a dead daemon", a_balancers_address_leaves_a_dead_daemon),
        ("loses a node", loses_a_node),
        ("takes it back", takes_it_back),
        ("heals a partition", heals_a_partition),
        ("drains and removes a node", drains_and_removes_a_node),
        ("purges", purges),
    ];
    in_turn(steps, |step| step(&machines)).unwrap();
}

fn starts(machines: &Machines) -> Result<()> {
    let pools = serde_json::json!({"loadBalancer": {"pools": [{"name": "public", "addresses": ["198.18.0.32/30"]}]}});
    std::fs::write(machines.server().settings(), pools.to_string())?;
    let join_line = || -> Result<String> {
        let said = machines.server().dhow_said(&["up"])?;
        let line = said.lines().find(|line| line.contains("dhow join https://198.18.0.1:6443 --token K10"));
        Ok(line.with_context(|| said.clone())?.trim().to_owned())
    };
    let line = join_line()?;
    // Another start prints the same token: each one is a key to the cluster.
    machines.server().dhow(&["down"])?;
    ensure!(join_line()? == line, "another token");
    let tokens = machines.server().dhow(&["token", "list", "-o", "json"])?;
    let tokens: Value = serde_json::from_str(&tokens)?;
    ensure!(tokens.as_array().is_some_and(|all| all.len() == 1), "{tokens}");
    Ok(())
}

fn token(machines: &Machines) -> Result<String> {
    Ok(machines.server().dhow(&["token", "create", "--ttl", "1h"])?.trim().to_owned())
}

fn refuses_who_is_not_believed(machines: &Machines) -> Result<()> {
    let machine = &machines.all[1];
    let whole = token(machines)?;
    let bare = whole.split("::").nth(1).context("the token names no authority")?;
    // A token that names no authority; one that names another; one that nobody made.
    let said = machine.dhow_said(&["join", "198.18.0.1", "--token", bare])?;
    ensure!(said.contains("--discovery-token-ca-cert-hash"), "{said}");
    let wrong = format!("sha256:{}", "0".repeat(64));
    let said = machine.dhow_said(&["join", "198.18.0.1", "--token", bare, "--discovery-token-ca-cert-hash", &wrong])?;
    ensure!(said.contains("is not of the cluster that the token is of"), "{said}");
    let stranger = format!("{}::zzzzzz.zzzzzzzzzzzzzzzz", whole.split("::").next().unwrap_or_default());
    let said = machine.dhow_said(&["join", "198.18.0.1", "--token", &stranger])?;
    ensure!(said.to_lowercase().contains("unauthorized"), "{said}");
    // Another machine under the name of one that is there.
    let mut command = machine.command(binary()?);
    let output = command.args(["join", "198.18.0.1", "--token", &whole, "--node-name", "m0"]).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success() && said.contains("exists already"), "{said}");
    // A token that was removed.
    machines.server().dhow(&["token", "delete", &whole])?;
    let said = machine.dhow_said(&["join", "198.18.0.1", "--token", &whole])?;
    ensure!(said.to_lowercase().contains("unauthorized"), "{said}");
    Ok(())
}

fn binary() -> Result<std::path::PathBuf> {
    let here = std::env::current_exe().context("find the test executable")?;
    Ok(here.ancestors().nth(2).context("find the target folder")?.join("dhow"))
}

fn joins(machines: &Machines) -> Result<()> {
    let whole = token(machines)?;
    let bare = whole.split("::").nth(1).context("the token names no authority")?;
    let hash = whole.split("::").next().and_then(|head| head.strip_prefix("K10")).context("no hash")?;
    let begin = Instant::now();
    machines.all[1].dhow(&["join", "https://198.18.0.1:6443", "--token", &whole])?;
    eprintln!("joined after {} ms", begin.elapsed().as_millis());
    // As kubeadm's users write it.
    let pin = format!("sha256:{hash}");
    machines.all[2].dhow(&["join", "198.18.0.1:6443", "--token", bare, "--discovery-token-ca-cert-hash", &pin])?;
    // With the authority itself, and the token out of sight.
    let file = machines.all[3].data_dir().with_file_name("token");
    std::fs::write(&file, bare)?;
    let ca = machines.server().data_dir().join("pki/ca.crt");
    let (file, ca) = (file.display().to_string(), ca.display().to_string());
    machines.all[3].dhow(&["join", "198.18.0.1", "--token-file", &file, "--ca-file", &ca])?;
    for machine in &machines.all {
        let condition = "--for=condition=Ready";
        machines.kubectl(&["wait", condition, &format!("node/{}", machine.name), "--timeout=60s"])?;
    }
    Ok(())
}

fn network_of(machines: &Machines, node: &str) -> Result<String> {
    let node = machines.get(&["get", "node", node])?;
    let cidr = node["spec"]["podCIDRs"][0].as_str().context("no pod network")?;
    ensure!(node["spec"]["podCIDR"] == cidr, "{}", node["spec"]);
    Ok(cidr.to_owned())
}

fn gives_each_node_its_network(machines: &Machines) -> Result<()> {
    let mut all = Vec::new();
    for machine in &machines.all {
        all.push(network_of(machines, &machine.name)?);
    }
    let mut distinct = all.clone();
    distinct.sort();
    distinct.dedup();
    ensure!(distinct.len() == 4 && all[0] == "10.42.0.0/24", "{all:?}");
    // Nobody takes another's, whoever asks.
    let thief = format!(
        "apiVersion: v1\nkind: Node\nmetadata: {{name: thief}}\nspec: {{podCIDR: {0}, podCIDRs: [{0}]}}\n",
        all[1]
    );
    let refused = machines.apply(&thief).unwrap_err().to_string();
    ensure!(refused.contains("overlaps the pod network of node \"m1\""), "{refused}");
    Ok(())
}

fn chooses_the_way(machines: &Machines) -> Result<()> {
    let far = network_of(machines, "m3")?;
    let near = network_of(machines, "m1")?;
    eventually(SOON, || {
        let routes = run(machines.server().command("ip").args(["route"]))?;
        let way = |network: &str| routes.lines().find(|line| line.starts_with(network)).map(str::to_owned);
        let (near, far) = (way(&near).context("no way to m1")?, way(&far).context("no way to m3")?);
        ensure!(near.contains("via 198.18.0.2 dev eth0"), "{near}");
        ensure!(far.contains("dev dhow0-vx") && far.contains("onlink"), "{far}");
        Ok(())
    })
}

/// A web server and Python on each machine.
fn pods(machines: &Machines) -> String {
    let pod = |node: &str| {
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
      command: [sh, -c, "mkdir /www; cd /www; echo from {node} > index.html; head -c 300000 /dev/zero > large; exec python3 -u -m http.server 8080"]
      readinessProbe: {{httpGet: {{path: /, port: 8080}}, periodSeconds: 1}}
"#
        )
    };
    machines.all.iter().map(|machine| pod(&machine.name)).collect::<Vec<_>>().join("---\n")
}

fn runs_pods_everywhere(machines: &Machines) -> Result<()> {
    for image in ["busybox", "python"] {
        let archive = workspace().join(format!("target/images/{image}.tar"));
        for machine in &machines.all {
            let archive = archive.to_str().context("path")?;
            machines.server().dhow(&["image", "import", "--node", &machine.name, archive])?;
        }
    }
    machines.apply(&pods(machines))?;
    machines.kubectl(&["wait", "--for=condition=Ready", "pod", "-l", "app=web", "--timeout=120s"])?;
    Ok(())
}

fn ip(machines: &Machines, pod: &str) -> Result<String> {
    let pod = machines.get(&["get", "pod", pod])?;
    Ok(pod["status"]["podIP"].as_str().context("no address")?.to_owned())
}

fn pods_reach_each_other(machines: &Machines) -> Result<()> {
    for to in &machines.all {
        let address = ip(machines, &format!("on-{}", to.name))?;
        for from in &machines.all {
            let pod = format!("on-{}", from.name);
            let page = machines.fetch(&pod, &format!("http://{address}:8080/"), 5)?;
            ensure!(page == format!("from {}\n", to.name), "{} to {}: {page}", from.name, to.name);
            let large = machines.fetch(&pod, &format!("http://{address}:8080/large"), 10)?;
            ensure!(large.len() == 300_000, "{} to {}: {} bytes", from.name, to.name, large.len());
        }
    }
    // With their own addresses: what listens sees the pod.
    let near = ip(machines, "on-m1")?;
    let seen = machines.kubectl(&["logs", "on-m3"])?;
    ensure!(seen.lines().any(|line| line.starts_with(&format!("{near} "))), "on-m3 has not seen {near}: {seen}");
    Ok(())
}

fn services_reach_every_node(machines: &Machines) -> Result<()> {
    machines.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  type: NodePort\n  selector: {app: web}\n  \
         ports: [{port: 80, targetPort: 8080, nodePort: 30080}]\n",
    )?;
    let service = machines.get(&["get", "service", "web"])?;
    let cluster_ip = service["spec"]["clusterIP"].as_str().context("no cluster IP")?.to_owned();
    let all = machines.all.len();
    for machine in &machines.all {
        let pod = format!("on-{}", machine.name);
        eventually(SOON, || {
            // Every endpoint answers, through the service's address and through this node's port.
            for url in [format!("http://{cluster_ip}/"), format!("http://{}:30080/", machine.address)] {
                let count = "import sys, urllib.request as u; \
                             print(len({u.urlopen(sys.argv[1], timeout=5).read() for _ in range(60)}))";
                let seen = machines.exec(&pod, &format!("python3 -c '{count}' {url}"))?;
                ensure!(seen.trim() == all.to_string(), "{pod} sees {} answers at {url}", seen.trim());
            }
            // From outside the cluster's network, through a node that may not run the endpoint.
            let url = format!("http://{}:30080/", machine.address);
            run(machines.server().command("curl").args(["-sf", "--max-time", "5", &url]))?;
            Ok(())
        })?;
        // The API under its service address.
        let connect = "import socket; socket.create_connection((\"10.43.0.1\", 443), 3); print(\"open\")";
        let said = machines.exec(&pod, &format!("python3 -c '{connect}'"))?;
        ensure!(said.contains("open"), "{pod}: {said}");
    }
    Ok(())
}

fn names_resolve_everywhere(machines: &Machines) -> Result<()> {
    for machine in &machines.all {
        let pod = format!("on-{}", machine.name);
        let page = machines.fetch(&pod, "http://web.default.svc.cluster.local/", 5)?;
        ensure!(page.starts_with("from "), "{page}");
    }
    let slices =
        machines.get(&["-n", "kube-system", "get", "endpointslices", "-l", "kubernetes.io/service-name=kube-dns"])?;
    ensure!(slices["items"].as_array().map(Vec::len) == Some(4), "{slices}");
    Ok(())
}

fn policies_hold_between_nodes(machines: &Machines) -> Result<()> {
    machines.apply(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: only-m2}\nspec:\n  podSelector: \
         {matchLabels: {app: web}}\n  policyTypes: [Ingress]\n  ingress:\n  - from: [{podSelector: {matchLabels: {on: m2}}}]\n",
    )?;
    let (near, far) = (ip(machines, "on-m1")?, ip(machines, "on-m3")?);
    for address in [near, far] {
        let url = format!("http://{address}:8080/");
        eventually(SOON, || match machines.fetch("on-m0", &url, 2) {
            Ok(page) => bail!("on-m0 still gets {page}"),
            Err(_) => machines.fetch("on-m2", &url, 2).map(drop),
        })?;
    }
    machines.kubectl(&["delete", "networkpolicy", "only-m2"])?;
    let address = ip(machines, "on-m3")?;
    eventually(SOON, || machines.fetch("on-m0", &format!("http://{address}:8080/"), 2).map(drop))
}

fn streams_reach_every_node(machines: &Machines) -> Result<()> {
    for machine in &machines.all {
        let pod = format!("on-{}", machine.name);
        let said = machines.kubectl(&["exec", &pod, "--", "hostname"])?;
        ensure!(said.trim() == pod, "{said}");
        machines.kubectl(&["logs", &pod])?;
        let raw = machines.kubectl(&["get", "--raw", &format!("/api/v1/nodes/{}/proxy/healthz", machine.name)])?;
        ensure!(raw.contains("ok"), "{raw}");
    }
    Ok(())
}

/// Which certificate the node's server shows.
fn serving(machines: &Machines, address: &str) -> Result<String> {
    let script = format!(
        "openssl s_client -connect {address}:10250 </dev/null 2>/dev/null | openssl x509 -noout -serial -subject -issuer"
    );
    run(machines.server().command("sh").args(["-c", &script]))
}

fn renews_certificates_while_running(machines: &Machines) -> Result<()> {
    let machine = &machines.all[1];
    let before = serving(machines, &machine.address)?;
    ensure!(before.contains("system:node:m1") && before.contains("dhow-ca"), "{before}");
    let pid = machine.daemon_pid()?;
    let requests = |machines: &Machines| -> Result<usize> {
        let all = machines.get(&["get", "csr"])?;
        Ok(all["items"].as_array().map_or(0, Vec::len))
    };
    let held = requests(machines)?;
    run(Command::new("kill").args(["-HUP", &pid.to_string()]))?;
    eventually(SOON, || {
        ensure!(serving(machines, &machine.address)? != before, "the same certificate");
        ensure!(requests(machines)? >= held + 5, "not all were asked for");
        Ok(())
    })?;
    ensure!(machine.daemon_pid()? == pid, "it was restarted");
    // It goes on: its lease is renewed with the new certificate.
    let renewed = |machines: &Machines| -> Result<Value> {
        Ok(machines.get(&["-n", "kube-node-lease", "get", "lease", "m1"])?["spec"]["renewTime"].clone())
    };
    let time = renewed(machines)?;
    eventually(SOON, || {
        ensure!(renewed(machines)? != time, "the lease is not renewed");
        Ok(())
    })?;
    machines.exec("on-m1", "true").map(drop)
}

fn a_narrow_link_is_no_black_hole(machines: &Machines) -> Result<()> {
    let machine = &machines.all[3];
    machine.narrow(1300)?;
    let (far, near) = (ip(machines, "on-m3")?, ip(machines, "on-m1")?);
    for (from, to) in [("on-m1", far), ("on-m3", near)] {
        let large = machines.fetch(from, &format!("http://{to}:8080/large"), 30)?;
        ensure!(large.len() == 300_000, "{from}: {} bytes", large.len());
    }
    machine.narrow(1500)
}

/// The machines that have an address on their own link.
fn holders(machines: &Machines, address: &str) -> Result<Vec<String>> {
    let mut holders = Vec::new();
    for machine in &machines.all {
        if run(machine.command("ip").args(["-o", "addr", "show", "dev", "eth0"]))?.contains(&format!(" {address}/32 "))
        {
            holders.push(machine.name.clone());
        }
    }
    Ok(holders)
}

fn a_balancers_address_leaves_a_dead_daemon(machines: &Machines) -> Result<()> {
    for pod in ["on-m1", "on-m2"] {
        machines.kubectl(&["label", "pod", pod, "balanced=yes"])?;
    }
    // Only m1 and m2 may answer for it.
    machines.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: balanced}\nspec:\n  type: LoadBalancer\n  \
         externalTrafficPolicy: Local\n  selector: {balanced: \"yes\"}\n  ports: [{port: 80, targetPort: 8080}]\n",
    )?;
    let (address, holder) = eventually(SOON, || {
        let service = machines.get(&["get", "service", "balanced"])?;
        let address = service["status"]["loadBalancer"]["ingress"][0]["ip"].as_str().context("no address")?.to_owned();
        let held = holders(machines, &address)?;
        ensure!(held == ["m1"] || held == ["m2"], "{held:?} answer");
        Ok((address, held[0].clone()))
    })?;
    let url = format!("http://{address}/");
    let ask = || run(machines.server().command("curl").args(["-sf", "--max-time", "2", &url]));
    // Asked from a node, which is inside, either may answer.
    let answers = || {
        let answer = ask()?;
        ensure!(["from m1\n", "from m2\n"].contains(&answer.as_str()), "{answer:?}");
        Ok(())
    };
    eventually(SOON, answers)?;
    // It stays while the daemon lives: well beyond the time the kernel was given.
    always(Duration::from_secs(15), || {
        ensure!(holders(machines, &address)? == [holder.clone()], "it is lost meanwhile");
        Ok(())
    })?;
    let dead = machines.all.iter().find(|machine| machine.name == holder).context("no machine")?;
    let begin = Instant::now();
    dead.kill()?;
    let next = if holder == "m1" { "m2" } else { "m1" };
    eventually(SOON, || {
        let held = holders(machines, &address)?;
        ensure!(held == [next], "{held:?} answer");
        Ok(())
    })?;
    eprintln!("{address} moved after {} ms", begin.elapsed().as_millis());
    eventually(SOON, answers)?;
    dead.dhow(&["join"])?;
    machines.kubectl(&["wait", "--for=condition=Ready", &format!("node/{holder}"), "--timeout=60s"])?;
    machines.kubectl(&["delete", "service", "balanced"])?;
    eventually(SOON, || {
        let held = holders(machines, &address)?;
        ensure!(held.is_empty(), "{held:?} still answer");
        Ok(())
    })
}

/// Three replicas that leave a lost node soon, one on each of the other machines.
const SPREAD: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: spread}
spec:
  replicas: 3
  selector: {matchLabels: {app: spread}}
  template:
    metadata: {labels: {app: spread}}
    spec:
      terminationGracePeriodSeconds: 0
      topologySpreadConstraints:
        - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway, labelSelector: {matchLabels: {app: spread}}}
      tolerations:
        - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 2}
        - {key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 2}
      containers:
        - {name: c, image: "docker.io/library/busybox:latest", imagePullPolicy: Never, command: [sleep, "100000"]}
---
apiVersion: v1
kind: Pod
metadata: {name: stays}
spec:
  nodeName: m2
  terminationGracePeriodSeconds: 0
  tolerations: [{operator: Exists}]
  containers:
    - {name: c, image: "docker.io/library/busybox:latest", imagePullPolicy: Never, command: [sleep, "100000"]}
"#;

fn on(machines: &Machines, selector: &str, node: &str) -> Result<Vec<String>> {
    let pods = machines.get(&["get", "pods", "-l", selector, "--field-selector", &format!("spec.nodeName={node}")])?;
    let names = pods["items"].as_array().into_iter().flatten();
    Ok(names.filter_map(|pod| pod["metadata"]["name"].as_str().map(str::to_owned)).collect())
}

/// What ran on m2 before it was lost, to be compared with afterwards.
fn container_of(machines: &Machines, pod: &str) -> Result<String> {
    let pod = machines.get(&["get", "pod", pod])?;
    Ok(pod["status"]["containerStatuses"][0]["containerID"].as_str().context("no container")?.to_owned())
}

fn loses_a_node(machines: &Machines) -> Result<()> {
    machines.apply(SPREAD)?;
    machines.kubectl(&["cordon", "m0"])?;
    machines.kubectl(&["rollout", "status", "deploy/spread", "--timeout=60s"])?;
    machines.kubectl(&["wait", "--for=condition=Ready", "pod/stays", "--timeout=60s"])?;
    // At least one is there, so that there is something to lose.
    if on(machines, "app=spread", "m2")?.is_empty() {
        machines.kubectl(&["scale", "deploy/spread", "--replicas=6"])?;
        machines.kubectl(&["rollout", "status", "deploy/spread", "--timeout=60s"])?;
    }
    let there = on(machines, "app=spread", "m2")?;
    ensure!(!there.is_empty(), "nothing runs on m2");
    let before = container_of(machines, "stays")?;
    std::fs::write(machines.all[2].data_dir().with_file_name("stays"), before)?;
    machines.all[2].kill()?;
    machines.all[2].plug(false)?;
    eventually(LOST, || {
        let node = machines.get(&["get", "node", "m2"])?;
        let ready = node["status"]["conditions"].as_array().into_iter().flatten().find(|one| one["type"] == "Ready");
        ensure!(ready.is_some_and(|one| one["status"] == "Unknown"), "m2 is still believed to be there");
        let taints = node["spec"]["taints"].to_string();
        ensure!(taints.contains("NoExecute") && taints.contains("node.kubernetes.io/unreachable"), "{taints}");
        // Nobody is sent to its pods any more.
        let slices = machines.get(&["get", "endpointslices", "-l", "kubernetes.io/service-name=web"])?;
        let of_node = slices["items"].as_array().into_iter().flatten();
        let ready = of_node
            .flat_map(|slice| slice["endpoints"].as_array().cloned().unwrap_or_default())
            .filter(|endpoint| endpoint["nodeName"] == "m2" && endpoint["conditions"]["ready"] == true)
            .count();
        ensure!(ready == 0, "endpoints on m2 are still ready");
        // The replicas run elsewhere.
        let deployment = machines.get(&["get", "deploy", "spread"])?;
        ensure!(deployment["status"]["readyReplicas"] == deployment["spec"]["replicas"], "{}", deployment["status"]);
        Ok(())
    })
}

fn takes_it_back(machines: &Machines) -> Result<()> {
    let machine = &machines.all[2];
    let lost = on(machines, "app=spread", "m2")?;
    machine.plug(true)?;
    // Without a token: it is a node already.
    machine.dhow(&["join"])?;
    machines.kubectl(&["wait", "--for=condition=Ready", "node/m2", "--timeout=60s"])?;
    eventually(SOON, || {
        // What was to leave is stopped and gone, what was to stay went on.
        let now = on(machines, "app=spread", "m2")?;
        ensure!(!lost.iter().any(|pod| now.contains(pod)), "{lost:?} are still there: {now:?}");
        let node = machines.get(&["get", "node", "m2"])?;
        ensure!(!node["spec"]["taints"].to_string().contains("unreachable"), "{}", node["spec"]["taints"]);
        Ok(())
    })?;
    machines.kubectl(&["wait", "--for=condition=Ready", "pod/stays", "--timeout=60s"])?;
    let before = std::fs::read_to_string(machine.data_dir().with_file_name("stays"))?;
    ensure!(container_of(machines, "stays")? == before, "the container was started anew");
    let page = machines.fetch("on-m2", "http://web.default.svc.cluster.local/", 5)?;
    ensure!(page.starts_with("from "), "{page}");
    Ok(())
}

fn heals_a_partition(machines: &Machines) -> Result<()> {
    // The far machine is cut off, agent and all, and comes back before anybody gives it up.
    let machine = &machines.all[3];
    let far = ip(machines, "on-m3")?;
    machine.plug(false)?;
    let url = format!("http://{far}:8080/");
    ensure!(machines.fetch("on-m1", &url, 1).is_err(), "it is reached over a cable that is out");
    machine.plug(true)?;
    eventually(SOON, || machines.fetch("on-m1", &url, 1).map(drop))?;
    eventually(SOON, || machines.exec("on-m3", "true").map(drop))
}

fn drains_and_removes_a_node(machines: &Machines) -> Result<()> {
    machines.kubectl(&["uncordon", "m0"])?;
    machines.kubectl(&["drain", "m3", "--force", "--delete-emptydir-data", "--ignore-daemonsets", "--timeout=60s"])?;
    ensure!(on(machines, "app=spread", "m3")?.is_empty(), "pods are left on m3");
    let network = network_of(machines, "m3")?;
    machines.all[3].dhow(&["down", "--purge"])?;
    machines.all[3].ensure_purged()?;
    machines.kubectl(&["delete", "node", "m3"])?;
    eventually(SOON, || {
        // Everybody forgets the way to it.
        for machine in &machines.all[..3] {
            let routes = run(machine.command("ip").args(["route"]))?;
            ensure!(!routes.contains(&network), "{} still has a route to {network}", machine.name);
            let links = run(machine.command("ip").args(["-br", "link"]))?;
            ensure!(!links.contains("dhow0-vx"), "{} still has a tunnel", machine.name);
        }
        Ok(())
    })?;
    let slices =
        machines.get(&["-n", "kube-system", "get", "endpointslices", "-l", "kubernetes.io/service-name=kube-dns"])?;
    ensure!(!slices.to_string().contains("\"m3\""), "its name server is still announced");
    // It joins again as if for the first time.
    let whole = token(machines)?;
    machines.all[3].dhow(&["join", "198.18.0.1", "--token", &whole])?;
    machines.kubectl(&["wait", "--for=condition=Ready", "node/m3", "--timeout=60s"])?;
    Ok(())
}

fn purges(machines: &Machines) -> Result<()> {
    machines.purge()
}
