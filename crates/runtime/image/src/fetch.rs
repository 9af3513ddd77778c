//! Getting one blob: from whoever has it, where an earlier attempt stopped, once however many want it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::Response;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::content::{Content, Partial};
use crate::credentials::Auth;
use crate::growing::{Growing, Outcome};
use crate::manifest::Descriptor;
use crate::pull::{Progress, ProgressFn};
use crate::registry::{Endpoint, NODES_PATIENCE, Nodes, Patience, Registries, Registry, Session};
use crate::store::blocking;
use crate::{Digest, Error, Result};

/// Tries of one place that bring next to nothing before giving up on it.
const FRUITLESS: u32 = 3;
const NEXT_TO_NOTHING: u64 = 64 << 10;

pub(crate) struct Fetcher<'a> {
    pub registries: &'a Registries,
    pub registry: &'a Registry,
    pub content: &'a Arc<Content>,
    pub report: ProgressFn,
    /// Writing to the disk goes on for a moment after a fetch was dropped; its end can be waited for here.
    pub writing: TaskTracker,
}

/// Where a blob is asked for.
enum Origin<'a> {
    Registry { session: &'a Session, url: String },
    Node { nodes: &'a Nodes, at: SocketAddr, url: String },
}

impl Origin<'_> {
    fn url(&self) -> &str {
        let (Self::Registry { url, .. } | Self::Node { url, .. }) = self;
        url
    }

    fn host(&self) -> String {
        match self {
            Self::Registry { session, .. } => session.endpoint.host.clone(),
            Self::Node { at, .. } => at.to_string(),
        }
    }

    fn patience(&self) -> Patience {
        match self {
            Self::Registry { session, .. } => Patience { time: session.silence, bytes: 1 },
            Self::Node { .. } => NODES_PATIENCE,
        }
    }

    /// There is always somewhere else to go on than at a node.
    fn is_worth_more_tries(&self) -> bool {
        matches!(self, Self::Registry { .. })
    }

    async fn open(&self, offset: u64) -> Result<(Response<Incoming>, bool)> {
        match self {
            Self::Registry { session, url } => session.blob(url, offset).await,
            Self::Node { nodes, url, .. } => nodes.layer(url, offset).await,
        }
    }
}

