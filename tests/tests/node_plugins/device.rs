//! A real device plugin whose devices are other names of `/dev/null`.

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use anyhow::{Context, Result};
use dhow_plugins::device::device_plugin_server::{DevicePlugin, DevicePluginServer};
use dhow_plugins::device::registration_client::RegistrationClient;
use dhow_plugins::device::*;
use futures::{Stream, StreamExt};
use parking_lot::Mutex;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use crate::wire::{Stop, serve};

pub const RESOURCE: &str = "example.com/null";

#[derive(Clone)]
pub struct Plugin {
    /// Id and whether it is healthy.
    devices: Arc<watch::Sender<Vec<(String, bool)>>>,
    pub allocated: Arc<Mutex<Vec<Vec<String>>>>,
    pub started: Arc<Mutex<Vec<Vec<String>>>>,
}

impl Plugin {
    pub fn new(ids: &[&str]) -> Self {
        let devices = ids.iter().map(|id| ((*id).to_owned(), true)).collect();
        Self { devices: Arc::new(watch::Sender::new(devices)), allocated: Arc::default(), started: Arc::default() }
    }

    /// Serves and presents itself at the agent's socket.
    pub async fn start(&self, folder: &Path, version: &str) -> Result<Stop> {
        let stop = serve(&folder.join("null.sock"), DevicePluginServer::new(self.clone()));
        let channel = dhow_plugins::connect(&folder.join("kubelet.sock"), None).await.context("connect")?;
        let options = DevicePluginOptions { pre_start_required: true, get_preferred_allocation_available: true };
        let request = RegisterRequest {
            version: version.into(),
            endpoint: "null.sock".into(),
            resource_name: RESOURCE.into(),
            options: Some(options),
        };
        RegistrationClient::new(channel).register(request).await.context("register")?;
        Ok(stop)
    }

    pub fn set_health(&self, id: &str, healthy: bool) {
        self.devices.send_modify(|all| {
            all.iter_mut().filter(|(own, _)| own == id).for_each(|device| device.1 = healthy);
        });
    }
}

#[tonic::async_trait]
impl DevicePlugin for Plugin {
    type ListAndWatchStream = Pin<Box<dyn Stream<Item = Result<ListAndWatchResponse, Status>> + Send>>;

    async fn get_device_plugin_options(&self, _: Request<Empty>) -> Result<Response<DevicePluginOptions>, Status> {
        let options = DevicePluginOptions { pre_start_required: true, get_preferred_allocation_available: true };
        Ok(Response::new(options))
    }

    async fn list_and_watch(&self, _: Request<Empty>) -> Result<Response<Self::ListAndWatchStream>, Status> {
        let mut changes = self.devices.subscribe();
        changes.mark_changed();
        let stream = futures::stream::unfold(changes, async |mut changes| {
            changes.changed().await.ok()?;
            let known = changes.borrow_and_update().clone();
            let devices = known.into_iter().map(|(id, healthy)| Device {
                id,
                health: if healthy { "Healthy" } else { "Unhealthy" }.into(),
                topology: None,
            });
            let answer = ListAndWatchResponse { devices: devices.collect() };
            Some((Ok(answer), changes))
        });
        Ok(Response::new(stream.boxed()))
    }

    /// The last ones.
    async fn get_preferred_allocation(
        &self,
        request: Request<PreferredAllocationRequest>,
    ) -> Result<Response<PreferredAllocationResponse>, Status> {
        let one = |asked: ContainerPreferredAllocationRequest| {
            let count = usize::try_from(asked.allocation_size).unwrap_or(0);
            let mut ids = asked.available_device_i_ds;
            ids.sort();
            ContainerPreferredAllocationResponse { device_i_ds: ids.into_iter().rev().take(count).collect() }
        };
        let container_responses = request.into_inner().container_requests.into_iter().map(one).collect();
        Ok(Response::new(PreferredAllocationResponse { container_responses }))
    }

    async fn allocate(&self, request: Request<AllocateRequest>) -> Result<Response<AllocateResponse>, Status> {
        let mut container_responses = Vec::new();
        for asked in request.into_inner().container_requests {
            self.allocated.lock().push(asked.devices_ids.clone());
            container_responses.push(ContainerAllocateResponse {
                envs: [("NULLS".to_owned(), asked.devices_ids.join(","))].into(),
                mounts: vec![Mount { container_path: "/plugin".into(), host_path: "/etc".into(), read_only: true }],
                devices: asked
                    .devices_ids
                    .iter()
                    .map(|id| DeviceSpec {
                        container_path: format!("/dev/{id}"),
                        host_path: "/dev/null".into(),
                        permissions: "rw".into(),
                    })
                    .collect(),
                annotations: Default::default(),
                cdi_devices: Vec::new(),
            });
        }
        Ok(Response::new(AllocateResponse { container_responses }))
    }

    async fn pre_start_container(
        &self,
        request: Request<PreStartContainerRequest>,
    ) -> Result<Response<PreStartContainerResponse>, Status> {
        self.started.lock().push(request.into_inner().devices_ids);
        Ok(Response::new(PreStartContainerResponse {}))
    }
}
