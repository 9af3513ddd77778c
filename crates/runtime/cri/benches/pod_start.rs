//! How long a pod's sandbox and container take to start in the embedded runtime, with and without sandboxes made ahead.
//!
//! `cargo bench -p dhow-cri --bench pod_start [-- PODS]`, as root. Pods are started one after another; the network is
//! loopback alone, so what a link costs is not in these figures (`bench/slice.py` measures pods from outside).
#![allow(clippy::unwrap_used, clippy::print_stdout)]

#[path = "../tests/support/busybox.rs"]
mod busybox;
#[path = "../tests/support/loopback.rs"]
mod loopback;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dhow_cri::Runtime;
use dhow_cri::embedded::{EmbeddedConfig, EmbeddedRuntime, Tuning};
use dhow_cri::runtime::{
    ContainerConfig, NamespaceMode, NamespaceOptions, PodIdentity, Resources, SandboxConfig, SecurityContext,
};
use dhow_image::{ImageStore, PullOptions};
use dhow_oci::client::Program;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|first| first == dhow_oci::shim::COMMAND) {
        return dhow_oci::shim::main(args);
    }
    let pods = std::env::args().filter_map(|arg| arg.parse().ok()).next().unwrap_or(50);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap();
    println!("load {}, {pods} pods each; ms, p50 (p99)\n", load.split(' ').next().unwrap_or_default());
    println!("| sandboxes made ahead | sandbox | create | start | create and start | all |\n|---|---|---|---|---|---|");
    for slots in [0, 2] {
        tokio::runtime::Runtime::new().unwrap().block_on(measure(slots, pods));
    }
    ExitCode::SUCCESS
}

async fn measure(slots: usize, pods: usize) {
    let folder = tempfile::tempdir().unwrap();
    let images = ImageStore::open(&folder.path().join("images")).unwrap();
    images.import(std::io::Cursor::new(busybox::archive().unwrap())).await.unwrap();
    let runtime = EmbeddedRuntime::open(EmbeddedConfig {
        root: folder.path().to_owned(),
        run_dir: folder.path().join("run"),
        cgroup_root: format!("dhow-bench-{}", std::process::id()),
        program: Program::own().unwrap(),
        images,
        pull: PullOptions::default(),
        network: Arc::new(loopback::Loopback),
        tuning: Tuning { slots, ..Tuning::default() },
        handlers: Default::default(),
    })
    .await
    .unwrap();
    let mut times: [Vec<f64>; 5] = Default::default();
    for pod in 0..pods {
        // Pods come apart from each other, so that one does not wait for the next one's sandbox.
        tokio::time::sleep(Duration::from_millis(150)).await;
        let begin = Instant::now();
        let id = runtime.run_sandbox(sandbox(folder.path(), pod)).await.unwrap();
        let with_sandbox = begin.elapsed();
        let container = runtime.create_container(&id, container()).await.unwrap();
        let created = begin.elapsed();
        runtime.start_container(&container).await.unwrap();
        let started = begin.elapsed();
        let parts = [with_sandbox, created - with_sandbox, started - created, started - with_sandbox, started];
        for (list, part) in times.iter_mut().zip(parts) {
            list.push(part.as_secs_f64() * 1000.0);
        }
        runtime.remove_sandbox(&id).await.unwrap();
    }
    let cells: Vec<String> = times
        .iter_mut()
        .map(|list| {
            list.sort_by(f64::total_cmp);
            format!("{:.1} ({:.1})", list[list.len() / 2], list[(list.len() * 99 / 100).min(list.len() - 1)])
        })
        .collect();
    println!("| {slots} | {} |", cells.join(" | "));
    runtime.remove_all().await.unwrap();
}

fn sandbox(folder: &std::path::Path, pod: usize) -> SandboxConfig {
    let uid = format!("uid-{pod}");
    SandboxConfig {
        cgroup_parent: format!("kubepods/besteffort/pod{uid}"),
        pod: PodIdentity { namespace: "default".into(), name: format!("pod-{pod}"), uid, attempt: 0 },
        hostname: "pod".into(),
        log_directory: folder.join("logs"),
        dns: None,
        port_mappings: Vec::new(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        namespaces: NamespaceOptions { pid: NamespaceMode::Container, ..NamespaceOptions::default() },
        sysctls: BTreeMap::new(),
        runtime_handler: String::new(),
    }
}

fn container() -> ContainerConfig {
    ContainerConfig {
        name: "main".into(),
        attempt: 0,
        image: busybox::NAME.into(),
        command: vec!["/bin/sleep".into(), "60".into()],
        args: Vec::new(),
        working_dir: None,
        envs: Vec::new(),
        mounts: Vec::new(),
        devices: Vec::new(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        log_path: "main/0.log".into(),
        stdin: false,
        stdin_once: false,
        tty: false,
        resources: Resources { cpu_shares: Some(100), memory_limit: Some(64 << 20), ..Resources::default() },
        security: SecurityContext::default(),
        ..ContainerConfig::default()
    }
}
