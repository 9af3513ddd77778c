//! The embedded runtime behind our CRI server.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use dhow_cri::Runtime;
use dhow_cri::embedded::{EmbeddedConfig, EmbeddedRuntime, Tuning};
use dhow_cri::server::CriServer;
use dhow_image::{ImageStore, PullOptions};
use dhow_oci::client::Program;
use tokio_util::sync::CancellationToken;

use crate::loopback;

pub struct Place {
    pub folder: PathBuf,
    pub cgroup_root: String,
    pub images: ImageStore,
    pub opened: AtomicU32,
}

impl Place {
    /// The runtime and the socket of a server over it; each time anew from what is on disk.
    pub async fn open(&self) -> (Arc<EmbeddedRuntime>, PathBuf) {
        let config = EmbeddedConfig {
            root: self.folder.clone(),
            run_dir: self.folder.join("run"),
            cgroup_root: self.cgroup_root.clone(),
            program: Program::own().unwrap(),
            images: self.images.clone(),
            pull: PullOptions::default(),
            network: Arc::new(loopback::Loopback),
            tuning: Tuning::default(),
            handlers: Default::default(),
        };
        let embedded = EmbeddedRuntime::open(config).await.unwrap();
        let socket = self.folder.join(format!("cri-{}.sock", self.opened.fetch_add(1, Ordering::Relaxed)));
        let runtime = Arc::clone(&embedded) as Arc<dyn Runtime>;
        let server = CriServer::bind(&socket, runtime, self.folder.join("images")).await.unwrap();
        tokio::spawn(server.run(CancellationToken::new()));
        (embedded, socket)
    }
}
