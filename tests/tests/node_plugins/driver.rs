//! A real CSI driver: directories, or files behind loop devices, of the test's own folder.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::Result;
use dhow_e2e::run;
use dhow_plugins::csi::node_server::{Node, NodeServer};
use dhow_plugins::csi::node_service_capability::{Rpc, Type as Kind, rpc};
use dhow_plugins::csi::volume_capability::AccessType;
use dhow_plugins::csi::volume_usage::Unit;
use dhow_plugins::csi::*;
use dhow_plugins::registration::registration_server::{Registration, RegistrationServer};
use dhow_plugins::registration::{InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse};
use parking_lot::Mutex;
use tonic::{Request, Response, Status};

use crate::wire::{Stop, serve};

pub const NAME: &str = "dirs.example.com";
pub const NODE_ID: &str = "node-one";
pub const TOPOLOGY: (&str, &str) = ("topology.dirs.example.com/rack", "r1");

/// One call, as far as the test looks at it.
#[derive(Debug, Clone, Default)]
pub struct Call {
    pub name: &'static str,
    pub volume: String,
    pub publish_context: HashMap<String, String>,
    pub context: HashMap<String, String>,
    pub secrets: HashMap<String, String>,
    pub readonly: bool,
    pub path: String,
}

#[derive(Clone)]
pub struct Driver {
    folder: PathBuf,
    pub calls: Arc<Mutex<Vec<Call>>>,
    pub told: Arc<Mutex<Vec<RegistrationStatus>>>,
    /// How it answers when it is to stage a volume, instead of doing that.
    pub refuses_to_stage: Arc<Mutex<Option<tonic::Code>>>,
}

fn failed(error: impl std::fmt::Display) -> Status {
    Status::internal(error.to_string())
}

fn mount(from: &Path, to: &str) -> Result<(), Status> {
    run(Command::new("mount").args(["--bind"]).arg(from).arg(to)).map(drop).map_err(failed)
}

/// Unmounts and removes, if there is anything.
fn unmount(path: &str) -> Result<(), Status> {
    if run(Command::new("mountpoint").args(["-q", path])).is_ok() {
        run(Command::new("umount").arg(path)).map_err(failed)?;
    }
    let path = Path::new(path);
    // A device is bound over a file.
    if path.is_file() {
        let _ = Command::new("umount").arg(path).output();
        std::fs::remove_file(path).map_err(failed)?;
    } else if path.exists() {
        let _ = Command::new("umount").arg(path).output();
        let _ = std::fs::remove_dir(path).or_else(|_| std::fs::remove_file(path));
    }
    Ok(())
}

impl Driver {
    pub fn new(folder: &Path) -> Self {
        std::fs::create_dir_all(folder.join("volumes")).unwrap();
        Self {
            folder: folder.to_owned(),
            calls: Arc::default(),
            told: Arc::default(),
            refuses_to_stage: Arc::default(),
        }
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.join("csi.sock")
    }

    pub fn volume(&self, id: &str) -> PathBuf {
        self.folder.join("volumes").join(id)
    }

    /// Listens at its own socket, and presents itself at `registry`.
    pub fn start(&self, registry: &Path) -> Vec<Stop> {
        let node = serve(&self.socket(), NodeServer::new(self.clone()));
        let registrar = serve(&registry.join("dirs-reg.sock"), RegistrationServer::new(self.clone()));
        vec![node, registrar]
    }

    pub fn calls_of(&self, name: &str, volume: &str) -> Vec<Call> {
        self.calls.lock().iter().filter(|call| call.name == name && call.volume == volume).cloned().collect()
    }

    fn note(&self, call: Call) {
        self.calls.lock().push(call);
    }

    /// What a controller makes: a folder, or a file for a block device.
    pub fn create(&self, id: &str, block: bool) -> Result<()> {
        let path = self.volume(id);
        match block {
            true => std::fs::File::create(path)?.set_len(1 << 20)?,
            false => {
                std::fs::create_dir_all(&path)?;
                std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
            }
        }
        Ok(())
    }
}

fn is_block(capability: Option<&VolumeCapability>) -> bool {
    matches!(capability.and_then(|one| one.access_type.as_ref()), Some(AccessType::Block(_)))
}

#[tonic::async_trait]
impl Node for Driver {
    async fn node_stage_volume(
        &self,
        request: Request<NodeStageVolumeRequest>,
    ) -> Result<Response<NodeStageVolumeResponse>, Status> {
        let asked = request.into_inner();
        if let Some(code) = *self.refuses_to_stage.lock() {
            self.note(Call { name: "refused", volume: asked.volume_id, ..Call::default() });
            return Err(Status::new(code, "not today"));
        }
        let path = asked.staging_target_path.clone();
        if is_block(asked.volume_capability.as_ref()) {
            let image = self.volume(&asked.volume_id);
            let device = run(Command::new("losetup").args(["--find", "--show"]).arg(image)).map_err(failed)?;
            std::fs::write(self.folder.join(format!("{}.device", asked.volume_id)), device.trim()).map_err(failed)?;
        } else if run(Command::new("mountpoint").args(["-q", &path])).is_err() {
            mount(&self.volume(&asked.volume_id), &path)?;
        }
        self.note(Call {
            name: "stage",
            volume: asked.volume_id,
            publish_context: asked.publish_context,
            context: asked.volume_context,
            secrets: asked.secrets,
            path,
            ..Call::default()
        });
        Ok(Response::new(NodeStageVolumeResponse {}))
    }

