//! The node of a cluster whose servers are elsewhere.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use dhow_client::Client;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::agent_keys::{self, AgentKeys};
use crate::builtins::{self, Around, NodeIdentity, Parts, blocking};
use crate::join::Join;
use crate::place::Place;
use crate::{other_servers, pod_network};

const FIRST_RETRY: Duration = Duration::from_millis(500);
const LAST_RETRY: Duration = Duration::from_secs(15);

/// Runs until `shutdown`; calls `ready` once the node takes pods. A server that does not answer is waited for: containers
/// and services that are there go on meanwhile.
pub async fn run(place: &Place, shutdown: CancellationToken, ready: impl FnOnce()) -> Result<()> {
    let join = Join::read(place)?.context("this machine joined no cluster: run `dhow join URL --token TOKEN`")?;
    let node = agent_keys::node_client(place, &join)?;
    let client = node.0.clone();
    tokio::select! {
        () = answers(&client, &join.server) => {}
        () = shutdown.cancelled() => return Ok(()),
    }
    let opening = async {
        let networks = pod_network::obtain(&client, place).await?;
        let keys = AgentKeys::open(place, &join, node);
        let images = blocking(place, "open the image store", builtins::open_images);
        tokio::try_join!(keys, builtins::open_net(place, &networks), images)
    };
    let (keys, net, images) = tokio::select! {
        opened = opening => opened?,
        () = shutdown.cancelled() => return Ok(()),
    };
    let (users_shutdown, mut users) = (CancellationToken::new(), Parts::new());
    let renewed = &keys.nameserver_renewed;
    let nodes = builtins::start_network(place, &keys.access, renewed, &net, &users_shutdown, &mut users)?;
    let (tell_ready, is_ready) = oneshot::channel();
    let identity = NodeIdentity {
        client,
        tls: Arc::clone(&keys.tls),
        to_nodes: Arc::clone(&keys.to_nodes),
        ca_pem: join.ca_pem.clone(),
    };
    // The service proxy sees all endpoints anyway.
    let proxy = keys.access.client("system:kube-proxy")?;
    let around = Around { proxy: proxy.clone(), nodes };
    users.spawn(builtins::run_node(place.clone(), identity, around, net, images, users_shutdown.clone(), tell_ready));
    users.spawn(other_servers::follow(proxy, place.clone(), join.clone(), users_shutdown.clone()));
    users.spawn(keys.keep_renewed(on_hangup()?, users_shutdown.clone()));

    let (api_shutdown, mut api) = (CancellationToken::new(), Parts::new());
    // Nothing serves an API here.
    let stop = api_shutdown.clone();
    api.spawn(builtins::part("no API server", async move { stop.cancelled().await }));
    tokio::select! {
        ended = users.join_next() => return Err(builtins::ended_early(ended)),
        () = shutdown.cancelled() => {}
        Ok(()) = is_ready => {
            ready();
            tracing::info!(server = join.server, node = place.node_name, "ready");
        }
    }
    let ended = builtins::until_end(&mut api, &mut users, &shutdown).await;
    builtins::stop(users_shutdown, users, api_shutdown, api).await;
    ended
}

/// Returns once a server answers; there is nobody to tell us when.
async fn answers(client: &Client, server: &str) {
    let mut pause = FIRST_RETRY;
    loop {
        let question = http::Request::builder().uri("/readyz").body(Bytes::new());
        let answer = match question {
            Ok(question) => client.request(question).await.map(|answer| answer.status()),
            Err(_) => return,
        };
        match answer {
            Ok(status) if status.is_success() => return,
            Ok(status) => tracing::warn!(server, %status, "the server is not ready; waiting for it"),
            Err(error) => tracing::warn!(server, %error, "the server does not answer; waiting for it"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LAST_RETRY);
    }
}

/// Counts SIGHUPs: each asks for all certificates to be renewed now.
fn on_hangup() -> Result<watch::Receiver<u64>> {
    let mut hangup = signal(SignalKind::hangup()).context("listen for SIGHUP")?;
    let (count, counted) = watch::channel(0);
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            count.send_modify(|count| *count += 1);
        }
    });
    Ok(counted)
}
