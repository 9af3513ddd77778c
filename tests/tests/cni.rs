//! Pods connected by standard CNI plugins, as a user configures them: the embedded runtime with Debian's plugins, the real kubectl.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dhow_e2e::{HOST_IP, Host, eventually, run};

const SOON: Duration = Duration::from_secs(30);

const LIST: &str = r#"{"cniVersion": "1.0.0", "name": "pods", "plugins": [
    {"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true, "ipMasq": true, "capabilities": {"ipRanges": true},
     "ipam": {"type": "host-local", "dataDir": "DATA", "routes": [{"dst": "0.0.0.0/0"}]}},
    {"type": "portmap", "snat": true, "capabilities": {"portMappings": true}},
    {"type": "bandwidth", "capabilities": {"bandwidth": true}}
]}"#;

const PODS: &str = r#"
apiVersion: v1
kind: Pod
metadata:
  name: web
  labels: {app: web}
  annotations: {kubernetes.io/ingress-bandwidth: 10M}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - name: web
      image: docker.io/library/python:latest
      imagePullPolicy: Never
      command: [sh, -c, "mkdir /www; cd /www; echo welcome > index.html; exec python3 -u -m http.server 8080"]
      ports: [{name: http, containerPort: 8080, hostPort: 8088}]
      readinessProbe: {httpGet: {path: /, port: http}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{port: 80, targetPort: http}]
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - {name: idle, image: "docker.io/library/python:latest", imagePullPolicy: Never, command: [sleep, "3600"]}
"#;

struct Cloud {
    host: Host,
    lists: PathBuf,
    reservations: PathBuf,
}

#[test]
fn plugins_connect_pods_and_leave_nothing_of_them() {
    let cloud = Cloud::new().unwrap();
    cloud.says_what_is_missing().unwrap();
    cloud.starts_once_it_is_there().unwrap();
    cloud.connects().unwrap();
    cloud.goes_on_after_a_crash().unwrap();
    cloud.tells_plugins_errors().unwrap();
    cloud.frees_what_went_while_it_was_away().unwrap();
    cloud.purges().unwrap();
}

impl Cloud {
    fn new() -> Result<Self> {
        let mut host = Host::new()?;
        let (lists, reservations) = (host.folder().join("lists"), host.folder().join("reservations"));
        let config = host.folder().join("config.yaml");
        let text = format!("cni:\n  confDir: {}\n  binDirs: [/usr/lib/cni]\n", lists.display());
        std::fs::write(&config, text).context("write the settings")?;
        host.set("DHOW_CONFIG", config.to_str().context("path")?);
        Ok(Self { host, lists, reservations })
    }

    fn put_list(&self, text: &str) -> Result<()> {
        let text = text.replace("DATA", self.reservations.to_str().context("path")?);
        let path = self.lists.join("10-pods.conflist");
        // As a whole: it is followed.
        std::fs::write(path.with_extension("new"), text)?;
        std::fs::rename(path.with_extension("new"), path).context("write the list")
    }

    fn reserved(&self) -> Vec<String> {
        let names = std::fs::read_dir(self.reservations.join("pods")).into_iter().flatten().flatten();
        let names = names.filter_map(|entry| entry.file_name().into_string().ok());
        names.filter(|name| name.parse::<std::net::IpAddr>().is_ok()).collect()
    }

    fn exec(&self, pod: &str, url: &str) -> Result<String> {
        let get =
            "import sys, urllib.request as u; sys.stdout.write(u.urlopen(sys.argv[1], timeout=3).read().decode())";
        self.host.kubectl(&["exec", pod, "--", "python3", "-c", get, url])
    }

    fn says_what_is_missing(&self) -> Result<()> {
        let host = &self.host;
        host.dhow(&["up"])?;
        host.import(&["busybox", "python"])?;
        eventually(SOON, || {
            let node = host.get(&["get", "node", "e2e"])?;
            let conditions = node["status"]["conditions"].as_array().context("conditions")?;
            let ready = conditions.iter().find(|c| c["type"] == "Ready").context("Ready")?;
            let message = ready["message"].as_str().unwrap_or_default();
            ensure!(ready["status"] == "False" && ready["reason"] == "KubeletNotReady", "{ready}");
            let says = "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady \
                        message:Network plugin returns error: ";
            ensure!(message.starts_with(says) && message.ends_with("cni plugin not initialized"), "{message}");
            Ok(())
        })
    }

    fn starts_once_it_is_there(&self) -> Result<()> {
        let host = &self.host;
        eventually(SOON, || host.apply(PODS))?;
        self.put_list(LIST)?;
        host.kubectl(&["wait", "--for=condition=Ready", "node/e2e", "--timeout=30s"])?;
        host.kubectl(&["wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s"])?;
        Ok(())
    }

    fn connects(&self) -> Result<()> {
        let web = self.host.get(&["get", "pod", "web"])?;
        let address = web["status"]["podIP"].as_str().context("no address")?.to_owned();
        ensure!(address.starts_with("10.42.0."), "not of the node's pod network: {address}");
        ensure!(self.reserved().contains(&address) && self.reserved().len() == 2, "{:?}", self.reserved());
        self.talks(&address)?;
        let links = run(self.host.command("tc").args(["qdisc", "show"]))?;
        ensure!(links.contains("rate 10Mbit"), "no limit: {links}");
        Ok(())
    }

