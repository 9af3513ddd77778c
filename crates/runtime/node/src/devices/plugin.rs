//! One device plugin: what is asked of it.

use std::collections::BTreeSet;
use std::path::Path;

use dhow_plugins::device::device_plugin_client::DevicePluginClient;
use dhow_plugins::device::{self as proto, DevicePluginOptions};
use tonic::Streaming;
use tonic::transport::Channel;

use super::checkpoint::Answer;

pub struct Plugin {
    channel: Channel,
    pub options: DevicePluginOptions,
}

fn told(status: &tonic::Status) -> String {
    format!("rpc error: code = {:?} desc = {}", status.code(), status.message())
}

impl Plugin {
    /// Connects; options that were not told are asked for.
    pub async fn open(socket: &Path, options: Option<DevicePluginOptions>) -> Result<Self, String> {
        // Without a limit for each call: one of them never ends.
        let channel = dhow_plugins::connect(socket, None).await.map_err(|error| dhow_base::chain(&error))?;
        let mut plugin = Self { channel, options: DevicePluginOptions::default() };
        plugin.options = match options {
            Some(options) => options,
            None => {
                let asked = plugin.client().get_device_plugin_options(proto::Empty {}).await;
                asked.map_err(|status| told(&status))?.into_inner()
            }
        };
        Ok(plugin)
    }

    fn client(&self) -> DevicePluginClient<Channel> {
        DevicePluginClient::new(self.channel.clone()).max_decoding_message_size(16 << 20)
    }

    pub async fn watch(&self) -> Result<Streaming<proto::ListAndWatchResponse>, String> {
        let stream = self.client().list_and_watch(proto::Empty {}).await;
        stream.map(tonic::Response::into_inner).map_err(|status| told(&status))
    }

    pub async fn preferred(
        &self,
        free: &BTreeSet<String>,
        must: &BTreeSet<String>,
        count: usize,
    ) -> Result<Vec<String>, String> {
        let one = proto::ContainerPreferredAllocationRequest {
            available_device_i_ds: free.iter().cloned().collect(),
            must_include_device_i_ds: must.iter().cloned().collect(),
            allocation_size: i32::try_from(count).unwrap_or(i32::MAX),
        };
        let request = proto::PreferredAllocationRequest { container_requests: vec![one] };
        let answer = self.client().get_preferred_allocation(request).await.map_err(|status| told(&status))?;
        let first = answer.into_inner().container_responses.into_iter().next();
        Ok(first.map(|first| first.device_i_ds).unwrap_or_default())
    }

    pub async fn allocate(&self, ids: &BTreeSet<String>) -> Result<Answer, String> {
        let one = proto::ContainerAllocateRequest { devices_ids: ids.iter().cloned().collect() };
        let request = proto::AllocateRequest { container_requests: vec![one] };
        let answer = self.client().allocate(request).await.map_err(|status| told(&status))?.into_inner();
        let first = answer.container_responses.into_iter().next();
        let first = first.ok_or("no containers return in allocation response")?;
        Ok(Answer {
            envs: first.envs.into_iter().collect(),
            mounts: first.mounts.into_iter().map(|m| (m.container_path, m.host_path, m.read_only)).collect(),
            devices: first.devices.into_iter().map(|d| (d.container_path, d.host_path, d.permissions)).collect(),
            annotations: first.annotations.into_iter().collect(),
            cdi: first.cdi_devices.into_iter().map(|device| device.name).collect(),
        })
    }

    pub async fn pre_start(&self, ids: &BTreeSet<String>) -> Result<(), String> {
        let request = proto::PreStartContainerRequest { devices_ids: ids.iter().cloned().collect() };
        self.client().pre_start_container(request).await.map(drop).map_err(|status| told(&status))
    }
}
