//! The registry as a part of the cloud: projects and robot accounts are kinds of the API; who someone is and what the cluster's
//! roles allow is asked there, too.

mod access;
pub mod judge;
pub mod kinds;
pub mod policy;
mod projects;
pub mod replication;
mod replicator;
mod robots;
mod secrets;
mod webhooks;

use std::sync::Arc;

use dhow_api::conditions;
use dhow_client::leader::{self, LeaseSpec};
use dhow_client::{Client, Informer, Key, ListParams, Queue, run_controller, while_served};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use tokio::sync::Notify;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

pub use access::ApiAccess;
use kinds::{Project, RobotAccount};
use replication::ReplicationRule;
use replicator::Replicator;

use crate::projects::project_of;
use crate::{Access, Registry};

/// Rules that run at a time.
const REPLICATIONS: usize = 2;

/// The kinds' objects while they are served.
#[derive(Clone)]
pub(crate) struct Kinds {
    pub projects: Informer<Project>,
    pub robots: Informer<RobotAccount>,
    pub replications: Informer<ReplicationRule>,
}

/// Keeps `access` informed of projects and robots, their statuses true, and robots' secrets made, until `shutdown`. `hosts`
/// are what references call the registry; robots' credentials are for all of them. Of several servers, the one that holds
/// `lease` replicates.
pub async fn run(
    registry: Registry,
    access: Arc<ApiAccess>,
    client: Client,
    hosts: Vec<String>,
    lease: Option<LeaseSpec>,
    shutdown: CancellationToken,
) {
    let start = |stop: CancellationToken| {
        let kinds = Kinds {
            projects: Informer::start(client.clone(), ListParams::default(), None, stop.clone()),
            robots: Informer::start(client.clone(), ListParams::default(), None, stop.clone()),
            replications: Informer::start(client.clone(), ListParams::default(), None, stop.clone()),
        };
        let parts = (registry.clone(), Arc::clone(&access), client.clone());
        tokio::spawn(replicate(parts, kinds.replications.clone(), lease.clone(), stop.clone()));
        tokio::spawn(work(registry.clone(), Arc::clone(&access), client.clone(), hosts.clone(), kinds, stop));
    };
    while_served(&client, &kinds::NAMES, kinds::VERSION, &shutdown, start).await;
}

async fn work(
    registry: Registry,
    access: Arc<ApiAccess>,
    client: Client,
    hosts: Vec<String>,
    kinds: Kinds,
    stop: CancellationToken,
) {
    tokio::select! {
        () = async { tokio::join!(kinds.projects.synced(), kinds.robots.synced()); } => {}
        () = stop.cancelled() => return,
    }
    access.know(Some(kinds.clone()));
    let (statuses, secrets) = (Queue::new("registry-projects"), Queue::new("registry-robots"));
    let queue = statuses.clone();
    kinds.projects.on_change(move |change| queue.add(Key::of(&change.object().metadata)));
    let queue = secrets.clone();
    kinds.robots.on_change(move |change| queue.add(Key::of(&change.object().metadata)));
    let projects =
        projects::Projects { registry: registry.clone(), client: client.clone(), projects: kinds.projects.clone() };
    let host = hosts.first().cloned().unwrap_or_default();
    let hooks = webhooks::run(registry.clone(), client.clone(), kinds.projects.clone(), host, stop.clone());
    let robots = robots::Robots { client, robots: kinds.robots.clone(), hosts };
    tokio::join!(
        run_controller(Arc::new(projects), statuses.clone(), 1, stop.clone()),
        run_controller(Arc::new(robots), secrets, 1, stop.clone()),
        follow(&registry, &statuses, &kinds.projects, &stop),
        hooks,
    );
    access.know(None);
}

/// Replicates, of several servers on one of them, until `stop`.
async fn replicate(
    (registry, access, client): (Registry, Arc<ApiAccess>, Client),
    rules: Informer<ReplicationRule>,
    lease: Option<LeaseSpec>,
    stop: CancellationToken,
) {
    tokio::select! { () = async { tokio::join!(rules.synced(), access.ready()); } => {}, () = stop.cancelled() => return }
    let work = |stop: CancellationToken| {
        let queue = Queue::new("registry-replication");
        let own = Replicator::new(registry.clone(), Arc::clone(&access), client.clone(), rules.clone(), stop.clone());
        let ready = Arc::<Notify>::default();
        let following = own.follow(queue.clone(), Arc::clone(&ready));
        let (queue_, live) = (queue.clone(), stop.clone());
        // Handlers stay with the informer, which outlives this server's turn.
        rules.on_change(move |change| {
            if !live.is_cancelled() {
                queue_.add(Key::of(&change.object().metadata));
            }
        });
        async move {
            // What is pushed while a rule looks at what there is must not be missed.
            let running = async {
                ready.notified().await;
                run_controller(Arc::new(own), queue, REPLICATIONS, stop.clone()).await;
            };
            tokio::select! {
                () = running => {}
                () = following => {}
                () = stop.cancelled() => {}
            }
        }
    };
    match lease {
        Some(lease) => leader::lead(client.clone(), lease, stop.clone(), work).await,
        None => work(stop.clone()).await,
    }
}

/// Has the status of a project written anew when something in it changed.
async fn follow(registry: &Registry, statuses: &Queue, projects: &Informer<Project>, stop: &CancellationToken) {
    let mut events = registry.events();
    loop {
        let event = tokio::select! { event = events.recv() => event, () = stop.cancelled() => return };
        match event {
            // Several tags of one push, and several pushes, are one change.
            Ok(event) => statuses.add_after(Key::new(None, project_of(&event.repository)), projects::SETTLE),
            Err(RecvError::Lagged(_)) => {
                projects.list().iter().for_each(|project| statuses.add(Key::of(&project.metadata)));
            }
            Err(RecvError::Closed) => return stop.cancelled().await,
        }
    }
}

fn condition(kind: &str, verdict: Result<&str, (&str, &str)>, old: &[Condition]) -> Condition {
    let (status, reason, message) = match verdict {
        Ok(message) => ("True", "AsWritten", message),
        Err((reason, message)) => ("False", reason, message),
    };
    Condition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        last_transition_time: conditions::since(old, kind, status, Timestamp::now()),
        observed_generation: None,
    }
}