impl Fetcher<'_> {
    /// Sees to it that the blob is in the store, by the registry alone. `growing` follows the download.
    pub async fn fetch(&self, want: &Descriptor, growing: &Arc<Growing>) -> Result<()> {
        self.fetch_by(None, want, growing).await
    }

    /// The same for a layer, which other nodes may have, too. A layer that registries may not hand out nodes may not, either.
    pub async fn fetch_layer(&self, want: &Descriptor, growing: &Arc<Growing>) -> Result<()> {
        let nodes = self.registry.nodes.as_deref().filter(|_| !want.is_foreign());
        self.fetch_by(nodes, want, growing).await
    }

    async fn fetch_by(&self, nodes: Option<&Nodes>, want: &Descriptor, growing: &Arc<Growing>) -> Result<()> {
        let result = self.fetch_once(want, growing, nodes).await;
        growing.end(if result.is_ok() { Outcome::Whole } else { Outcome::Failed });
        result
    }

    async fn fetch_once(&self, want: &Descriptor, growing: &Arc<Growing>, nodes: Option<&Nodes>) -> Result<()> {
        let _one = self.content.fetching.exclusive(&want.digest).await;
        if self.content.has(&want.digest) || self.adopt(&want.digest).await? {
            let actual = self.content.size(&want.digest)?;
            if actual != want.size {
                return Err(Error::SizeMismatch { what: want.digest.to_string(), expected: want.size, actual });
            }
            growing.begin(Arc::new(self.content.open_blob(&want.digest)?), want.size);
            (self.report)(Progress::Present { blob: want.digest.clone(), bytes: want.size });
            return Ok(());
        }
        if let Some(nodes) = nodes
            && self.fetch_from_nodes(nodes, want, growing).await
        {
            return Ok(());
        }
        let mut refused = None;
        for session in self.registry.sources() {
            let url = session.url(&format!("blobs/{}", want.digest));
            match self.fetch_from(&Origin::Registry { session, url }, want, growing).await {
                Ok(()) => return Ok(()),
                Err(error) => {
                    tracing::debug!(blob = %want.digest, host = session.endpoint.host, error = error.chain(), "no blob");
                    refused = Some(error);
                }
            }
        }
        // What a registry may not hand out says itself where it is.
        for url in want.urls.iter().filter(|_| want.is_foreign()) {
            match self.fetch_elsewhere(url, want, growing).await {
                Ok(()) => return Ok(()),
                Err(error) => refused = Some(error),
            }
        }
        Err(refused.unwrap_or_else(|| Error::Config("no configured host may be pulled from".to_owned())))
    }

    /// Takes the blob from the registry on this machine, if that is one of the places to pull from.
    async fn adopt(&self, digest: &Digest) -> Result<bool> {
        let hosts: Vec<String> = self.registry.sources().map(|session| session.endpoint.host.clone()).collect();
        let (content, digest) = (self.content.clone(), digest.clone());
        blocking(move || {
            for host in hosts {
                if content.adopt(&host, &digest)? {
                    return Ok(true);
                }
            }
            Ok(false)
        })
        .await
    }

    async fn fetch_elsewhere(&self, url: &str, want: &Descriptor, growing: &Arc<Growing>) -> Result<()> {
        let endpoint = Endpoint::at(url, true, String::new())?;
        let session = Session::open(self.registries, endpoint, &Auth::Anonymous, "pull").await?;
        self.fetch_from(&Origin::Registry { session: &session, url: url.to_owned() }, want, growing).await
    }

    /// Whether a node had it. What goes wrong here is nobody's trouble: the registry is still to be asked.
    async fn fetch_from_nodes(&self, nodes: &Nodes, want: &Descriptor, growing: &Arc<Growing>) -> bool {
        for at in nodes.to_ask(&want.digest) {
            let origin = Origin::Node { nodes, at, url: nodes.url(at, &want.digest) };
            match self.fetch_from(&origin, want, growing).await {
                Ok(()) => {
                    tracing::debug!(blob = %want.digest, node = %at, "from another node");
                    return true;
                }
                Err(error) => {
                    tracing::debug!(blob = %want.digest, node = %at, error = error.chain(), "not from this node");
                    // That it has not this layer says nothing of others.
                    if !matches!(error, Error::Missing { .. }) {
                        nodes.give_up(at);
                    }
                }
            }
        }
        false
    }

    /// Downloads from one place, going on where a broken connection stopped.
    async fn fetch_from(&self, origin: &Origin<'_>, want: &Descriptor, growing: &Arc<Growing>) -> Result<()> {
        let mut fruitless = 0;
        // Whether what is found was brought by others, who may have brought wrong bytes.
        let mut inherited = None;
        loop {
            let (opener, digest, size) = (self.content.clone(), want.digest.clone(), want.size);
            let writing = self.writing.token();
            let partial = blocking(move || {
                let _writing = writing;
                opener.resume(&digest, size)
            })
            .await?;
            let before = partial.have();
            inherited.get_or_insert(before > 0);
            growing.begin(partial.file(), before);
            let Failure { error, have } = match self.download(origin, want, partial, growing).await {
                Ok(()) => {
                    (self.report)(Progress::Downloaded { blob: want.digest.clone(), bytes: want.size });
                    return Ok(());
                }
                Err(failure) => failure,
            };
            fruitless = if have >= before + NEXT_TO_NOTHING { 0 } else { fruitless + 1 };
            match error {
                Error::Transport { .. } | Error::Stalled { .. }
                    if fruitless < FRUITLESS && origin.is_worth_more_tries() =>
                {
                    tracing::debug!(blob = %want.digest, have, error = error.chain(), "download interrupted, resuming");
                    tokio::time::sleep(Duration::from_millis(200) * 2u32.pow(fruitless)).await;
                }
                Error::DigestMismatch { .. } | Error::SizeMismatch { .. } => {
                    growing.spoil();
                    if !inherited.replace(false).unwrap_or_default() {
                        return Err(error);
                    }
                    tracing::debug!(blob = %want.digest, error = error.chain(), "beginning anew without others' bytes");
                }
                error => return Err(error),
            }
        }
    }

    async fn download(
        &self,
        origin: &Origin<'_>,
        want: &Descriptor,
        partial: Partial,
        growing: &Arc<Growing>,
    ) -> Result<(), Failure> {
        let at = |have| move |error| Failure { error, have };
        let mut have = partial.have();
        if partial.complete() {
            return self.commit(partial).await.map_err(at(have));
        }
        let (response, resumed) = origin.open(have).await.map_err(at(have))?;
        // The disk has its own thread; the channel keeps it at most a few pieces behind the network.
        let (sender, mut receiver) = tokio::sync::mpsc::channel::<bytes::Bytes>(32);
        let restart = have > 0 && !resumed;
        let mut partial = partial;
        if restart {
            partial.restart();
            have = 0;
        }
        let reader = Arc::clone(growing);
        let writing = self.writing.token();
        let writer = tokio::spawn(blocking(move || {
            let _writing = writing;
            while let Some(bytes) = receiver.blocking_recv() {
                partial.write(&bytes)?;
                reader.advance(partial.have());
            }
            Ok(partial)
        }));
        let mut body = response.into_body();
        let mut trouble = None;
        let (counter, patience) = (self.counter(origin), origin.patience());
        let (mut due, mut since) = (Instant::now() + patience.time, have);
        loop {
            let frame = match tokio::time::timeout_at(due, body.frame()).await {
                Ok(None) => break,
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(e))) => {
                    trouble = Some(Error::Transport { url: origin.url().to_owned(), source: e.into() });
                    break;
                }
                Err(_) => {
                    trouble = Some(Error::Stalled {
                        host: origin.host(),
                        what: want.digest.to_string(),
                        have,
                        size: want.size,
                        silence: patience.time,
                    });
                    break;
                }
            };
            if let Ok(bytes) = frame.into_data() {
                have += bytes.len() as u64;
                counter.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                if sender.send(bytes).await.is_err() {
                    break; // the writer failed and says why below
                }
                (self.report)(Progress::Downloading { blob: want.digest.clone(), done: have, total: want.size });
            }
            if have >= since + patience.bytes {
                (due, since) = (Instant::now() + patience.time, have);
            }
        }
        drop(sender);
        let partial = match writer.await {
            Ok(result) => result.map_err(at(have))?,
            Err(e) => return Err(Failure { error: Error::Interrupted(e.to_string()), have }),
        };
        let have = partial.have();
        if let Some(error) = trouble {
            return Err(Failure { error, have });
        }
        if !partial.complete() {
            let source = format!("connection closed after {have} of {} bytes", want.size).into();
            return Err(Failure { error: Error::Transport { url: origin.url().to_owned(), source }, have });
        }
        self.commit(partial).await.map_err(at(have))
    }

    fn counter(&self, origin: &Origin<'_>) -> &AtomicU64 {
        let counters = &self.registries.counters;
        match origin {
            Origin::Registry { .. } => &counters.from_registries,
            Origin::Node { .. } => &counters.from_nodes,
        }
    }

    async fn commit(&self, partial: Partial) -> Result<()> {
        let writing = self.writing.token();
        blocking(move || {
            let _writing = writing;
            partial.commit()
        })
        .await
    }
}

/// How far a download got before it failed.
struct Failure {
    error: Error,
    have: u64,
}
