//! `dhow`: command line and wiring. See `ARCHITECTURE.md` for where everything else lives.

mod access;
mod agent;
mod agent_keys;
mod backup;
mod backup_object;
mod backups;
mod build_kinds;
mod builds;
mod builtins;
mod cli;
mod cluster_dns;
mod commands;
mod daemon;
mod dns_settings;
mod dns_zones;
mod exit;
mod image_peers;
mod image_policies;
mod join;
mod keys;
mod kubeconfig;
mod leading;
mod migrate;
mod nameserver;
mod networks;
mod node_access;
mod other_servers;
mod pidfile;
mod place;
mod pod_network;
mod preflight;
mod publish;
mod registry;
mod registry_settings;
mod registry_trust;
mod runtimes;
mod s3_settings;
mod settings;
mod shared;
mod store;

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{CommandFactory, Parser};

use cli::{Cli, Command};

/// What threads that still wait for the system get at the end.
const FAREWELL: Duration = Duration::from_millis(100);

fn main() -> ExitCode {
    // The shim is this same binary. It must start before any thread or runtime exists.
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|first| first == dhow_oci::shim::COMMAND) {
        return dhow_oci::shim::main(args);
    }
    // So are what runtimes and we start for a moment, in namespaces of pods.
    if dhow_cri::cni::asked_for() {
        return dhow_cri::cni::main();
    }
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|first| first == dhow_cri::docker::FORWARD_COMMAND) {
        return dhow_cri::docker::forward_main(args);
    }
    if let Some(args) = dhow_oci::cli::asked_for() {
        return dhow_oci::cli::main(args);
    }
    match Cli::parse().command {
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "dhow", &mut std::io::stdout());
            ExitCode::SUCCESS
        }
        Command::Man { folder } => exit::report(manual(&folder)),
        // It forks, too.
        Command::Oci(args) => dhow_oci::cli::main(*args),
        command => exit::report(run(command)),
    }
}

/// One page for each command that is not hidden, as man(1) wants them.
fn manual(folder: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    clap_mangen::generate_to(Cli::command(), folder).with_context(|| format!("write to {}", folder.display()))
}

fn run(command: Command) -> anyhow::Result<()> {
    // Pods' users read what is made for them, whatever the caller of a daemon keeps from others; secrets name their mode.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("the TLS provider was installed twice"))?;
    let mut builder = match command {
        // One small process more: a thread is enough for it.
        Command::ServeDns { .. } => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    // Readers of documents go down with them, at most `dhow_api::bounds::MAX_DEPTH` levels; only what is used is taken.
    let runtime = builder.enable_all().thread_stack_size(8 << 20).build()?;
    let result = runtime.block_on(async {
        match command {
            Command::Up(args) => commands::up::run(args).await,
            Command::Join(args) => commands::join::run(*args).await,
            Command::Token(command) => commands::token::run(command).await,
            Command::Down(args) => commands::down::run(args).await,
            Command::Status(args) => commands::status::run(args).await,
            Command::Doctor(args) => commands::doctor::run(args).await,
            Command::Exec(args) => commands::exec::run(args).await,
            Command::Logs(args) => commands::logs::run(args).await,
            Command::Top(command) => commands::top::run(command).await,
            Command::Install(args) => {
                tokio::task::spawn_blocking(move || commands::install::run(&args)).await.context("install")?
            }
            Command::Backup(command) => commands::backup::run(command).await,
            Command::SupportBundle(args) => commands::support_bundle::run(args).await,
            Command::Version(args) => commands::version::run(args).await,
            Command::Config(command) => commands::config::run(&command),
            Command::Deploy(args) => commands::deploy::run(args).await,
            Command::Undeploy(args) => commands::deploy::undeploy::run(args).await,
            Command::Build(args) => commands::build::run(*args).await,
            Command::Builds(command) => commands::builds::run(command).await,
            Command::Image(command) => commands::image::run(command).await,
            Command::Registry(command) => commands::registry::run(command).await,
            Command::Kubeconfig(args) => commands::print_kubeconfig(&args),
            Command::Server(args) => match args.command {
                Some(command) => commands::server::run(command).await,
                None => daemon::serve(&place::Place::resolve(&args.place)?, daemon::Role::Server).await,
            },
            Command::Sim(args) => commands::sim::run(args).await,
            Command::Cri(args) => commands::cri::run(args).await,
            Command::Serve(args) => daemon::serve(&place::Place::resolve(&args)?, daemon::Role::All).await,
            Command::ServeNode(args) => daemon::serve(&place::Place::resolve(&args)?, daemon::Role::Node).await,
            Command::ServeDns { place, gateway } => {
                let place = place::Place::resolve(&place)?;
                daemon::init_logging(place.log_format)?;
                nameserver::serve(&place, &gateway).await
            }
            Command::Completion { .. } | Command::Man { .. } | Command::Oci(_) => Ok(()),
        }
    });
    // A thread may be waiting for a resolver that does not answer; nothing that must be finished is left to threads.
    runtime.shutdown_timeout(FAREWELL);
    result
}
