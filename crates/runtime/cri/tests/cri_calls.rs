//! Every call of CRI on Debian's containerd and on ours, by one client: what both answer is compared.
//!
//! The test binary is also the shim that ours starts and the CNI plugin that containerd starts.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

#[path = "support/busybox.rs"]
mod busybox;
#[path = "cri_calls/calls.rs"]
mod calls;
#[path = "support/containerd.rs"]
mod containerd;
#[path = "support/daemon.rs"]
mod daemon;
#[path = "support/loopback.rs"]
mod loopback;
#[path = "cri_calls/ours.rs"]
mod ours;
#[path = "support/served.rs"]
mod served;
#[path = "cri_calls/shape.rs"]
mod shape;

use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use calls::Caller;
use dhow_cri::cri_client::{CriConfig, CriRuntime};
use dhow_cri::{Runtime, cni};
use dhow_image::ImageStore;
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::Value;
use served::Place;

/// Where the two differ on purpose: the step, and why.
const ON_PURPOSE: &[(&str, &str)] = &[
    ("RuntimeConfig", "containerd has it from 1.7 on"),
    ("GetContainerEvents", "containerd has it from 1.7 on"),
    ("UpdatePodSandboxResources", "containerd has it from 2.0 on"),
    ("StopContainer of nobody", "CRI wants it to succeed; containerd does so from 1.7 on"),
    ("StopPodSandbox of nobody", "CRI wants it to succeed; containerd does so from 1.7 on"),
    ("ListImages, absent of one", "containerd lists all images when the one asked for is not there"),
    ("ImageFsInfo", "containerd counts now and then, and not what was imported"),
    ("UpdateContainerResources, stopped", "what has ended has no limits to change"),
];

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|first| first == dhow_oci::shim::COMMAND) {
        return dhow_oci::shim::main(args);
    }
    if cni::asked_for() {
        return cni::main();
    }
    let trials = vec![
        Trial::test("every_call_is_answered_as_containerd_does", || in_runtime(compare())),
        Trial::test("what_kubelets_need_beyond_is_there", || in_runtime(ours())),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn in_runtime(test: impl Future<Output = Result<(), Failed>>) -> Result<(), Failed> {
    tokio::runtime::Runtime::new()?.block_on(test)
}

async fn compare() -> Result<(), Failed> {
    let theirs = on_containerd().await?;
    let ours = on_ours(|caller| Box::pin(calls::all(caller))).await?;
    let mut wrong = Vec::new();
    let names: Vec<&String> = theirs.keys().chain(ours.keys().filter(|name| !theirs.contains_key(*name))).collect();
    for name in &names {
        let (there, here) = (theirs.get(*name), ours.get(*name));
        let why = ON_PURPOSE.iter().find(|(step, _)| step == name);
        // containerd has this one code for most failures; ours may say more.
        let vague =
            there.is_some_and(|there| there["code"] == "Unknown") && here.is_some_and(|here| here["code"].is_string());
        match (there == here || vague, why) {
            (false, None) => wrong.push(format!("{name}\n  containerd: {}\n  ours:       {}", show(there), show(here))),
            (true, Some((_, why))) => wrong.push(format!("{name} is the same on both, but was to differ: {why}")),
            _ => {}
        }
    }
    eprintln!("{} answers compared", names.len());
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n").into()) }
}

fn show(value: Option<&Value>) -> String {
    value.map_or_else(|| "nothing".to_owned(), Value::to_string)
}

async fn on_containerd() -> Result<BTreeMap<String, Value>, Failed> {
    let containerd = containerd::Containerd::start()?;
    let server = cni::Server::bind(&containerd.folder.path().join("cni.sock"), Arc::new(loopback::Loopback))?;
    let server = tokio::spawn(server.run());
    let group = format!("dhow-test-{}-calls", std::process::id());
    let config = CriConfig { socket: containerd.socket(), cgroup_root: group.clone() };
    // It brings the pause image, and the one that is tested with.
    let client = CriRuntime::open(config).await?;
    client.import_image(Box::new(Cursor::new(busybox::archive()?))).await?;
    let mut caller = Caller::connect(&containerd.socket(), containerd.folder.path(), &group).await;
    let done = calls::all(&mut caller).await;
    caller.clear().await;
    server.abort();
    dhow_cri::cgroups::remove_all(&group);
    done.map_err(|error| {
        Failed::from(format!("{}\n{}", error.message().unwrap_or_default(), containerd.daemon.log()))
    })?;
    Ok(caller.seen)
}

type Calls<'a> = std::pin::Pin<Box<dyn Future<Output = Result<(), Failed>> + 'a>>;

async fn on_ours(calls: impl for<'a> FnOnce(&'a mut Caller) -> Calls<'a>) -> Result<BTreeMap<String, Value>, Failed> {
    let folder = tempfile::tempdir()?;
    let images = ImageStore::open(&folder.path().join("images"))?;
    images.import(Cursor::new(busybox::archive()?)).await?;
    let place = Place {
        folder: folder.path().to_owned(),
        cgroup_root: format!("dhow-test-{}-own-{}", std::process::id(), name_of(folder.path())),
        images,
        opened: AtomicU32::new(0),
    };
    let (embedded, socket) = place.open().await;
    let mut caller = Caller::connect(&socket, folder.path(), "pods").await;
    let done = calls(&mut caller).await;
    embedded.remove_all().await?;
    done?;
    Ok(caller.seen)
}

fn name_of(folder: &Path) -> String {
    folder.file_name().unwrap_or_default().to_string_lossy().trim_matches('.').to_owned()
}

async fn ours() -> Result<(), Failed> {
    on_ours(|caller| Box::pin(ours::all(caller))).await.map(drop)
}
