//! The runtime suite on a Docker daemon of the test's own. The test binary is also the helper that it starts.
#![allow(clippy::unwrap_used)]

#[path = "support/busybox.rs"]
mod busybox;
#[path = "support/daemon.rs"]
mod daemon;
#[path = "support/dockerd.rs"]
mod dockerd;
#[path = "support/loopback.rs"]
mod loopback;
#[path = "support/registry.rs"]
mod registry;

use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;

use daemon::{Daemon, Folder};
use dhow_cri::Runtime;
use dhow_cri::docker::{self, DockerConfig, DockerRuntime};
use dhow_cri::suite::{CASES, Stage};
use libtest_mimic::{Arguments, Failed, Trial};

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|first| first == docker::FORWARD_COMMAND) {
        return docker::forward_main(args);
    }
    let mut arguments = Arguments::from_args();
    // The cases share one daemon and look at everything in it.
    arguments.test_threads = Some(1);
    let daemon = Arc::new(parking_lot::Mutex::new(None));
    let trials = CASES.iter().map(|(name, case)| {
        let daemon = Arc::clone(&daemon);
        Trial::test(*name, move || {
            let mut daemon = daemon.lock();
            let docker = match &mut *daemon {
                Some(docker) => docker,
                none => none.insert(Docker::start()?),
            };
            let registry = registry::Registry::start_for(name, docker.folder.path(), &busybox::archive()?)?;
            let runtime = tokio::runtime::Runtime::new()?;
            let result = runtime.block_on(async {
                let mut stage = docker.stage(name, &registry).await?;
                let result = case(&mut stage).await;
                for sandbox in stage.runtime.list_sandboxes().await? {
                    stage.runtime.remove_sandbox(&sandbox.id).await?;
                }
                result.map_err(|error| Failed::from(format!("{error}\n{}", docker.daemon.log())))
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
    format!("dhow-test-{}-docker", std::process::id())
}

/// Docker with a containerd below it that is private, too; the daemon goes first.
struct Docker {
    daemon: Daemon,
    _containerd: Daemon,
    folder: Folder,
}

impl Docker {
    fn start() -> Result<Self, Failed> {
        let folder = Folder::new()?;
        let (containerd, daemon) = dockerd::start(|program| Command::new(program), folder.path())?;
        Ok(Self { daemon, _containerd: containerd, folder })
    }

    async fn stage(&self, name: &str, registry: &Option<registry::Registry>) -> Result<Stage, Failed> {
        let socket = self.folder.path().join("d.sock");
        let runtime = open(&socket).await;
        if runtime.image_status(busybox::NAME).await?.is_none() {
            runtime.import_image(Box::new(Cursor::new(busybox::archive()?))).await?;
        }
        let scratch = self.folder.path().join("scratch").join(name);
        std::fs::create_dir_all(&scratch)?;
        Ok(Stage {
            runtime,
            image: busybox::NAME.into(),
            private_image: registry.as_ref().map(registry::Registry::image),
            scratch,
            handler: String::new(),
            reopen: Box::new(move || {
                let socket = socket.clone();
                Box::pin(async move { open(&socket).await as Arc<dyn Runtime> })
            }),
        })
    }
}

async fn open(socket: &Path) -> Arc<DockerRuntime> {
    let network = Arc::new(loopback::Loopback);
    let config = DockerConfig { socket: PathBuf::from(socket), cgroup_root: cgroup_root(), network };
    DockerRuntime::open(config).await.unwrap()
}