    async fn node_unstage_volume(
        &self,
        request: Request<NodeUnstageVolumeRequest>,
    ) -> Result<Response<NodeUnstageVolumeResponse>, Status> {
        let asked = request.into_inner();
        unmount(&asked.staging_target_path)?;
        let device = self.folder.join(format!("{}.device", asked.volume_id));
        if let Ok(name) = std::fs::read_to_string(&device) {
            run(Command::new("losetup").args(["--detach", &name])).map_err(failed)?;
            std::fs::remove_file(device).map_err(failed)?;
        }
        self.note(Call {
            name: "unstage",
            volume: asked.volume_id,
            path: asked.staging_target_path,
            ..Call::default()
        });
        Ok(Response::new(NodeUnstageVolumeResponse {}))
    }

    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        let asked = request.into_inner();
        let target = asked.target_path.clone();
        if is_block(asked.volume_capability.as_ref()) {
            let device = std::fs::read_to_string(self.folder.join(format!("{}.device", asked.volume_id)));
            std::fs::File::create(&target).map_err(failed)?;
            mount(Path::new(&device.map_err(failed)?), &target)?;
        } else {
            std::fs::create_dir_all(&target).map_err(failed)?;
            let from = match asked.staging_target_path.as_str() {
                "" => {
                    self.create(&asked.volume_id, false).map_err(failed)?;
                    self.volume(&asked.volume_id)
                }
                staged => PathBuf::from(staged),
            };
            mount(&from, &target)?;
            if asked.readonly {
                run(Command::new("mount").args(["-o", "remount,bind,ro", &target])).map_err(failed)?;
            }
        }
        self.note(Call {
            name: "publish",
            volume: asked.volume_id,
            publish_context: asked.publish_context,
            context: asked.volume_context,
            secrets: asked.secrets,
            readonly: asked.readonly,
            path: target,
        });
        Ok(Response::new(NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        let asked = request.into_inner();
        unmount(&asked.target_path)?;
        self.note(Call { name: "unpublish", volume: asked.volume_id, path: asked.target_path, ..Call::default() });
        Ok(Response::new(NodeUnpublishVolumeResponse {}))
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<NodeGetVolumeStatsRequest>,
    ) -> Result<Response<NodeGetVolumeStatsResponse>, Status> {
        if !Path::new(&request.into_inner().volume_path).exists() {
            return Err(Status::not_found("no such volume"));
        }
        let usage = |unit: Unit, total| VolumeUsage { available: total - 1, total, used: 1, unit: unit.into() };
        Ok(Response::new(NodeGetVolumeStatsResponse {
            usage: vec![usage(Unit::Bytes, 4242), usage(Unit::Inodes, 77)],
            volume_condition: None,
        }))
    }

    async fn node_expand_volume(
        &self,
        request: Request<NodeExpandVolumeRequest>,
    ) -> Result<Response<NodeExpandVolumeResponse>, Status> {
        let asked = request.into_inner();
        let bytes = asked.capacity_range.map_or(0, |range| range.required_bytes);
        self.note(Call { name: "expand", volume: asked.volume_id, path: format!("{bytes}"), ..Call::default() });
        Ok(Response::new(NodeExpandVolumeResponse { capacity_bytes: bytes }))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        let can = [rpc::Type::StageUnstageVolume, rpc::Type::GetVolumeStats, rpc::Type::ExpandVolume];
        let one = |kind: rpc::Type| NodeServiceCapability { r#type: Some(Kind::Rpc(Rpc { r#type: kind.into() })) };
        Ok(Response::new(NodeGetCapabilitiesResponse { capabilities: can.into_iter().map(one).collect() }))
    }

    async fn node_get_info(&self, _: Request<NodeGetInfoRequest>) -> Result<Response<NodeGetInfoResponse>, Status> {
        let segments = [(TOPOLOGY.0.to_owned(), TOPOLOGY.1.to_owned())].into();
        Ok(Response::new(NodeGetInfoResponse {
            node_id: NODE_ID.into(),
            max_volumes_per_node: 9,
            accessible_topology: Some(Topology { segments }),
        }))
    }
}

#[tonic::async_trait]
impl Registration for Driver {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: "CSIPlugin".into(),
            name: NAME.into(),
            endpoint: self.socket().display().to_string(),
            supported_versions: vec!["1.0.0".into()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        self.told.lock().push(request.into_inner());
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}
