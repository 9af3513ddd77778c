//! The registry as a part of the cloud: projects and robot accounts are kinds of the API; who someone is and what the cluster's
//! roles allow is asked there, too.

mod access;
pub mod kinds;
mod projects;
mod robots;
mod webhooks;

use std::sync::Arc;

use dhow_api::conditions;
use dhow_client::{Client, Informer, Key, ListParams, Queue, run_controller, while_served};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

pub use access::ApiAccess;
use kinds::{Project, RobotAccount};

use crate::Registry;
use crate::projects::project_of;

/// The kinds' objects while they are served.
#[derive(Clone)]
pub(crate) struct Kinds {
    pub projects: Informer<Project>,
    pub robots: Informer<RobotAccount>,
}

/// Keeps `access` informed of projects and robots, their statuses true, and robots' secrets made, until `shutdown`. `hosts`
/// are what references call the registry; robots' credentials are for all of them.
pub async fn run(
    registry: Registry,
    access: Arc<ApiAccess>,
    client: Client,
    hosts: Vec<String>,
    shutdown: CancellationToken,
) {
    let start = |stop: CancellationToken| {
        let kinds = Kinds {
            projects: Informer::start(client.clone(), ListParams::default(), None, stop.clone()),
            robots: Informer::start(client.clone(), ListParams::default(), None, stop.clone()),
        };
        let work = work(registry.clone(), Arc::clone(&access), client.clone(), hosts.clone(), kinds, stop);
        tokio::spawn(work);
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
