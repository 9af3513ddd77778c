//! The runtime suite on a containerd of the test's own, by CRI. The test binary is also the CNI plugin that it starts.
#![allow(clippy::unwrap_used)]

#[path = "support/busybox.rs"]
mod busybox;
#[path = "support/containerd.rs"]
mod containerd;
#[path = "support/daemon.rs"]
mod daemon;
#[path = "support/loopback.rs"]
mod loopback;
#[path = "support/registry.rs"]
mod registry;

use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use containerd::Containerd;
use dhow_cri::Runtime;
use dhow_cri::cni;
use dhow_cri::cri_client::{CriConfig, CriRuntime};
use dhow_cri::suite::{CASES, Stage};
use libtest_mimic::{Arguments, Failed, Trial};

fn main() -> ExitCode {
    if cni::asked_for() {
        return cni::main();
    }
    let mut arguments = Arguments::from_args();
    // The cases share one daemon and look at everything in it.
    arguments.test_threads = Some(1);
    let daemon = Arc::new(parking_lot::Mutex::new(None));
    let trials = CASES.iter().map(|(name, case)| {
        let daemon = Arc::clone(&daemon);
        Trial::test(*name, move || {
            let mut daemon = daemon.lock();
            let containerd = match &mut *daemon {
                Some(containerd) => containerd,
                none => none.insert(Containerd::start()?),
            };
            let registry = registry::Registry::start_for(name, containerd.folder.path(), &busybox::archive()?)?;
            let runtime = tokio::runtime::Runtime::new()?;
            let result = runtime.block_on(async {
                let (mut stage, server) = containerd.stage(name, &registry).await?;
                let server = tokio::spawn(server.run());
                let result = case(&mut stage).await;
                for sandbox in stage.runtime.list_sandboxes().await? {
                    stage.runtime.remove_sandbox(&sandbox.id).await?;
                }
                server.abort();
                result.map_err(|error| Failed::from(format!("{error}\n{}", containerd.daemon.log())))
            });
            dhow_cri::cgroups::remove_all(&cgroup_root());
            result
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    drop(daemon.lock().take());
    conclusion.exit_code()
}

fn cgroup_root() -> String {
    format!("dhow-test-{}-containerd", std::process::id())
}

impl Containerd {
    async fn stage(&self, name: &str, registry: &Option<registry::Registry>) -> Result<(Stage, cni::Server), Failed> {
        let server = cni::Server::bind(&self.folder.path().join("cni.sock"), Arc::new(loopback::Loopback))?;
        let socket = self.socket();
        let runtime = open(&socket).await;
        let folders = runtime.cni_folders().await?;
        assert_eq!(folders.plugins, self.folder.path().join("bin"));
        if runtime.image_status(busybox::NAME).await?.is_none() {
            runtime.import_image(Box::new(Cursor::new(busybox::archive()?))).await?;
        }
        let scratch = self.folder.path().join("scratch").join(name);
        std::fs::create_dir_all(&scratch)?;
        let stage = Stage {
            runtime,
            image: busybox::NAME.into(),
            private_image: registry.as_ref().map(registry::Registry::image),
            scratch,
            handler: String::new(),
            reopen: Box::new(move || {
                let socket = socket.clone();
                Box::pin(async move { open(&socket).await as Arc<dyn Runtime> })
            }),
        };
        Ok((stage, server))
    }
}

async fn open(socket: &Path) -> Arc<CriRuntime> {
    let config = CriConfig { socket: PathBuf::from(socket), cgroup_root: cgroup_root() };
    CriRuntime::open(config).await.unwrap()
}
