//! watch: frames from the shared changes, as long as the client listens.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use dhow_api::Status;
use dhow_api::registry::{Kind, KindRef};
use dhow_client::{Body, full};
use futures::stream::{self, Stream, StreamExt};
use http::Response;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use serde_json::json;
use tokio::time::{Instant, Sleep};

use crate::ApiServer;
use crate::changes::{Changes, Missed};
use crate::encode::{self, Accept, Shape};
use crate::metrics::{Labels, Running};
use crate::object::{Change, Selection, Verdict};
use crate::pipeline::{Authorized, Request};
use crate::read;

/// Longest life of a watch that names no timeout, and the pause between bookmarks.
const TIMEOUT: Duration = Duration::from_secs(30 * 60);
const BOOKMARKS: Duration = Duration::from_secs(60);
/// Bytes of frames that go out together where a watcher has several before it; a chunk of its own for each costs more
/// than their copy.
const TOGETHER: usize = 32 << 10;

struct Watcher {
    kind: KindRef,
    /// Where the namespace's keys begin.
    prefix: String,
    selection: Selection,
    changes: Changes,
    bookmarks: bool,
    accept: Accept,
    /// Changes at or below it have been delivered already.
    seen: u64,
    deadline: Instant,
    /// The next bookmark or the deadline. Kept, since a timer made for each change would be most of its cost.
    wake: Pin<Box<Sleep>>,
    server: Arc<ApiServer>,
    ended: bool,
    _running: Running,
}

pub async fn open(
    server: &Arc<ApiServer>,
    request: &Request<Authorized>,
    accept: &Accept,
) -> Result<Response<Body>, Status> {
    let query = &request.info.query;
    let target = &request.target;
    read::check_options(query, true)?;
    let selection = read::selection(target, query)?;
    let kind = &target.kind;
    let version = query.resource_version()?;
    let bookmarks = query.flag("allowWatchBookmarks");
    // Told explicitly that it wants none, a client gets changes only.
    let streaming = query.get("sendInitialEvents").map(|_| query.flag("sendInitialEvents"));
    let initial = streaming == Some(true);
    let prefix = match &target.namespace {
        Some(namespace) if kind.namespaced => format!("{}{namespace}/", kind.storage_prefix()),
        _ => kind.storage_prefix(),
    };
    let timeout = match query.number("timeoutSeconds")? {
        None | Some(0) => TIMEOUT,
        Some(seconds) => Duration::from_secs(seconds.min(u32::MAX.into())),
    };
    let mut first: Vec<Bytes> = Vec::new();
    let changes;
    let seen;
    server.store.catch_up().await?;
    let from_start = streaming.unwrap_or(version.is_none_or(|version| version == 0));
    if from_start {
        // The state now, as ADDED, then everything after it.
        let (snapshot, future) = server.store.cache.snapshot_and_subscribe(kind)?;
        if let Some(wanted) = version.filter(|wanted| *wanted > snapshot.revision) {
            return Err(Status::too_large_resource_version(wanted, snapshot.revision));
        }
        read::convert(server, &snapshot, target, &selection, None, 0).await?;
        for object in read::select(&snapshot, target, &selection, None) {
            first.push(encode::watch_frame(kind, Verdict::Added.as_str(), &object, accept)?);
        }
        if initial && bookmarks {
            first.push(bookmark(kind, snapshot.revision, true, accept)?);
        }
        (changes, seen) = (future, snapshot.revision);
    } else {
        // Without a revision it is "from now on"; one that is yet to come is waited for by passing over what is before.
        let version = version.filter(|version| *version > 0).unwrap_or_else(|| server.store.cache.revision());
        let subscription = match server.store.cache.subscribe(kind, version) {
            Ok(subscription) => subscription,
            // As upstream, a watch that cannot go on says so in its stream.
            Err(status) if status.code == 410 => {
                return encode::stream(full(encode::value_frame("ERROR", &status.to_value(), accept)?), accept);
            }
            Err(status) => return Err(status),
        };
        let mut past = subscription.past;
        let last = past.last().map_or(version, |change| change.revision);
        past.retain(|change| change.object.key.starts_with(&prefix));
        server.store.shape(kind, &past).await?;
        for change in past {
            let change = change.in_form(kind);
            if let Some(verdict) = change.verdict(&selection) {
                first.push(change.frame(kind, verdict, accept)?);
            }
        }
        (changes, seen) = (subscription.future, last);
    }
    let deadline = Instant::now() + timeout;
    let watcher = Watcher {
        kind: kind.clone(),
        prefix,
        selection,
        changes,
        bookmarks,
        accept: accept.clone(),
        seen,
        deadline,
        wake: Box::pin(tokio::time::sleep_until(next_wake(bookmarks, deadline))),
        server: server.clone(),
        ended: false,
        _running: server.metrics.long_running(&Labels::of(&request.info)),
    };
    let frames = stream::iter(first).chain(watcher.into_stream()).take_until(server.shutdown.clone().cancelled_owned());
    let body = StreamBody::new(frames.map(|bytes| Ok(Frame::data(bytes)))).boxed_unsync();
    encode::stream(body, accept)
}

