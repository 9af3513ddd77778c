//! What happens in a build, as it happens.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "camelCase")]
pub enum Event {
    /// A step begins.
    Started {
        step: usize,
        name: String,
    },
    /// What its program wrote.
    Output {
        step: usize,
        stderr: bool,
        text: String,
    },
    /// It was made before.
    Cached {
        step: usize,
    },
    Done {
        step: usize,
        seconds: f64,
    },
    Failed {
        step: usize,
        error: String,
    },
    Warning {
        text: String,
    },
    /// The image is there.
    Built {
        id: String,
        names: Vec<String>,
    },
    Pushed {
        name: String,
        digest: String,
    },
    /// So many bytes of an archive of steps follow, an OCI layout for the folder that was asked for by this number.
    Cache {
        number: usize,
        bytes: u64,
    },
    /// What is built is as of this commit.
    Source {
        commit: String,
        author: String,
        /// First line of its message.
        subject: String,
    },
    /// An image that the build began with, as it was then.
    Base {
        name: String,
        digest: String,
    },
    /// This registry showed nothing to somebody without a login: the request has none for it.
    Unauthorized {
        registry: String,
    },
    /// An archive follows, to the end of the stream.
    Archive,
    /// The last one of a build that failed.
    #[serde(rename_all = "camelCase")]
    Error {
        message: String,
        not_found: bool,
        /// Of the Dockerfile.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        line: Option<usize>,
        /// Doing the same again may end better.
        #[serde(default)]
        passing: bool,
    },
}

/// Who hears of it.
#[derive(Clone)]
pub struct Events {
    tell: Arc<dyn Fn(Event) + Send + Sync>,
    steps: Arc<std::sync::atomic::AtomicUsize>,
}

impl Events {
    /// Tells this function.
    pub fn new(tell: impl Fn(Event) + Send + Sync + 'static) -> Self {
        Events { tell: Arc::new(tell), steps: Arc::default() }
    }

    /// Tells.
    pub fn tell(&self, event: Event) {
        (self.tell)(event);
    }

    /// Begins a step, with the next number.
    pub fn begin(&self, name: impl Into<String>) -> Step {
        let number = self.steps.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
        self.tell(Event::Started { step: number, name: name.into() });
        Step { events: self.clone(), number, started: std::time::Instant::now() }
    }
}

/// A step under way.
pub struct Step {
    events: Events,
    pub number: usize,
    started: std::time::Instant,
}

impl Step {
    /// What its program wrote.
    pub fn output(&self, stderr: bool, bytes: &[u8]) {
        let text = String::from_utf8_lossy(bytes).into_owned();
        self.events.tell(Event::Output { step: self.number, stderr, text });
    }

    /// Its end.
    pub fn end<T>(&self, result: &crate::Result<T>) {
        let step = self.number;
        self.events.tell(match result {
            Ok(_) => Event::Done { step, seconds: self.started.elapsed().as_secs_f64() },
            Err(error) => Event::Failed { step, error: error.to_string() },
        });
    }

    /// It was made before.
    pub fn cached(&self) {
        self.events.tell(Event::Cached { step: self.number });
    }
}
