//! The loop against a small in-memory API: lists, watches, bindings, status patches and events.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use dhow_client::{Body, Client, Error, Transport, full};
use dhow_scheduler::{SchedulerConfig, run};
use futures::StreamExt;
use http::{Request, Response};
use http_body_util::{BodyExt, StreamBody};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

#[derive(Default)]
struct State {
    revision: u64,
    /// By plural and name.
    objects: BTreeMap<(String, String), Value>,
    log: Vec<(u64, String, Bytes)>,
    watchers: Vec<(String, mpsc::UnboundedSender<Bytes>)>,
    /// How many bindings to refuse.
    refuse: usize,
}

struct Api {
    state: Mutex<State>,
    changes: watch::Sender<u64>,
}

impl State {
    fn set(&mut self, plural: &str, mut object: Value) -> Value {
        self.revision += 1;
        object["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let kind = if self.objects.contains_key(&(plural.to_owned(), name.clone())) { "MODIFIED" } else { "ADDED" };
        self.objects.insert((plural.to_owned(), name), object.clone());
        self.tell(plural, kind, &object);
        object
    }

    fn remove(&mut self, plural: &str, name: &str) {
        self.revision += 1;
        let mut object = self.objects.remove(&(plural.to_owned(), name.to_owned())).unwrap();
        object["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        self.tell(plural, "DELETED", &object);
    }

    fn tell(&mut self, plural: &str, kind: &str, object: &Value) {
        let frame = Bytes::from(format!("{}\n", json!({"type": kind, "object": object})));
        self.log.push((self.revision, plural.to_owned(), frame.clone()));
        self.watchers.retain(|(of, watcher)| of != plural || watcher.send(frame.clone()).is_ok());
    }

    fn get(&self, plural: &str, name: &str) -> &Value {
        self.objects.get(&(plural.to_owned(), name.to_owned())).unwrap_or(&Value::Null)
    }

    fn node_of(&self, pod: &str) -> Option<&str> {
        self.get("pods", pod)["spec"]["nodeName"].as_str()
    }

    fn events(&self) -> Vec<(&str, &str)> {
        let events = self.objects.iter().filter(|((plural, _), _)| plural == "events");
        events.map(|(_, e)| (e["reason"].as_str().unwrap(), e["message"].as_str().unwrap())).collect()
    }
}

impl Api {
    fn new() -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), changes: watch::channel(0).0 })
    }

    fn edit<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock().unwrap();
        let result = f(&mut state);
        self.changes.send_replace(state.revision);
        result
    }

    /// Waits until the objects are as wanted.
    async fn until(&self, what: &str, wanted: impl Fn(&State) -> bool) {
        let mut changes = self.changes.subscribe();
        let wait = async {
            while !wanted(&self.state.lock().unwrap()) {
                changes.changed().await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait).await.unwrap_or_else(|_| panic!("never: {what}"));
    }
}

fn answer(code: u16, value: &Value) -> Response<Body> {
    Response::builder().status(code).body(full(Bytes::from(value.to_string()))).unwrap()
}

struct Connection(Arc<Api>);

#[async_trait::async_trait]
impl Transport for Connection {
    async fn call(&self, request: Request<Bytes>) -> Result<Response<Body>, Error> {
        let query: BTreeMap<&str, &str> =
            request.uri().query().unwrap_or_default().split('&').filter_map(|p| p.split_once('=')).collect();
        let path = request.uri().path();
        let groups = ["/api/v1/", "/apis/storage.k8s.io/v1/", "/apis/apps/v1/", "/apis/policy/v1/"];
        let path = groups.iter().find_map(|group| path.strip_prefix(group)).unwrap_or(path);
        let path: Vec<&str> = path.split('/').collect();
        let body: Value = serde_json::from_slice(request.body()).unwrap_or_default();
        Ok(match (request.method().as_str(), &path[..]) {
            ("GET", [plural]) if query.contains_key("watch") => {
                let from: u64 = query["resourceVersion"].parse().unwrap();
                let (sender, receiver) = mpsc::unbounded_channel();
                self.0.edit(|state| {
                    for (revision, of, frame) in &state.log {
                        if of == plural && *revision > from {
                            sender.send(frame.clone()).unwrap();
                        }
                    }
                    state.watchers.push(((*plural).to_owned(), sender));
                });
                let frames = futures::stream::unfold(receiver, |mut r| async { r.recv().await.map(|f| (f, r)) });
                let body = StreamBody::new(frames.map(|f| Ok::<_, Error>(http_body::Frame::data(f))));
                Response::new(body.boxed_unsync())
            }
            ("GET", [plural]) => self.0.edit(|state| {
                let items: Vec<_> = state.objects.iter().filter(|((of, _), _)| of == plural).map(|(_, o)| o).collect();
                answer(200, &json!({"metadata": {"resourceVersion": state.revision.to_string()}, "items": items}))
            }),
            ("POST", ["namespaces", _, "pods", name, "binding"]) => self.0.edit(|state| {
                if state.refuse > 0 {
                    state.refuse -= 1;
                    return answer(500, &json!({"reason": "InternalError", "message": "no"}));
                }
                let mut pod = state.get("pods", name).clone();
                assert!(pod["spec"]["nodeName"].is_null(), "{name} is bound twice");
                assert_eq!(body["metadata"]["uid"], pod["metadata"]["uid"]);
                pod["spec"]["nodeName"] = body["target"]["name"].clone();
                state.set("pods", pod);
                answer(201, &json!({"kind": "Status", "status": "Success"}))
            }),
            ("PATCH", ["namespaces", _, "pods", name, "status"]) => self.0.edit(|state| {
                let mut pod = state.get("pods", name).clone();
                pod["status"]["conditions"] = body["status"]["conditions"].clone();
                answer(200, &state.set("pods", pod))
            }),
            ("POST", ["namespaces", _, "events"]) => answer(201, &self.0.edit(|state| state.set("events", body))),
            (method, path) => panic!("unexpected {method} {path:?}"),
        })
    }
}

