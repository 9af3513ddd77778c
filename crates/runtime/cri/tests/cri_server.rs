//! The runtime suite on the embedded runtime through our CRI server and our CRI client. The test binary is also the shim.
#![allow(clippy::unwrap_used)]

#[path = "support/busybox.rs"]
mod busybox;
#[path = "support/loopback.rs"]
mod loopback;
#[path = "support/registry.rs"]
mod registry;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use dhow_cri::Runtime;
use dhow_cri::cri_client::{CriConfig, CriRuntime};
use dhow_cri::embedded::{EmbeddedConfig, EmbeddedRuntime, Tuning};
use dhow_cri::server::CriServer;
use dhow_cri::suite::{CASES, Stage};
use dhow_image::{ImageStore, PullOptions};
use dhow_oci::client::Program;
use libtest_mimic::{Arguments, Failed, Trial};
use tokio_util::sync::CancellationToken;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|first| first == dhow_oci::shim::COMMAND) {
        return dhow_oci::shim::main(args);
    }
    let trials = CASES.iter().map(|(name, case)| {
        Trial::test(*name, move || {
            let runtime = tokio::runtime::Runtime::new()?;
            runtime.block_on(async {
                let folder = tempfile::tempdir()?;
                let registry = registry::Registry::start_for(name, folder.path(), &busybox::archive()?)?;
                let images = ImageStore::open(&folder.path().join("images"))?;
                images.import(std::io::Cursor::new(busybox::archive()?)).await?;
                let place = Arc::new(Place {
                    folder: folder.path().to_owned(),
                    cgroup_root: format!("dhow-test-{}-cri-{name}", std::process::id()),
                    images,
                    opened: AtomicU32::new(0),
                });
                let (embedded, client) = place.open().await;
                let mut stage = Stage {
                    runtime: client,
                    image: busybox::NAME.into(),
                    private_image: registry.as_ref().map(registry::Registry::image),
                    scratch: folder.path().join("scratch"),
                    handler: String::new(),
                    reopen: Box::new(move || {
                        let place = Arc::clone(&place);
                        Box::pin(async move { place.open().await.1 as Arc<dyn Runtime> })
                    }),
                };
                let result = case(&mut stage).await;
                embedded.remove_all().await?;
                result.map_err(|error| Failed::from(error.to_string()))
            })
        })
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}

struct Place {
    folder: PathBuf,
    cgroup_root: String,
    images: ImageStore,
    opened: AtomicU32,
}

impl Place {
    /// The runtime, a server over it, and a client of that; each time anew from what is on disk.
    async fn open(&self) -> (Arc<EmbeddedRuntime>, Arc<CriRuntime>) {
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
        let client = CriRuntime::open(CriConfig { socket, cgroup_root: "cloud".into() }).await.unwrap();
        (embedded, client)
    }
}
