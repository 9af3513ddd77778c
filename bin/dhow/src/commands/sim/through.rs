//! Through the API: nodes and pods are created as anyone would, and the cloud's own scheduler places them.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use dhow_client::{Change as Told, Client, DeleteParams, Error, Informer, Key, ListParams, Object, Patch};
use futures::{StreamExt, TryStreamExt, stream};
use http::Request;
use http_body_util::BodyExt;
use indicatif::ProgressBar;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, ServiceAccount};
use k8s_openapi::api::scheduling::v1::PriorityClass;
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::entry::{Entry, Kind, Size};
use super::report::{Counted, Report};
use super::watching::{self, Change};
use super::{LABEL, Plan, bar, heartbeat, objects};
use crate::cli::{SimArgs, SimShape};
use crate::commands::connect;

/// With pods that wait and nothing that could help them, how long nothing has to change for the end.
const QUIET: Duration = Duration::from_secs(2);
/// How long others may take with what a simulation needs of them.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often a node comes or goes in the shape `churn`.
const CHURN: Duration = Duration::from_millis(100);

/// What is known of the pods.
#[derive(Default)]
struct Known {
    counted: Counted,
    /// Sent and without a node.
    waiting: HashMap<String, (Instant, usize)>,
    told: HashMap<String, String>,
    there: HashMap<String, Size>,
    /// Ended by us.
    ended: HashSet<String>,
    /// Pods that run and will end.
    to_end: usize,
    all_sent: bool,
    last: Option<Instant>,
}

struct Board {
    known: Mutex<Known>,
    changed: Notify,
    bar: Mutex<ProgressBar>,
}

impl Known {
    /// Whether all have a node, or with `false` whether the rest wait for good as far as anyone can tell; `None` before.
    fn finished(&self) -> Option<bool> {
        if !self.all_sent || (!self.waiting.is_empty() && self.to_end > 0) {
            return None;
        }
        if self.waiting.is_empty() {
            return Some(true);
        }
        self.waiting.keys().all(|name| self.told.contains_key(name)).then_some(false)
    }
}

