//! The runtime suite on the embedded runtime. The test binary is also the shim that it starts.
#![allow(clippy::unwrap_used)]

#[path = "support/busybox.rs"]
mod busybox;
#[path = "support/loopback.rs"]
mod loopback;
#[path = "support/own.rs"]
mod own;
#[path = "support/registry.rs"]
mod registry;

use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use dhow_cri::Runtime;
use dhow_cri::embedded::{EmbeddedConfig, EmbeddedRuntime, Tuning};
use dhow_cri::suite::{CASES, Case, Stage};
use dhow_image::{ImageStore, PullOptions};
use dhow_oci::client::Program;
use dhow_oci::spec::{LogLimits, OciProgram};
use libtest_mimic::{Arguments, Failed, Trial};

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|first| first == dhow_oci::shim::COMMAND) {
        return dhow_oci::shim::main(args);
    }
    // Our own runtime runs everything; the programs in its place run what every runtime must do.
    let own = CASES.iter().chain(own::CASES).map(|(name, case)| trial("", name, *case));
    let others = HANDLERS.iter().flat_map(|(handler, _)| CASES.iter().map(|(name, case)| trial(handler, name, *case)));
    let trials = own.chain(others).collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// Programs that run containers in our place, as a runtime class names them.
const HANDLERS: [(&str, &str); 2] = [("runc", "/usr/sbin/runc"), ("crun", "/usr/bin/crun")];

fn trial(handler: &'static str, name: &'static str, case: Case) -> Trial {
    let title = if handler.is_empty() { name.to_owned() } else { format!("{handler}::{name}") };
    Trial::test(title, move || {
        let runtime = tokio::runtime::Runtime::new()?;
        runtime.block_on(async {
            let folder = tempfile::tempdir()?;
            let cgroup_root = format!("dhow-test-{}-{handler}-{name}", std::process::id());
            let registry = registry::Registry::start_for(name, folder.path(), &busybox::archive()?)?;
            let (mut stage, opened) = stage(folder.path(), &cgroup_root, handler, &registry).await?;
            let result = case(&mut stage).await;
            if result.is_err() {
                shim_logs(folder.path());
            }
            // Those that a case opened anew hold sandboxes made ahead, too.
            let opened = std::mem::take(&mut *opened.lock().map_err(|error| error.to_string())?);
            for embedded in opened {
                embedded.remove_all().await?;
            }
            result.map_err(|error| Failed::from(error.to_string()))
        })
    })
}

/// What the shims had to say, for whoever looks into a failure.
#[allow(clippy::print_stderr)]
fn shim_logs(folder: &Path) {
    for entry in std::fs::read_dir(folder.join("sandboxes")).into_iter().flatten().flatten() {
        if let Ok(text) = std::fs::read_to_string(entry.path().join("shim.log")) {
            eprintln!("shim: {text}");
        }
    }
}

/// All runtimes that were opened in one place.
type Opened = Arc<Mutex<Vec<Arc<EmbeddedRuntime>>>>;

async fn stage(
    folder: &Path,
    cgroup_root: &str,
    handler: &str,
    registry: &Option<registry::Registry>,
) -> Result<(Stage, Opened), Failed> {
    let images = ImageStore::open(&folder.join("images"))?;
    images.import(std::io::Cursor::new(busybox::archive()?)).await?;
    let (folder, cgroup_root) = (folder.to_owned(), cgroup_root.to_owned());
    let scratch = folder.join("scratch");
    let opened = Opened::default();
    let all = Arc::clone(&opened);
    let open = move || {
        let all = Arc::clone(&all);
        let config = EmbeddedConfig {
            root: folder.clone(),
            run_dir: folder.join("run"),
            cgroup_root: cgroup_root.clone(),
            program: Program::own().unwrap(),
            images: images.clone(),
            pull: PullOptions::default(),
            network: Arc::new(loopback::Loopback),
            tuning: Tuning { slots: 2, logs: LogLimits { max_size: 4096, max_files: 3 } },
            handlers: HANDLERS
                .iter()
                .map(|(name, path)| ((*name).to_owned(), OciProgram { path: path.into(), options: Vec::new() }))
                .collect(),
        };
        async move {
            let runtime = EmbeddedRuntime::open(config).await.unwrap();
            all.lock().unwrap().push(Arc::clone(&runtime));
            runtime
        }
    };
    let embedded = open().await;
    let stage = Stage {
        runtime: embedded,
        image: busybox::NAME.into(),
        private_image: registry.as_ref().map(registry::Registry::image),
        scratch,
        handler: handler.to_owned(),
        reopen: Box::new(move || {
            let opening = open();
            Box::pin(async move { opening.await as Arc<dyn Runtime> })
        }),
    };
    Ok((stage, opened))
}
