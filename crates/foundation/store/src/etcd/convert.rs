//! Between our types and etcd's messages.

use bytes::Bytes;
use tonic::{Code, Status};

use super::members::Failure;
use super::proto;
use crate::{
    Compare, Error, Event, EventKind, KeyRange, KeyValue, Op, OpResult, Operator, RangeRequest, RangeResponse,
    Revision, Target,
};

/// etcd has no empty keys and writes "from the very first" as one zero byte; an empty end means a single key there.
pub(super) fn interval(range: &KeyRange) -> (Bytes, Bytes) {
    let key =
        if range.start.is_empty() && range.end.is_some() { Bytes::from_static(b"\0") } else { range.start.clone() };
    let end = match &range.end {
        None => Bytes::new(),
        // Any end at or before the start is an empty range, in etcd as here.
        Some(end) if end.is_empty() => key.clone(),
        Some(end) => end.clone(),
    };
    (key, end)
}

pub(super) fn range(request: &RangeRequest) -> proto::RangeRequest {
    let (key, range_end) = interval(&request.range);
    proto::RangeRequest {
        key,
        range_end,
        limit: signed(request.limit as u64),
        revision: signed(request.revision),
        keys_only: request.keys_only,
        count_only: request.count_only,
    }
}

pub(super) fn range_response(response: proto::RangeResponse, asked: Revision) -> RangeResponse {
    RangeResponse {
        revision: if asked == 0 { revision(response.header) } else { asked },
        kvs: response.kvs.into_iter().map(key_value).collect(),
        more: response.more,
        count: response.count.max(0) as usize,
    }
}

pub(super) fn op(op: &Op) -> proto::RequestOp {
    let request = match op {
        Op::Put { key, value, lease } => proto::Request::Put(proto::PutRequest {
            key: key.clone(),
            value: value.clone(),
            lease: *lease,
            prev_kv: true,
        }),
        Op::Delete { range } => {
            let (key, range_end) = interval(range);
            proto::Request::Delete(proto::DeleteRangeRequest { key, range_end, prev_kv: true })
        }
        Op::Range(request) => proto::Request::Range(range(request)),
    };
    proto::RequestOp { request: Some(request) }
}

pub(super) fn op_result(response: proto::ResponseOp, op: Option<&Op>) -> Result<OpResult, Error> {
    Ok(match response.response {
        Some(proto::Response::Put(put)) => OpResult::Put { previous: put.prev_kv.map(key_value) },
        Some(proto::Response::Delete(delete)) => {
            OpResult::Delete { previous: delete.prev_kvs.into_iter().map(key_value).collect() }
        }
        Some(proto::Response::Range(found)) => {
            let asked = if let Some(Op::Range(request)) = op { request.revision } else { 0 };
            OpResult::Range(range_response(found, asked))
        }
        None => {
            return Err(Error::Backend {
                context: "read etcd's answer to a transaction".to_owned(),
                source: "a part of it is of an unknown kind".into(),
            });
        }
    })
}

pub(super) fn compare(compare: &Compare) -> proto::Compare {
    use proto::{TargetValue, compare as number};
    let (target, value) = match &compare.target {
        Target::Version(version) => (number::VERSION, TargetValue::Version(signed(*version))),
        Target::CreateRevision(revision) => (number::CREATE, TargetValue::Create(signed(*revision))),
        Target::ModRevision(revision) => (number::MOD, TargetValue::Mod(signed(*revision))),
        Target::Value(value) => (number::VALUE, TargetValue::Value(value.clone())),
        Target::Lease(lease) => (number::LEASE, TargetValue::Lease(*lease)),
    };
    let result = match compare.operator {
        Operator::Equal => number::EQUAL,
        Operator::NotEqual => number::NOT_EQUAL,
        Operator::Greater => number::GREATER,
        Operator::Less => number::LESS,
    };
    proto::Compare { result, target, key: compare.key.clone(), value: Some(value) }
}

pub(super) fn event(event: proto::Event) -> Option<Event> {
    let kind = match event.kind {
        proto::EVENT_PUT => EventKind::Put,
        proto::EVENT_DELETE => EventKind::Delete,
        _ => return None,
    };
    Some(Event { kind, kv: key_value(event.kv?), previous: event.prev_kv.map(key_value) })
}

pub(super) fn key_value(kv: proto::KeyValue) -> KeyValue {
    KeyValue {
        // Both are slices of the message they came in, which one long-lived value would keep whole.
        key: Bytes::copy_from_slice(&kv.key),
        value: Bytes::copy_from_slice(&kv.value),
        create_revision: kv.create_revision.max(0) as Revision,
        mod_revision: kv.mod_revision.max(0) as Revision,
        version: kv.version.max(0) as u64,
        lease: kv.lease,
    }
}

pub(super) fn revision(header: Option<proto::Header>) -> Revision {
    header.map_or(0, |h| h.revision.max(0) as Revision)
}

/// etcd counts in signed numbers; nothing real is beyond them.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Errors that need no more than what the status says. `doing` is a verb phrase.
pub(super) fn error(failure: Failure, doing: &str) -> Error {
    let Failure { status, maybe_done } = failure;
    let message = status.message().trim_start_matches("etcdserver: ").to_owned();
    match status.code() {
        Code::InvalidArgument => Error::Invalid(message),
        _ if message.contains("request is too large") => Error::Invalid(message),
        _ if maybe_done => Error::OutcomeUnknown { context: doing.to_owned(), source: status.into() },
        _ => Error::Backend { context: doing.to_owned(), source: status.into() },
    }
}

pub(super) fn is_compacted(status: &Status) -> bool {
    status.code() == Code::OutOfRange && status.message().contains("compacted")
}

pub(super) fn is_future(status: &Status) -> bool {
    status.code() == Code::OutOfRange && status.message().contains("future revision")
}

pub(super) fn is_lost_lease(status: &Status) -> bool {
    status.code() == Code::NotFound && status.message().contains("lease")
}
