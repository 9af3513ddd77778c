//! The servers that share a store: each keeps a key under a lease for as long as it lives, and the endpoints of
//! `default/kubernetes` follow those keys. Every server writes them; a write that would change nothing is none.
//!
//! All servers of a cluster listen on the same port, for a slice of endpoints has one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dhow_api::Status;
use dhow_client::Client;
use dhow_store::{Error, KeyRange, Kv, LeaseId, Op, RangeRequest, Txn, WatchRequest, WatchStream};
use futures::StreamExt;
use tokio_util::sync::CancellationToken;

use crate::bootstrap;

/// Where the keys are; the cache passes over them, for they are no kind's.
pub const PREFIX: &str = "/registry/masterleases/";
/// Before what failed is tried again.
const PAUSE: Duration = Duration::from_secs(1);

/// This server among those that share its store.
pub struct Member {
    kv: Arc<dyn Kv>,
    address: SocketAddr,
    ttl: u64,
    lease: LeaseId,
}

impl Member {
    /// Tells the others. A server that goes silent is forgotten after `ttl` seconds.
    pub async fn join(kv: Arc<dyn Kv>, address: SocketAddr, ttl: u64) -> Result<Self, Error> {
        let mut member = Self { kv, address, ttl, lease: 0 };
        member.enter().await?;
        Ok(member)
    }

    async fn enter(&mut self) -> Result<(), Error> {
        self.lease = self.kv.lease_grant(self.ttl).await?;
        let key = Bytes::from(format!("{PREFIX}{}", self.address));
        let op = Op::Put { key, value: Bytes::new(), lease: self.lease };
        self.kv.txn(Txn { success: vec![op], ..Txn::default() }).await.map(drop)
    }

    /// Where the servers are that live, and the changes of that.
    async fn others(&self) -> Result<(Vec<SocketAddr>, WatchStream), Error> {
        let range = KeyRange::prefix(PREFIX);
        let found = self.kv.range(RangeRequest { keys_only: true, ..RangeRequest::new(range.clone()) }).await?;
        let names = found.kvs.iter().filter_map(|kept| std::str::from_utf8(&kept.key).ok()?.strip_prefix(PREFIX));
        let addresses = names.filter_map(|name| name.parse().ok()).collect();
        let watch = WatchRequest { range, start_revision: found.revision + 1 };
        Ok((addresses, self.kv.watch(watch).await?))
    }

    /// Stays a member, and keeps the endpoints in line, until `shutdown`.
    pub async fn stay(mut self, client: Client, shutdown: CancellationToken) {
        loop {
            let changes = match self.publish(&client).await {
                Ok(changes) => Some(changes),
                Err(message) => {
                    tracing::warn!(message, "cannot keep the endpoints of the API");
                    None
                }
            };
            tokio::select! {
                () = self.until_changed(changes) => {}
                () = shutdown.cancelled() => break,
            }
        }
        if let Err(error) = self.kv.lease_revoke(self.lease).await {
            tracing::debug!(%error, "the others learn later that this server ended");
        }
    }

    async fn publish(&self, client: &Client) -> Result<WatchStream, String> {
        let (addresses, changes) = self.others().await.map_err(|error| error.to_string())?;
        publish(client, &addresses).await.map_err(|status| status.message)?;
        Ok(changes)
    }

    /// Keeps the lease until the members change, or until something is to be tried again.
    async fn until_changed(&mut self, mut changes: Option<WatchStream>) {
        let mut renewal = tokio::time::interval(Duration::from_secs(self.ttl) / 3);
        renewal.tick().await;
        loop {
            let change = async {
                match &mut changes {
                    Some(changes) => changes.next().await,
                    None => {
                        tokio::time::sleep(PAUSE).await;
                        None
                    }
                }
            };
            tokio::select! {
                message = change => match message {
                    Some(Ok(dhow_store::WatchMessage::Progress { .. })) => {}
                    Some(Ok(_)) => return,
                    Some(Err(_)) => return tokio::time::sleep(PAUSE).await,
                    None => return,
                },
                _ = renewal.tick() => match self.kv.lease_keep_alive(self.lease).await {
                    Ok(()) => {}
                    Err(Error::LeaseNotFound(_)) => {
                        if let Err(error) = self.enter().await {
                            tracing::warn!(%error, "cannot tell the other servers of this one");
                        }
                    }
                    Err(error) => tracing::warn!(%error, "cannot tell the other servers that this one lives"),
                },
            }
        }
    }
}

/// Makes these servers the endpoints of `default/kubernetes`.
pub async fn publish(client: &Client, addresses: &[SocketAddr]) -> Result<(), Status> {
    let Some(first) = addresses.iter().min() else { return Ok(()) };
    let mut same: Vec<SocketAddr> = addresses
        .iter()
        .filter(|other| other.port() == first.port() && other.is_ipv4() == first.is_ipv4())
        .copied()
        .collect();
    same.sort_unstable();
    bootstrap::api_endpoints(client, &same).await
}
