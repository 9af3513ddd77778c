//! What changed in the runtime, as events.
//!
//! Whatever a runtime has to say is only taken as a sign to look again; what is told is the difference between two looks,
//! so that a lost sign costs time and never an event.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::BoxStream;
use futures::{StreamExt, TryFutureExt, TryStreamExt};
use tokio_util::sync::CancellationToken;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;

use super::{Inner, answer};
use crate::Error;
use crate::look::{Look, difference};
use crate::proto;

/// Between two looks at a runtime that has no events, as upstream's kubelet does it.
const RELIST: Duration = Duration::from_secs(1);
/// When containerd's own events are the sign: its CRI part hears them when we do, and books them a little later.
const LATER: [Duration; 4] =
    [Duration::from_millis(20), Duration::from_millis(80), Duration::from_millis(400), Duration::from_secs(1)];

impl Inner {
    async fn look(&self) -> Result<Look, Error> {
        let mut look = Look::default();
        for sandbox in self.raw_sandboxes().await? {
            let state = answer::sandbox_state(sandbox.state());
            look.sandboxes.insert(sandbox.id, (answer::pod(sandbox.metadata), state));
        }
        for container in self.raw_containers("").await? {
            let state = answer::container_state(container.state());
            look.containers.insert(container.id, (container.pod_sandbox_id, state));
        }
        Ok(look)
    }
}

/// Where signs to look again come from, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// CRI's own events.
    Cri,
    /// containerd's, which its CRI part did not have before 1.7.
    Containerd,
    /// The clock.
    Relist,
}

type Signs = BoxStream<'static, Result<(), tonic::Status>>;

/// Follows until `end`. On return everything that exists is known, and from then on changes are told.
pub async fn follow(inner: &Arc<Inner>, end: CancellationToken) -> Result<(), Error> {
    let mut known = inner.look().await?;
    let weak = Arc::downgrade(inner);
    let mut source = Source::Cri;
    let mut signs = subscribe(inner, source);
    tokio::spawn(end.run_until_cancelled_owned(async move {
        // The next look without a sign, as an index into `LATER`. A subscription is not confirmed, so it begins with some.
        let mut later = 0;
        loop {
            let pause = async {
                match LATER.get(later) {
                    Some(pause) => tokio::time::sleep(*pause).await,
                    None => std::future::pending().await,
                }
            };
            let sign = tokio::select! {
                sign = signs.next() => Some(sign),
                () = pause => None,
            };
            let Some(inner) = weak.upgrade() else { return };
            later = match sign {
                None => later + 1,
                Some(Some(Ok(()))) if source == Source::Containerd => 0,
                Some(Some(Ok(()))) => LATER.len(),
                Some(Some(Err(status))) if status.code() == tonic::Code::Unimplemented => {
                    source = match source {
                        Source::Cri => Source::Containerd,
                        Source::Containerd | Source::Relist => Source::Relist,
                    };
                    tracing::debug!(?source, "the container runtime lacks a kind of events");
                    signs = subscribe(&inner, source);
                    0
                }
                Some(ended) => {
                    tracing::debug!(?ended, "the container runtime's events ended");
                    tokio::time::sleep(RELIST).await;
                    signs = subscribe(&inner, source);
                    0
                }
            };
            match inner.look().await {
                Ok(look) => {
                    for event in difference(&known, &look) {
                        // Nobody listening is fine.
                        let _ = inner.events.send(event);
                    }
                    known = look;
                }
                Err(error) => tracing::warn!(%error, "cannot look at the container runtime"),
            }
        }
    }));
    Ok(())
}

/// Signs of one source. The call is part of the stream: a server without news does not even say that it accepted.
fn subscribe(inner: &Inner, source: Source) -> Signs {
    match source {
        Source::Cri => {
            let mut runtime = inner.runtime.clone();
            let call = async move { runtime.get_container_events(proto::GetEventsRequest {}).await };
            call.map_ok(|events| events.into_inner().map_ok(drop)).try_flatten_stream().boxed()
        }
        Source::Containerd => {
            let call = containerd_events(inner.channel.clone());
            call.map_ok(|events| events.map_ok(drop)).try_flatten_stream().boxed()
        }
        Source::Relist => {
            let ticks = tokio::time::interval(RELIST);
            let stream = futures::stream::unfold(ticks, async |mut ticks| {
                ticks.tick().await;
                Some((Ok(()), ticks))
            });
            stream.boxed()
        }
    }
}

/// `containerd.services.events.v1.SubscribeRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct SubscribeRequest {
    #[prost(string, repeated, tag = "1")]
    filters: Vec<String>,
}

/// `containerd.services.events.v1.Envelope`, of which only the coming matters.
#[derive(Clone, PartialEq, prost::Message)]
struct Envelope {}

/// The events of all of containerd, of which those of containers and tasks are asked for.
async fn containerd_events(channel: Channel) -> Result<tonic::Streaming<Envelope>, tonic::Status> {
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.map_err(|error| tonic::Status::unavailable(error.to_string()))?;
    let filters = ["/tasks/", "/containers/"].map(|topic| format!("namespace==k8s.io,topic~=\"^{topic}\"")).to_vec();
    let request = tonic::Request::new(SubscribeRequest { filters });
    let path = PathAndQuery::from_static("/containerd.services.events.v1.Events/Subscribe");
    let codec = tonic_prost::ProstCodec::<SubscribeRequest, Envelope>::default();
    Ok(grpc.server_streaming(request, path, codec).await?.into_inner())
}