impl Watcher {
    fn into_stream(self) -> impl Stream<Item = Bytes> + Send {
        stream::unfold(self, |mut watcher| async move {
            let bytes = watcher.next().await?;
            Some((bytes, watcher))
        })
    }

    async fn next(&mut self) -> Option<Bytes> {
        while !self.ended {
            // Changes first: while there are some, nobody waits for the clock.
            tokio::select! {
                biased;
                received = self.changes.recv() => match received {
                    Ok(change) => {
                        if let Some(bytes) = self.frames_from(change).await {
                            return Some(bytes);
                        }
                    }
                    // As upstream, a watcher that is too slow is cut off: it asks again from where it was, and is told
                    // then if that is too long ago.
                    Err(Missed::Behind | Missed::Closed) => return None,
                },
                () = self.wake.as_mut() => {
                    if Instant::now() >= self.deadline {
                        return None;
                    }
                    self.wake.as_mut().reset(next_wake(self.bookmarks, self.deadline));
                    return bookmark(&self.kind, self.server.store.cache.revision(), false, &self.accept).ok();
                }
            }
        }
        None
    }

    /// Frames of a change and of those after it that are there already.
    async fn frames_from(&mut self, change: Arc<Change>) -> Option<Bytes> {
        let mut first = self.frame_of(change).await;
        let mut joined = BytesMut::new();
        while !self.ended && joined.len() < TOGETHER {
            // Having missed something is met again by who waits for the next.
            let Some(Ok(change)) = self.changes.ready() else { break };
            let Some(frame) = self.frame_of(change).await else { continue };
            match first.take() {
                None if joined.is_empty() => first = Some(frame),
                before => {
                    joined.extend_from_slice(&before.unwrap_or_default());
                    joined.extend_from_slice(&frame);
                }
            }
        }
        if joined.is_empty() { first } else { Some(joined.freeze()) }
    }

    async fn frame_of(&mut self, change: Arc<Change>) -> Option<Bytes> {
        if change.revision <= self.seen || !change.object.key.starts_with(&self.prefix) {
            return None;
        }
        if let Err(status) = self.server.store.shape(&self.kind, std::slice::from_ref(&change)).await {
            // Going on would be to pass over a change.
            self.ended = true;
            return encode::value_frame("ERROR", &status.to_value(), &self.accept).ok();
        }
        let change = change.in_form(&self.kind);
        let verdict = change.verdict(&self.selection)?;
        change.frame(&self.kind, verdict, &self.accept).ok()
    }
}

fn next_wake(bookmarks: bool, deadline: Instant) -> Instant {
    if bookmarks { deadline.min(Instant::now() + BOOKMARKS) } else { deadline }
}

fn bookmark(kind: &Kind, revision: u64, initial_end: bool, accept: &Accept) -> Result<Bytes, Status> {
    let mut metadata = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
    if initial_end {
        metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
    }
    let (kind, api_version) = match accept.shape {
        Shape::Whole => (kind.kind, kind.api_version()),
        Shape::Metadata => ("PartialObjectMetadata", "meta.k8s.io/v1".to_owned()),
        Shape::Table => ("Table", "meta.k8s.io/v1".to_owned()),
    };
    let mut object = json!({"kind": kind, "apiVersion": api_version, "metadata": metadata});
    if accept.shape == Shape::Table {
        // The annotations of a table's bookmark are on its one row.
        let row = json!({"cells": [], "object": {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata}});
        object["columnDefinitions"] = json!([]);
        object["rows"] = json!([row]);
    }
    encode::value_frame("BOOKMARK", &object, accept)
}
