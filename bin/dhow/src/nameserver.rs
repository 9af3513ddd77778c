//! The cluster's DNS as a process of its own, so that names resolve while the daemon is away: it goes on with what it
//! last knew, and follows the API again when that is back.

use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fs, io};

use anyhow::{Context, Result};
use dhow_base::files;
use dhow_client::{Client, HttpsConfig, Servers};
use rustix::process::Pid;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::join;
use crate::pidfile::{self, PidFile};
use crate::place::Place;
use crate::settings::Settings;

/// The command under which the binary is the name server.
pub const COMMAND: &str = "serve-dns";
const PORT: u16 = 53;
/// One that ends sooner than this is not started again at once.
const SHORT_LIFE: Duration = Duration::from_secs(5);

/// Runs the name server until told to end. This is the process itself.
pub async fn serve(place: &Place, gateways: &[IpAddr]) -> Result<()> {
    let _pid_file = PidFile::take(&place.dns_pid_file())?;
    let client = client(place).context("reach the API")?;
    let own: Vec<IpAddr> = gateways.iter().copied().chain([place.networks.dns_service_ip()]).collect();
    let config = Settings::load(&place.config)?.dns.resolve(place, gateways, &own)?;
    let addresses: Vec<SocketAddr> = gateways.iter().map(|gateway| SocketAddr::new(*gateway, PORT)).collect();
    let server = dhow_dns::Server::bind(&addresses, config).await.context("serve the cluster's DNS")?;
    let shutdown = crate::daemon::shutdown_signal()?;
    tokio::spawn(crate::daemon::stay_small());
    server.run(client, shutdown).await;
    Ok(())
}

/// On a machine that joined, to whichever of the cluster's servers answers: the daemon keeps the list.
fn client(place: &Place) -> Result<Client> {
    let config = HttpsConfig::from_kubeconfig(&place.dns_kubeconfig(), None)?;
    let file = join::servers_file(place);
    let listed = files::read_optional(&file)?.unwrap_or_default();
    let others = listed.lines().filter(|line| *line != config.server);
    let servers = Servers::new(std::iter::once(config.server.as_str()).chain(others))?.kept_in(file);
    Ok(Client::replaceable_among(Arc::new(servers), config)?.0)
}

/// Keeps a name server of this very binary running until `shutdown`, and leaves it running then. `renewed` is told
/// when its kubeconfig has changed.
pub async fn keep_running(
    place: Place,
    gateways: Vec<IpAddr>,
    renewed: Arc<Notify>,
    shutdown: CancellationToken,
) -> Result<()> {
    let path = place.dns_pid_file();
    let mut adopted = pidfile::holder(&path).filter(|pid| runs_this_binary(*pid));
    loop {
        let begun = Instant::now();
        let mut child = None;
        let pid = match adopted.take() {
            Some(pid) => pid,
            None => {
                stop(&place).await?;
                let started = start(&place, &gateways).context("start the name server")?;
                let pid = Pid::from_child(&started);
                child = Some(started);
                pid
            }
        };
        tokio::select! {
            ended = pidfile::ended(pid) => {
                ended.context("watch the name server")?;
                tracing::warn!("the name server ended; starting it again");
            }
            () = renewed.notified() => stop(&place).await?,
            () = shutdown.cancelled() => return Ok(()),
        }
        if let Some(mut child) = child {
            let _ = tokio::task::spawn_blocking(move || child.wait()).await;
        }
        if begun.elapsed() < SHORT_LIFE {
            tokio::select! {
                () = tokio::time::sleep(SHORT_LIFE) => {}
                () = shutdown.cancelled() => return Ok(()),
            }
        }
    }
}

/// Ends the name server of this place, if one runs.
pub async fn stop(place: &Place) -> Result<()> {
    let path = place.dns_pid_file();
    tokio::task::spawn_blocking(move || pidfile::stop(&path)).await.context("stop the name server")??;
    Ok(())
}

/// After an upgrade the old binary's name server is replaced.
fn runs_this_binary(pid: Pid) -> bool {
    let file = |path: String| fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino())).ok();
    let theirs = file(format!("/proc/{}/exe", pid.as_raw_nonzero()));
    theirs.is_some() && theirs == file("/proc/self/exe".into())
}

fn start(place: &Place, gateways: &[IpAddr]) -> io::Result<Child> {
    let log = fs::OpenOptions::new().create(true).append(true).open(place.log_file())?;
    Command::new("/proc/self/exe")
        .arg0("dhow")
        .arg(COMMAND)
        .arg("--gateway")
        .arg(gateways.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(","))
        .args(place.as_args())
        .env_remove("NOTIFY_SOCKET")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .current_dir("/")
        .process_group(0)
        .spawn()
}
