//! The service graph: parts of a process start when what they need is ready, and stop before what they need does.
//!
//! Invariants: a service's code runs only after each of its needs is ready; its shutdown token fires only after every
//! service that needs it has ended; a service that fails, or ends unasked, takes the whole graph down in that order,
//! and `run` gives the first such error.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{Error, Result};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

type BoxRun =
    Box<dyn FnOnce(Context) -> Pin<Box<dyn Future<Output = std::result::Result<(), BoxError>> + Send>> + Send>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// A need is not ready yet.
    Waiting,
    Starting,
    Ready,
    /// Ended, or never started because the graph stopped first.
    Stopped,
    Failed,
}

impl State {
    fn ended(self) -> bool {
        matches!(self, Self::Stopped | Self::Failed)
    }
}

/// What a running service is handed.
pub struct Context {
    /// Fires when this service should end.
    pub shutdown: CancellationToken,
    state: Arc<watch::Sender<State>>,
}

impl Context {
    /// Lets the services that need this one start.
    pub fn ready(&self) {
        self.state.send_if_modified(|state| {
            let starting = *state == State::Starting;
            if starting {
                *state = State::Ready;
            }
            starting
        });
    }
}

struct Spec {
    name: &'static str,
    needs: Vec<&'static str>,
    /// Done when its code returns, as a migration is; otherwise returning early is a failure.
    once: bool,
    run: BoxRun,
    state: Arc<watch::Sender<State>>,
}

/// The state of every service, for health endpoints.
#[derive(Clone, Default)]
pub struct States(Arc<Mutex<Vec<Named>>>);