    fn talks(&self, address: &str) -> Result<()> {
        for url in [format!("http://{address}:8080/"), "http://web/".to_owned()] {
            let page = eventually(SOON, || self.exec("client", &url))?;
            ensure!(page.trim() == "welcome", "{url}: {page}");
        }
        // Its own host name is `web`, too.
        let page = self.exec("web", "http://web.default/")?;
        ensure!(page.trim() == "welcome", "itself: {page}");
        let page = self.host.curl(&[&format!("http://{HOST_IP}:8088/")])?;
        ensure!(page.trim() == "welcome", "host port: {page}");
        Ok(())
    }

    fn goes_on_after_a_crash(&self) -> Result<()> {
        let host = &self.host;
        let address = |pod: &str| -> Result<String> {
            Ok(host.get(&["get", "pod", pod])?["status"]["podIP"].as_str().context("no address")?.to_owned())
        };
        let before = address("web")?;
        run(Command::new("kill").args(["-9", &host.daemon_pid()?.to_string()]))?;
        let page = host.curl(&[&format!("http://{HOST_IP}:8088/")])?;
        ensure!(page.trim() == "welcome", "while the daemon is away: {page}");
        host.dhow(&["up"])?;
        host.kubectl(&["wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s"])?;
        ensure!(address("web")? == before, "another address than {before}");
        self.talks(&before)?;
        // One that it finds again is undone as one that it made.
        let client = address("client")?;
        host.kubectl(&["delete", "pod", "client", "--timeout=30s"])?;
        eventually(SOON, || {
            ensure!(!self.reserved().contains(&client), "{client} is still reserved: {:?}", self.reserved());
            Ok(())
        })
    }

    fn tells_plugins_errors(&self) -> Result<()> {
        let host = &self.host;
        self.put_list(&LIST.replace("\"type\": \"bridge\"", "\"type\": \"brigde\""))?;
        let late = "apiVersion: v1\nkind: Pod\nmetadata: {name: late}\nspec:\n  terminationGracePeriodSeconds: 0\n  containers:\n  \
                    - {name: idle, image: \"docker.io/library/busybox:latest\", imagePullPolicy: Never, command: [sleep, \"3600\"]}\n";
        host.apply(late)?;
        eventually(SOON, || {
            let events =
                host.kubectl(&["get", "events", "--field-selector", "involvedObject.name=late", "-o", "json"])?;
            let says =
                "plugin type=\\\"brigde\\\" failed (add): failed to find plugin \\\"brigde\\\" in path [/usr/lib/cni]";
            ensure!(events.contains("FailedCreatePodSandBox") && events.contains(says), "{events}");
            Ok(())
        })?;
        self.put_list(LIST)?;
        host.kubectl(&["wait", "--for=condition=Ready", "pod/late", "--timeout=60s"])?;
        ensure!(self.reserved().len() == 2, "{:?}", self.reserved());
        Ok(())
    }

    /// A pod ends while nobody can ask its plugins.
    fn frees_what_went_while_it_was_away(&self) -> Result<()> {
        let host = &self.host;
        let late = host.get(&["get", "pod", "late"])?;
        let address = late["status"]["podIP"].as_str().context("no address")?.to_owned();
        host.kubectl(&["delete", "pod", "late", "--wait=false"])?;
        run(Command::new("kill").args(["-9", &host.daemon_pid()?.to_string()]))?;
        host.dhow(&["up"])?;
        eventually(SOON, || {
            ensure!(!self.reserved().contains(&address), "{address} is still reserved");
            Ok(())
        })
    }

    fn purges(&self) -> Result<()> {
        let host = &self.host;
        host.kubectl(&["delete", "pod", "--all", "--timeout=60s"])?;
        eventually(SOON, || {
            let netns = host.run_dir().join("netns");
            let left: Vec<_> = std::fs::read_dir(&netns).context("list namespaces")?.flatten().collect();
            ensure!(self.reserved().is_empty() && left.is_empty(), "left: {:?}, {left:?}", self.reserved());
            Ok(())
        })?;
        let rules = run(&mut host.command("iptables-save"))?;
        ensure!(!rules.contains("CNI-DN-"), "host ports left: {rules}");
        // One that is there when all of it goes.
        host.apply(PODS)?;
        host.kubectl(&["wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s"])?;
        host.dhow(&["down", "--purge"])?;
        ensure!(self.reserved().is_empty(), "reserved: {:?}", self.reserved());
        let rules = run(&mut host.command("iptables-save"))?;
        ensure!(!rules.contains("CNI-DN-") && !rules.contains("10.42.0."), "rules left: {rules}");
        // The bridge and the chains that its pods share are the plugins', which never remove them.
        run(host.command("ip").args(["link", "del", "cni0"]))?;
        run(host.command("nft").args(["flush", "ruleset"]))?;
        host.ensure_purged()
    }
}
