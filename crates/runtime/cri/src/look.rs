//! What there is in a runtime that is not ours, and what changed since it was last looked at.
//!
//! Whatever such a runtime has to say is only taken as a sign to look again; what is told is the difference between two
//! looks, so that a lost sign costs time and never an event.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use crate::Error;
use crate::runtime::{ContainerState, PodIdentity, RuntimeEvent, RuntimeEventKind, SandboxState};

/// One look: every container's state by id, with its sandbox, and every sandbox.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Look {
    pub sandboxes: BTreeMap<String, (PodIdentity, SandboxState)>,
    pub containers: BTreeMap<String, (String, ContainerState)>,
}

/// What happened between two looks, oldest first for each object.
pub fn difference(before: &Look, after: &Look) -> Vec<RuntimeEvent> {
    let mut all = Vec::new();
    let mut tell = |sandbox: &str, container: &str, kind| {
        let known = after.sandboxes.get(sandbox).or_else(|| before.sandboxes.get(sandbox));
        if let Some((pod, _)) = known {
            all.push(RuntimeEvent {
                pod: pod.clone(),
                sandbox_id: sandbox.to_owned(),
                container_id: container.to_owned(),
                kind,
            });
        }
    };
    for (id, (_, state)) in &after.sandboxes {
        let was = before.sandboxes.get(id).map(|(_, state)| *state);
        if was.is_none() {
            tell(id, "", RuntimeEventKind::Started);
        }
        if was != Some(*state) && *state == SandboxState::NotReady {
            tell(id, "", RuntimeEventKind::Exited);
        }
    }
    for (id, (sandbox, state)) in &after.containers {
        let was = before.containers.get(id).map(|(_, state)| *state);
        if was == Some(*state) {
            continue;
        }
        let begun = matches!(state, ContainerState::Running | ContainerState::Exited);
        if begun && was != Some(ContainerState::Running) {
            tell(sandbox, id, RuntimeEventKind::Started);
        }
        if *state == ContainerState::Exited {
            tell(sandbox, id, RuntimeEventKind::Exited);
        }
    }
    for (id, (sandbox, _)) in before.containers.iter().filter(|(id, _)| !after.containers.contains_key(*id)) {
        tell(sandbox, id, RuntimeEventKind::Removed);
    }
    for id in before.sandboxes.keys().filter(|id| !after.sandboxes.contains_key(*id)) {
        tell(id, "", RuntimeEventKind::Removed);
    }
    all
}

/// Looks after a sign, each so much later than the one before. Runtimes send signs and then book what they were about;
/// and a subscription that is not confirmed begins with some.
const LATER: [Duration; 4] =
    [Duration::from_millis(20), Duration::from_millis(80), Duration::from_millis(400), Duration::from_secs(1)];
/// Before a runtime is asked for signs again that ended them, as it does when it restarts.
const PAUSE: Duration = Duration::from_secs(1);

/// Why there are no more signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// The runtime has none of this kind; the next call of [`Watched::signs`] tries another.
    Lacking,
    Broken,
}

pub type Signs = BoxStream<'static, Result<(), Lost>>;

/// A runtime that is looked at.
#[async_trait::async_trait]
pub trait Watched: Send + Sync + 'static {
    async fn look(&self) -> Result<Look, Error>;
    /// Signs from now on that something changed.
    fn signs(&self) -> Signs;
    /// Where events are told.
    fn events(&self) -> &broadcast::Sender<RuntimeEvent>;
}

/// Follows until `end`. On return everything that exists is known, and from then on changes are told.
pub async fn follow<W: Watched>(watched: &Arc<W>, end: CancellationToken) -> Result<(), Error> {
    let mut known = watched.look().await?;
    let mut signs = watched.signs();
    let weak = Arc::downgrade(watched);
    tokio::spawn(end.run_until_cancelled_owned(async move {
        let mut later = 0;
        loop {
            let pause = async {
                match LATER.get(later) {
                    Some(pause) => tokio::time::sleep(*pause).await,
                    None => std::future::pending().await,
                }
            };
            let sign = tokio::select! {
                sign = signs.next() => Some(sign.unwrap_or(Err(Lost::Broken))),
                () = pause => None,
            };
            let Some(watched) = weak.upgrade() else { return };
            later = match sign {
                None => later + 1,
                Some(Ok(())) => 0,
                Some(Err(lost)) => {
                    tracing::debug!(?lost, "no more signs from the container runtime");
                    if lost == Lost::Broken {
                        tokio::time::sleep(PAUSE).await;
                    }
                    signs = watched.signs();
                    0
                }
            };
            match watched.look().await {
                Ok(look) => {
                    for event in difference(&known, &look) {
                        // Nobody listening is fine.
                        let _ = watched.events().send(event);
                    }
                    known = look;
                }
                Err(error) => tracing::warn!(%error, "cannot look at the container runtime"),
            }
        }
    }));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(sandbox: Option<SandboxState>, container: Option<ContainerState>) -> Look {
        let pod = PodIdentity { namespace: "ns".into(), name: "pod".into(), uid: "u".into(), attempt: 0 };
        Look {
            sandboxes: sandbox.into_iter().map(|state| ("s".to_owned(), (pod.clone(), state))).collect(),
            containers: container.into_iter().map(|state| ("c".to_owned(), ("s".to_owned(), state))).collect(),
        }
    }

    fn kinds(before: &Look, after: &Look) -> Vec<(String, RuntimeEventKind)> {
        difference(before, after).into_iter().map(|event| (event.container_id, event.kind)).collect()
    }

    #[test]
    fn a_container_that_ran_between_two_looks_started_and_exited() {
        use RuntimeEventKind::{Exited, Removed, Started};
        let ready = Some(SandboxState::Ready);
        let nothing = Look::default();
        let created = look(ready, Some(ContainerState::Created));
        let running = look(ready, Some(ContainerState::Running));
        let exited = look(ready, Some(ContainerState::Exited));
        let own = |kind| ("c".to_owned(), kind);
        let pod = |kind| (String::new(), kind);
        assert_eq!(kinds(&nothing, &created), [pod(Started)]);
        assert_eq!(kinds(&created, &running), [own(Started)]);
        assert_eq!(kinds(&running, &exited), [own(Exited)]);
        assert_eq!(kinds(&created, &exited), [own(Started), own(Exited)]);
        assert_eq!(kinds(&exited, &nothing), [own(Removed), pod(Removed)]);
        assert_eq!(kinds(&running, &running), []);
        assert_eq!(kinds(&running, &look(Some(SandboxState::NotReady), None)), [pod(Exited), own(Removed)]);
    }
}
