//! `dhow build`: sends the context to a node, shows what happens there, takes the result.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod cache;
pub(super) mod context;
mod output;
mod progress;
mod request;
mod walk;

use std::collections::BTreeSet;
use std::io::IsTerminal;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use dhow_builder::Event;
use dhow_builder::api::{Missing, Request};
use dhow_client::Body;
use http::{Method, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;

use super::image::Images;
use crate::cli::{BuildArgs, ProgressKind};
use crate::exit::{Conflict, NotFound};
use context::Contexts;
use output::Destination;
use progress::Shown;

pub async fn run(args: BuildArgs) -> Result<()> {
    build(&args).await.map(drop)
}

/// Builds; returns the image's id if there is an image.
pub async fn build(args: &BuildArgs) -> Result<Option<String>> {
    let destination = Destination::parse(args)?;
    let sources = context::Sources::gather(args).await?;
    let mut request = request::make(args, &sources, &destination).await?;
    let kind = if args.quiet { ProgressKind::Quiet } else { args.progress };
    let mut shown = Shown::new(match kind {
        ProgressKind::Auto if std::io::stderr().is_terminal() => ProgressKind::Tty,
        ProgressKind::Auto => ProgressKind::Plain,
        other => other,
    });
    let images = Images::at(&args.at).await?;
    let sent = shown.begin("[internal] load build context");
    let (mut contexts, listings) = sources.look(&images).await?;
    request.listings = listings;
    let mut asked = BTreeSet::new();
    let (body, rest, answer) = loop {
        let sending = match send(&images, &contexts, &request, &shown).await {
            // Another build changed it, or it went for want of room.
            Err(error) if error.is::<Conflict>() && !request.listings.is_empty() => {
                contexts.send_only(Missing::new());
                request.listings.clear();
                send(&images, &contexts, &request, &shown).await
            }
            sending => sending,
        };
        let mut body = sending?.into_body();
        shown.end(sent);
        let mut answer = Answer::default();
        let rest = follow(&mut body, args, &mut shown, &mut answer).await;
        // What the Dockerfile names is known to the node alone if it fetched that.
        let more = answer.error.is_some()
            && match answer.unauthorized.take().filter(|registry| asked.insert(registry.clone())) {
                Some(registry) => request::log_in(&mut request, args, &registry).await,
                None => false,
            };
        if !more {
            break (body, rest, answer);
        }
        shown.say("a registry wants a login: again, with yours");
    };
    shown.clear();
    if let Some(error) = answer.error {
        shown.explain();
        return Err(error);
    }
    match rest? {
        Some(rest) => destination.take(rest, body).await?,
        None if destination.wants_archive() => bail!("the node ended the conversation before the build was done"),
        None => {}
    }
    if let Some(id) = &answer.id {
        if let Some(path) = &args.iidfile {
            std::fs::write(path, id).with_context(|| format!("write {}", path.display()))?;
        }
        if kind == ProgressKind::Quiet {
            println!("{id}");
        }
    }
    Ok(answer.id)
}

/// Sends the request with what its contexts lack at the node.
async fn send(images: &Images, contexts: &Contexts, request: &Request, shown: &Shown) -> Result<Response<Body>> {
    let (body, writing) = contexts.stream(request, shown.sent());
    let pieces = futures::TryStreamExt::map_ok(body, Frame::data);
    let pieces =
        futures::TryStreamExt::map_err(pieces, |e| dhow_client::Error::Configuration(format!("read the context: {e}")));
    let answer = images.send(Method::POST, "/build", &[], StreamBody::new(pieces).boxed_unsync()).await;
    // Why the context could not be read says more than that it broke off.
    writing.await.context("read the context")??;
    answer
}

#[derive(Default)]
struct Answer {
    id: Option<String>,
    error: Option<anyhow::Error>,
    /// A registry that wants to know who asks.
    unauthorized: Option<String>,
}

/// Shows events to their end; returns the first bytes of the archive if one follows.
async fn follow(body: &mut Body, args: &BuildArgs, shown: &mut Shown, answer: &mut Answer) -> Result<Option<Bytes>> {
    let mut buffer = bytes::BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.context("the node ended the conversation")?.into_data() else { continue };
        buffer.extend_from_slice(&data);
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line = buffer.split_to(end + 1);
            let event: Event = serde_json::from_slice(&line).context("understand the node's progress")?;
            match event {
                Event::Archive => return Ok(Some(buffer.freeze())),
                Event::Cache { number, bytes } => {
                    let text = args.cache.cache_to.get(number).context("a cache that nobody asked for")?;
                    let (_, folder) = cache::to(text)?;
                    let folder = folder.context("a cache that nobody asked for")?;
                    cache::take(&folder, bytes, &mut buffer, body).await?;
                    shown.say(&format!("wrote cache {}", folder.display()));
                }
                Event::Unauthorized { registry } => answer.unauthorized = Some(registry),
                Event::Error { message, not_found, .. } => {
                    answer.error = Some(match not_found {
                        true => NotFound(message).into(),
                        false => anyhow::Error::msg(message),
                    });
                }
                Event::Built { id, names } => {
                    shown.built(&id, &names);
                    answer.id = Some(id);
                }
                other => shown.show(other),
            }
        }
    }
    Ok(None)
}
