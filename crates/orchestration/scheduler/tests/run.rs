//! The loop against a small in-memory API: lists, watches, bindings, status patches and events.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;

use dhow_scheduler::{SchedulerConfig, run};
use support::{Api, State, node, pod};
use tokio_util::sync::CancellationToken;

fn start(api: &Arc<Api>) -> (CancellationToken, tokio::task::JoinHandle<()>) {
    let shutdown = CancellationToken::new();
    let client = api.client();
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
