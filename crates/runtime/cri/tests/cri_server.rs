//! The runtime suite on the embedded runtime through our CRI server and our CRI client. The test binary is also the shim.
#![allow(clippy::unwrap_used)]

#[path = "support/busybox.rs"]
mod busybox;
#[path = "support/loopback.rs"]
mod loopback;
#[path = "support/registry.rs"]
mod registry;
#[path = "support/served.rs"]
mod served;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use dhow_cri::Runtime;
use dhow_cri::cri_client::{CriConfig, CriRuntime};
use dhow_cri::embedded::EmbeddedRuntime;
use dhow_cri::suite::{CASES, Stage};
use dhow_image::ImageStore;
use libtest_mimic::{Arguments, Failed, Trial};
use served::Place;

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
                let (embedded, client) = open(&place).await;
                let mut stage = Stage {
                    runtime: client,
                    image: busybox::NAME.into(),
                    private_image: registry.as_ref().map(registry::Registry::image),
                    scratch: folder.path().join("scratch"),
                    handler: String::new(),
                    reopen: Box::new(move || {
                        let place = Arc::clone(&place);
                        Box::pin(async move { open(&place).await.1 as Arc<dyn Runtime> })
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

/// The runtime, a server over it, and a client of that.
async fn open(place: &Place) -> (Arc<EmbeddedRuntime>, Arc<CriRuntime>) {
    let (embedded, socket) = place.open().await;
    let client = CriRuntime::open(CriConfig { socket, cgroup_root: "cloud".into() }).await.unwrap();
    (embedded, client)
}
