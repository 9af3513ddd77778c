//! Network policies as a user writes them: with the real kubectl, on a running cloud, seen from inside the pods.
#![allow(clippy::unwrap_used)]

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dhow_e2e::{HOST_IP, Host, eventually, run};

const SOON: Duration = Duration::from_secs(20);

const SHOP: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Pod
metadata: {namespace: shop, name: web, labels: {app: web}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - name: web
      image: docker.io/library/busybox:latest
      imagePullPolicy: Never
      command: [sh, -c, "mkdir /www; echo welcome > /www/index.html; httpd -p 9090 -h /www; httpd -f -p 8080 -h /www"]
      ports: [{name: http, containerPort: 8080}, {name: admin, containerPort: 9090}]
      readinessProbe: {httpGet: {path: /, port: http}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: web}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: http}, {name: admin, port: 9090}]
---
apiVersion: v1
kind: Pod
metadata: {namespace: shop, name: client, labels: {role: stranger}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - {name: idle, image: "docker.io/library/python:latest", imagePullPolicy: Never, command: [sleep, "3600"]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: default, name: visitor}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - {name: idle, image: "docker.io/library/python:latest", imagePullPolicy: Never, command: [sleep, "3600"]}
"#;

/// Prints the page, or why there is none; a name that does not resolve is an error.
const FETCH: &str = r#"
import http.client, socket, sys
address = socket.gethostbyname(sys.argv[1])
try:
    connection = http.client.HTTPConnection(address, int(sys.argv[2]), timeout=1)
    connection.request("GET", "/")
    print(connection.getresponse().read().decode())
except OSError as error:
    print(error)
"#;

#[test]
fn policies_open_and_close_what_they_say() {
    let host = Host::new().unwrap();
    starts(&host).unwrap();
    denies_by_default(&host).unwrap();
    allows_by_label_and_changes_live(&host).unwrap();
    allows_port_ranges_and_names(&host).unwrap();
    allows_another_namespace(&host).unwrap();
    restricts_egress_but_not_names(&host).unwrap();
    holds_while_the_daemon_is_away(&host).unwrap();
    opens_again(&host).unwrap();
    answers_a_load_balancers_health_checks(&host).unwrap();
    host.dhow(&["down", "--purge"]).unwrap();
    host.ensure_purged().unwrap();
}

fn starts(host: &Host) -> Result<()> {
    host.dhow(&["up"])?;
    host.import(&["busybox", "python"])?;
    // A new namespace gets its service account a moment later; until then it takes no pods.
    eventually(SOON, || host.apply(SHOP))?;
    host.kubectl(&["-n", "shop", "wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s"])?;
    host.kubectl(&["wait", "--for=condition=Ready", "pod/visitor", "--timeout=60s"])?;
    reaches(host, "shop/client", "web:80", true)?;
    reaches(host, "shop/client", "web:9090", true)?;
    reaches(host, "default/visitor", "web.shop:80", true)
}

/// Waits until a pod gets the page at `address`, or, when it should not, gets no answer.
fn reaches(host: &Host, pod: &str, address: &str, expected: bool) -> Result<()> {
    let (namespace, name) = pod.split_once('/').context("namespace/name")?;
    let (server, port) = address.split_once(':').context("name:port")?;
    eventually(SOON, || {
        let answer = host.kubectl(&["-n", namespace, "exec", name, "--", "python3", "-c", FETCH, server, port])?;
        let expected = if expected { "welcome" } else { "timed out" };
        ensure!(answer.trim() == expected, "{pod} to {address}, wanted {expected}: {answer}");
        Ok(())
    })
}

fn policy(host: &Host, name: &str, spec: &str) -> Result<()> {
    let head = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy";
    host.apply(&format!("{head}\nmetadata: {{namespace: shop, name: {name}}}\nspec: {spec}\n")).map(drop)
}

fn denies_by_default(host: &Host) -> Result<()> {
    policy(host, "deny", "{podSelector: {}, policyTypes: [Ingress]}")?;
    reaches(host, "shop/client", "web:80", false)?;
    reaches(host, "default/visitor", "web.shop:80", false)?;
    // The node's probes go on: the pod stays ready.
    host.kubectl(&["-n", "shop", "wait", "--for=condition=Ready", "pod/web", "--timeout=10s"])?;
    Ok(())
}

fn allows_by_label_and_changes_live(host: &Host) -> Result<()> {
    policy(
        host,
        "friends",
        "{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {role: friend}}}]}]}",
    )?;
    reaches(host, "shop/client", "web:80", false)?;
    host.kubectl(&["-n", "shop", "label", "pod", "client", "role=friend", "--overwrite"])?;
    reaches(host, "shop/client", "web:80", true)?;
    host.kubectl(&["-n", "shop", "label", "pod", "client", "role=stranger", "--overwrite"])?;
    reaches(host, "shop/client", "web:80", false)
}

fn allows_port_ranges_and_names(host: &Host) -> Result<()> {
    policy(
        host,
        "ports",
        "{podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: 9000, endPort: 9100}]}]}",
    )?;
    reaches(host, "shop/client", "web:9090", true)?;
    reaches(host, "shop/client", "web:80", false)?;
    policy(host, "ports", "{podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: http}]}]}")?;
    reaches(host, "shop/client", "web:80", true)?;
    reaches(host, "shop/client", "web:9090", false)?;
    host.kubectl(&["-n", "shop", "delete", "networkpolicy", "ports"])?;
    reaches(host, "shop/client", "web:80", false)
}

fn allows_another_namespace(host: &Host) -> Result<()> {
    let from = "{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: default}}}";
    policy(
        host,
        "visitors",
        &format!("{{podSelector: {{matchLabels: {{app: web}}}}, ingress: [{{from: [{from}]}}]}}"),
    )?;
    reaches(host, "default/visitor", "web.shop:80", true)?;
    reaches(host, "shop/client", "web:80", false)
}

fn restricts_egress_but_not_names(host: &Host) -> Result<()> {
    host.kubectl(&["-n", "shop", "label", "pod", "client", "role=friend", "--overwrite"])?;
    reaches(host, "shop/client", "web:9090", true)?;
    let dns = "{ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]}";
    let web = "{to: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 8080}]}";
    let selected = "podSelector: {matchLabels: {role: friend}}, policyTypes: [Egress]";
    policy(host, "egress", &format!("{{{selected}, egress: [{dns}, {web}]}}"))?;
    reaches(host, "shop/client", "web:9090", false)?;
    reaches(host, "shop/client", "web:80", true)
}

fn holds_while_the_daemon_is_away(host: &Host) -> Result<()> {
    run(Command::new("kill").args(["-9", &host.daemon_pid()?.to_string()]))?;
    let rules = run(host.command("nft").args(["list", "map", "inet", "dhow", "policy_ingress"]))?;
    ensure!(rules.contains("policy_permits"), "the rules went with the daemon: {rules}");
    Ok(())
}

fn opens_again(host: &Host) -> Result<()> {
    host.dhow(&["up"])?;
    eventually(SOON, || {
        host.kubectl(&["-n", "shop", "wait", "--for=condition=Ready", "pod", "--all", "--timeout=10s"])
    })?;
    reaches(host, "shop/client", "web:9090", false)?;
    host.kubectl(&["-n", "shop", "delete", "networkpolicy", "--all"])?;
    reaches(host, "shop/client", "web:9090", true)?;
    let rules = run(host.command("nft").args(["list", "table", "inet", "dhow"]))?;
    ensure!(!rules.contains("policy_permits_") && !rules.contains("policy_peers_"), "rules left: {rules}");
    Ok(())
}

/// Not a policy's, but a host's: whether traffic that stays on the node finds endpoints there.
fn answers_a_load_balancers_health_checks(host: &Host) -> Result<()> {
    let spec = "{type: LoadBalancer, externalTrafficPolicy: Local, selector: {app: web}, ports: [{port: 80}]}";
    host.apply(&format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{namespace: shop, name: balanced}}\nspec: {spec}\n"
    ))?;
    let service = host.get(&["-n", "shop", "get", "service", "balanced"])?;
    let port = service["spec"]["healthCheckNodePort"].as_u64().context("no health-check port was allocated")?;
    let url = format!("http://{HOST_IP}:{port}/");
    let answer = eventually(SOON, || host.curl(&[&url]))?;
    ensure!(answer.contains("\"localEndpoints\":1"), "{answer}");
    host.kubectl(&["-n", "shop", "label", "pod", "web", "app=none", "--overwrite"])?;
    eventually(SOON, || {
        let refused = host.curl(&[&url]).err().context("still healthy")?.to_string();
        ensure!(refused.contains("503"), "{refused}");
        Ok(())
    })
}
