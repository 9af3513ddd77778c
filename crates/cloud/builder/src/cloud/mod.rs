//! The builder as a part of the cloud: `Build` and `BuildRun` are kinds of the API, served by its nodes' builders.
//!
//! One server of the cluster decides what is run when and where ([`run`]); every server takes logs, uploads and webhooks
//! ([`Door`]). What they know of each other are objects.

mod builds;
mod deploy;
mod door;
mod execute;
mod hooks;
mod images;
pub mod kinds;
mod runs;
mod secrets;
mod turn;

use std::sync::Arc;
use std::time::Duration;

use dhow_client::{Change, Client, Informer, Key, ListParams, Queue, run_controller, while_served};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Node;
use tokio_util::sync::CancellationToken;

pub use door::Door;
pub use execute::Largest;
pub use images::Pushes;
pub use turn::Room;

use kinds::{Build, BuildRun, Phase};

/// What the cluster allows, and where its registry is.
#[derive(Debug, Clone)]
pub struct Settings {
    pub room: Room,
    pub most: Largest,
    /// What names of images begin with that go to the cluster's own registry.
    pub registry: String,
}

/// Keeps runs going and builds true, until `shutdown`.
pub async fn run(client: Client, settings: Settings, pushes: Option<Pushes>, shutdown: CancellationToken) {
    let start = |stop: CancellationToken| {
        tokio::spawn(work(client.clone(), settings.clone(), pushes.clone(), stop));
    };
    while_served(&client, &kinds::NAMES, kinds::VERSION, &shutdown, start).await;
}

async fn work(client: Client, settings: Settings, pushes: Option<Pushes>, stop: CancellationToken) {
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
    let of_images = Queue::new("build-images");
    let watcher = Arc::new(images::Images {
        client: client.clone(),
        builds: builds.clone(),
        runs: runs.clone(),
        nodes: nodes.clone(),
    });
    let keeper = Arc::new(builds::Builds { client: client.clone(), builds: builds.clone(), runs: runs.clone() });
    let runner = runs::Runs::new(client, (runs.clone(), nodes.clone()), settings, stop.clone());
    let (queue, asking) = (of_builds.clone(), of_images.clone());
    builds.on_change(move |change| {
        queue.add(Key::of(&change.object().metadata));
        // What changes of its status is our own doing.
        let same = |old: &Build, new: &Build| old.metadata.generation == new.metadata.generation;
        if !matches!(change, Change::Updated { old, new } if same(old, new)) {
            asking.add(Key::of(&change.object().metadata));
        }
    });
    let (queue, told, asking) = (of_builds.clone(), Arc::clone(&runner), of_images.clone());
    runs.on_change(move |change| {
        let run = change.object();
        queue.add(Key::new(Some(run.namespace()), &run.spec.build));
        told.queue.add(Key::of(&run.metadata));
        // It may have begun with other images than the one before.
        if run.phase() == Phase::Succeeded {
            asking.add(Key::new(Some(run.namespace()), &run.spec.build));
        }
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
        run_controller(Arc::clone(&watcher) as _, of_images.clone(), 2, stop.clone()),
        listen(pushes, watcher, of_images, stop.clone()),
        // One: each decision knows the ones before it.
        run_controller(Arc::new(runs::Runner(Arc::clone(&runner))), queue, 1, stop.clone()),
    );
    runner.tasks.close();
    runner.tasks.wait().await;
}

/// Between attempts to be told of pushes.
const RETRY: Duration = Duration::from_secs(5);

/// Wakes the builds that wait for what is pushed to the cluster's own registry.
async fn listen(pushes: Option<Pushes>, images: Arc<images::Images>, queue: Queue, stop: CancellationToken) {
    let Some(pushes) = pushes else { return stop.cancelled().await };
    let told = async {
        loop {
            if let Some(mut tags) = pushes().await {
                // What was pushed while nobody listened.
                images.waiting(None).into_iter().for_each(|key| queue.add(key));
                while let Some(tag) = tags.next().await {
                    images.waiting(Some(&tag)).into_iter().for_each(|key| queue.add(key));
                }
            }
            tokio::time::sleep(RETRY).await;
        }
    };
    tokio::select! { () = told => {}, () = stop.cancelled() => {} }
}
