//! The thin loop: informers feed the engine, its answers become bindings, conditions and events.
//!
//! Decisions are made one after another; the writes that follow go on beside them, many at a time. Nothing polls.

mod devices;
mod extend;
mod groups;
mod informers;
mod writes;

use std::sync::Arc;

use dhow_client::{Client, EventRecorder};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::extenders::{Extenders, Interest};
use crate::{Engine, ExtenderConfig, Profile};
use extend::Asker;
use informers::Informers;
use writes::Writer;

#[derive(Debug, Clone)]
pub struct SchedulerConfig {
    /// Pods whose `schedulerName` is none of theirs are left alone.
    pub profiles: Vec<Profile>,
    /// Writes under way at a time.
    pub workers: usize,
    pub extenders: Vec<ExtenderConfig>,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self { profiles: vec![Profile::default()], workers: 64, extenders: Vec::new() }
    }
}

/// Decisions between two looks at what else there is to do.
const IN_A_ROW: usize = 64;

/// Schedules until `shutdown`. Exactly one may run in a cluster at a time.
pub async fn run(client: Client, config: SchedulerConfig, shutdown: CancellationToken) {
    let name = config.profiles.first().map_or("", |profile| profile.name.as_str());
    let recorder = EventRecorder::new(client.clone(), name);
    let engine = Arc::new(Engine::with_profiles(config.profiles.clone()));
    let extenders = match Extenders::new(&config.extenders) {
        Ok(extenders) => Arc::new(extenders),
        Err(error) => return tracing::error!(%error, "the scheduler cannot start"),
    };
    engine.set_extenders(config.extenders.iter().map(Interest::of).collect());
    let informers = Informers::start(&client, &shutdown);
    tokio::select! { () = informers.synced() => {}, () = shutdown.cancelled() => return }
    // All that is known goes in before the first decision.
    groups::follow(&client, &engine, &shutdown);
    informers.follow(&engine);
    let asker = Asker::new(Arc::clone(&extenders), Arc::clone(&engine), informers.pods());
    let storage = informers.storage();
    let writer = Arc::new(Writer { client, storage, engine: Arc::clone(&engine), recorder, extenders });
    let permits = Arc::new(Semaphore::new(config.workers.max(1)));
    loop {
        tokio::select! { () = decide_all(&engine, &writer, &asker, &permits) => {}, () = shutdown.cancelled() => return }
        let rest = engine.due();
        let rest = async {
            match rest {
                Some(until) => tokio::time::sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! { () = engine.changed() => {}, () = rest => {}, () = shutdown.cancelled() => return }
    }
}

/// Until no pod is left that can be decided now.
async fn decide_all(engine: &Arc<Engine>, writer: &Arc<Writer>, asker: &Asker, permits: &Arc<Semaphore>) {
    for count in 1_usize.. {
        let Some(decided) = engine.next() else { return };
        for (key, pod, outcome) in decided {
            if outcome == crate::Outcome::Ignore {
                continue;
            }
            let Some(outcome) = asker.ask(&key, &pod, outcome) else { continue };
            let prepared = matches!(outcome, crate::Outcome::Bind { .. }) && engine.has_conditional_devices(&key, &pod);
            if prepared || asker.binds(&pod, &outcome) {
                // Whoever is slow to bind its pods, or to prepare their devices, only holds up those.
                let writer = Arc::clone(writer);
                tokio::spawn(async move { writer.write(&key, &pod, outcome).await });
                continue;
            }
            // Never closed, so this cannot fail.
            let Ok(permit) = Arc::clone(permits).acquire_owned().await else { return };
            let writer = Arc::clone(writer);
            tokio::spawn(async move {
                writer.write(&key, &pod, outcome).await;
                drop(permit);
            });
        }
        if count % IN_A_ROW == 0 {
            tokio::task::yield_now().await;
        }
    }
}
