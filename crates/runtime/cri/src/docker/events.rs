//! What changed in Docker, as events. Docker's own are taken as a sign to look again; see [`crate::look`].

use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncBufReadExt;
use tokio_util::sync::CancellationToken;

use super::request::{CLOUD, CONTAINER, SANDBOX, SANDBOX_ID};
use super::{Inner, answer, api};
use crate::Error;
use crate::look::{Look, difference};

/// Before the daemon is asked for events again that it ended, as it does when it restarts.
const PAUSE: Duration = Duration::from_secs(1);

impl Inner {
    async fn look(&self) -> Result<Look, Error> {
        let mut look = Look::default();
        for listed in self.list(SANDBOX).await? {
            let id = listed["Id"].as_str().unwrap_or_default();
            let config = answer::sandbox_config(id, &listed["Labels"])?;
            let state = answer::sandbox_state(listed["State"].as_str().unwrap_or_default());
            look.sandboxes.insert(id.to_owned(), (config.pod, state));
        }
        for listed in self.list(CONTAINER).await? {
            let (id, sandbox) = (listed["Id"].as_str(), listed["Labels"][SANDBOX_ID].as_str());
            let state = answer::container_state(listed["State"].as_str().unwrap_or_default());
            if let (Some(id), Some(sandbox)) = (id, sandbox) {
                look.containers.insert(id.to_owned(), (sandbox.to_owned(), state));
            }
        }
        Ok(look)
    }

    /// Follows Docker's events of this cloud.
    async fn subscribe(&self) -> Result<impl tokio::io::AsyncBufRead + Send + Unpin + use<>, Error> {
        let label = format!("{CLOUD}={}", self.config.cgroup_root);
        let kinds = ["start", "die", "destroy"];
        let filters = serde_json::json!({"type": ["container"], "label": [label], "event": kinds}).to_string();
        let path = format!("/events?filters={}", api::escape(&filters));
        self.api.stream(&path).await.map_err(|failure| failure.on("events", "docker"))
    }
}

/// Follows until `end`. On return everything that exists is known, and from then on changes are told.
pub async fn follow(inner: &Arc<Inner>, end: CancellationToken) -> Result<(), Error> {
    // Subscribed before looking, so that no change falls between.
    let mut signs = Some(inner.subscribe().await?);
    let mut known = inner.look().await?;
    let weak = Arc::downgrade(inner);
    tokio::spawn(end.run_until_cancelled_owned(async move {
        let mut line = Vec::new();
        loop {
            line.clear();
            let lost = match &mut signs {
                Some(signs) => !matches!(signs.read_until(b'\n', &mut line).await, Ok(1..)),
                None => true,
            };
            if lost {
                tokio::time::sleep(PAUSE).await;
            }
            let Some(inner) = weak.upgrade() else { return };
            if lost {
                signs = inner.subscribe().await.ok();
            }
            match inner.look().await {
                Ok(look) => {
                    for event in difference(&known, &look) {
                        // Nobody listening is fine.
                        let _ = inner.events.send(event);
                    }
                    known = look;
                }
                Err(error) => tracing::warn!(%error, "cannot look at Docker"),
            }
        }
    }));
    Ok(())
}
