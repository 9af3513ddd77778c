//! An API in memory: lists, watches that follow what is written, and writes as far as the server makes some.

use std::collections::HashMap;
use std::sync::Mutex;

use bytes::Bytes;
use dhow_client::{Body, Error, Transport, full};
use futures::StreamExt;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::sync::broadcast;

/// Objects to begin with.
#[derive(Default, Clone)]
pub struct Fixture {
    pub services: Vec<Value>,
    pub slices: Vec<Value>,
    pub namespaces: Vec<Value>,
    pub pods: Vec<Value>,
    pub zones: Vec<Value>,
    pub records: Vec<Value>,
    pub secrets: Vec<Value>,
}

pub struct Api {
    state: Mutex<State>,
    /// Plural and event.
    events: broadcast::Sender<(String, Value)>,
}

struct State {
    objects: HashMap<String, Vec<Value>>,
    version: u64,
}

impl Api {
    pub fn new(fixture: Fixture) -> Self {
        let objects = HashMap::from([
            ("services".to_owned(), fixture.services),
            ("endpointslices".to_owned(), fixture.slices),
            ("namespaces".to_owned(), fixture.namespaces),
            ("pods".to_owned(), fixture.pods),
            ("zones".to_owned(), fixture.zones),
            ("records".to_owned(), fixture.records),
            ("secrets".to_owned(), fixture.secrets),
        ]);
        Self { state: Mutex::new(State { objects, version: 100 }), events: broadcast::channel(1000).0 }
    }

    pub fn get(&self, plural: &str, name: &str) -> Option<Value> {
        let state = self.state.lock().unwrap();
        state.objects[plural].iter().find(|object| object["metadata"]["name"] == name).cloned()
    }

    /// Creates or replaces.
    pub fn put(&self, plural: &str, mut object: Value) -> Value {
        let mut state = self.state.lock().unwrap();
        state.version += 1;
        object["metadata"]["resourceVersion"] = json!(state.version.to_string());
        let list = state.objects.get_mut(plural).unwrap();
        let name = object["metadata"]["name"].clone();
        let found = list.iter_mut().find(|other| other["metadata"]["name"] == name);
        let kind = if found.is_some() { "MODIFIED" } else { "ADDED" };
        match found {
            Some(old) => *old = object.clone(),
            None => list.push(object.clone()),
        }
        let _ = self.events.send((plural.to_owned(), json!({"type": kind, "object": object})));
        object
    }

    pub fn delete(&self, plural: &str, name: &str) {
        let mut state = self.state.lock().unwrap();
        let list = state.objects.get_mut(plural).unwrap();
        let index = list.iter().position(|object| object["metadata"]["name"] == name).unwrap();
        let object = list.remove(index);
        let _ = self.events.send((plural.to_owned(), json!({"type": "DELETED", "object": object})));
    }
}

#[async_trait::async_trait]
impl Transport for Api {
    async fn call(&self, request: Request<Bytes>) -> Result<Response<Body>, Error> {
        let path = request.uri().path().to_owned();
        let words: Vec<&str> = path.split('/').filter(|word| !word.is_empty()).collect();
        let position = words.iter().rposition(|word| self.state.lock().unwrap().objects.contains_key(*word));
        let plural = words[position.unwrap_or_else(|| panic!("{path} is not needed for DNS"))].to_owned();
        let ok = |value: Value| Ok(Response::new(full(value.to_string().into())));
        match *request.method() {
            Method::GET if request.uri().query().is_some_and(|query| query.contains("watch=true")) => {
                let mine = plural.clone();
                let events = futures::stream::unfold(self.events.subscribe(), move |mut events| {
                    let mine = mine.clone();
                    async move {
                        loop {
                            let (plural, event) = events.recv().await.ok()?;
                            if plural == mine {
                                let frame = Frame::data(Bytes::from(format!("{event}\n")));
                                return Some((Ok::<_, Error>(frame), events));
                            }
                        }
                    }
                });
                Ok(Response::new(StreamBody::new(events.boxed()).boxed_unsync()))
            }
            Method::GET => {
                let state = self.state.lock().unwrap();
                let version = state.version.to_string();
                ok(json!({"metadata": {"resourceVersion": version}, "items": state.objects[&plural]}))
            }
            Method::POST => {
                let object: Value = serde_json::from_slice(request.body()).unwrap();
                if self.get(&plural, object["metadata"]["name"].as_str().unwrap()).is_some() {
                    return Ok(failure(StatusCode::CONFLICT, "AlreadyExists"));
                }
                ok(self.put(&plural, object))
            }
            Method::PATCH => {
                assert!(path.ends_with("/status"), "only the status is the server's to write: {path}");
                let patch: Value = serde_json::from_slice(request.body()).unwrap();
                // It may be gone since the server looked.
                let Some(mut object) = self.get(&plural, words[words.len() - 2]) else {
                    return Ok(failure(StatusCode::NOT_FOUND, "NotFound"));
                };
                object["status"] = patch["status"].clone();
                ok(self.put(&plural, object))
            }
            _ => panic!("{} {path} is not needed for DNS", request.method()),
        }
    }
}

fn failure(code: StatusCode, reason: &str) -> Response<Body> {
    let status = json!({"kind": "Status", "code": code.as_u16(), "reason": reason, "message": reason});
    let mut response = Response::new(full(status.to_string().into()));
    *response.status_mut() = code;
    response
}
