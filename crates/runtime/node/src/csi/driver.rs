//! One driver: its socket, and what it told of itself.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use dhow_plugins::csi::node_client::NodeClient;
use dhow_plugins::csi::node_service_capability::{Type as Kind, rpc};
use dhow_plugins::csi::{NodeGetCapabilitiesRequest, NodeGetInfoRequest};
use tonic::transport::Channel;

use super::{bad, failed};
use crate::Error;

/// A call may take so long, as with upstream's kubelet.
const LIMIT: Duration = Duration::from_secs(120);

pub struct Driver {
    channel: Channel,
    capabilities: BTreeSet<i32>,
    /// What the driver calls this node.
    pub node_id: String,
    /// Volumes that can be on the node; `None` is the driver's secret.
    pub max_volumes: Option<i32>,
    /// Where the node is, in the driver's words.
    pub topology: BTreeMap<String, String>,
}

impl Driver {
    /// Connects and asks.
    pub async fn open(name: &str, socket: &Path) -> Result<Self, Error> {
        let connected = dhow_plugins::connect(socket, Some(LIMIT)).await;
        let channel = connected.map_err(|error| {
            bad(format!("connect to CSI driver {name} at {}: {}", socket.display(), dhow_base::chain(&error)))
        })?;
        let mut client = NodeClient::new(channel.clone());
        let info = client.node_get_info(NodeGetInfoRequest {}).await;
        let info = info.map_err(|status| failed("NodeGetInfo", &status))?.into_inner();
        if info.node_id.is_empty() {
            return Err(bad(format!("CSI driver {name} has no name for this node")));
        }
        let asked = client.node_get_capabilities(NodeGetCapabilitiesRequest {}).await;
        let capabilities = asked.map_err(|status| failed("NodeGetCapabilities", &status))?.into_inner().capabilities;
        let known = capabilities.into_iter().filter_map(|one| match one.r#type? {
            Kind::Rpc(rpc) => Some(rpc.r#type),
        });
        let most = i32::try_from(info.max_volumes_per_node).ok().filter(|most| *most > 0);
        Ok(Self {
            channel,
            capabilities: known.collect(),
            node_id: info.node_id,
            max_volumes: most,
            topology: info.accessible_topology.unwrap_or_default().segments.into_iter().collect(),
        })
    }

    pub fn node(&self) -> NodeClient<Channel> {
        NodeClient::new(self.channel.clone())
    }

    pub fn can(&self, what: rpc::Type) -> bool {
        self.capabilities.contains(&i32::from(what))
    }
}
