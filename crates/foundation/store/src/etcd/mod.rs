//! A cluster of real etcd servers as the store.
//!
//! Reads are linearizable. A call that fails before it left this process, and any read, moves on to the next member; a
//! write that may have been carried out is never sent twice but ends in [`Error::OutcomeUnknown`]. Watches resume on
//! another member where they stopped, without a gap.

mod convert;
mod members;
#[doc(hidden)]
pub mod proto;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::{
    Error, Kv, LeaseId, Op, RangeRequest, RangeResponse, Revision, Txn, TxnResponse, WatchRequest, WatchStream,
};
use convert::{error, revision, signed};
use members::{Failure, Members};

/// Keys fetched by one request of a long list, so that no single answer is huge.
const PAGE: usize = 5000;

#[derive(Debug, Clone)]
pub struct EtcdConfig {
    /// `https://host:port` (or `http://` for a trusted loopback), one per member.
    pub endpoints: Vec<String>,
    /// Whom the members' certificates must come from.
    pub ca_pem: Option<String>,
    /// Certificate and private key to show to the members.
    pub client_pem: Option<(String, String)>,
    /// What one member may take for one answer.
    pub request_timeout: Duration,
    /// How long a watch may be silent before it asks how far the store has moved on.
    pub watch_progress: Duration,
}

impl EtcdConfig {
    pub fn new(endpoints: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            ca_pem: None,
            client_pem: None,
            request_timeout: Duration::from_secs(5),
            watch_progress: Duration::from_secs(5),
        }
    }
}

/// Cheap to clone; clones share their connections.
#[derive(Clone)]
pub struct EtcdKv(Arc<Inner>);

struct Inner {
    members: Members,
    watch_progress: Duration,
    /// Whether asking a watch for its progress gives an answer that can be trusted.
    exact_progress: bool,
}

impl EtcdKv {
    /// Connects, and fails if no member answers.
    pub async fn connect(config: EtcdConfig) -> Result<Self, Error> {
        let members = Members::new(&config)?;
        let status: proto::StatusResponse = members
            .call("/etcdserverpb.Maintenance/Status", proto::Empty {}, true)
            .await
            .map_err(|f| error(f, &format!("reach etcd at {}", config.endpoints.join(", "))))?;
        let exact_progress = exact_progress(&status.version);
        tracing::info!(version = %status.version, exact_progress, "connected to etcd");
        Ok(Self(Arc::new(Inner { members, watch_progress: config.watch_progress, exact_progress })))
    }
}

