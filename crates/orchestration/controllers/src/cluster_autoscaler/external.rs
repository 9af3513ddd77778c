//! A provider behind upstream's external gRPC interface.

use std::time::Duration;

use dhow_api::protobuf;
use dhow_client::Error;
use k8s_openapi::api::core::v1::Node;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Response, Status};

use super::config::{ClusterAutoscalerSettings, Options};
use super::externalgrpc as wire;
use super::provider::{Bounds, Instance, InstanceState, NodeProvider};
use wire::cloud_provider_client::CloudProviderClient;

pub struct External {
    client: CloudProviderClient<Channel>,
}

/// A node as the provider knows it.
fn known(node: &Node) -> wire::ExternalGrpcNode {
    let metadata = &node.metadata;
    wire::ExternalGrpcNode {
        provider_id: node.spec.as_ref().and_then(|spec| spec.provider_id.clone()).unwrap_or_default(),
        name: metadata.name.clone().unwrap_or_default(),
        labels: metadata.labels.clone().unwrap_or_default().into_iter().collect(),
        annotations: metadata.annotations.clone().unwrap_or_default().into_iter().collect(),
    }
}

fn answer<T>(what: &str, result: Result<Response<T>, Status>) -> Result<T, Error> {
    result.map(Response::into_inner).map_err(|status| {
        Error::Reconcile(format!("the node provider's {what} failed: {:?}: {}", status.code(), status.message()))
    })
}

/// As [`answer`], for what a provider need not have.
fn optional<T>(what: &str, result: Result<Response<T>, Status>) -> Result<Option<T>, Error> {
    match result {
        Err(status) if status.code() == Code::Unimplemented => Ok(None),
        other => answer(what, other).map(Some),
    }
}

impl External {
    /// Connects when it is first needed, and again whenever the connection is lost.
    pub fn new(settings: &ClusterAutoscalerSettings) -> Result<Self, Error> {
        let provider = &settings.provider;
        let secure = provider.cert.is_some();
        let address = format!("{}://{}", if secure { "https" } else { "http" }, provider.address);
        let wrong = |error: &dyn std::fmt::Display| {
            Error::Configuration(format!("clusterAutoscaler.provider {}: {error}", provider.address))
        };
        let mut endpoint = Endpoint::from_shared(address).map_err(|error| wrong(&error))?;
        endpoint = endpoint.timeout(settings.timeout).connect_timeout(settings.timeout);
        if let (Some(ca), Some(cert), Some(key)) = (&provider.cacert, &provider.cert, &provider.key) {
            let read = |file: &std::path::Path| {
                std::fs::read(file).map_err(|error| wrong(&format!("read {}: {error}", file.display())))
            };
            let tls = ClientTlsConfig::new()
                .ca_certificate(Certificate::from_pem(read(ca)?))
                .identity(Identity::from_pem(read(cert)?, read(key)?));
            endpoint = endpoint.tls_config(tls).map_err(|error| wrong(&error))?;
        }
        Ok(Self { client: CloudProviderClient::new(endpoint.connect_lazy()) })
    }

    fn client(&self) -> CloudProviderClient<Channel> {
        self.client.clone()
    }
}

fn on_wire(duration: Duration) -> Option<wire::Duration> {
    Some(wire::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or(0),
    })
}

fn off_wire(duration: Option<wire::Duration>, standard: Duration) -> Duration {
    let given = duration
        .map(|one| Duration::new(u64::try_from(one.seconds).unwrap_or(0), u32::try_from(one.nanos).unwrap_or(0)));
    given.unwrap_or(standard)
}

/// A node's message, without an envelope.
fn node(raw: &[u8]) -> Result<Node, Error> {
    let document = protobuf::envelope("v1", "Node", raw);
    let value = protobuf::decode(&document)
        .map_err(|error| Error::Reconcile(format!("the node provider's template is not a node: {error}")))?;
    serde_json::from_value(value)
        .map_err(|source| Error::Decode { context: "read the node provider's template".into(), source })
}

fn instance(one: wire::Instance) -> Instance {
    use wire::instance_status::InstanceState as State;
    let status = one.status.unwrap_or_default();
    let state = match status.instance_state() {
        State::Unspecified => InstanceState::Unknown,
        State::InstanceRunning => InstanceState::Running,
        State::InstanceCreating => InstanceState::Creating,
        State::InstanceDeleting => InstanceState::Deleting,
    };
    let error = status.error_info.filter(|error| !error.error_code.is_empty());
    Instance { id: one.id, state, error: error.map(|error| (error.error_code, error.error_message)) }
}

#[async_trait::async_trait]
impl NodeProvider for External {
    async fn refresh(&self) -> Result<(), Error> {
        answer("Refresh", self.client().refresh(wire::RefreshRequest {}).await).map(drop)
    }

    async fn groups(&self) -> Result<Vec<Bounds>, Error> {
        let all = answer("NodeGroups", self.client().node_groups(wire::NodeGroupsRequest {}).await)?;
        let bounds = |one: wire::NodeGroup| Bounds { id: one.id, min: one.min_size, max: one.max_size };
        Ok(all.node_groups.into_iter().map(bounds).collect())
    }

