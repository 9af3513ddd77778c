//! Policies for the whole cluster as an administrator writes them: with the real kubectl, on a running cloud, beside NetworkPolicies,
//! seen from inside the pods.
#![allow(clippy::unwrap_used)]

use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dhow_e2e::{Host, eventually, run};

const SOON: Duration = Duration::from_secs(20);
/// A machine on another link of the host's.
const OUTSIDE: &str = "198.18.1.2";

const SHOP: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {kind: shop}}
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
metadata: {namespace: shop, name: client, labels: {role: client}}
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

const SERVE: &str = r#"
import http.server, sys, threading
class Welcome(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"welcome")
    def log_message(self, *arguments):
        pass
servers = [http.server.ThreadingHTTPServer((sys.argv[1], int(port)), Welcome) for port in sys.argv[2:]]
print("ready", flush=True)
for server in servers[1:]:
    threading.Thread(target=server.serve_forever, daemon=True).start()
servers[0].serve_forever()
"#;

#[test]
fn administrators_have_the_first_and_the_last_word() {
    let host = Host::new().unwrap();
    let outside = Outside::beyond(&host).unwrap();
    starts(&host).unwrap();
    refuses_what_makes_no_sense(&host).unwrap();
    deny_wins_over_what_a_policy_allows(&host).unwrap();
    the_first_priority_counts_and_pass_leads_to_policies(&host).unwrap();
    allow_wins_over_what_a_policy_denies(&host).unwrap();
    the_baseline_counts_where_no_policy_speaks(&host).unwrap();
    egress_by_network_and_port_changes_live(&host).unwrap();
    holds_while_the_daemon_is_away(&host).unwrap();
    both_tiers_in_one_kind(&host).unwrap();
    leaves_nothing(&host).unwrap();
    host.dhow(&["down", "--purge"]).unwrap();
    drop(outside);
    // The kernel takes the link away some time after the other end's namespace.
    eventually(SOON, || host.ensure_purged()).unwrap();
}

/// A machine at the other end of a link. Dropping it takes it and the link away.
struct Outside {
    namespace: String,
    server: Child,
}

