//! What changed in the runtime, as events; see [`crate::look`].

use std::time::Duration;

use futures::{StreamExt, TryFutureExt, TryStreamExt};
use tokio::sync::broadcast;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::{Inner, answer};
use crate::Error;
use crate::look::{Look, Lost, Signs, Watched};
use crate::proto;
use crate::runtime::RuntimeEvent;

/// Between two looks at a runtime that has no events, as upstream's kubelet does it.
const RELIST: Duration = Duration::from_secs(1);

/// Where signs to look again come from, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// CRI's own events.
    Cri,
    /// containerd's, which its CRI part did not have before 1.7.
    Containerd,
    /// The clock.
    Relist,
}

#[async_trait::async_trait]
impl Watched for Inner {
    async fn look(&self) -> Result<Look, Error> {
        let mut look = Look::default();
        for sandbox in self.raw_sandboxes().await? {
            let state = answer::sandbox_state(sandbox.state());
            look.sandboxes.insert(sandbox.id, (answer::pod(sandbox.metadata), state));
        }
        for container in self.raw_containers("").await? {
            let state = answer::container_state(container.state());
            if look.sandboxes.contains_key(&container.pod_sandbox_id) {
                look.containers.insert(container.id, (container.pod_sandbox_id, state));
            }
        }
        Ok(look)
    }

    /// The call is part of the stream: a server without news does not even say that it accepted.
    fn signs(&self) -> Signs {
        let source = *self.source.lock();
        match source {
            Source::Cri => {
                let mut runtime = self.runtime.clone();
                let call = async move { runtime.get_container_events(proto::GetEventsRequest {}).await };
                let events = call.map_ok(|events| events.into_inner().map_ok(drop)).try_flatten_stream();
                self.fall_back(events.boxed(), Source::Containerd)
            }
            Source::Containerd => {
                let events = containerd_events(self.channel.clone());
                let events = events.map_ok(|events| events.map_ok(drop)).try_flatten_stream();
                self.fall_back(events.boxed(), Source::Relist)
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

    fn events(&self) -> &broadcast::Sender<RuntimeEvent> {
        &self.events
    }
}

impl Inner {
    /// Signs from a call that the runtime may not know; then `next` is tried.
    fn fall_back(&self, events: futures::stream::BoxStream<'static, Result<(), Status>>, next: Source) -> Signs {
        let source = std::sync::Arc::clone(&self.source);
        let lost = move |status: Status| {
            if status.code() != Code::Unimplemented {
                return Lost::Broken;
            }
            *source.lock() = next;
            Lost::Lacking
        };
        events.map_err(lost).boxed()
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
async fn containerd_events(channel: Channel) -> Result<tonic::Streaming<Envelope>, Status> {
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let filters = ["/tasks/", "/containers/"].map(|topic| format!("namespace==k8s.io,topic~=\"^{topic}\"")).to_vec();
    let request = tonic::Request::new(SubscribeRequest { filters });
    let path = PathAndQuery::from_static("/containerd.services.events.v1.Events/Subscribe");
    let codec = tonic_prost::ProstCodec::<SubscribeRequest, Envelope>::default();
    Ok(grpc.server_streaming(request, path, codec).await?.into_inner())
}
