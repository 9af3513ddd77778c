//! Calls of a driver of dynamic resource allocation in the version that it speaks: the messages are the same in all.

use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{IntoRequest, Status};
use tonic_prost::ProstCodec;

use crate::dra::{
    NodePrepareResourcesRequest, NodePrepareResourcesResponse, NodeUnprepareResourcesRequest,
    NodeUnprepareResourcesResponse,
};

/// A version of the calls, the newest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    V1,
    V1Beta1,
}

impl Version {
    /// As drivers name what they serve when they present themselves.
    pub const ALL: [(&'static str, Self); 2] = [("v1.DRAPlugin", Self::V1), ("v1beta1.DRAPlugin", Self::V1Beta1)];

    /// The newest that a driver speaks.
    pub fn of(supported: &[String]) -> Option<Self> {
        Self::ALL.into_iter().find(|(name, _)| supported.iter().any(|own| own == name)).map(|(_, version)| version)
    }

    fn prepare(self) -> &'static str {
        match self {
            Self::V1 => "/k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin/NodePrepareResources",
            Self::V1Beta1 => "/k8s.io.kubelet.pkg.apis.dra.v1beta1.DRAPlugin/NodePrepareResources",
        }
    }

    fn unprepare(self) -> &'static str {
        match self {
            Self::V1 => "/k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin/NodeUnprepareResources",
            Self::V1Beta1 => "/k8s.io.kubelet.pkg.apis.dra.v1beta1.DRAPlugin/NodeUnprepareResources",
        }
    }
}

/// A driver that can be called.
#[derive(Debug, Clone)]
pub struct Client {
    channel: Channel,
    version: Version,
}

impl Client {
    pub fn new(channel: Channel, version: Version) -> Self {
        Self { channel, version }
    }

    /// # Errors
    /// What the driver answers, or that it does not.
    pub async fn prepare(&self, request: NodePrepareResourcesRequest) -> Result<NodePrepareResourcesResponse, Status> {
        let mut grpc = self.ready().await?;
        let path = PathAndQuery::from_static(self.version.prepare());
        let codec = ProstCodec::<NodePrepareResourcesRequest, NodePrepareResourcesResponse>::default();
        Ok(grpc.unary(request.into_request(), path, codec).await?.into_inner())
    }

    /// # Errors
    /// What the driver answers, or that it does not.
    pub async fn unprepare(
        &self,
        request: NodeUnprepareResourcesRequest,
    ) -> Result<NodeUnprepareResourcesResponse, Status> {
        let mut grpc = self.ready().await?;
        let path = PathAndQuery::from_static(self.version.unprepare());
        let codec = ProstCodec::<NodeUnprepareResourcesRequest, NodeUnprepareResourcesResponse>::default();
        Ok(grpc.unary(request.into_request(), path, codec).await?.into_inner())
    }

    async fn ready(&self) -> Result<Grpc<Channel>, Status> {
        let mut grpc = Grpc::new(self.channel.clone());
        let unready = |error| Status::unavailable(format!("Service was not ready: {error}"));
        grpc.ready().await.map_err(unready)?;
        Ok(grpc)
    }
}
