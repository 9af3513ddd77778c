//! Start order, readiness, stop order, failures.
#![allow(clippy::unwrap_used)]

use super::*;

type Journal = Arc<Mutex<Vec<String>>>;

fn note(journal: &Journal, what: &str, name: &str) {
    journal.lock().unwrap().push(format!("{what} {name}"));
}

fn recorder(
    journal: &Journal,
    name: &'static str,
) -> impl FnOnce(Context) -> Pin<Box<dyn Future<Output = std::result::Result<(), BoxError>> + Send>> + Send + 'static {
    let journal = Arc::clone(journal);
    move |context| {
        Box::pin(async move {
            note(&journal, "start", name);
            tokio::task::yield_now().await;
            note(&journal, "ready", name);
            context.ready();
            context.shutdown.cancelled().await;
            tokio::task::yield_now().await;
            note(&journal, "stop", name);
            Ok(())
        })
    }
}

#[tokio::test]
async fn starts_by_need_and_stops_in_reverse() {
    let journal = Journal::default();
    let mut graph = Graph::new();
    graph.add("api", &["store"], recorder(&journal, "api"));
    graph.add("node", &["api"], recorder(&journal, "node"));
    graph.add("store", &["migrate"], recorder(&journal, "store"));
    let once = Arc::clone(&journal);
    graph.add_once("migrate", &[], move |_| async move {
        note(&once, "ran", "migrate");
        Ok::<_, BoxError>(())
    });
    let states = graph.states();
    assert!(!states.ready());
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(graph.run(shutdown.clone()));
    assert!(states.wait_ready().await);
    assert!(states.ready());
    shutdown.cancel();
    running.await.unwrap().unwrap();
    assert_eq!(
        *journal.lock().unwrap(),
        [
            "ran migrate",
            "start store",
            "ready store",
            "start api",
            "ready api",
            "start node",
            "ready node",
            "stop node",
            "stop api",
            "stop store"
        ]
    );
    assert!(states.all().iter().all(|(_, s)| *s == State::Stopped));
}

#[tokio::test]
async fn a_failure_stops_the_rest_and_is_reported() {
    for kind in ["error", "panic", "early end"] {
        let journal = Journal::default();
        let mut graph = Graph::new();
        graph.add("store", &[], recorder(&journal, "store"));
        graph.add("bad", &["store"], move |context| async move {
            context.ready();
            match kind {
                "error" => Err(BoxError::from("disk full")),
                "panic" => panic!("on purpose"),
                _ => Ok(()),
            }
        });
        let states = graph.states();
        let error = graph.run(CancellationToken::new()).await.unwrap_err();
        assert!(matches!(&error, Error::Service { name, .. } if name == "bad"), "{kind}: {error}");
        assert_eq!(journal.lock().unwrap().last().unwrap(), "stop store", "{kind}");
        assert_eq!(states.all(), [("store", State::Stopped), ("bad", State::Failed)]);
    }
}

#[tokio::test]
async fn what_needs_a_failed_service_never_starts() {
    let journal = Journal::default();
    let mut graph = Graph::new();
    graph.add("bad", &[], |_| async { Err(BoxError::from("no")) });
    graph.add("never", &["bad"], recorder(&journal, "never"));
    assert!(graph.run(CancellationToken::new()).await.is_err());
    assert!(journal.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_stuck_service_is_cut_off() {
    let mut graph = Graph::new();
    graph.stop_grace(Duration::from_millis(20));
    graph.add("stuck", &[], |context| async move {
        context.ready();
        std::future::pending::<std::result::Result<(), BoxError>>().await
    });
    let states = graph.states();
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(graph.run(shutdown.clone()));
    assert!(states.wait_ready().await);
    shutdown.cancel();
    running.await.unwrap().unwrap();
}

#[tokio::test]
async fn mistakes_in_the_graph_are_named() {
    let quiet = |_: Context| async { Ok::<_, BoxError>(()) };
    let mut unknown = Graph::new();
    unknown.add("a", &["b"], quiet);
    let text = unknown.run(CancellationToken::new()).await.unwrap_err().to_string();
    assert!(text.contains("\"a\" needs \"b\""), "{text}");

    let mut twice = Graph::new();
    twice.add("a", &[], quiet).add("a", &[], quiet);
    let text = twice.run(CancellationToken::new()).await.unwrap_err().to_string();
    assert!(text.contains("two services"), "{text}");

    let mut cycle = Graph::new();
    cycle.add("a", &["b"], quiet).add("b", &["a"], quiet).add("c", &[], quiet);
    let text = cycle.run(CancellationToken::new()).await.unwrap_err().to_string();
    assert!(text.ends_with("a, b"), "{text}");
}
