//! What changed in Docker, as events; see [`crate::look`].

use futures::{FutureExt, StreamExt, TryStreamExt};
use tokio::io::AsyncBufReadExt;
use tokio::sync::broadcast;
use tokio_stream::wrappers::LinesStream;

use super::request::{CLOUD, CONTAINER, SANDBOX, SANDBOX_ID};
use super::{Inner, answer, api};
use crate::Error;
use crate::look::{Look, Lost, Signs, Watched};
use crate::runtime::RuntimeEvent;

#[async_trait::async_trait]
impl Watched for Inner {
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

    /// Docker's events of this cloud, a line each.
    fn signs(&self) -> Signs {
        let label = format!("{CLOUD}={}", self.config.cgroup_root);
        let kinds = ["start", "die", "destroy"];
        let filters = serde_json::json!({"type": ["container"], "label": [label], "event": kinds}).to_string();
        let (api, path) = (self.api.clone(), format!("/events?filters={}", api::escape(&filters)));
        let lines = async move {
            match api.stream(&path).await {
                Ok(stream) => LinesStream::new(stream.lines()).map_ok(drop).map_err(|_| Lost::Broken).boxed(),
                Err(_) => futures::stream::once(async { Err(Lost::Broken) }).boxed(),
            }
        };
        lines.flatten_stream().boxed()
    }

    fn events(&self) -> &broadcast::Sender<RuntimeEvent> {
        &self.events
    }
}