pub async fn run(args: &SimArgs, plan: Plan) -> Result<Report> {
    let client = connect(&args.connect)?;
    let stop = CancellationToken::new();
    let _guard = stop.clone().drop_guard();
    let simulated = tokio::select! {
        simulated = run_in(&client, args, plan, &stop) => simulated,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    stop.cancel();
    if !args.keep {
        clean(&client, &args.namespace).await.context("remove what was simulated")?;
    }
    simulated
}

async fn run_in(client: &Client, args: &SimArgs, plan: Plan, stop: &CancellationToken) -> Result<Report> {
    let made: Namespace =
        serde_json::from_value(json!({"metadata": {"name": args.namespace, "labels": {LABEL: "true"}}}))?;
    fresh(client.create(&made).await.map(drop)).context("create the namespace")?;
    // Pods are refused before their namespace has an account for them.
    until::<ServiceAccount>(client, Some(&args.namespace), "default", true).await?;
    make_nodes(client, args, &plan.node, stop).await?;
    make_others(client, args, &plan).await?;
    let (first, node) = (plan.first.len(), plan.node);
    let entries: Arc<Vec<Entry>> = Arc::new(plan.first.into_iter().chain(plan.measured).collect());
    let board = Arc::new(Board {
        known: Mutex::new(Known::default()),
        changed: Notify::new(),
        bar: Mutex::new(ProgressBar::hidden()),
    });
    let (end, ends) = mpsc::unbounded_channel();
    let (told, all) = (Arc::clone(&board), Arc::clone(&entries));
    let pods = format!("/api/v1/namespaces/{}/pods", args.namespace);
    watching::start(client, &pods, move |change| told.tell(change, &all, &end), stop.clone()).await?;
    let ender = Ender { client: client.clone(), namespace: args.namespace.clone(), entries: Arc::clone(&entries) };
    tokio::spawn(ender.run(Arc::clone(&board), args.speed, ends));
    if first > 0 {
        board.send(client, args, &entries, 0..first).await?;
        board.settled(args.timeout).await;
        board.begin();
    }
    if args.shape == SimShape::Churn {
        tokio::spawn(churn(client.clone(), args.nodes, objects::node(args.nodes, args, &node)?, stop.clone()));
    }
    let start = Instant::now();
    board.send(client, args, &entries, first..entries.len()).await?;
    board.settled(args.timeout).await;
    let memory = memory(client).await;
    board.bar.lock().finish_and_clear();
    let known = std::mem::take(&mut *board.known.lock());
    // Of what was settled long before the time was up, only the time until then counts.
    let time = known.last.map_or(start.elapsed(), |last| last.saturating_duration_since(start));
    let why = |name: &String| known.told.get(name).cloned().unwrap_or_else(|| "not looked at in time".to_owned());
    let told: Vec<String> = known.waiting.keys().map(why).collect();
    let size = (args.nodes, &node);
    let mut report = Report::new(known.counted, size, entries.len() - first, time, told.into_iter());
    report.wait_in_trace_ms = None;
    report.memory_bytes = memory;
    Ok(report)
}

/// Waits until the object is there, or gone.
async fn until<K: Object>(client: &Client, namespace: Option<&str>, name: &str, there: bool) -> Result<()> {
    let stop = CancellationToken::new();
    let _guard = stop.clone().drop_guard();
    let scope = ListParams { field_selector: Some(format!("metadata.name={name}")), ..ListParams::default() };
    let objects = Informer::<K>::start(client.clone(), scope, namespace, stop);
    objects.synced().await;
    let (sender, mut present) = watch::channel(objects.get(&Key::new(namespace, name)).is_some());
    objects.on_change(move |change| {
        sender.send_replace(!matches!(change, Told::Deleted(_)));
    });
    let waited = tokio::time::timeout(PATIENCE, present.wait_for(|present| *present == there)).await;
    if waited.is_err() {
        let (state, kind) = (if there { "not made" } else { "still there" }, K::KIND);
        bail!("{kind} {name} is {state} after {} s", PATIENCE.as_secs());
    }
    Ok(())
}

/// What is left of an earlier run is as good, or told.
fn fresh(made: Result<(), Error>) -> Result<(), Error> {
    match made {
        Err(error) if error.is_already_exists() => Ok(()),
        other => other,
    }
}

async fn make_nodes(client: &Client, args: &SimArgs, size: &Size, stop: &CancellationToken) -> Result<()> {
    let alive = Arc::new(AtomicUsize::new(0));
    let progress = bar("nodes", args.nodes);
    let making = stream::iter(0..args.nodes).map(|number| {
        let progress = &progress;
        async move {
            let node = objects::node(number, args, size)?;
            make_node(client, &node).await?;
            progress.inc(1);
            anyhow::Ok(())
        }
    });
    let mut making = making.buffered(usize::from(args.requests));
    while making.try_next().await.context("create nodes")?.is_some() {
        // Those that are there are kept alive while more come.
        if alive.fetch_add(1, Ordering::Relaxed) == 0 {
            heartbeat::start(client.clone(), Arc::clone(&alive), stop.clone());
        }
    }
    progress.finish_and_clear();
    all_open(client, args.nodes).await
}

/// Waits until all nodes take pods: a new one does once its controller has seen it ready.
async fn all_open(client: &Client, nodes: usize) -> Result<()> {
    let stop = CancellationToken::new();
    let _guard = stop.clone().drop_guard();
    let (sender, mut open) = watch::channel(0);
    let mut names = HashSet::new();
    let count = move |change| {
        match change {
            Change::Seen(node) if node.is_open() => {
                names.insert(node.name().to_owned());
            }
            Change::Seen(node) => {
                names.remove(node.name());
            }
            Change::Gone(name) => {
                names.remove(&name);
            }
        }
        sender.send_replace(names.len());
    };
    watching::start(client, "/api/v1/nodes", count, stop).await?;
    let late = tokio::time::timeout(PATIENCE, open.wait_for(|open| *open >= nodes)).await.is_err();
    if late {
        bail!("{} of {nodes} nodes take pods after {} s", *open.borrow(), PATIENCE.as_secs());
    }
    Ok(())
}

async fn make_node(client: &Client, node: &Node) -> Result<()> {
    fresh(client.create(node).await.map(drop))?;
    let name = node.metadata.name.clone().unwrap_or_default();
    let patch = Patch::Merge(json!({"status": node.status}));
    client.patch::<Node>(None, &name, patch, Some("status")).await?;
    Ok(())
}

/// Classes of priority, volumes and claims.
async fn make_others(client: &Client, args: &SimArgs, plan: &Plan) -> Result<()> {
    let all = || plan.first.iter().chain(&plan.measured);
    let priorities: BTreeSet<i32> = all().map(|entry| entry.priority).filter(|priority| *priority != 0).collect();
    for priority in priorities {
        let class = json!({"metadata": {"name": objects::class_name(priority), "labels": {LABEL: "true"}},
            "value": priority});
        let class: PriorityClass = serde_json::from_value(class)?;
        fresh(client.create(&class).await.map(drop)).context("create a priority class")?;
    }
    let claims = all().filter_map(|entry| if let Kind::Claim(number) = entry.kind { Some(number) } else { None });
    let made = stream::iter(claims).map(|number| async move {
        let (volume, claim) = objects::volume(number, &args.namespace, args.zones)?;
        fresh(client.create(&volume).await.map(drop))?;
        fresh(client.create(&claim).await.map(drop))?;
        anyhow::Ok(())
    });
    let made = made.buffer_unordered(usize::from(args.requests));
    made.try_for_each(|()| async { Ok(()) }).await.context("create volumes")
}

impl Board {
    fn begin(&self) {
        let mut known = self.known.lock();
        let used = known.counted.used;
        known.counted = Counted { used, most: used, ..Counted::default() };
        known.waiting.clear();
        known.all_sent = false;
        known.last = None;
    }

    fn tell(&self, change: Change, entries: &[Entry], end: &mpsc::UnboundedSender<usize>) {
        let mut known = self.known.lock();
        match change {
            Change::Gone(name) => {
                known.told.remove(&name);
                if let Some(size) = known.there.remove(&name) {
                    known.counted.used.subtract(&size);
                    if !known.ended.remove(&name) {
                        known.counted.preempted += 1;
                    }
                }
            }
            Change::Seen(pod) if pod.is_bound() => {
                let Some((sent, number)) = known.waiting.remove(pod.name()) else { return };
                let Some(entry) = entries.get(number) else { return };
                known.told.remove(pod.name());
                known.counted.bound += 1;
                known.counted.times.add(sent.elapsed());
                known.counted.occupy(&entry.size);
                known.there.insert(pod.name().to_owned(), entry.size);
                known.last = Some(Instant::now());
                if entry.runs.is_some() {
                    known.to_end += 1;
                    // Nobody listens only once all is over.
                    let _ = end.send(number);
                }
                self.bar.lock().inc(1);
            }
            Change::Seen(pod) => {
                let Some(why) = pod.why() else {
                    known.told.remove(pod.name());
                    return;
                };
                if known.told.get(pod.name()).is_some_and(|told| told == why) {
                    return;
                }
                known.told.insert(pod.name().to_owned(), why.to_owned());
            }
        }
        drop(known);
        self.changed.notify_one();
    }

    /// Creates each pod when its time comes.
    async fn send(
        &self,
        client: &Client,
        args: &SimArgs,
        entries: &[Entry],
        part: std::ops::Range<usize>,
    ) -> Result<()> {
        *self.bar.lock() = bar("pods", part.len());
        let start = tokio::time::Instant::now();
        let sending = stream::iter(part).map(|number| async move {
            let entry = &entries[number];
            if entry.comes > 0.0 {
                tokio::time::sleep_until(start + Duration::from_secs_f64(entry.comes / args.speed)).await;
            }
            let pod = objects::pod(entry, &args.namespace, true)?;
            self.known.lock().waiting.insert(entry.name.to_string(), (Instant::now(), number));
            match client.create(&pod).await {
                Err(error) if error.is_already_exists() => {
                    bail!("pod {} is there already: remove namespace {} first", entry.name, args.namespace)
                }
                Err(error) => Err(error.into()),
                Ok(_) => anyhow::Ok(()),
            }
        });
        let sending = sending.buffered(usize::from(args.requests));
        sending.try_for_each(|()| async { Ok(()) }).await.context("create pods")?;
        self.known.lock().all_sent = true;
        self.changed.notify_one();
        Ok(())
    }

    /// Waits until all pods have a node, or those that have none are told why and nothing happens any more.
    async fn settled(&self, timeout: u64) {
        let settled = async {
            loop {
                let finished = self.known.lock().finished();
                match finished {
                    Some(true) => return,
                    Some(false) => {
                        if tokio::time::timeout(QUIET, self.changed.notified()).await.is_err() {
                            return;
                        }
                    }
                    None => self.changed.notified().await,
                }
            }
        };
        // At the time limit, what is known by then is told.
        drop(tokio::time::timeout(Duration::from_secs(timeout), settled).await);
    }
}

/// Ends pods that ran for as long as they should.
#[derive(Clone)]
struct Ender {
    client: Client,
    namespace: String,
    entries: Arc<Vec<Entry>>,
}

impl Ender {
    async fn run(self, board: Arc<Board>, speed: f64, mut ends: mpsc::UnboundedReceiver<usize>) {
        while let Some(number) = ends.recv().await {
            let Some(entry) = self.entries.get(number) else { continue };
            let Some(runs) = entry.runs else { continue };
            let until = tokio::time::Instant::now() + Duration::from_secs_f64(runs / speed);
            let (ender, board, name) = (self.clone(), Arc::clone(&board), entry.name.to_string());
            tokio::spawn(async move {
                tokio::time::sleep_until(until).await;
                board.known.lock().ended.insert(name.clone());
                ender.end(&name).await;
                board.known.lock().to_end -= 1;
                board.changed.notify_one();
            });
        }
    }

    async fn end(&self, name: &str) {
        let now = DeleteParams { grace_period: Some(0), ..DeleteParams::default() };
        if let Err(error) = self.client.delete::<Pod>(Some(&self.namespace), name, &now).await
            && !error.is_not_found()
        {
            tracing::warn!(pod = name, %error, "cannot end a simulated pod");
        }
    }
}

/// A further node comes and goes.
async fn churn(client: Client, number: usize, node: Node, stop: CancellationToken) {
    let name = objects::node_name(number);
    let mut tick = tokio::time::interval(CHURN);
    let mut there = false;
    loop {
        tokio::select! { _ = tick.tick() => {}, () = stop.cancelled() => return }
        let changed = match there {
            false => make_node(&client, &node).await.map_err(|error| format!("{error:#}")),
            true => delete::<Node>(&client, &name).await.map_err(|error| error.to_string()),
        };
        match changed {
            Ok(()) => there = !there,
            Err(error) => tracing::warn!(error, "cannot change a simulated node"),
        }
    }
}

async fn delete<K: Object>(client: &Client, name: &str) -> Result<(), Error> {
    match client.delete::<K>(None, name, &DeleteParams::default()).await {
        Err(error) if error.is_not_found() => Ok(()),
        other => other,
    }
}

/// The server's resident memory, as its metrics tell.
async fn memory(client: &Client) -> Option<u64> {
    let body = client.open("/metrics").await.ok()?.collect().await.ok()?.to_bytes();
    let text = std::str::from_utf8(&body).ok()?;
    let bytes: f64 =
        text.lines().find_map(|l| l.strip_prefix("process_resident_memory_bytes "))?.trim().parse().ok()?;
    Some(bytes as u64)
}

async fn clean(client: &Client, namespace: &str) -> Result<()> {
    for path in [
        format!("/api/v1/namespaces/{namespace}/pods"),
        format!("/api/v1/namespaces/{namespace}/persistentvolumeclaims"),
        "/api/v1/persistentvolumes".to_owned(),
        "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases".to_owned(),
        "/api/v1/nodes".to_owned(),
        "/apis/scheduling.k8s.io/v1/priorityclasses".to_owned(),
    ] {
        let request = Request::delete(format!("{path}?labelSelector={LABEL}%3Dtrue"))
            .header(http::header::CONTENT_TYPE, "application/json")
            .header(http::header::ACCEPT, "application/json")
            .body(Bytes::from_static(br#"{"kind":"DeleteOptions","apiVersion":"v1","gracePeriodSeconds":0}"#))?;
        let answer = client.request(request).await?;
        let status = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        if !status.is_success() && status != http::StatusCode::NOT_FOUND {
            let text = String::from_utf8_lossy(&body[..body.len().min(500)]).into_owned();
            bail!("delete {path}: {status}: {text}");
        }
    }
    delete::<Namespace>(client, namespace).await?;
    // Else the next simulation would find it on its way out.
    until::<Namespace>(client, None, namespace, false).await
}
