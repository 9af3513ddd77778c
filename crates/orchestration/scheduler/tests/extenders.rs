//! Extenders over real HTTP: who is asked, what their answers do, and that nobody else waits for them.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use dhow_scheduler::{SchedulerConfig, extenders, profiles, run};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use support::{Api, State, node, pod};
use tokio_util::sync::CancellationToken;

type Answers = Arc<dyn Fn(&str, &Value) -> Option<Value> + Send + Sync>;

/// An extender on a port of the loopback address. What it does not answer, it never answers.
struct Extender {
    url: String,
    asked: Arc<Mutex<Vec<(String, Value)>>>,
}

impl Extender {
    async fn start(answers: impl Fn(&str, &Value) -> Option<Value> + Send + Sync + 'static) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/scheduler/", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (log, answers): (_, Answers) = (Arc::clone(&asked), Arc::new(answers));
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (log, answers) = (Arc::clone(&log), Arc::clone(&answers));
                let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                    let (log, answers) = (Arc::clone(&log), Arc::clone(&answers));
                    async move {
                        let verb = request.uri().path().trim_start_matches("/scheduler/").to_owned();
                        let body = request.into_body().collect().await.unwrap().to_bytes();
                        let body: Value = serde_json::from_slice(&body).unwrap();
                        let answer = answers(&verb, &body);
                        log.lock().unwrap().push((verb, body));
                        match answer {
                            Some(answer) => {
                                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(answer.to_string()))))
                            }
                            None => std::future::pending().await,
                        }
                    }
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        Self { url, asked }
    }

    fn asked(&self, verb: &str) -> Vec<Value> {
        let asked = self.asked.lock().unwrap();
        asked.iter().filter(|(of, _)| of == verb).map(|(_, body)| body.clone()).collect()
    }
}

fn start(api: &Arc<Api>, list: Value) -> CancellationToken {
    let document = json!({"apiVersion": "kubescheduler.config.k8s.io/v1", "kind": "KubeSchedulerConfiguration",
        "extenders": list});
    let config = SchedulerConfig {
        profiles: profiles(&document).unwrap(),
        extenders: extenders(&document).unwrap(),
        ..SchedulerConfig::default()
    };
    let shutdown = CancellationToken::new();
    tokio::spawn(run(api.client(), config, shutdown.clone()));
    shutdown
}

fn wanting(name: &str, resource: &str) -> Value {
    let mut one = pod(name, "100m");
    let resources = &mut one["spec"]["containers"][0]["resources"];
    resources["requests"][resource] = json!("1");
    resources["limits"] = json!({resource: "1"});
    one
}

fn waiting(state: &State, pod: &str) -> Value {
    state.get("pods", pod)["status"]["conditions"][0].clone()
}

#[tokio::test]
async fn filters_scores_and_binds() {
    let api = Api::new();
    let binder = Arc::clone(&api);
    let extender = Extender::start(move |verb, asked| {
        let names = || asked["NodeNames"].as_array().unwrap().clone();
        Some(match verb {
            "filter" => json!({
                "NodeNames": names().into_iter().filter(|name| name != "n1").collect::<Vec<_>>(),
                "FailedNodes": {"n1": "no licence left"}, "Error": "",
            }),
            // The one that is worst for everybody else.
            "prioritize" => json!(
                names().iter().map(|n| json!({"Host": n, "Score": i64::from(n == "n3") * 10})).collect::<Vec<_>>()
            ),
            "bind" => {
                let (pod, node) = (asked["PodName"].as_str().unwrap().to_owned(), asked["Node"].clone());
                binder.edit(|state| {
                    let mut pod = state.get("pods", &pod).clone();
                    assert_eq!(pod["metadata"]["uid"], asked["PodUID"]);
                    pod["spec"]["nodeName"] = node;
                    state.set("pods", pod);
                });
                json!({"Error": ""})
            }
            other => panic!("{other}"),
        })
    })
    .await;
    api.edit(|s| {
        s.set("nodes", node("n1", "8"));
        s.set("nodes", node("n2", "8"));
        s.set("nodes", node("n3", "1"));
    });
    let stop = start(
        &api,
        json!([{"urlPrefix": extender.url, "filterVerb": "filter", "prioritizeVerb": "prioritize",
        "bindVerb": "bind", "weight": 5, "nodeCacheCapable": true,
        "managedResources": [{"name": "example.com/licence", "ignoredByScheduler": true}]}]),
    );
    api.edit(|s| s.set("pods", wanting("a", "example.com/licence")));
    api.until("a is bound by the extender", |s| s.node_of("a") == Some("n3")).await;
    assert_eq!(extender.asked("filter")[0]["NodeNames"].as_array().unwrap().len(), 3);
    assert_eq!(extender.asked("filter")[0]["Pod"]["metadata"]["name"], "a");
    assert_eq!(extender.asked("prioritize")[0]["NodeNames"].as_array().unwrap().len(), 2, "what it left");
    assert_eq!(extender.asked("bind").len(), 1);
    // Who wants nothing of it is placed without it.
    api.edit(|s| s.set("pods", pod("b", "100m")));
    api.until("b is bound", |s| s.node_of("b").is_some()).await;
    assert_eq!((extender.asked("filter").len(), extender.asked("bind").len()), (1, 1));
    stop.cancel();
}

