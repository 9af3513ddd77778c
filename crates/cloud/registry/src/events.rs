//! What changed, for those inside the process who want to know.

use dhow_image::Digest;
use tokio::sync::broadcast;

use crate::request::Who;

/// Changes that a slow listener may be behind before it is told that it missed some.
const BACKLOG: usize = 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Push,
    Delete,
}

/// A manifest or tag that came or went, told once that is durable.
#[derive(Debug, Clone)]
pub struct Event {
    pub action: Action,
    pub repository: String,
    /// `None` where a tag alone went.
    pub digest: Option<Digest>,
    pub media_type: Option<String>,
    pub size: Option<u64>,
    pub tags: Vec<String>,
    /// Who did it; empty for nobody in particular, and for retention.
    pub user: String,
}

impl Event {
    pub(crate) fn gone(repository: &str, digest: Option<Digest>, tags: Vec<String>, who: &Who) -> Self {
        let (media_type, size) = (None, None);
        let (repository, user) = (repository.to_owned(), who.name().to_owned());
        Self { action: Action::Delete, repository, digest, media_type, size, tags, user }
    }
}

/// Told to whoever listens; nobody is waited for.
pub struct Events(broadcast::Sender<Event>);

impl Default for Events {
    fn default() -> Self {
        Self(broadcast::channel(BACKLOG).0)
    }
}

impl Events {
    pub fn tell(&self, event: Event) {
        // Without listeners there is nobody to tell.
        let _ = self.0.send(event);
    }

    pub fn listen(&self) -> broadcast::Receiver<Event> {
        self.0.subscribe()
    }
}