    async fn group_of(&self, node: &Node) -> Result<Option<String>, Error> {
        let request = wire::NodeGroupForNodeRequest { node: Some(known(node)) };
        let found = answer("NodeGroupForNode", self.client().node_group_for_node(request).await)?;
        Ok(found.node_group.map(|group| group.id).filter(|id| !id.is_empty()))
    }

    async fn target(&self, group: &str) -> Result<i32, Error> {
        let request = wire::NodeGroupTargetSizeRequest { id: group.to_owned() };
        Ok(answer("NodeGroupTargetSize", self.client().node_group_target_size(request).await)?.target_size)
    }

    async fn instances(&self, group: &str) -> Result<Vec<Instance>, Error> {
        let request = wire::NodeGroupNodesRequest { id: group.to_owned() };
        let all = answer("NodeGroupNodes", self.client().node_group_nodes(request).await)?;
        Ok(all.instances.into_iter().map(instance).collect())
    }

    async fn template(&self, group: &str) -> Result<Option<Node>, Error> {
        let request = wire::NodeGroupTemplateNodeInfoRequest { id: group.to_owned() };
        let what = "NodeGroupTemplateNodeInfo";
        let Some(found) = optional(what, self.client().node_group_template_node_info(request).await)? else {
            return Ok(None);
        };
        let raw = if found.node_bytes.is_empty() { found.node_info } else { found.node_bytes };
        if raw.is_empty() { Ok(None) } else { node(&raw).map(Some) }
    }

    async fn options(&self, group: &str, all: Options) -> Result<Option<Options>, Error> {
        let defaults = wire::NodeGroupAutoscalingOptions {
            scale_down_utilization_threshold: all.utilization_threshold,
            scale_down_gpu_utilization_threshold: all.utilization_threshold,
            zero_or_max_node_scaling: false,
            ignore_daemon_sets_utilization: all.ignore_daemon_sets,
            scale_down_unneeded_duration: on_wire(all.unneeded),
            scale_down_unready_duration: on_wire(all.unready),
            max_node_provision_duration: on_wire(all.provision),
        };
        let request = wire::NodeGroupAutoscalingOptionsRequest { id: group.to_owned(), defaults: Some(defaults) };
        let found = optional("NodeGroupGetOptions", self.client().node_group_get_options(request).await)?;
        Ok(found.and_then(|found| found.node_group_autoscaling_options).map(|own| Options {
            utilization_threshold: own.scale_down_utilization_threshold,
            unneeded: off_wire(own.scale_down_unneeded_duration, all.unneeded),
            unready: off_wire(own.scale_down_unready_duration, all.unready),
            provision: off_wire(own.max_node_provision_duration, all.provision),
            ignore_daemon_sets: own.ignore_daemon_sets_utilization,
        }))
    }

    async fn increase(&self, group: &str, by: i32) -> Result<(), Error> {
        let request = wire::NodeGroupIncreaseSizeRequest { delta: by, id: group.to_owned() };
        answer("NodeGroupIncreaseSize", self.client().node_group_increase_size(request).await).map(drop)
    }

    async fn delete(&self, group: &str, machines: &[Node]) -> Result<(), Error> {
        let nodes = machines.iter().map(known).collect();
        let request = wire::NodeGroupDeleteNodesRequest { nodes, id: group.to_owned() };
        answer("NodeGroupDeleteNodes", self.client().node_group_delete_nodes(request).await).map(drop)
    }

    async fn decrease(&self, group: &str, by: i32) -> Result<(), Error> {
        let request = wire::NodeGroupDecreaseTargetSizeRequest { delta: -by, id: group.to_owned() };
        answer("NodeGroupDecreaseTargetSize", self.client().node_group_decrease_target_size(request).await).map(drop)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use dhow_api::descriptor;
    use serde_json::json;

    #[test]
    fn a_template_is_read_as_go_providers_send_it() {
        let sent = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "t", "labels": {"a": "b"}},
            "status": {"allocatable": {"cpu": "4", "memory": "8Gi"}}});
        let message = descriptor::message_of("v1", "Node").unwrap();
        let read = node(&protobuf::encode(message, &sent).unwrap()).unwrap();
        assert_eq!(read.metadata.labels.unwrap()["a"], "b");
        assert_eq!(read.status.unwrap().allocatable.unwrap()["memory"].0, "8Gi");
        assert!(node(b"nonsense").is_err());
    }

    #[test]
    fn an_error_without_a_code_is_none() {
        let info = |code: &str| wire::InstanceErrorInfo { error_code: code.into(), ..Default::default() };
        let one = |code: &str| {
            let status = wire::InstanceStatus { instance_state: 2, error_info: Some(info(code)) };
            instance(wire::Instance { id: "i".into(), status: Some(status) })
        };
        assert_eq!(one("").error, None);
        assert_eq!(one("QUOTA").error.unwrap().0, "QUOTA");
        assert_eq!(one("").state, InstanceState::Creating);
    }
}
