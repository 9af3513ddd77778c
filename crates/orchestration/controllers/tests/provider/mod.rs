//! A node provider over upstream's external gRPC interface, whose machines join the cluster at once.
#![allow(clippy::unwrap_used, dead_code)]

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use dhow_api::{descriptor, protobuf};
use dhow_client::{Client, ListParams, Patch};
use dhow_controllers::externalgrpc as wire;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use k8s_openapi::api::core::v1::{Node, Pod};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tonic::{Request, Response, Status};
use wire::cloud_provider_server::{CloudProvider, CloudProviderServer};

use crate::fake::Cloud;

#[derive(Default)]
struct Group {
    min: i32,
    max: i32,
    cpu: String,
    machines: Vec<String>,
    broken: bool,
    made: usize,
}

#[derive(Default)]
struct State {
    groups: BTreeMap<String, Group>,
    client: Option<Client>,
}

#[derive(Clone)]
pub struct Provider {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

fn id(machine: &str) -> String {
    format!("test://{machine}")
}

fn node(machine: &str, group: &str, cpu: &str) -> Value {
    let room = json!({"cpu": cpu, "memory": "8Gi", "pods": "110"});
    json!({"apiVersion": "v1", "kind": "Node",
        "metadata": {"name": machine, "labels": {"kubernetes.io/hostname": machine, "group": group}},
        "spec": {"providerID": id(machine)},
        "status": {"conditions": [{"type": "Ready", "status": "True"}], "allocatable": room, "capacity": room}})
}

impl Provider {
    pub async fn serve() -> Self {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let this = Self { address: listener.local_addr().unwrap(), state: Arc::default() };
        let service = CloudProviderServer::new(this.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service = TowerToHyperService::new(service.clone());
                let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                tokio::spawn(async move { http.serve_connection(TokioIo::new(stream), service).await });
            }
        });
        this
    }

    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Where its machines become nodes.
    pub fn join(&self, cloud: &Cloud) {
        self.state.lock().client = Some(cloud.client("machines", "machines", &["system:masters"]));
    }

    pub fn group(&self, name: &str, min: i32, max: i32, cpu: &str) {
        let group = Group { min, max, cpu: cpu.into(), ..Group::default() };
        self.state.lock().groups.insert(name.into(), group);
    }

    /// From now on its machines never become nodes.
    pub fn break_group(&self, name: &str) {
        self.state.lock().groups.get_mut(name).unwrap().broken = true;
    }

    pub fn machines(&self, group: &str) -> Vec<String> {
        self.state.lock().groups[group].machines.clone()
    }

    pub fn size(&self, group: &str) -> usize {
        self.machines(group).len()
    }

    /// Makes machines.
    pub fn add(&self, group: &str, count: i32) {
        let mut state = self.state.lock();
        let client = state.client.clone().unwrap();
        let of = state.groups.get_mut(group).unwrap();
        for _ in 0..count {
            of.made += 1;
            let machine = format!("{group}-{}", of.made);
            of.machines.push(machine.clone());
            if of.broken {
                continue;
            }
            let (value, client) = (node(&machine, group, &of.cpu), client.clone());
            tokio::spawn(async move {
                let new: Node = serde_json::from_value(value.clone()).unwrap();
                client.create(&new).await.unwrap();
                let status = Patch::Merge(json!({"status": value["status"]}));
                client.patch::<Node>(None, &machine, status, Some("status")).await.unwrap();
            });
        }
    }
}

fn done<T>(message: T) -> Result<Response<T>, Status> {
    Ok(Response::new(message))
}

#[tonic::async_trait]
impl CloudProvider for Provider {
    async fn node_groups(
        &self,
        _: Request<wire::NodeGroupsRequest>,
    ) -> Result<Response<wire::NodeGroupsResponse>, Status> {
        let state = self.state.lock();
        let group = |(id, of): (&String, &Group)| wire::NodeGroup {
            id: id.clone(),
            min_size: of.min,
            max_size: of.max,
            debug: String::new(),
        };
        done(wire::NodeGroupsResponse { node_groups: state.groups.iter().map(group).collect() })
    }

