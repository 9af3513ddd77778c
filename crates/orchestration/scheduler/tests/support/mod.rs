//! A small in-memory API: lists, watches, bindings, status patches, deletions and events.
#![allow(clippy::unwrap_used, dead_code)]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use dhow_client::{Body, Client, Error, Transport, full};
use futures::StreamExt;
use http::{Request, Response};
use http_body_util::{BodyExt, StreamBody};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

#[derive(Default)]
pub struct State {
    revision: u64,
    /// By plural and name.
    objects: BTreeMap<(String, String), Value>,
    log: Vec<(u64, String, Bytes)>,
    watchers: Vec<(String, mpsc::UnboundedSender<Bytes>)>,
    /// How many bindings to refuse.
    pub refuse: usize,
}

pub struct Api {
    state: Mutex<State>,
    changes: watch::Sender<u64>,
}

impl State {
    pub fn set(&mut self, plural: &str, mut object: Value) -> Value {
        self.revision += 1;
        object["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let kind = if self.objects.contains_key(&(plural.to_owned(), name.clone())) { "MODIFIED" } else { "ADDED" };
        self.objects.insert((plural.to_owned(), name), object.clone());
        self.tell(plural, kind, &object);
        object
    }

    pub fn remove(&mut self, plural: &str, name: &str) {
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

    pub fn get(&self, plural: &str, name: &str) -> &Value {
        self.objects.get(&(plural.to_owned(), name.to_owned())).unwrap_or(&Value::Null)
    }

    pub fn node_of(&self, pod: &str) -> Option<&str> {
        self.get("pods", pod)["spec"]["nodeName"].as_str()
    }

    pub fn events(&self) -> Vec<(&str, &str)> {
        let events = self.objects.iter().filter(|((plural, _), _)| plural == "events");
        events.map(|(_, e)| (e["reason"].as_str().unwrap(), e["message"].as_str().unwrap())).collect()
    }
}

impl Api {
    pub fn client(self: &Arc<Self>) -> Client {
        Client::new(Arc::new(Connection(Arc::clone(self))))
    }

    pub fn new() -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), changes: watch::channel(0).0 })
    }

    pub fn edit<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock().unwrap();
        let result = f(&mut state);
        self.changes.send_replace(state.revision);
        result
    }

    /// Waits until the objects are as wanted.
    pub async fn until(&self, what: &str, wanted: impl Fn(&State) -> bool) {
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
        let groups = [
            "/api/v1/",
            "/apis/storage.k8s.io/v1/",
            "/apis/apps/v1/",
            "/apis/policy/v1/",
            "/apis/resource.k8s.io/v1/",
            "/apis/resource.k8s.io/v1alpha3/",
        ];
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
            ("GET", ["namespaces", _, "pods", name]) => self.0.edit(|state| match state.get("pods", name) {
                Value::Null => answer(404, &json!({"reason": "NotFound", "message": "not found"})),
                pod => answer(200, pod),
            }),
            ("DELETE", ["namespaces", _, "pods", name]) => self.0.edit(|state| {
                state.remove("pods", name);
                answer(200, &json!({"kind": "Status", "status": "Success"}))
            }),
            ("PATCH", ["namespaces", _, "pods", name, "status"]) => self.0.edit(|state| {
                let mut pod = state.get("pods", name).clone();
                pod["status"]["conditions"] = body["status"]["conditions"].clone();
                if let Some(node) = body["status"].get("nominatedNodeName") {
                    pod["status"]["nominatedNodeName"] = node.clone();
                }
                answer(200, &state.set("pods", pod))
            }),
            ("POST", ["namespaces", _, "events"]) => answer(201, &self.0.edit(|state| state.set("events", body))),
            (method, path) => panic!("unexpected {method} {path:?}"),
        })
    }
}

pub fn node(name: &str, cpu: &str) -> Value {
    json!({"metadata": {"name": name, "uid": name}, "spec": {},
        "status": {"allocatable": {"cpu": cpu, "memory": "8Gi", "pods": "110"}}})
}

pub fn pod(name: &str, cpu: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}")},
        "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]},
        "status": {"phase": "Pending"}})
}