#[tokio::test]
async fn one_that_never_answers_holds_up_nobody_else() {
    let api = Api::new();
    let extender = Extender::start(|_, _| None).await;
    api.edit(|s| s.set("nodes", node("n1", "8")));
    let managed = |name: &str| json!([{"name": name}]);
    let stop = start(
        &api,
        json!([
            {"urlPrefix": extender.url, "filterVerb": "filter", "httpTimeout": "600s", "managedResources": managed("example.com/slow")},
            {"urlPrefix": extender.url, "filterVerb": "filter", "httpTimeout": "100ms", "managedResources": managed("example.com/late")},
            {"urlPrefix": extender.url, "filterVerb": "filter", "httpTimeout": "100ms", "ignorable": true,
                "managedResources": [{"name": "example.com/optional", "ignoredByScheduler": true}]},
        ]),
    );
    api.edit(|s| {
        let mut with = node("n1", "8");
        for name in ["example.com/slow", "example.com/late"] {
            with["status"]["allocatable"][name] = json!("1000");
        }
        s.set("nodes", with);
        // More than there are writers.
        for i in 0..100 {
            s.set("pods", wanting(&format!("slow-{i}"), "example.com/slow"));
        }
        s.set("pods", pod("plain", "100m"));
        s.set("pods", wanting("late", "example.com/late"));
        s.set("pods", wanting("optional", "example.com/optional"));
    });
    api.until("plain is bound", |s| s.node_of("plain").is_some()).await;
    api.until("optional is bound without it", |s| s.node_of("optional").is_some()).await;
    api.until("late is told", |s| waiting(s, "late")["reason"] == "SchedulerError").await;
    let message = api.edit(|s| waiting(s, "late")["message"].as_str().unwrap().to_owned());
    assert!(message.contains("no answer within 100ms"), "{message}");
    api.edit(|s| assert!((0..100).all(|i| s.node_of(&format!("slow-{i}")).is_none())));
    stop.cancel();
}

#[tokio::test]
async fn refusals_are_reasons_and_a_new_node_is_asked_about() {
    let api = Api::new();
    let extender = Extender::start(|_, asked| {
        let nodes = asked["Nodes"]["items"].as_array().unwrap();
        let good: Vec<&Value> = nodes.iter().filter(|node| node["metadata"]["name"] == "n9").collect();
        let bad = nodes.iter().filter(|node| node["metadata"]["name"] != "n9");
        let bad: BTreeMap<&str, &str> =
            bad.map(|node| (node["metadata"]["name"].as_str().unwrap(), "the rack is full")).collect();
        Some(json!({"Nodes": {"items": good}, "FailedAndUnresolvableNodes": bad}))
    })
    .await;
    api.edit(|s| {
        s.set("nodes", node("n1", "8"));
        s.set("nodes", node("n2", "0"));
        s.set("pods", pod("a", "100m"));
    });
    let stop = start(&api, json!([{"urlPrefix": extender.url, "filterVerb": "filter"}]));
    api.until("a waits", |s| !waiting(s, "a").is_null()).await;
    let message = api.edit(|s| waiting(s, "a")["message"].as_str().unwrap().to_owned());
    assert!(message.starts_with("0/2 nodes are available: 1 Insufficient cpu, 1 the rack is full."), "{message}");
    let asked = extender.asked("filter");
    assert_eq!(asked[0]["Nodes"]["items"].as_array().unwrap().len(), 1, "what is full is not asked about");
    assert_eq!(asked[0]["Nodes"]["items"][0]["kind"], "Node");
    api.edit(|s| s.set("nodes", node("n9", "8")));
    api.until("a is bound", |s| s.node_of("a") == Some("n9")).await;
    stop.cancel();
}

