//! Several `dhow server` processes on one etcd of three members: nothing is lost and nothing is done twice, whoever is
//! killed.
//!
//! One test, because each step works on what the one before left, on one cluster. Its nodes are played by a task.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dhow_client::{Client, Error, Informer, ListParams, Object, Patch};
use dhow_e2e::kubelets;
use dhow_e2e::servers::{Etcd, Server};
use futures::future::join_all;
use http_body_util::BodyExt;
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, ResourceQuota, Service};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};

/// What settling may take on a busy machine.
const SOON: Duration = Duration::from_secs(60);
/// A silent leader is replaced after so many seconds.
const LEASE: &str = "3";

struct Cluster {
    folder: tempfile::TempDir,
    etcd: Etcd,
    servers: [Server; 2],
    clients: [Client; 2],
    placed: Arc<Placed>,
    _stop: DropGuard,
}

/// Every node that each pod was ever seen on, by uid.
#[derive(Default)]
struct Placed(Mutex<HashMap<String, HashSet<String>>>);

impl Placed {
    fn follow(self: &Arc<Self>, client: Client, stop: CancellationToken) {
        let this = self.clone();
        Informer::<Pod>::start(client, ListParams::default(), None, stop).on_change(move |change| {
            let pod = change.object();
            if let Some(node) = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()) {
                this.0.lock().entry(pod.metadata.uid.clone().unwrap_or_default()).or_default().insert(node);
            }
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn several_servers_on_one_etcd() {
    let mut cluster = Cluster::start().await.unwrap();
    macro_rules! step {
        ($name:ident) => {
            let begin = Instant::now();
            let result = cluster.$name().await.context(stringify!($name));
            if let Err(error) = result {
                panic!("{error:#}\n{}", cluster.logs());
            }
            eprintln!("{}: {} ms", stringify!($name), begin.elapsed().as_millis());
        };
    }
    step!(each_believes_what_the_other_issued);
    step!(each_sees_what_the_other_writes);
    step!(a_quota_holds_through_both);
    step!(addresses_and_ports_are_given_once);
    step!(a_leader_is_killed_under_load);
    step!(a_leader_that_ends_in_order_is_followed_at_once);
    step!(leaders_are_killed_one_after_the_other);
    step!(an_etcd_member_is_lost);
}

/// An object from JSON.
fn object<K: Object>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

fn deployment(name: &str, replicas: u32) -> Deployment {
    object(json!({
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": spec()}}
    }))
}

fn spec() -> Value {
    json!({"containers": [{"name": "c", "image": "image.invalid/x:1"}], "terminationGracePeriodSeconds": 1})
}

/// Tries until it succeeds, for what nobody announces.
async fn eventually<T>(mut attempt: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + SOON;
    loop {
        match attempt().await {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= deadline => return Err(error.context("still so after a minute")),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Asks one server after the other until one takes it, whatever happens to them meanwhile.
async fn surely<F>(clients: &[Client], attempt: impl Fn(Client) -> F) -> Result<()>
where
    F: Future<Output = Result<(), Error>>,
{
    let deadline = Instant::now() + SOON;
    loop {
        let mut last = None;
        for client in clients {
            match attempt(client.clone()).await {
                Ok(()) => return Ok(()),
                Err(error) => last = Some(error),
            }
        }
        ensure!(Instant::now() < deadline, "nobody takes it: {last:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn create_surely<K: Object>(clients: &[Client], object: &K) -> Result<()> {
    surely(clients, |client| async move {
        match client.create(object).await {
            // An answer got lost: it is there.
            Ok(_) | Err(Error::Api { code: 409, .. }) => Ok(()),
            Err(error) => Err(error),
        }
    })
    .await
}

async fn scale(clients: &[Client], name: &str, replicas: u32) -> Result<()> {
    surely(clients, |client| async move {
        let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
        client.patch::<Deployment>(Some("default"), name, patch, None).await.map(drop)
    })
    .await
}

impl Cluster {
    async fn start() -> Result<Self> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir()?;
        let etcd = Etcd::start(&folder.path().join("etcd"))?;
        let mut servers = [Server::new(folder.path(), "a")?, Server::new(folder.path(), "b")?];
        let mut flags = etcd.flags.clone();
        flags.extend(["--leader-elect-lease-duration".to_owned(), LEASE.to_owned()]);
        servers[0].start(&flags)?;
        // Without the token the second is refused, with it it joins.
        let refused = servers[1].command(&["server"], &flags)?.output()?;
        let message = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(refused.status.code() == Some(1) && message.contains("--token-file"), "{message}");
        let printed = servers[0].command(&["server", "token"], &[])?.output()?.stdout;
        let token = folder.path().join("token");
        std::fs::write(&token, printed)?;
        flags.extend(["--token-file".to_owned(), token.display().to_string()]);
        servers[1].start(&flags)?;

        let stop = CancellationToken::new();
        let clients = [servers[0].client()?, servers[1].client()?];
        let nodes: Vec<String> = (0..5).map(|number| format!("n{number}")).collect();
        kubelets::register(&clients[0], &nodes).await?;
        tokio::spawn(kubelets::renew(clients.to_vec(), nodes, stop.clone()));
        let placed = Arc::<Placed>::default();
        for client in &clients {
            tokio::spawn(kubelets::play(client.clone(), stop.clone()));
            placed.follow(client.clone(), stop.clone());
        }
        Ok(Self { folder, etcd, servers, clients, placed, _stop: stop.drop_guard() })
    }

    fn logs(&self) -> String {
        self.servers.each_ref().map(|server| format!("{}:\n{}\n", server.name, server.log())).concat()
    }

    fn flags(&self) -> Vec<String> {
        let mut flags = self.etcd.flags.clone();
        flags.extend(["--leader-elect-lease-duration".to_owned(), LEASE.to_owned()]);
        flags
    }

    /// Which server leads, asked of one.
    async fn leader(&self, asked: usize) -> Result<usize> {
        let lease = self.clients[asked].get::<Lease>(Some("kube-system"), "dhow-server").await?;
        let holder = lease.spec.and_then(|spec| spec.holder_identity).unwrap_or_default();
        let name = holder.split('_').next().unwrap_or_default();
        self.servers.iter().position(|server| server.name == name).with_context(|| format!("{holder:?} leads"))
    }

    async fn each_believes_what_the_other_issued(&mut self) -> Result<()> {
        let [a, b] = &self.servers;
        // Certificates.
        let user =
            a.kubectl(&["--server", &b.url(), "auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"])?;
        ensure!(user == "dhow-admin", "{user}");
        // Tokens.
        let token = b.kubectl(&["create", "token", "default"])?;
        let bare = self.folder.path().join("bare.kubeconfig");
        std::fs::write(&bare, "{apiVersion: v1, kind: Config}")?;
        let ca = b.data_dir.join("pki/ca.crt");
        let mut whoami = std::process::Command::new("kubectl");
        whoami.arg("--kubeconfig").arg(&bare).arg("--certificate-authority").arg(&ca);
        whoami.args(["--server", &a.url(), "--token", token.trim()]).env("NO_PROXY", "*");
        let user = dhow_e2e::run(whoami.args(["auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"]))?;
        ensure!(user == "system:serviceaccount:default:default", "{user}");
        // Secrets that one sealed.
        a.kubectl(&["create", "secret", "generic", "s", "--from-literal=word=d2hhdA"])?;
        let word = b.kubectl(&["get", "secret", "s", "-o", "jsonpath={.data.word}"])?;
        ensure!(word == "ZDJoaGRB", "{word}");
        Ok(())
    }

    async fn each_sees_what_the_other_writes(&mut self) -> Result<()> {
        let [a, b] = &self.clients;
        let list = b.list::<ConfigMap>(Some("default"), &ListParams::default()).await?;
        let from = list.metadata.resource_version.unwrap_or_default();
        let path = format!("/api/v1/namespaces/default/configmaps?watch=true&resourceVersion={from}");
        let mut watch = b.open(&path).await?;
        let mut written = Vec::new();
        for number in 0..20 {
            let name = format!("seen-{number}");
            let made =
                a.create::<ConfigMap>(&object(json!({"metadata": {"name": name, "namespace": "default"}}))).await?;
            // At once, and as it was written.
            let found = b.get::<ConfigMap>(Some("default"), &name).await?;
            ensure!(found.metadata == made.metadata);
            written.push((name, made.metadata.resource_version.unwrap_or_default()));
        }
        let (mut text, mut seen) = (Vec::new(), Vec::new());
        while seen.len() < written.len() {
            let frame = tokio::time::timeout(SOON, watch.frame()).await?.context("the watch ended")??;
            text.extend_from_slice(frame.data_ref().context("no data")?);
            while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = text.drain(..=end).collect();
                let event: Value = serde_json::from_slice(&line)?;
                let text = |field: &str| event["object"]["metadata"][field].as_str().unwrap_or_default().to_owned();
                ensure!(event["type"] == "ADDED", "{event}");
                seen.push((text("name"), text("resourceVersion")));
            }
        }
        ensure!(seen == written, "{seen:?}");
        Ok(())
    }

    async fn a_quota_holds_through_both(&mut self) -> Result<()> {
        self.servers[0].kubectl(&["create", "namespace", "small"])?;
        let quota = json!({"metadata": {"name": "q", "namespace": "small"}, "spec": {"hard": {"pods": "10"}}});
        self.clients[0].create::<ResourceQuota>(&object(quota)).await?;
        let attempts = (0..60).map(|number| {
            let pod: Pod =
                object(json!({"metadata": {"name": format!("p{number}"), "namespace": "small"}, "spec": spec()}));
            let client = self.clients[number % 2].clone();
            async move { client.create(&pod).await }
        });
        let results = join_all(attempts).await;
        let refused = |result: &Result<Pod, Error>| matches!(result, Err(Error::Api { code: 403, message, .. }) if message.contains("exceeded quota"));
        let (made, no) = (results.iter().filter(|r| r.is_ok()).count(), results.iter().filter(|r| refused(r)).count());
        ensure!(
            (made, no) == (10, 50),
            "{made} made, {no} refused: {:?}",
            results.iter().find(|r| r.is_err() && !refused(r))
        );
        let pods = self.clients[1].list::<Pod>(Some("small"), &ListParams::default()).await?;
        ensure!(pods.items.len() == 10);
        // What is given back can be used again, once.
        self.servers[1].kubectl(&["delete", "pods", "--all", "-n", "small", "--timeout=60s"])?;
        let used = ["get", "quota", "q", "-n", "small", "-o", "jsonpath={.status.used.pods}"];
        eventually(async || {
            let used = self.servers[1].kubectl(&used)?;
            ensure!(used == "0", "{used}");
            Ok(())
        })
        .await
    }

    async fn addresses_and_ports_are_given_once(&mut self) -> Result<()> {
        let service = |name: String, port: Option<u16>| -> Service {
            let port = json!({"port": 80, "nodePort": port});
            object(
                json!({"metadata": {"name": name, "namespace": "default"}, "spec": {"type": "NodePort", "ports": [port]}}),
            )
        };
        // Any port, and twenty that one client of each server wants.
        let any = (0..60).map(|number| (number % 2, service(format!("any-{number}"), None)));
        let same =
            (0..20u16).flat_map(|n| [0, 1].map(|side| (side, service(format!("same-{n}-{side}"), Some(30100 + n)))));
        let attempts = any.chain(same).map(|(side, service)| {
            let client = self.clients[side].clone();
            async move { client.create(&service).await }
        });
        let results = join_all(attempts).await;
        let (any, same) = results.split_at(60);
        let failed = any.iter().find_map(|result| result.as_ref().err());
        ensure!(failed.is_none(), "{failed:?}");
        for (number, pair) in same.chunks(2).enumerate() {
            let made = pair.iter().filter(|result| result.is_ok()).count();
            // One of the others may have it by chance.
            ensure!(made <= 1, "port {} was given {made} times", 30100 + number);
        }
        let (mut addresses, mut ports) = (HashSet::new(), HashSet::new());
        let all = self.clients[0].list::<Service>(Some("default"), &ListParams::default()).await?.items;
        for spec in all.iter().filter_map(|service| service.spec.as_ref()) {
            ensure!(addresses.insert(spec.cluster_ip.clone().context("no address")?), "an address was given twice");
            for port in spec.ports.iter().flatten().filter_map(|port| port.node_port) {
                ensure!(ports.insert(port), "port {port} was given twice");
            }
        }
        ensure!((71..=81).contains(&all.len()), "{} services", all.len());
        Ok(())
    }

    async fn a_leader_is_killed_under_load(&mut self) -> Result<()> {
        for name in ["x", "y", "z"] {
            self.clients[0].create(&deployment(name, 3)).await?;
        }
        let job: Job = object(json!({
            "metadata": {"name": "j", "namespace": "default"},
            "spec": {"completions": 24, "parallelism": 4, "template": {
                "metadata": {"annotations": {"ends": ""}},
                "spec": {"restartPolicy": "Never", "containers": spec()["containers"]}}}
        }));
        self.clients[1].create(&job).await?;
        let leader = self.leader(1).await?;
        let survivor = 1 - leader;
        // Scaling and single pods, while the leader is killed in the middle of it.
        let both = self.clients.clone();
        let load = tokio::spawn(async move {
            for round in 0..20u32 {
                for (index, name) in (0..).zip(["x", "y", "z"]) {
                    scale(&both, name, (round * 7 + index * 5) % 12).await?;
                }
                let name = format!("single-{round}");
                let single: Pod = object(json!({"metadata": {"name": name, "namespace": "default"}, "spec": spec()}));
                create_surely(&both, &single).await?;
            }
            for (replicas, name) in [(9, "x"), (4, "y"), (11, "z")] {
                scale(&both, name, replicas).await?;
            }
            Ok::<_, anyhow::Error>(())
        });
        eventually(async || {
            self.clients[survivor].get::<Pod>(Some("default"), "single-7").await?;
            Ok(())
        })
        .await?;
        self.servers[leader].kill()?;
        load.await??;
        eventually(async || {
            ensure!(self.leader(survivor).await? == survivor, "the dead leader leads");
            Ok(())
        })
        .await?;
        let client = &self.clients[survivor];
        eventually(async || {
            for (replicas, name) in [(9, "x"), (4, "y"), (11, "z")] {
                let found = client.get::<Deployment>(Some("default"), name).await?.status.unwrap_or_default();
                ensure!(
                    found.replicas == Some(replicas) && found.available_replicas == Some(replicas),
                    "{name}: {found:?}"
                );
            }
            let done = client.get::<Job>(Some("default"), "j").await?.status.unwrap_or_default();
            ensure!(done.succeeded == Some(24) && done.completion_time.is_some(), "{done:?}");
            Ok(())
        })
        .await?;
        let pods = client.list::<Pod>(Some("default"), &ListParams::default()).await?.items;
        let labelled = |key: &str, value: &str| {
            let has =
                |pod: &&Pod| pod.metadata.labels.as_ref().and_then(|all| all.get(key)).is_some_and(|v| v == value);
            pods.iter().filter(has).count()
        };
        let counts = ["x", "y", "z"].map(|name| labelled("app", name));
        ensure!(counts == [9, 4, 11], "{counts:?}");
        let of_job = labelled("job-name", "j");
        ensure!(of_job == 24, "{of_job} pods were made for a job of 24");
        let singles: HashSet<_> =
            pods.iter().filter_map(|pod| pod.metadata.name.as_deref()?.strip_prefix("single-")).collect();
        ensure!(singles.len() == 20, "of the single pods there are {singles:?}");
        let idle = pods.iter().filter(|pod| pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_none())).count();
        ensure!(idle == 0, "{idle} pods are on no node");
        let placed = self.placed.0.lock();
        let twice: Vec<_> = placed.iter().filter(|(_, nodes)| nodes.len() > 1).collect();
        ensure!(twice.is_empty(), "on two nodes: {twice:?}");
        ensure!(placed.len() > 80, "only {} pods were seen", placed.len());
        Ok(())
    }

    async fn a_leader_that_ends_in_order_is_followed_at_once(&mut self) -> Result<()> {
        let flags = self.flags();
        let dead = if self.servers[0].kubectl(&["get", "--raw", "/livez"]).is_ok() { 1 } else { 0 };
        self.servers[dead].start(&flags)?;
        let leader = self.leader(dead).await?;
        ensure!(leader == 1 - dead, "a server that comes back takes the lead");
        self.servers[leader].terminate()?;
        let begin = Instant::now();
        eventually(async || {
            ensure!(self.leader(dead).await? == dead);
            Ok(())
        })
        .await?;
        eprintln!("the lead passed after {} ms", begin.elapsed().as_millis());
        ensure!(begin.elapsed() < Duration::from_secs(3), "the lease had to run out");
        // It does what a leader does.
        scale(&self.clients[dead..=dead], "x", 1).await?;
        eventually(async || {
            let status = self.clients[dead].get::<Deployment>(Some("default"), "x").await?.status.unwrap_or_default();
            ensure!(status.available_replicas == Some(1), "{status:?}");
            Ok(())
        })
        .await?;
        self.servers[leader].start(&flags)
    }

    /// Three kills while workloads of every kind are made; each killed server comes back and waits for its turn.
    async fn leaders_are_killed_one_after_the_other(&mut self) -> Result<()> {
        const ROUNDS: usize = 30;
        let flags = self.flags();
        let both = self.clients.clone();
        let load = tokio::spawn(async move {
            for round in 0..ROUNDS {
                create_surely(&both, &deployment(&format!("k{round}"), 2)).await?;
                let template = json!({"metadata": {"annotations": {"ends": ""}},
                    "spec": {"restartPolicy": "Never", "containers": spec()["containers"]}});
                let job: Job = object(json!({"metadata": {"name": format!("kj{round}"), "namespace": "default"},
                    "spec": {"completions": 3, "parallelism": 2, "template": template}}));
                create_surely(&both, &job).await?;
                let labels = json!({"app": format!("ks{round}")});
                let set: StatefulSet =
                    object(json!({"metadata": {"name": format!("ks{round}"), "namespace": "default"},
                    "spec": {"replicas": 2, "serviceName": "ks", "selector": {"matchLabels": labels},
                        "template": {"metadata": {"labels": labels}, "spec": spec()}}}));
                create_surely(&both, &set).await?;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Ok::<_, anyhow::Error>(())
        });
        for kill in 0..3 {
            let name = format!("k{}", kill * 9 + 4);
            let clients = self.clients.clone();
            eventually(async || {
                surely(&clients, |client| {
                    let name = name.clone();
                    async move { client.get::<Deployment>(Some("default"), &name).await.map(drop) }
                })
                .await
            })
            .await?;
            let mut leader = self.leader(0).await?;
            self.servers[leader].kill()?;
            let dead = leader;
            eventually(async || {
                leader = self.leader(1 - dead).await?;
                ensure!(leader != dead, "the dead leader leads");
                Ok(())
            })
            .await?;
            self.servers[dead].start(&flags)?;
        }
        load.await??;
        let client = self.clients[0].clone();
        eventually(async || {
            for round in 0..ROUNDS {
                let found = client.get::<Deployment>(Some("default"), &format!("k{round}")).await?.status;
                ensure!(found.as_ref().and_then(|status| status.available_replicas) == Some(2), "{round}: {found:?}");
                let found = client.get::<StatefulSet>(Some("default"), &format!("ks{round}")).await?.status;
                ensure!(found.as_ref().and_then(|status| status.ready_replicas) == Some(2), "{round}: {found:?}");
                let done = client.get::<Job>(Some("default"), &format!("kj{round}")).await?.status.unwrap_or_default();
                ensure!(done.succeeded == Some(3) && done.completion_time.is_some(), "{round}: {done:?}");
            }
            Ok(())
        })
        .await?;
        let pods = client.list::<Pod>(Some("default"), &ListParams::default()).await?.items;
        let mut counts = HashMap::<&str, usize>::new();
        for labels in pods.iter().filter_map(|pod| pod.metadata.labels.as_ref()) {
            let of = labels.get("app").or_else(|| labels.get("job-name"));
            *counts.entry(of.map_or("", String::as_str)).or_default() += 1;
        }
        for round in 0..ROUNDS {
            for (name, wanted) in [(format!("k{round}"), 2), (format!("ks{round}"), 2), (format!("kj{round}"), 3)] {
                ensure!(
                    counts.get(name.as_str()) == Some(&wanted),
                    "{name}: {:?} of {wanted} pods",
                    counts.get(name.as_str())
                );
            }
        }
        let placed = self.placed.0.lock();
        let twice: Vec<_> = placed.iter().filter(|(_, nodes)| nodes.len() > 1).collect();
        ensure!(twice.is_empty(), "on two nodes: {twice:?}");
        Ok(())
    }

    async fn an_etcd_member_is_lost(&mut self) -> Result<()> {
        let both = self.clients.clone();
        let writing = tokio::spawn(async move {
            for number in 0..200 {
                let made: ConfigMap =
                    object(json!({"metadata": {"name": format!("w-{number}"), "namespace": "default"}}));
                create_surely(&both, &made).await?;
            }
            Ok::<_, anyhow::Error>(())
        });
        eventually(async || {
            self.clients[0].get::<ConfigMap>(Some("default"), "w-50").await?;
            Ok(())
        })
        .await?;
        self.etcd.kill(1)?;
        writing.await??;
        for client in &self.clients {
            let all = client.list::<ConfigMap>(Some("default"), &ListParams::default()).await?.items;
            let kept = |one: &&ConfigMap| one.metadata.name.as_deref().is_some_and(|name| name.starts_with("w-"));
            ensure!(all.iter().filter(kept).count() == 200);
        }
        Ok(())
    }
}