    async fn node_group_for_node(
        &self,
        _: Request<wire::NodeGroupForNodeRequest>,
    ) -> Result<Response<wire::NodeGroupForNodeResponse>, Status> {
        done(wire::NodeGroupForNodeResponse { node_group: Some(wire::NodeGroup::default()) })
    }

    async fn refresh(&self, _: Request<wire::RefreshRequest>) -> Result<Response<wire::RefreshResponse>, Status> {
        done(wire::RefreshResponse {})
    }

    async fn node_group_target_size(
        &self,
        request: Request<wire::NodeGroupTargetSizeRequest>,
    ) -> Result<Response<wire::NodeGroupTargetSizeResponse>, Status> {
        let size = self.size(&request.get_ref().id);
        done(wire::NodeGroupTargetSizeResponse { target_size: i32::try_from(size).unwrap() })
    }

    async fn node_group_increase_size(
        &self,
        request: Request<wire::NodeGroupIncreaseSizeRequest>,
    ) -> Result<Response<wire::NodeGroupIncreaseSizeResponse>, Status> {
        self.add(&request.get_ref().id, request.get_ref().delta);
        done(wire::NodeGroupIncreaseSizeResponse {})
    }

    async fn node_group_delete_nodes(
        &self,
        request: Request<wire::NodeGroupDeleteNodesRequest>,
    ) -> Result<Response<wire::NodeGroupDeleteNodesResponse>, Status> {
        let request = request.into_inner();
        let client = {
            let mut state = self.state.lock();
            let of = state.groups.get_mut(&request.id).unwrap();
            let gone = |machine: &String| request.nodes.iter().any(|one| one.provider_id == id(machine));
            let before = of.machines.len();
            of.machines.retain(|machine| !gone(machine));
            if before - of.machines.len() != request.nodes.len() {
                return Err(Status::not_found("a node of another group"));
            }
            state.client.clone().unwrap()
        };
        // Nothing runs on a machine that goes.
        for one in &request.nodes {
            let on =
                ListParams { field_selector: Some(format!("spec.nodeName={}", one.name)), ..ListParams::default() };
            let pods = client.list::<Pod>(None, &on).await.unwrap().items;
            assert!(pods.is_empty(), "a node with pods is deleted");
        }
        done(wire::NodeGroupDeleteNodesResponse {})
    }

    async fn node_group_decrease_target_size(
        &self,
        _: Request<wire::NodeGroupDecreaseTargetSizeRequest>,
    ) -> Result<Response<wire::NodeGroupDecreaseTargetSizeResponse>, Status> {
        done(wire::NodeGroupDecreaseTargetSizeResponse {})
    }

    async fn node_group_nodes(
        &self,
        request: Request<wire::NodeGroupNodesRequest>,
    ) -> Result<Response<wire::NodeGroupNodesResponse>, Status> {
        let running = wire::instance_status::InstanceState::InstanceRunning;
        let instance = |machine: &String| wire::Instance {
            id: id(machine),
            status: Some(wire::InstanceStatus { instance_state: running.into(), error_info: None }),
        };
        let instances = self.machines(&request.get_ref().id).iter().map(instance).collect();
        done(wire::NodeGroupNodesResponse { instances })
    }

    async fn node_group_template_node_info(
        &self,
        request: Request<wire::NodeGroupTemplateNodeInfoRequest>,
    ) -> Result<Response<wire::NodeGroupTemplateNodeInfoResponse>, Status> {
        let group = &request.get_ref().id;
        let cpu = self.state.lock().groups[group].cpu.clone();
        let message = descriptor::message_of("v1", "Node").unwrap();
        let node_bytes = protobuf::encode(message, &node("template", group, &cpu)).unwrap();
        done(wire::NodeGroupTemplateNodeInfoResponse { node_bytes, node_info: Vec::new() })
    }

    async fn node_group_get_options(
        &self,
        _: Request<wire::NodeGroupAutoscalingOptionsRequest>,
    ) -> Result<Response<wire::NodeGroupAutoscalingOptionsResponse>, Status> {
        Err(Status::unimplemented("no options of its own"))
    }
}
