//! `dhow up`: preflight, start, readiness, and what a person needs to know next.
#![allow(clippy::print_stderr)]

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::cli::UpArgs;
use crate::place::Place;
use crate::{daemon, kubeconfig, pidfile, preflight};

pub async fn run(args: UpArgs) -> Result<()> {
    let place = Place::resolve(&args.place)?;
    let begin = Instant::now();
    if pidfile::holder(&place.pid_file()).is_some() {
        eprintln!("dhow is already running; see `dhow status`");
        return Ok(());
    }
    for warning in preflight::check(&place)? {
        eprintln!("warning: {warning}");
    }
    if args.foreground {
        return daemon::serve(&place).await;
    }
    let timeout = Duration::from_secs(args.timeout);
    let started = place.clone();
    tokio::task::spawn_blocking(move || daemon::start(&started, timeout)).await.context("start the daemon")??;
    eprintln!("Dhow is ready after {} ms.", begin.elapsed().as_millis());
    eprintln!("  Kubernetes API  {}", place.api_url());
    if !args.no_kubeconfig {
        let text = std::fs::read_to_string(place.admin_kubeconfig()).context("read the administrator's kubeconfig")?;
        let administrator = serde_saphyr::from_str(&text).context("read the administrator's kubeconfig")?;
        let path = kubeconfig::merge_for_user(&administrator)?;
        eprintln!("  kubectl         context \"dhow\" in {}", path.display());
    }
    eprintln!("  data            {}", place.data_dir.display());
    eprintln!("  log             {}", place.log_file().display());
    eprintln!("Next: dhow deploy FILE, kubectl get pods -A, dhow status");
    Ok(())
}
