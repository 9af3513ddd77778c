//! A [`Kv`] whose revisions are those of another one plus an offset: for a cluster that moved to a store which counts
//! from the beginning, while its clients remember higher revisions.
//!
//! Invariant: everything at or below the offset is compacted. So nobody who remembers a revision from before the move
//! is told that nothing happened since; he is told to list again.

use std::sync::Arc;

use futures::StreamExt;

use crate::{
    Compare, Error, Event, KeyValue, Kv, LeaseId, Op, OpResult, Operator, RangeRequest, RangeResponse, Revision,
    Target, Txn, TxnResponse, WatchMessage, WatchRequest, WatchStream,
};

/// No key is ever at it; etcd's revisions are signed.
const NEVER: Revision = i64::MAX as Revision;

pub struct ShiftedKv {
    inner: Arc<dyn Kv>,
    offset: Offset,
}

#[derive(Clone, Copy)]
struct Offset(Revision);

impl ShiftedKv {
    /// Shows each revision of `inner` as one higher by `offset`.
    pub fn new(inner: Arc<dyn Kv>, offset: Revision) -> Self {
        Self { inner, offset: Offset(offset) }
    }
}

impl Offset {
    fn out(self, revision: Revision) -> Revision {
        if revision == 0 { 0 } else { revision.saturating_add(self.0) }
    }

    /// 0 keeps its meaning; what is from before the move is compacted.
    fn asked(self, revision: Revision) -> Result<Revision, Error> {
        if revision > 0 && revision <= self.0 {
            return Err(Error::Compacted { requested: revision, compacted: self.0 + 1 });
        }
        Ok(revision.saturating_sub(self.0))
    }

    fn kv(self, mut kv: KeyValue) -> KeyValue {
        kv.create_revision = self.out(kv.create_revision);
        kv.mod_revision = self.out(kv.mod_revision);
        kv
    }

    fn range_request(self, mut request: RangeRequest) -> Result<RangeRequest, Error> {
        request.revision = self.asked(request.revision)?;
        Ok(request)
    }

    fn range_response(self, mut response: RangeResponse) -> RangeResponse {
        response.revision = self.out(response.revision);
        response.kvs = response.kvs.into_iter().map(|kv| self.kv(kv)).collect();
        response
    }

    fn compare(self, mut compare: Compare) -> Compare {
        if let Target::ModRevision(revision) | Target::CreateRevision(revision) = &mut compare.target {
            *revision = match (*revision, compare.operator) {
                (0, _) => 0,
                (given, _) if given > self.0 => given - self.0,
                // Any key that is there is later than that; an absent one is at 0.
                (_, Operator::Less) => 1,
                (_, Operator::Greater) => 0,
                (_, Operator::Equal | Operator::NotEqual) => NEVER,
            };
        }
        compare
    }

    fn op(self, op: Op) -> Result<Op, Error> {
        match op {
            Op::Range(request) => self.range_request(request).map(Op::Range),
            other => Ok(other),
        }
    }

    fn result(self, result: OpResult) -> OpResult {
        match result {
            OpResult::Put { previous } => OpResult::Put { previous: previous.map(|kv| self.kv(kv)) },
            OpResult::Delete { previous } => {
                OpResult::Delete { previous: previous.into_iter().map(|kv| self.kv(kv)).collect() }
            }
            OpResult::Range(response) => OpResult::Range(self.range_response(response)),
        }
    }

    fn message(self, message: WatchMessage) -> WatchMessage {
        match message {
            WatchMessage::Events { revision, events } => WatchMessage::Events {
                revision: self.out(revision),
                events: events
                    .into_iter()
                    .map(|event| Event {
                        kind: event.kind,
                        kv: self.kv(event.kv),
                        previous: event.previous.map(|kv| self.kv(kv)),
                    })
                    .collect(),
            },
            WatchMessage::Progress { revision } => WatchMessage::Progress { revision: self.out(revision) },
        }
    }

    fn error(self, error: Error) -> Error {
        match error {
            Error::Compacted { requested, compacted } => {
                Error::Compacted { requested: self.out(requested), compacted: self.out(compacted) }
            }
            Error::FutureRevision { requested, current } => {
                Error::FutureRevision { requested: self.out(requested), current: self.out(current) }
            }
            Error::WatchLagged(revision) => Error::WatchLagged(self.out(revision)),
            other => other,
        }
    }
}

#[async_trait::async_trait]
impl Kv for ShiftedKv {
    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Error> {
        let answer = self.inner.range(self.offset.range_request(request)?).await;
        answer.map(|response| self.offset.range_response(response)).map_err(|error| self.offset.error(error))
    }

    async fn txn(&self, txn: Txn) -> Result<TxnResponse, Error> {
        let ops = |ops: Vec<Op>| ops.into_iter().map(|op| self.offset.op(op)).collect::<Result<Vec<_>, _>>();
        let txn = Txn {
            compare: txn.compare.into_iter().map(|compare| self.offset.compare(compare)).collect(),
            success: ops(txn.success)?,
            failure: ops(txn.failure)?,
            relaxed: txn.relaxed,
        };
        let response = self.inner.txn(txn).await.map_err(|error| self.offset.error(error))?;
        Ok(TxnResponse {
            revision: self.offset.out(response.revision),
            succeeded: response.succeeded,
            results: response.results.into_iter().map(|result| self.offset.result(result)).collect(),
        })
    }

    async fn watch(&self, request: WatchRequest) -> Result<WatchStream, Error> {
        let offset = self.offset;
        let start_revision = offset.asked(request.start_revision)?;
        let stream = self.inner.watch(WatchRequest { start_revision, ..request }).await;
        let stream = stream.map_err(|error| offset.error(error))?;
        Ok(stream
            .map(move |message| message.map(|message| offset.message(message)).map_err(|error| offset.error(error)))
            .boxed())
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.inner.compact(self.offset.asked(revision)?).await.map_err(|error| self.offset.error(error))
    }

    async fn current_revision(&self) -> Result<Revision, Error> {
        self.inner.current_revision().await.map(|revision| self.offset.out(revision))
    }

    async fn lease_grant(&self, ttl: u64) -> Result<LeaseId, Error> {
        self.inner.lease_grant(ttl).await
    }

    async fn lease_keep_alive(&self, id: LeaseId) -> Result<(), Error> {
        self.inner.lease_keep_alive(id).await
    }

    async fn lease_revoke(&self, id: LeaseId) -> Result<(), Error> {
        self.inner.lease_revoke(id).await
    }
}