type Named = (&'static str, watch::Receiver<State>);

impl States {
    /// In order of declaration.
    pub fn all(&self) -> Vec<(&'static str, State)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().map(|(n, s)| (*n, *s.borrow())).collect()
    }

    pub fn ready(&self) -> bool {
        self.all().iter().all(|(_, state)| *state == State::Ready)
    }

    /// Returns once every service is ready; `false` if one ended first.
    pub async fn wait_ready(&self) -> bool {
        let receivers: Vec<_> = {
            let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            all.iter().map(|(_, r)| r.clone()).collect()
        };
        for mut receiver in receivers {
            match receiver.wait_for(|s| *s == State::Ready || s.ended()).await {
                Ok(state) if *state == State::Ready => {}
                _ => return false,
            }
        }
        true
    }
}

pub struct Graph {
    services: Vec<Spec>,
    states: States,
    grace: Duration,
}

impl Default for Graph {
    fn default() -> Self {
        Self::new()
    }
}

impl Graph {
    pub fn new() -> Self {
        Self { services: Vec::new(), states: States::default(), grace: Duration::from_secs(30) }
    }

    /// How long a service may take to end after its token fired before it is cut off.
    pub fn stop_grace(&mut self, grace: Duration) -> &mut Self {
        self.grace = grace;
        self
    }

    /// A service that runs until its token fires and calls [`Context::ready`] when it can be used.
    pub fn add<F, Fut, E>(&mut self, name: &'static str, needs: &[&'static str], run: F) -> &mut Self
    where
        F: FnOnce(Context) -> Fut + Send + 'static,
        Fut: Future<Output = std::result::Result<(), E>> + Send + 'static,
        E: Into<BoxError>,
    {
        self.push(name, needs, false, run)
    }

    /// A step that is ready when its code has returned.
    pub fn add_once<F, Fut, E>(&mut self, name: &'static str, needs: &[&'static str], run: F) -> &mut Self
    where
        F: FnOnce(Context) -> Fut + Send + 'static,
        Fut: Future<Output = std::result::Result<(), E>> + Send + 'static,
        E: Into<BoxError>,
    {
        self.push(name, needs, true, run)
    }

    fn push<F, Fut, E>(&mut self, name: &'static str, needs: &[&'static str], once: bool, run: F) -> &mut Self
    where
        F: FnOnce(Context) -> Fut + Send + 'static,
        Fut: Future<Output = std::result::Result<(), E>> + Send + 'static,
        E: Into<BoxError>,
    {
        let (sender, receiver) = watch::channel(State::Waiting);
        self.states.0.lock().unwrap_or_else(PoisonError::into_inner).push((name, receiver));
        self.services.push(Spec {
            name,
            needs: needs.to_vec(),
            once,
            run: Box::new(move |context| Box::pin(async move { run(context).await.map_err(Into::into) })),
            state: Arc::new(sender),
        });
        self
    }

    pub fn states(&self) -> States {
        self.states.clone()
    }

    /// Starts everything, and returns when everything has ended: because `shutdown` fired or a service failed.
    pub async fn run(self, shutdown: CancellationToken) -> Result<()> {
        self.check()?;
        let stop = shutdown.child_token();
        let senders: HashMap<_, _> = self.services.iter().map(|s| (s.name, Arc::clone(&s.state))).collect();
        let mut dependents: HashMap<&str, Vec<watch::Receiver<State>>> = HashMap::new();
        for service in &self.services {
            for &need in &service.needs {
                dependents.entry(need).or_default().push(service.state.subscribe());
            }
        }
        let mut running = JoinSet::new();
        for service in self.services {
            let needs = service.needs.iter().map(|n| senders[n].subscribe()).collect();
            let dependents = dependents.remove(service.name).unwrap_or_default();
            running.spawn(drive(service, needs, dependents, stop.clone(), self.grace));
        }
        let mut first_error = Ok(());
        while let Some(ended) = running.join_next().await {
            let result = ended.unwrap_or_else(|e| Err(Error::Graph(format!("a supervisor panicked: {e}"))));
            if let Err(error) = result {
                stop.cancel();
                if first_error.is_ok() {
                    first_error = Err(error);
                } else {
                    tracing::error!(%error, "another service failed while stopping");
                }
            }
        }
        first_error
    }

    /// Names are unique, needs exist, and there is an order in which everything can start.
    fn check(&self) -> Result<()> {
        let mut missing: HashMap<&str, usize> = HashMap::new();
        for service in &self.services {
            if missing.insert(service.name, service.needs.len()).is_some() {
                return Err(Error::Graph(format!("two services are named {:?}", service.name)));
            }
        }
        for service in &self.services {
            if let Some(need) = service.needs.iter().find(|n| !missing.contains_key(**n)) {
                return Err(Error::Graph(format!("{:?} needs {need:?}, which does not exist", service.name)));
            }
        }
        while let Some(&free) = missing.iter().find(|(_, count)| **count == 0).map(|(name, _)| name) {
            missing.remove(free);
            for service in &self.services {
                let edges = service.needs.iter().filter(|n| **n == free).count();
                if let Some(count) = missing.get_mut(service.name) {
                    *count -= edges;
                }
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let mut names: Vec<_> = missing.into_keys().collect();
        names.sort_unstable();
        Err(Error::Graph(format!("these services wait for each other: {}", names.join(", "))))
    }
}

/// One service from waiting to ended.
async fn drive(
    service: Spec,
    needs: Vec<watch::Receiver<State>>,
    dependents: Vec<watch::Receiver<State>>,
    stop: CancellationToken,
    grace: Duration,
) -> Result<()> {
    let Spec { name, once, run, state, .. } = service;
    let started = tokio::select! {
        biased;
        () = stop.cancelled() => false,
        ready = all_ready(needs) => ready,
    };
    if !started {
        state.send_replace(State::Stopped);
        return Ok(());
    }
    state.send_replace(State::Starting);
    tracing::debug!(service = name, "start");
    let token = CancellationToken::new();
    let mut task = tokio::spawn(run(Context { shutdown: token.clone(), state: Arc::clone(&state) }));

    // Fires once it is this service's turn to stop: the graph stops and nobody needs it any more.
    let turn = async {
        stop.cancelled().await;
        for mut dependent in dependents {
            // An error means the dependent's supervisor is gone, so it has ended, too.
            let _ = dependent.wait_for(|s| s.ended()).await;
        }
    };
    tokio::pin!(turn);

    let fail = |source: BoxError| {
        state.send_replace(State::Failed);
        Err(Error::Service { name: name.to_owned(), source })
    };
    tokio::select! {
        ended = &mut task => match outcome(ended) {
            Err(source) => return fail(source),
            Ok(()) if once => {
                state.send_replace(State::Ready);
                turn.await;
            }
            Ok(()) if stop.is_cancelled() => {}
            Ok(()) => return fail("it ended although nobody asked it to".into()),
        },
        () = &mut turn => {
            tracing::debug!(service = name, "stop");
            token.cancel();
            match tokio::time::timeout(grace, &mut task).await {
                Ok(ended) => if let Err(source) = outcome(ended) {
                    return fail(source);
                },
                Err(_) => {
                    task.abort();
                    tracing::warn!(service = name, ?grace, "did not stop in time and was cut off");
                }
            }
        }
    }
    state.send_replace(State::Stopped);
    Ok(())
}

fn outcome(
    ended: std::result::Result<std::result::Result<(), BoxError>, tokio::task::JoinError>,
) -> std::result::Result<(), BoxError> {
    ended.unwrap_or_else(|join| Err(join.into()))
}

async fn all_ready(needs: Vec<watch::Receiver<State>>) -> bool {
    for mut need in needs {
        match need.wait_for(|s| *s == State::Ready || s.ended()).await {
            Ok(state) if *state == State::Ready => {}
            _ => return false,
        }
    }
    true
}

#[cfg(test)]
#[path = "service_tests.rs"]
mod tests;