impl Outside {
    fn beyond(host: &Host) -> Result<Self> {
        let namespace = format!("{}-out", host.namespace());
        run(Command::new("ip").args(["netns", "add", &namespace]))?;
        run(host
            .command("ip")
            .args(["link", "add", "out0", "type", "veth", "peer", "name", "out1", "netns", &namespace]))?;
        run(host.command("ip").args(["addr", "add", "198.18.1.1/24", "dev", "out0"]))?;
        run(host.command("ip").args(["link", "set", "out0", "up"]))?;
        let inside = |program: &str| {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", &namespace, program]);
            command
        };
        run(inside("ip").args(["addr", "add", &format!("{OUTSIDE}/24"), "dev", "out1"]))?;
        run(inside("ip").args(["link", "set", "out1", "up"]))?;
        let mut server = inside("python3")
            .args(["-c", SERVE, OUTSIDE, "8000", "8001", "8002"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .context("start a server")?;
        let mut line = String::new();
        let output = server.stdout.take().context("no output")?;
        std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut line)?;
        ensure!(line == "ready\n", "the server does not start");
        Ok(Self { namespace, server })
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
        let _ = Command::new("ip").args(["netns", "del", &self.namespace]).status();
    }
}

fn starts(host: &Host) -> Result<()> {
    host.dhow(&["up"])?;
    host.import(&["busybox", "python"])?;
    eventually(SOON, || host.apply(SHOP))?;
    host.kubectl(&["-n", "shop", "wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s"])?;
    host.kubectl(&["wait", "--for=condition=Ready", "pod/visitor", "--timeout=60s"])?;
    eventually(SOON, || host.kubectl(&["get", "anp,banp,cnp"]))?;
    reaches(host, "shop/client", "web:80", true)?;
    reaches(host, "default/visitor", "web.shop:9090", true)?;
    reaches(host, "shop/client", &format!("{OUTSIDE}:8000"), true)
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

fn put(host: &Host, kind: &str, name: &str, spec: &str) -> Result<String> {
    let (version, namespace) = match kind {
        "NetworkPolicy" => ("networking.k8s.io/v1", "namespace: shop, "),
        "ClusterNetworkPolicy" => ("policy.networking.k8s.io/v1alpha2", ""),
        _ => ("policy.networking.k8s.io/v1alpha1", ""),
    };
    host.apply(&format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{{namespace}name: {name}}}\nspec: {spec}\n"))
}

fn refused(host: &Host, kind: &str, name: &str, spec: &str, says: &str) -> Result<()> {
    let error = put(host, kind, name, spec).err().with_context(|| format!("{spec} was accepted"))?.to_string();
    ensure!(error.contains(says), "wanted {says:?}: {error}");
    Ok(())
}

/// Of pods in `shop`.
fn pods(labels: &str) -> String {
    format!(
        "{{pods: {{namespaceSelector: {{matchLabels: {{kind: shop}}}}, podSelector: {{matchLabels: {{{labels}}}}}}}}}"
    )
}

fn refuses_what_makes_no_sense(host: &Host) -> Result<()> {
    let everyone = "subject: {namespaces: {}}";
    let admin = "AdminNetworkPolicy";
    refused(host, admin, "late", &format!("{{priority: 1001, {everyone}}}"), "1000")?;
    refused(host, admin, "nobody", "{priority: 1, subject: {}}", "spec.subject")?;
    let two = "subject: {namespaces: {}, pods: {namespaceSelector: {}, podSelector: {}}}";
    refused(host, admin, "both", &format!("{{priority: 1, {two}}}"), "spec.subject")?;
    let egress = "egress: [{action: Deny, to: [{networks: [TO]}], ports: [{namedPort: http}]}]";
    let named = format!("{{priority: 1, {everyone}, {}}}", egress.replace("TO", "10.0.0.0/8"));
    refused(host, admin, "named", &named, "networks/nodes peer cannot be set with namedPorts")?;
    let network = "egress: [{action: Deny, to: [{networks: [10.0.0.300/8]}]}]";
    refused(
        host,
        admin,
        "network",
        &format!("{{priority: 1, {everyone}, {network}}}"),
        "Invalid CIDR format provided",
    )?;
    let pass = "ingress: [{action: Pass, from: [{namespaces: {}}]}]";
    refused(host, "BaselineAdminNetworkPolicy", "default", &format!("{{{everyone}, {pass}}}"), "Unsupported value")?;
    refused(
        host,
        "BaselineAdminNetworkPolicy",
        "other",
        &format!("{{{everyone}}}"),
        "Only one baseline admin network policy",
    )
}

fn deny_wins_over_what_a_policy_allows(host: &Host) -> Result<()> {
    put(
        host,
        "NetworkPolicy",
        "web",
        "{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {}}]}]}",
    )?;
    reaches(host, "default/visitor", "web.shop:80", false)?;
    reaches(host, "shop/client", "web:80", true)?;
    let deny = format!("ingress: [{{name: no-clients, action: Deny, from: [{}]}}]", pods("role: client"));
    put(host, "AdminNetworkPolicy", "no-clients", &format!("{{priority: 50, subject: {}, {deny}}}", pods("app: web")))?;
    reaches(host, "shop/client", "web:80", false)?;
    reaches(host, "shop/client", "web:9090", false)?;
    // The node's probes go on: the pod stays ready.
    host.kubectl(&["-n", "shop", "wait", "--for=condition=Ready", "pod/web", "--timeout=10s"])?;
    let listed = host.kubectl(&["get", "anp"])?;
    ensure!(listed.contains("PRIORITY") && listed.contains("50"), "{listed}");
    Ok(())
}

fn the_first_priority_counts_and_pass_leads_to_policies(host: &Host) -> Result<()> {
    let rule = format!("ingress: [{{action: Pass, from: [{}], ports: [{{namedPort: http}}]}}]", pods("role: client"));
    put(host, "AdminNetworkPolicy", "pass", &format!("{{priority: 5, subject: {}, {rule}}}", pods("app: web")))?;
    reaches(host, "shop/client", "web:80", true)?;
    reaches(host, "shop/client", "web:9090", false)?;
    // Later than the one that denies.
    put(host, "AdminNetworkPolicy", "pass", &format!("{{priority: 500, subject: {}, {rule}}}", pods("app: web")))?;
    reaches(host, "shop/client", "web:80", false)?;
    put(host, "AdminNetworkPolicy", "pass", &format!("{{priority: 5, subject: {}, {rule}}}", pods("app: web")))?;
    reaches(host, "shop/client", "web:80", true)?;
    put(host, "NetworkPolicy", "web", "{podSelector: {}, policyTypes: [Ingress]}")?;
    reaches(host, "shop/client", "web:80", false)
}

fn allow_wins_over_what_a_policy_denies(host: &Host) -> Result<()> {
    let rule = "ingress: [{action: Allow, from: [{namespaces: {}}], ports: [{portNumber: {port: 9090}}]}]";
    put(host, "AdminNetworkPolicy", "monitors", &format!("{{priority: 3, subject: {{namespaces: {{}}}}, {rule}}}"))?;
    reaches(host, "default/visitor", "web.shop:9090", true)?;
    reaches(host, "shop/client", "web:9090", true)?;
    reaches(host, "default/visitor", "web.shop:80", false)?;
    host.kubectl(&["delete", "anp", "--all"])?;
    reaches(host, "default/visitor", "web.shop:9090", false)
}

fn the_baseline_counts_where_no_policy_speaks(host: &Host) -> Result<()> {
    let deny = "ingress: [{action: Deny, from: [{namespaces: {}}]}]";
    let shop = "subject: {namespaces: {matchLabels: {kind: shop}}}";
    put(host, "BaselineAdminNetworkPolicy", "default", &format!("{{{shop}, {deny}}}"))?;
    let allow = "{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {}}]}]}";
    put(host, "NetworkPolicy", "web", allow)?;
    reaches(host, "shop/client", "web:80", true)?;
    host.kubectl(&["-n", "shop", "delete", "networkpolicy", "web"])?;
    reaches(host, "shop/client", "web:80", false)?;
    reaches(host, "default/visitor", "web.shop:80", false)?;
    let first = format!(
        "{{action: Allow, from: [{}], ports: [{{portRange: {{start: 9000, end: 9100}}}}]}}",
        pods("role: client")
    );
    let both = format!("ingress: [{first}, {{action: Deny, from: [{{namespaces: {{}}}}]}}]");
    put(host, "BaselineAdminNetworkPolicy", "default", &format!("{{{shop}, {both}}}"))?;
    reaches(host, "shop/client", "web:9090", true)?;
    reaches(host, "shop/client", "web:80", false)?;
    host.kubectl(&["delete", "banp", "default"])?;
    reaches(host, "default/visitor", "web.shop:80", true)
}

fn egress_by_network_and_port_changes_live(host: &Host) -> Result<()> {
    let at = |port: u16| format!("{OUTSIDE}:{port}");
    let rule = |ports: &str| {
        format!("egress: [{{action: Deny, to: [{{networks: [{OUTSIDE}/32, \"2001:db8::/32\"]}}], ports: [{ports}]}}]")
    };
    let policy = |ports: &str| format!("{{priority: 10, subject: {}, {}}}", pods("role: client"), rule(ports));
    put(host, "AdminNetworkPolicy", "outside", &policy("{portNumber: {protocol: TCP, port: 8000}}"))?;
    reaches(host, "shop/client", &at(8000), false)?;
    reaches(host, "shop/client", &at(8001), true)?;
    reaches(host, "default/visitor", &at(8000), true)?;
    put(host, "AdminNetworkPolicy", "outside", &policy("{portRange: {protocol: TCP, start: 8001, end: 8002}}"))?;
    reaches(host, "shop/client", &at(8001), false)?;
    reaches(host, "shop/client", &at(8002), false)?;
    reaches(host, "shop/client", &at(8000), true)?;
    // Its own subject, live.
    host.kubectl(&["-n", "shop", "label", "pod", "client", "role=guest", "--overwrite"])?;
    reaches(host, "shop/client", &at(8001), true)?;
    host.kubectl(&["-n", "shop", "label", "pod", "client", "role=client", "--overwrite"])?;
    reaches(host, "shop/client", &at(8001), false)
}

fn holds_while_the_daemon_is_away(host: &Host) -> Result<()> {
    run(Command::new("kill").args(["-9", &host.daemon_pid()?.to_string()]))?;
    let rules = run(host.command("nft").args(["list", "map", "inet", "dhow", "policy_egress"]))?;
    ensure!(rules.contains("policy_admin_"), "the rules went with the daemon: {rules}");
    host.dhow(&["up"])?;
    let rules = run(host.command("nft").args(["list", "map", "inet", "dhow", "policy_egress"]))?;
    ensure!(rules.contains("policy_admin_"), "a start opens what was closed: {rules}");
    reaches(host, "shop/client", &format!("{OUTSIDE}:8001"), false)?;
    host.kubectl(&["delete", "anp", "outside"])?;
    reaches(host, "shop/client", &format!("{OUTSIDE}:8001"), true)
}

fn both_tiers_in_one_kind(host: &Host) -> Result<()> {
    let web = pods("app: web");
    let deny =
        "ingress: [{action: Deny, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 9090}}}]}]";
    put(host, "ClusterNetworkPolicy", "base", &format!("{{tier: Baseline, priority: 1, subject: {web}, {deny}}}"))?;
    reaches(host, "shop/client", "web:9090", false)?;
    reaches(host, "shop/client", "web:80", true)?;
    let accept = format!(
        "ingress: [{{action: Accept, from: [{}], protocols: [{{destinationNamedPort: admin}}]}}]",
        pods("role: client")
    );
    put(host, "ClusterNetworkPolicy", "first", &format!("{{tier: Admin, priority: 1, subject: {web}, {accept}}}"))?;
    reaches(host, "shop/client", "web:9090", true)?;
    reaches(host, "default/visitor", "web.shop:9090", false)?;
    refused(
        host,
        "ClusterNetworkPolicy",
        "range",
        &format!(
            "{{tier: Admin, priority: 1, subject: {web}, {}}}",
            deny.replace("number: 9090", "range: {start: 9, end: 9}")
        ),
        "Start port must be less than End port",
    )?;
    host.kubectl(&["delete", "cnp", "--all"])?;
    reaches(host, "default/visitor", "web.shop:9090", true)
}

fn leaves_nothing(host: &Host) -> Result<()> {
    eventually(SOON, || {
        let rules = run(host.command("nft").args(["list", "table", "inet", "dhow"]))?;
        let left = ["policy_admin_", "policy_permits_", "policy_baseline_", "policy_peers_", "policy_ports_"];
        ensure!(!left.iter().any(|left| rules.contains(left)), "rules left: {rules}");
        Ok(())
    })
}
