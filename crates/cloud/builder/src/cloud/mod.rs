//! The builder as a part of the cloud: `Build` and `BuildRun` are kinds of the API, served by its nodes' builders.
//!
//! One server of the cluster decides what is run when and where ([`run`]); every server takes logs, uploads and webhooks
//! ([`Door`]). What they know of each other are objects.

mod builds;
mod deploy;
mod door;
mod execute;
mod hooks;
pub mod kinds;
mod runs;
mod secrets;
mod turn;

use std::sync::Arc;

use dhow_client::{Change, Client, Informer, Key, ListParams, Queue, run_controller, while_served};
use k8s_openapi::api::core::v1::Node;
use tokio_util::sync::CancellationToken;

pub use door::Door;
pub use execute::Largest;
pub use turn::Room;

use kinds::{Build, BuildRun};

/// What the cluster allows, and where its registry is.
#[derive(Debug, Clone)]
pub struct Settings {
    pub room: Room,
    pub most: Largest,
    /// What names of images begin with that go to the cluster's own registry.
    pub registry: String,
}

/// Keeps runs going and builds true, until `shutdown`.
pub async fn run(client: Client, settings: Settings, shutdown: CancellationToken) {
    let start = |stop: CancellationToken| {
        tokio::spawn(work(client.clone(), settings.clone(), stop));
    };
    while_served(&client, &kinds::NAMES, kinds::VERSION, &shutdown, start).await;
}

async fn work(client: Client, settings: Settings, stop: CancellationToken) {
    let all = ListParams::default();
    let builds = Informer::<Build>::start(client.clone(), all.clone(), None, stop.clone());
    let runs = Informer::<BuildRun>::start(client.clone(), all.clone(), None, stop.clone());
    let nodes = Informer::<Node>::start(client.clone(), all, None, stop.clone());
    runs.add_index(builds::OF_BUILD, |run| vec![builds::index(run)]);
    tokio::select! {
        () = async { tokio::join!(builds.synced(), runs.synced(), nodes.synced()); } => {}
        () = stop.cancelled() => return,
    }
    let of_builds = Queue::new("builds");
    let keeper = Arc::new(builds::Builds { client: client.clone(), builds: builds.clone(), runs: runs.clone() });
    let runner = runs::Runs::new(client, (runs.clone(), nodes.clone()), settings, stop.clone());
    let queue = of_builds.clone();
    builds.on_change(move |change| queue.add(Key::of(&change.object().metadata)));
    let (queue, told) = (of_builds.clone(), Arc::clone(&runner));
    runs.on_change(move |change| {
        let run = change.object();
        queue.add(Key::new(Some(run.namespace()), &run.spec.build));
        told.queue.add(Key::of(&run.metadata));
        if let Change::Deleted(run) = change {
            told.forget(run);
        }
    });
    let told = Arc::clone(&runner);
    nodes.on_change(move |change| {
        // Heartbeats change nothing about where builds may go.
        let place = |node: &Node| turn::Place::of(node).map(|place| (place.name, place.labels));
        match change {
            Change::Updated { old, new } if place(old) == place(new) => {}
            _ => told.wake(),
        }
    });
    let queue = runner.queue.clone();
    tokio::join!(
        run_controller(keeper, of_builds, 2, stop.clone()),
        // One: each decision knows the ones before it.
        run_controller(Arc::new(runs::Runner(Arc::clone(&runner))), queue, 1, stop.clone()),
    );
    runner.tasks.close();
    runner.tasks.wait().await;
}
