//! `dhow up`: preflight, start, readiness, and what a person needs to know next.
#![allow(clippy::print_stderr)]

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use dhow_client::Client;

use super::token;
use crate::cli::UpArgs;
use crate::exit::TimedOut;
use crate::join::Join;
use crate::place::Place;
use crate::{daemon, kubeconfig, pidfile, preflight};

pub async fn run(args: UpArgs) -> Result<()> {
    let place = Place::resolve(&args.place)?;
    let begin = Instant::now();
    let timeout = Duration::from_secs(args.timeout);
    if already_running(&place, timeout).await? {
        eprintln!("dhow is already running; see `dhow status`");
        return Ok(());
    }
    if let Some(join) = Join::read(&place)? {
        bail!("this machine is a node of {}; start it with `dhow join`", join.server);
    }
    let ports = [(place.api_port, "--api-port"), (place.node_port, "--node-port")];
    for warning in preflight::check(&place, &ports)? {
        eprintln!("warning: {warning}");
    }
    if args.foreground {
        return daemon::serve(&place, daemon::Role::All).await;
    }
    let started = place.clone();
    tokio::task::spawn_blocking(move || daemon::start(&started, daemon::Role::All, timeout))
        .await
        .context("start the daemon")??;
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
    if let Some(line) = token::line_after_start(&place).await {
        eprintln!("  join            {line}");
    }
    eprintln!("Next: dhow deploy FILE, kubectl get pods -A, dhow status");
    Ok(())
}

/// How long one question to a daemon may take.
const QUESTION: Duration = Duration::from_secs(2);
/// How long its end is waited for before it is asked again.
const PAUSE: Duration = Duration::from_millis(100);

/// Whether a daemon of this place answers. One that was just killed, or is about to end, holds its pid file for a moment
/// longer; its end is waited for.
async fn already_running(place: &Place, timeout: Duration) -> Result<bool> {
    let deadline = Instant::now() + timeout;
    loop {
        let Some(pid) = pidfile::holder(&place.pid_file()) else { return Ok(false) };
        if matches!(tokio::time::timeout(QUESTION, answers(place)).await, Ok(Ok(()))) {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            let number = pid.as_raw_nonzero();
            let log = place.log_file();
            bail!(TimedOut(format!("dhow runs (pid {number}) but its API does not answer; see {}", log.display())));
        }
        if let Ok(ended) = tokio::time::timeout(PAUSE, pidfile::ended(pid)).await {
            ended.context("wait for the former daemon's end")?;
        }
    }
}

async fn answers(place: &Place) -> Result<()> {
    let client = Client::from_kubeconfig(&place.admin_kubeconfig(), None)?;
    let request = http::Request::builder().uri("/readyz").body(bytes::Bytes::new()).context("build the request")?;
    let answer = client.request(request).await?;
    anyhow::ensure!(answer.status().is_success(), "the API is not ready");
    Ok(())
}
