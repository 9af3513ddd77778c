//! Other nodes of the cluster as places to have layers from. Which layers an image has is the registry's word alone, given to
//! whoever may have the image; a node gives a layer to other nodes that name it and a repository it has it of.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use dhow_base::connect::Connector;
use http::header::RANGE;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use parking_lot::Mutex;

use super::auth::query_escape;
use super::client::{HttpClient, empty, message_of, parse_uri, transport};
use super::{Patience, resumed_at};
use crate::{Digest, Error, Result};

/// Nodes asked for a layer before the registry is.
const MOST: usize = 3;
/// For a connection, its handshake and the beginning of an answer. Nodes are near.
const ANSWER: Duration = Duration::from_secs(2);
/// So many nodes in a row that cannot be reached mean that nodes are kept from each other, which takes every pull time.
const UNREACHED: u32 = 3;
const PAUSE: Duration = Duration::from_secs(300);
/// One that is slower than this is no help.
pub(crate) const PATIENCE: Patience = Patience { time: Duration::from_secs(5), bytes: 256 << 10 };

/// Finds the nodes that layers may be had from.
pub trait NodePeers: Send + Sync {
    /// Other nodes that are well, by where their servers are.
    fn candidates(&self, repository: &str) -> Candidates;
}

/// Nodes that may have a repository's layers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Candidates {
    /// Known to have an image of the repository.
    pub named: Vec<SocketAddr>,
    /// Nothing is known of these.
    pub others: Vec<SocketAddr>,
}

/// How to find and call other nodes; all that [`super::Registries`] knows of them.
#[derive(Clone)]
pub(crate) struct NodeAccess {
    finder: Arc<dyn NodePeers>,
    client: HttpClient,
    reach: Arc<Mutex<Reach>>,
}

/// Whether it is worth asking at all.
#[derive(Default)]
struct Reach {
    /// Nodes in a row that could not be reached.
    failed: u32,
    last: Option<Instant>,
}

impl Reach {
    fn told(&mut self, reached: bool, now: Instant) {
        self.failed = if reached { 0 } else { self.failed.saturating_add(1) };
        self.last = Some(now);
    }

    /// After a pause one more failure begins the next.
    fn is_given_up(&self, now: Instant) -> bool {
        self.failed >= UNREACHED && self.last.is_some_and(|last| now.duration_since(last) < PAUSE)
    }
}

impl NodeAccess {
    /// `tls` proves that this is a node, and believes the cluster's authority only.
    pub fn new(finder: Arc<dyn NodePeers>, tls: &rustls::ClientConfig) -> Self {
        let mut tls = tls.clone();
        // All that a node's server speaks.
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let connector = Connector::new(Arc::new(tls), None).direct();
        let client = Client::builder(TokioExecutor::new()).pool_idle_timeout(Duration::from_secs(15)).build(connector);
        Self { finder, client, reach: Arc::default() }
    }
}

/// Other nodes, for one pull of one repository.
pub(crate) struct Nodes {
    access: NodeAccess,
    /// `registry/repository`.
    repository: String,
    candidates: OnceLock<Candidates>,
    /// Those that did not answer, or not well. They are not asked again.
    away: Mutex<HashSet<SocketAddr>>,
}

impl Nodes {
    pub fn new(access: NodeAccess, repository: String) -> Self {
        Self { access, repository, candidates: OnceLock::new(), away: Mutex::default() }
    }

    /// Whom to ask for a layer, at most a few. Layers of one image come from different nodes, and different nodes ask different
    /// ones.
    pub fn to_ask(&self, layer: &Digest) -> Vec<SocketAddr> {
        if self.access.reach.lock().is_given_up(Instant::now()) {
            return Vec::new();
        }
        let chance = RandomState::new();
        let candidates = self.candidates.get_or_init(|| {
            let mut found = self.access.finder.candidates(&self.repository);
            // The same for all layers: whoever has none of them is not to be met by all.
            found.others.sort_by_cached_key(|at| chance.hash_one(at));
            found.others.truncate(MOST);
            found
        });
        let mut named = candidates.named.clone();
        named.sort_by_cached_key(|at| chance.hash_one((at, layer.as_str())));
        let away = self.away.lock();
        named.into_iter().chain(candidates.others.iter().copied()).filter(|at| !away.contains(at)).take(MOST).collect()
    }

