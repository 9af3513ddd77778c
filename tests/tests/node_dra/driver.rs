//! A real driver of dynamic resource allocation, whose devices are other names of `/dev/null`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result};
use dhow_e2e::{Host, run};
use dhow_plugins::dra::dra_plugin_server::{DraPlugin, DraPluginServer};
use dhow_plugins::dra::*;
use dhow_plugins::registration::registration_server::{Registration, RegistrationServer};
use dhow_plugins::registration::{InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tonic::{Request, Response, Status};

use crate::wire::{Stop, serve};

pub const NAME: &str = "gadgets.example.com";

/// The description of the devices, where runtimes look for it.
pub struct Description {
    file: PathBuf,
    kind: String,
}

impl Description {
    pub fn new(devices: &[&str]) -> Result<Self> {
        let id = std::process::id();
        let (file, kind) = (format!("/var/run/cdi/dhow-e2e-{id}.json").into(), format!("e2e-{id}.example.com/gadget"));
        let own = Self { file, kind };
        std::fs::create_dir_all("/var/run/cdi")?;
        let device = |name: &&str| {
            let node = json!({"path": format!("/dev/gadget-{name}"), "hostPath": "/dev/null", "permissions": "rw"});
            json!({"name": name, "containerEdits": {"env": [format!("GADGET={name}")], "deviceNodes": [node]}})
        };
        let all: Vec<Value> = devices.iter().map(device).collect();
        let text = json!({"cdiVersion": "0.6.0", "kind": own.kind, "devices": all});
        std::fs::write(&own.file, text.to_string())?;
        Ok(own)
    }
}

impl Drop for Description {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.file);
    }
}

#[derive(Clone)]
pub struct Driver {
    folder: PathBuf,
    /// Tells instances of the driver apart.
    instance: &'static str,
    cdi: String,
    /// How to ask the API, as a driver's own client would.
    kubectl: Arc<Vec<String>>,
    kubeconfig: PathBuf,
    pub prepared: Arc<Mutex<Vec<String>>>,
    pub unprepared: Arc<Mutex<Vec<String>>>,
    /// What it answers instead of preparing.
    pub broken: Arc<Mutex<Option<String>>>,
}

impl Driver {
    pub fn new(host: &Host, description: &Description) -> Result<Self> {
        let folder = host.folder().join("dra-driver");
        std::fs::create_dir_all(&folder)?;
        let network = format!("--net=/run/netns/{}", host.namespace());
        let kubectl = [network.as_str(), "--", "kubectl", "get", "resourceclaim", "-o", "json"];
        Ok(Self {
            folder,
            instance: "gadgets",
            cdi: description.kind.clone(),
            kubectl: Arc::new(kubectl.map(str::to_owned).to_vec()),
            kubeconfig: host.kubeconfig(),
            prepared: Arc::default(),
            unprepared: Arc::default(),
            broken: Arc::default(),
        })
    }

    /// An older instance of the same driver, which speaks v1beta1 only.
    pub fn older(&self) -> Self {
        let (prepared, unprepared) = Default::default();
        Self { instance: "older", prepared, unprepared, ..self.clone() }
    }

    fn socket(&self) -> PathBuf {
        self.folder.join(format!("{}.sock", self.instance))
    }

    /// Listens at its own socket, and presents itself at `registry`. Has to be called inside a runtime.
    pub fn start(&self, registry: &Path) -> Vec<Stop> {
        let server = DraPluginServer::new(self.clone());
        let own = match self.instance {
            "older" => serve(&self.socket(), Older(server)),
            _ => serve(&self.socket(), server),
        };
        let registrar = registry.join(format!("{}-reg.sock", self.instance));
        vec![serve(&registrar, RegistrationServer::new(self.clone())), own]
    }

    fn claim(&self, claim: &Claim) -> Result<Value> {
        let mut command = Command::new("nsenter");
        command
            .args(self.kubectl.iter())
            .args(["-n", &claim.namespace, &claim.name])
            .env("KUBECONFIG", &self.kubeconfig);
        serde_json::from_str(&run(&mut command)?).context("read the claim")
    }

    fn prepare(&self, claim: &Claim) -> Result<Vec<Device>> {
        if let Some(why) = self.broken.lock().clone() {
            anyhow::bail!(why);
        }
        let found = self.claim(claim)?;
        anyhow::ensure!(found["metadata"]["uid"] == claim.uid, "another claim");
        let results = found["status"]["allocation"]["devices"]["results"].as_array().context("not allocated")?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let devices = results.iter().map(|result| Device {
            request_names: vec![text(&result["request"])],
            pool_name: text(&result["pool"]),
            device_name: text(&result["device"]),
            cdi_device_ids: vec![format!("{}={}", self.cdi, text(&result["device"]))],
        });
        self.prepared.lock().push(claim.uid.clone());
        Ok(devices.collect())
    }
}

/// Answers calls of v1beta1, whose messages are those of v1, and no others.
#[derive(Clone)]
struct Older(DraPluginServer<Driver>);

impl tower::Service<http::Request<hyper::body::Incoming>> for Older {
    type Response = http::Response<tonic::body::Body>;
    type Error = std::convert::Infallible;
    type Future = futures::future::BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: http::Request<hyper::body::Incoming>) -> Self::Future {
        let path = request.uri().path();
        let newer = match path.contains(".v1beta1.") {
            true => path.replace(".v1beta1.", ".v1."),
            false => "/unknown".to_owned(),
        };
        *request.uri_mut() = newer.parse().unwrap();
        Box::pin(self.0.call(request))
    }
}

#[tonic::async_trait]
impl DraPlugin for Driver {
    async fn node_prepare_resources(
        &self,
        request: Request<NodePrepareResourcesRequest>,
    ) -> Result<Response<NodePrepareResourcesResponse>, Status> {
        let own = self.clone();
        let work = tokio::task::spawn_blocking(move || {
            let one = |claim: Claim| {
                let answer = match own.prepare(&claim) {
                    Ok(devices) => NodePrepareResourceResponse { devices, error: String::new() },
                    Err(error) => NodePrepareResourceResponse { devices: Vec::new(), error: format!("{error:#}") },
                };
                (claim.uid, answer)
            };
            request.into_inner().claims.into_iter().map(one).collect()
        });
        let claims = work.await.map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(NodePrepareResourcesResponse { claims }))
    }

    async fn node_unprepare_resources(
        &self,
        request: Request<NodeUnprepareResourcesRequest>,
    ) -> Result<Response<NodeUnprepareResourcesResponse>, Status> {
        let all = request.into_inner().claims;
        self.unprepared.lock().extend(all.iter().map(|claim| claim.uid.clone()));
        let claims = all.into_iter().map(|claim| (claim.uid, NodeUnprepareResourceResponse::default())).collect();
        Ok(Response::new(NodeUnprepareResourcesResponse { claims }))
    }
}

#[tonic::async_trait]
impl Registration for Driver {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: "DRAPlugin".into(),
            name: NAME.into(),
            endpoint: self.socket().to_string_lossy().into_owned(),
            supported_versions: vec![
                if self.instance == "older" { "v1beta1.DRAPlugin" } else { "v1.DRAPlugin" }.into(),
            ],
        }))
    }

    async fn notify_registration_status(
        &self,
        _: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}
