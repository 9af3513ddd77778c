//! Watches on etcd that survive the loss of a member.
//!
//! Invariant: `next` is the first revision not delivered yet, so a watch opened again from there neither misses nor
//! repeats anything; if etcd has compacted beyond it meanwhile, the watch ends and says so.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::mpsc::Sender;
use tonic::Streaming;

use super::Inner;
use super::convert::{self, error, revision, signed};
use super::members::Failure;
use super::proto;
use crate::{Error, Event, KeyRange, Revision, WatchMessage, WatchRequest, WatchStream};

struct Watch {
    store: Arc<Inner>,
    range: KeyRange,
    /// First revision not delivered.
    next: Revision,
    link: Option<Link>,
    queue: VecDeque<WatchMessage>,
    ended: bool,
}

struct Link {
    answers: Streaming<proto::WatchResponse>,
    /// Dropping it would end the stream.
    requests: Sender<proto::WatchRequest>,
    /// Parts of an answer that etcd cut up.
    parts: Vec<proto::Event>,
}

pub(super) async fn open(store: Arc<Inner>, request: WatchRequest) -> Result<WatchStream, Error> {
    if request.range.is_empty() {
        return Err(Error::Invalid("the range to watch is empty".to_owned()));
    }
    let (link, current) = connect(&store, &request.range, request.start_revision).await?;
    let next = if request.start_revision == 0 { current + 1 } else { request.start_revision };
    let watch = Watch { store, range: request.range, next, link: Some(link), queue: VecDeque::new(), ended: false };
    Ok(futures::stream::unfold(watch, Watch::step).boxed())
}

/// Registers the watch at a member; gives etcd's revision at that moment, too.
async fn connect(store: &Inner, range: &KeyRange, start: Revision) -> Result<(Link, Revision), Error> {
    let (key, range_end) = convert::interval(range);
    let create = proto::WatchCreate {
        key,
        range_end,
        start_revision: signed(start),
        progress_notify: true,
        prev_kv: true,
        fragment: true,
    };
    let first = proto::WatchRequest { request: Some(proto::Watch::Create(create)) };
    let failed = |f| error(f, "watch etcd");
    let (mut answers, requests) = store.members.stream("/etcdserverpb.Watch/Watch", first).await.map_err(failed)?;
    let lost = |status| failed(Failure { status, maybe_done: false });
    let created: proto::WatchResponse = answers
        .message()
        .await
        .map_err(lost)?
        .ok_or_else(|| lost(tonic::Status::unavailable("etcd closed the watch at once")))?;
    if created.canceled {
        return Err(cancelled(&created, start));
    }
    Ok((Link { answers, requests, parts: Vec::new() }, revision(created.header)))
}

fn cancelled(response: &proto::WatchResponse, requested: Revision) -> Error {
    match response.compact_revision {
        0 => Error::Backend {
            context: "watch etcd".to_owned(),
            source: format!("etcd ended the watch: {}", response.cancel_reason).into(),
        },
        compacted => Error::Compacted { requested, compacted: compacted.max(0) as Revision },
    }
}

/// What etcd has compacted to, which it tells only to watchers that come too late.
pub(super) async fn compacted(store: &Inner, requested: Revision) -> Result<Revision, Error> {
    let range = KeyRange::key(Bytes::from_static(b"\0"));
    // Revision 0 would mean "now", and 1 is older than any compaction that can be in the way.
    let found = match connect(store, &range, requested.max(1)).await {
        Ok((mut link, _)) => match link.answers.message().await {
            Ok(Some(response)) if response.canceled => cancelled(&response, requested),
            _ => return Ok(requested + 1),
        },
        Err(error) => error,
    };
    match found {
        Error::Compacted { compacted, .. } => Ok(compacted),
        error => Err(error),
    }
}

impl Watch {
    async fn step(mut self) -> Option<(Result<WatchMessage, Error>, Self)> {
        if self.ended {
            return None;
        }
        loop {
            if let Some(message) = self.queue.pop_front() {
                let (WatchMessage::Events { revision, .. } | WatchMessage::Progress { revision }) = message;
                self.next = self.next.max(revision + 1);
                return Some((Ok(message), self));
            }
            if let Err(error) = self.receive().await {
                self.ended = true;
                return Some((Err(error), self));
            }
        }
    }

    /// Takes in one answer, or opens the watch again.
    async fn receive(&mut self) -> Result<(), Error> {
        let Some(link) = &mut self.link else {
            // From the last revision delivered (which is skipped): if etcd has compacted up to `next` meanwhile, a
            // delete of `next` may be gone, and the watch must end rather than miss it.
            let (link, _) = connect(&self.store, &self.range, (self.next - 1).max(1)).await?;
            self.link = Some(link);
            return Ok(());
        };
        let response = match tokio::time::timeout(self.store.watch_progress, link.answers.message()).await {
            Ok(Ok(Some(response))) => response,
            Ok(Ok(None)) => return self.lose("etcd closed the stream"),
            Ok(Err(status)) => return self.lose(status.message()),
            Err(_) => {
                if self.store.exact_progress {
                    let ask = proto::WatchRequest { request: Some(proto::Watch::Progress(proto::Empty {})) };
                    // A full queue means that it was asked already.
                    let _ = link.requests.try_send(ask);
                }
                return Ok(());
            }
        };
        if response.canceled {
            // A member that lost its leader ends its watches; another one may do better.
            if response.compact_revision == 0 && response.cancel_reason.contains("no leader") {
                return self.lose(&response.cancel_reason);
            }
            return Err(cancelled(&response, self.next));
        }
        let at = revision(response.header);
        if response.events.is_empty() && !response.fragment && link.parts.is_empty() {
            if !response.created && at >= self.next {
                self.queue.push_back(WatchMessage::Progress { revision: at });
            }
            return Ok(());
        }
        link.parts.extend(response.events);
        if !response.fragment {
            let events = std::mem::take(&mut link.parts);
            self.queue.extend(batches(events, self.next)?);
        }
        Ok(())
    }

    fn lose(&mut self, reason: &str) -> Result<(), Error> {
        tracing::debug!(from = self.next, reason, "lost a watch on etcd, opening it again");
        self.link = None;
        Ok(())
    }
}

/// Whole revisions, in order.
fn batches(events: Vec<proto::Event>, next: Revision) -> Result<Vec<WatchMessage>, Error> {
    let mut out: Vec<WatchMessage> = Vec::new();
    for event in events {
        let event: Event = convert::event(event).ok_or_else(|| Error::Backend {
            context: "watch etcd".to_owned(),
            source: "an event is of an unknown kind".into(),
        })?;
        let at = event.kv.mod_revision;
        if at < next {
            continue;
        }
        match out.last_mut() {
            Some(WatchMessage::Events { revision, events }) if *revision == at => events.push(event),
            _ => out.push(WatchMessage::Events { revision: at, events: vec![event] }),
        }
    }
    Ok(out)
}