    /// Not to be asked any more.
    pub fn give_up(&self, node: SocketAddr) {
        self.away.lock().insert(node);
    }

    pub fn url(&self, node: SocketAddr, layer: &Digest) -> String {
        format!("https://{node}/images/layers/{layer}?repository={}", query_escape(&self.repository))
    }

    /// A layer's bytes from `offset` on. The flag says whether the node honoured the offset.
    pub async fn layer(&self, url: &str, offset: u64) -> Result<(Response<Incoming>, bool)> {
        let uri = parse_uri(url)?;
        let mut request = Request::get(&uri);
        if offset > 0 {
            request = request.header(RANGE, format!("bytes={offset}-"));
        }
        let request = request.body(empty()).map_err(|error| transport(&uri, error.into()))?;
        let answer = tokio::time::timeout(ANSWER, self.access.client.request(request)).await;
        self.access.reach.lock().told(matches!(answer, Ok(Ok(_))), Instant::now());
        let silent = |_| transport(&uri, format!("no answer within {} s", ANSWER.as_secs()).into());
        let response = answer.map_err(silent)?.map_err(|error| transport(&uri, error.into()))?;
        match response.status() {
            status if status.is_success() => {
                let resumed = resumed_at(url, &response, offset)?;
                Ok((response, resumed))
            }
            status => {
                let (url, message) = (url.to_owned(), message_of(url, response, ANSWER).await);
                match status {
                    StatusCode::NOT_FOUND => Err(Error::Missing { url, message }),
                    status => Err(Error::Registry { url, status: status.as_u16(), message }),
                }
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    struct Fixed(Candidates);

    impl NodePeers for Fixed {
        fn candidates(&self, _: &str) -> Candidates {
            self.0.clone()
        }
    }

    #[test]
    fn nodes_that_are_kept_from_each_other_stop_asking_for_a_while() {
        let (mut reach, begin) = (Reach::default(), Instant::now());
        for reached in [false, false, true, false, false] {
            reach.told(reached, begin);
            assert!(!reach.is_given_up(begin));
        }
        reach.told(false, begin);
        assert!(reach.is_given_up(begin) && !reach.is_given_up(begin + PAUSE));
        reach.told(false, begin + PAUSE);
        assert!(reach.is_given_up(begin + PAUSE));
        reach.told(true, begin + PAUSE);
        assert!(!reach.is_given_up(begin + PAUSE));
    }

    #[test]
    fn a_few_are_asked_each_in_its_turn_and_those_that_have_it_first() {
        let at = |n: u16| SocketAddr::from(([192, 0, 2, 1], n));
        let nodes = |named: std::ops::Range<u16>, others: std::ops::Range<u16>| {
            let found = Candidates { named: named.map(at).collect(), others: others.map(at).collect() };
            let tls = dhow_base::connect::tls_config(&Default::default()).unwrap();
            Nodes::new(NodeAccess::new(Arc::new(Fixed(found)), &tls), "r.io/a".to_owned())
        };
        let layer = |n: u8| Digest::of(&[n]);
        let many = nodes(1..9, 20..30);
        let first: HashSet<SocketAddr> = (0..100).map(|n| many.to_ask(&layer(n))[0]).collect();
        assert!(first.len() > 4 && first.iter().all(|at| at.port() < 9), "{first:?}");
        assert_eq!(many.to_ask(&layer(0)).len(), MOST);
        let one = nodes(1..2, 20..30);
        let asked = one.to_ask(&layer(0));
        assert!(asked.len() == MOST && asked[0] == at(1), "{asked:?}");
        assert_eq!(one.to_ask(&layer(1)), asked);
        one.give_up(at(1));
        assert!(!one.to_ask(&layer(0)).contains(&at(1)));
        assert!(nodes(0..0, 0..0).to_ask(&layer(0)).is_empty());
    }
}