/// Before these versions the answer could overtake events that belong before it.
fn exact_progress(version: &str) -> bool {
    let mut numbers = version.split(['.', '-', '+']).map(|part| part.parse::<u32>().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    match (next(), next(), next()) {
        (3, 4, patch) => patch >= 31,
        (3, 5, patch) => patch >= 13,
        (major, minor, _) => (major, minor) >= (3, 6),
    }
}

impl Inner {
    /// One page, with etcd's refusals of a revision made ours.
    async fn page(&self, request: &RangeRequest) -> Result<RangeResponse, Error> {
        let answer = self.members.call("/etcdserverpb.KV/Range", convert::range(request), true).await;
        match answer {
            Ok(response) => Ok(convert::range_response(response, request.revision)),
            Err(failure) => Err(self.about_revision(failure, request.revision, "read from etcd").await),
        }
    }

    async fn current(&self) -> Result<Revision, Error> {
        let request =
            proto::RangeRequest { key: Bytes::from_static(b"\0"), count_only: true, ..proto::RangeRequest::default() };
        let response: proto::RangeResponse = self
            .members
            .call("/etcdserverpb.KV/Range", request, true)
            .await
            .map_err(|f| error(f, "ask etcd for its revision"))?;
        Ok(revision(response.header))
    }

    /// etcd says that a revision is out of range, but not what the range is.
    async fn about_revision(&self, failure: Failure, requested: Revision, doing: &str) -> Error {
        if convert::is_future(&failure.status) {
            return match self.current().await {
                Ok(current) => Error::FutureRevision { requested, current },
                Err(error) => error,
            };
        }
        if convert::is_compacted(&failure.status) {
            return match watch::compacted(self, requested).await {
                Ok(compacted) => Error::Compacted { requested, compacted },
                Err(error) => error,
            };
        }
        error(failure, doing)
    }
}

#[async_trait::async_trait]
impl Kv for EtcdKv {
    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Error> {
        if request.count_only || request.range.end.is_none() || (1..=PAGE).contains(&request.limit) {
            return self.0.page(&request).await;
        }
        // A long list in pages, all of the first one's revision.
        let wanted = if request.limit == 0 { usize::MAX } else { request.limit };
        let mut whole = self.0.page(&RangeRequest { limit: PAGE, ..request.clone() }).await?;
        while whole.more && whole.kvs.len() < wanted {
            let Some(last) = whole.kvs.last() else { break };
            let mut next = RangeRequest { revision: whole.revision, ..request.clone() };
            next.range.start = [&last.key[..], b"\0"].concat().into();
            next.limit = PAGE.min(wanted - whole.kvs.len());
            let page = self.0.page(&next).await?;
            whole.kvs.extend(page.kvs);
            whole.more = page.more;
        }
        Ok(whole)
    }

    async fn txn(&self, txn: Txn) -> Result<TxnResponse, Error> {
        let read_only = txn.success.iter().chain(&txn.failure).all(|op| matches!(op, Op::Range(_)));
        let request = proto::TxnRequest {
            compare: txn.compare.iter().map(convert::compare).collect(),
            success: txn.success.iter().map(convert::op).collect(),
            failure: txn.failure.iter().map(convert::op).collect(),
        };
        let answer: Result<proto::TxnResponse, Failure> =
            self.0.members.call("/etcdserverpb.KV/Txn", request, read_only).await;
        let ops = || txn.success.iter().chain(&txn.failure);
        match answer {
            Ok(response) => {
                let ops = if response.succeeded { &txn.success } else { &txn.failure };
                let results = response.responses.into_iter().enumerate();
                Ok(TxnResponse {
                    revision: revision(response.header),
                    succeeded: response.succeeded,
                    results: results.map(|(i, r)| convert::op_result(r, ops.get(i))).collect::<Result<_, _>>()?,
                })
            }
            Err(failure) if convert::is_lost_lease(&failure.status) => {
                // Which of several it was, etcd does not say.
                let lease = ops().find_map(|op| match op {
                    Op::Put { lease, .. } if *lease != 0 => Some(*lease),
                    _ => None,
                });
                Err(Error::LeaseNotFound(lease.unwrap_or_default()))
            }
            Err(failure) => {
                let asked = ops().find_map(|op| match op {
                    Op::Range(request) if request.revision != 0 => Some(request.revision),
                    _ => None,
                });
                Err(self.0.about_revision(failure, asked.unwrap_or_default(), "write to etcd").await)
            }
        }
    }

    async fn watch(&self, request: WatchRequest) -> Result<WatchStream, Error> {
        watch::open(Arc::clone(&self.0), request).await
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        let request = proto::CompactionRequest { revision: signed(revision) };
        let answer: Result<proto::Empty, Failure> =
            self.0.members.call("/etcdserverpb.KV/Compact", request, true).await;
        match answer {
            Ok(_) => Ok(()),
            // The first of two attempts got through.
            Err(failure) if failure.maybe_done && convert::is_compacted(&failure.status) => Ok(()),
            Err(failure) => Err(self.0.about_revision(failure, revision, "compact etcd's history").await),
        }
    }

    async fn current_revision(&self) -> Result<Revision, Error> {
        self.0.current().await
    }

    async fn lease_grant(&self, ttl: u64) -> Result<LeaseId, Error> {
        // A grant whose answer got lost leaves a lease without keys, which runs out by itself.
        let request = proto::LeaseGrantRequest { ttl: signed(ttl.max(1)), id: 0 };
        let granted: proto::LeaseGrantResponse = self
            .0
            .members
            .call("/etcdserverpb.Lease/LeaseGrant", request, true)
            .await
            .map_err(|f| error(f, "get a lease from etcd"))?;
        Ok(granted.id)
    }

    async fn lease_keep_alive(&self, id: LeaseId) -> Result<(), Error> {
        let answer: proto::LeaseKeepAliveResponse = self
            .0
            .members
            .call_streamed("/etcdserverpb.Lease/LeaseKeepAlive", proto::LeaseId { id })
            .await
            .map_err(|f| error(f, "keep a lease of etcd alive"))?;
        if answer.ttl <= 0 { Err(Error::LeaseNotFound(id)) } else { Ok(()) }
    }

    async fn lease_revoke(&self, id: LeaseId) -> Result<(), Error> {
        let answer: Result<proto::Empty, Failure> =
            self.0.members.call("/etcdserverpb.Lease/LeaseRevoke", proto::LeaseId { id }, true).await;
        match answer {
            Ok(_) => Ok(()),
            Err(failure) if convert::is_lost_lease(&failure.status) => {
                // After an attempt without answer the lease is gone because of us.
                if failure.maybe_done { Ok(()) } else { Err(Error::LeaseNotFound(id)) }
            }
            Err(failure) => Err(error(failure, "revoke a lease of etcd")),
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn progress_is_asked_for_only_where_it_is_exact() {
        for (version, exact) in [
            ("3.4.23", false),
            ("3.4.31", true),
            ("3.5.12", false),
            ("3.5.13", true),
            ("3.6.0-rc.1", true),
            ("", false),
        ] {
            assert_eq!(super::exact_progress(version), exact, "{version}");
        }
    }
}