fn node(name: &str, cpu: &str) -> Value {
    json!({"metadata": {"name": name, "uid": name}, "spec": {},
        "status": {"allocatable": {"cpu": cpu, "memory": "8Gi", "pods": "110"}}})
}

fn pod(name: &str, cpu: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}")},
        "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]},
        "status": {"phase": "Pending"}})
}

fn start(api: &Arc<Api>) -> (CancellationToken, tokio::task::JoinHandle<()>) {
    let shutdown = CancellationToken::new();
    let client = Client::new(Arc::new(Connection(Arc::clone(api))));
    (shutdown.clone(), tokio::spawn(run(client, SchedulerConfig::default(), shutdown)))
}

#[tokio::test]
async fn binds_what_fits_and_wakes_what_waits() {
    let api = Api::new();
    api.edit(|s| {
        s.set("nodes", node("n1", "1"));
        s.set("pods", pod("a", "600m"));
    });
    let (shutdown, running) = start(&api);
    api.until("a is bound", |s| s.node_of("a") == Some("n1")).await;
    api.edit(|s| s.set("pods", pod("b", "600m")));
    let waiting = |s: &State| s.get("pods", "b")["status"]["conditions"][0].clone();
    api.until("b waits", |s| !waiting(s).is_null()).await;
    let condition = api.edit(|s| waiting(s));
    assert_eq!(condition["type"], "PodScheduled");
    assert_eq!(condition["status"], "False");
    assert_eq!(condition["reason"], "Unschedulable");
    let message = "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 No preemption \
                   victims found for incoming pod. It can run once a node has 600m of cpu free (the most is 400m on n1), \
                   or it requests less.";
    assert_eq!(condition["message"], message);
    assert!(condition["lastTransitionTime"].is_string());
    let failed = ("FailedScheduling", message);
    api.until("b's event", |s| s.events().contains(&failed)).await;
    api.until("a's event", |s| s.events().contains(&("Scheduled", "Successfully assigned default/a to n1"))).await;

    api.edit(|s| s.set("nodes", node("n2", "2")));
    api.until("a new node takes b", |s| s.node_of("b") == Some("n2")).await;

    api.edit(|s| s.set("pods", pod("c", "900m")));
    api.until("c goes where room is", |s| s.node_of("c") == Some("n2")).await;
    api.edit(|s| s.set("pods", pod("d", "1")));
    api.until("d waits", |s| s.get("pods", "d")["status"]["conditions"][0].is_object()).await;
    api.edit(|s| s.remove("pods", "a"));
    api.until("a's end makes room for d", |s| s.node_of("d") == Some("n1")).await;
    shutdown.cancel();
    running.await.unwrap();
}

#[tokio::test]
async fn a_refused_binding_is_tried_again() {
    let api = Api::new();
    api.edit(|s| {
        s.refuse = 3;
        s.set("nodes", node("n1", "1"));
        s.set("pods", pod("a", "1"));
    });
    let (shutdown, running) = start(&api);
    api.until("a is bound in the end", |s| s.node_of("a") == Some("n1")).await;
    shutdown.cancel();
    running.await.unwrap();
}

#[tokio::test]
async fn never_overfills_a_node() {
    let api = Api::new();
    api.edit(|s| {
        s.set("nodes", node("n1", "1"));
        s.set("nodes", node("n2", "1"));
    });
    let (shutdown, running) = start(&api);
    for i in 0..30 {
        api.edit(|s| s.set("pods", pod(&format!("p{i:02}"), "100m")));
    }
    let bound = |s: &State, node: &str| (0..30).filter(|i| s.node_of(&format!("p{i:02}")) == Some(node)).count();
    let refused = |s: &State| {
        (0..30).filter(|i| s.get("pods", &format!("p{i:02}"))["status"]["conditions"][0].is_object()).count()
    };
    api.until("all are decided", |s| bound(s, "n1") + bound(s, "n2") + refused(s) >= 30).await;
    api.edit(|s| {
        assert_eq!((bound(s, "n1"), bound(s, "n2")), (10, 10));
        assert_eq!(refused(s), 10);
    });
    shutdown.cancel();
    running.await.unwrap();
}
