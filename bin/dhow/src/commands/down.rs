//! `dhow down`: stops daemon and containers; with `--purge`, leaves nothing behind.
#![allow(clippy::print_stderr)]

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::cli::DownArgs;
use crate::exit::Incomplete;
use crate::place::Place;
use crate::settings::Settings;
use crate::{builtins, kubeconfig, nameserver, pidfile, preflight, runtimes};

pub async fn run(args: DownArgs) -> Result<()> {
    preflight::root("dhow down")?;
    let mut place = Place::resolve(&args.place)?;
    // A mistake in the settings keeps a cloud from starting, never from stopping.
    if let Err(error) = Settings::load(&place.config) {
        eprintln!("warning: going on without the settings: {error:#}");
        place.config = "/dev/null".into();
    }
    let pid_file = place.pid_file();
    let was_running =
        tokio::task::spawn_blocking(move || pidfile::stop(&pid_file)).await.context("stop the daemon")??;
    nameserver::stop(&place).await?;
    let choice = runtimes::choose(&place)?;
    let (containers, unreached) = match builtins::stop_containers(&place, args.purge).await {
        Ok(containers) => (containers, None),
        // What is ours goes without it, too.
        Err(error) if args.purge && choice.socket().is_some() => (0, Some(error)),
        Err(error) => return Err(error),
    };
    eprintln!(
        "{}; {containers} pod sandboxes stopped.",
        if was_running { "Dhow is stopped" } else { "Dhow was not running" }
    );
    if !args.purge {
        eprintln!("Data is kept in {}; `dhow up` starts everything again.", place.data_dir.display());
        return Ok(());
    }
    if unreached.is_some() {
        runtimes::abandon(&place).await?;
    }
    let had_context = place.admin_kubeconfig().exists();
    builtins::purge(&place).await?;
    for folder in [&place.run_dir, &place.data_dir] {
        remove_folder(folder)?;
    }
    // A node that joined wrote none; one of that name would lead elsewhere.
    if had_context {
        kubeconfig::forget_for_user()?;
    }
    let Some(error) = unreached else {
        eprintln!("Purged: no rule, interface, mount, cgroup or file of Dhow is left.");
        return Ok(());
    };
    eprintln!("Purged: no rule, interface, mount, cgroup or file of Dhow is left outside the container runtime.");
    Err(Incomplete(format!(
        "{choice} could not be reached: {error:#}. What it keeps of this cloud's pods is still there, though none of them \
         runs. Once it is back, remove that: {}",
        choice.cleaning(&place.cgroup())
    ))
    .into())
}

fn remove_folder(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("remove {}", path.display())),
    }
}