#[tokio::test]
async fn says_who_ends_for_another() {
    let api = Api::new();
    let extender = Extender::start(|verb, asked| {
        assert_eq!(verb, "preempt");
        // Only n2 will do, whatever the harm.
        let all = asked["NodeNameToMetaVictims"].as_object().unwrap();
        assert_eq!(all.len(), 2);
        Some(json!({"NodeNameToMetaVictims": {"n2": all["n2"]}}))
    })
    .await;
    api.edit(|s| {
        for (name, priority) in [("n1", 1), ("n2", 5)] {
            s.set("nodes", node(name, "1"));
            let mut low = pod(&format!("low-{name}"), "1");
            low["spec"]["nodeName"] = json!(name);
            low["spec"]["priority"] = json!(priority);
            s.set("pods", low);
        }
    });
    let stop = start(&api, json!([{"urlPrefix": extender.url, "preemptVerb": "preempt", "nodeCacheCapable": true}]));
    let mut high = pod("high", "1");
    high["spec"]["priority"] = json!(100);
    api.edit(|s| s.set("pods", high));
    api.until("low-n2 ends for it", |s| s.get("pods", "low-n2").is_null()).await;
    api.until("high is bound", |s| s.node_of("high") == Some("n2")).await;
    assert!(api.edit(|s| !s.get("pods", "low-n1").is_null()));
    stop.cancel();
}

#[test]
fn mistakes_are_told() {
    let read = |list: Value| {
        let document = json!({"extenders": list});
        extenders(&document).unwrap_err().to_string()
    };
    let url = "http://127.0.0.1:1";
    for (list, wanted) in [
        (json!([{"urlPrefix": url, "prioritizeVerb": "p"}]), "must have a positive weight"),
        (
            json!([{"urlPrefix": url, "bindVerb": "b"}, {"urlPrefix": url, "bindVerb": "b"}]),
            "only one extender can implement bind",
        ),
        (json!([{"urlPrefix": url, "managedResources": [{"name": "cpu"}]}]), "invalid extended resource name"),
        (json!([{"urlPrefix": url, "httpTimeout": "soon"}]), "soon"),
        (json!([{"urlPrefix": "ftp://x"}]), "neither http"),
        (json!([{"urlPrefix": "https://localhost:1"}]), "no authority"),
        (json!([{"urlPrefix": url, "filterVerbs": "x"}]), "filterVerbs"),
    ] {
        let error = read(list);
        assert!(error.contains(wanted), "{error}");
    }
}

#[tokio::test]
async fn tls_is_checked() {
    // A listener that speaks no TLS: the error names it, and the pod is told.
    let api = Api::new();
    let extender = Extender::start(|_, _| None).await;
    api.edit(|s| {
        s.set("nodes", node("n1", "1"));
        s.set("pods", pod("a", "100m"));
    });
    let url = extender.url.replace("http://", "https://");
    let stop = start(
        &api,
        json!([{"urlPrefix": url, "filterVerb": "filter", "tlsConfig": {"insecure": true},
        "httpTimeout": "5s"}]),
    );
    api.until("a is told", |s| waiting(s, "a")["reason"] == "SchedulerError").await;
    let message = api.edit(|s| waiting(s, "a")["message"].as_str().unwrap().to_owned());
    assert!(message.contains("cannot be reached"), "{message}");
    stop.cancel();
}
