//! `dhow join`: makes this machine a node of a cluster.
#![allow(clippy::print_stderr)]

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cli::JoinArgs;
use crate::join::{Authority, Join, Token, server_url};
use crate::networks::ClusterNetworks;
use crate::place::Place;
use crate::{daemon, pidfile, preflight};

/// A daemon that was just killed holds its pid file for a moment longer.
const FAREWELL: Duration = Duration::from_millis(300);

pub async fn run(args: JoinArgs) -> Result<()> {
    let timeout = Duration::from_secs(args.timeout);
    let late = |_| crate::exit::TimedOut(format!("not joined after {} s", args.timeout));
    // Which networks there are says of which families the node's own addresses are.
    tokio::time::timeout(timeout, learn_networks(&args)).await.map_err(late)??;
    let place = Place::resolve(&args.place)?;
    if place.etcd.is_some() {
        bail!("--store is for servers; a further server joins with `dhow server --store`");
    }
    if place.store_dir().exists() || place.admin_kubeconfig().exists() {
        bail!(
            "{} holds a cluster of its own; a node needs a folder of its own (--data-dir), or `dhow down --purge` first",
            place.data_dir.display()
        );
    }
    if let Some(pid) = pidfile::holder(&place.pid_file())
        && tokio::time::timeout(FAREWELL, pidfile::ended(pid)).await.is_err()
    {
        eprintln!("dhow is already running (pid {})", pid.as_raw_nonzero());
        return Ok(());
    }
    let begin = Instant::now();
    for warning in preflight::check(&place, &[(place.node_port, "--node-port")])? {
        eprintln!("warning: {warning}");
    }
    std::fs::create_dir_all(&place.data_dir).with_context(|| format!("create {}", place.data_dir.display()))?;
    let join = tokio::time::timeout(timeout, come_in(&place, &args)).await.map_err(late)??;
    if args.foreground {
        return daemon::serve(&place, daemon::Role::Node).await;
    }
    let started = place.clone();
    let start = move || daemon::start(&started, daemon::Role::Node, timeout);
    tokio::task::spawn_blocking(start).await.context("start the daemon")??;
    eprintln!("Node {} joined {} and is ready after {} ms.", place.node_name, join.server, begin.elapsed().as_millis());
    eprintln!("  data            {}", place.data_dir.display());
    eprintln!("  log             {}", place.log_file().display());
    eprintln!("Next, on a server: kubectl get nodes");
    Ok(())
}

/// Records the networks of a cluster that this machine is new to, unless flags say them.
async fn learn_networks(args: &JoinArgs) -> Result<()> {
    let folder = std::path::absolute(&args.place.data_dir).context("resolve the data folder")?;
    let said = !args.place.pod_cidr.is_empty() || !args.place.service_cidr.is_empty();
    if said || args.server.is_none() || ClusterNetworks::recorded(&folder)?.is_some() {
        return Ok(());
    }
    let invitation = Invitation::read(args)?;
    let ask = async {
        let (client, _) = invitation.authority.client(&invitation.server, &invitation.token).await?;
        ClusterNetworks::published(&client).await
    };
    if let Some(networks) = ask.await.with_context(|| format!("join {}", invitation.server))? {
        std::fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        networks.record(&folder)?;
    }
    Ok(())
}

/// What a machine that is new needs to come in.
struct Invitation {
    server: String,
    token: Token,
    authority: Authority,
}

impl Invitation {
    fn read(args: &JoinArgs) -> Result<Self> {
        let text = match (&args.token, &args.place.token_file) {
            (Some(text), _) => text.clone(),
            (None, Some(path)) => std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?,
            (None, None) => {
                bail!("a token is needed: `dhow token create` on a server prints one (--token, --token-file)")
            }
        };
        let token: Token = text.parse().map_err(anyhow::Error::msg)?;
        let server = args.server.as_deref().context("the server's address is needed: dhow join https://HOST:6443")?;
        let authority = Authority::choose(&token, args.ca_hash.as_deref(), args.ca_file.as_deref())?;
        Ok(Self { server: server_url(server)?, token, authority })
    }
}

/// Goes on with the certificate that is there, else buys one with the token.
async fn come_in(place: &Place, args: &JoinArgs) -> Result<Join> {
    if let Some(join) = Join::read(place)?
        && join.is_in(place)?
    {
        return match args.server.as_deref().map(server_url).transpose()? {
            Some(server) if server != join.server => {
                bail!("this machine is a node of {}; `dhow down --purge` lets it leave", join.server)
            }
            _ => Ok(join),
        };
    }
    let Invitation { server, token, authority } = Invitation::read(args)?;
    Join::make(place, &server, &token, &authority).await.with_context(|| format!("join {server}"))
}
