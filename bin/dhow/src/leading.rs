//! What exactly one server of a cluster runs: controllers, scheduler, and the compaction of etcd's history.

use std::sync::Arc;
use std::time::Duration;

use dhow_apiserver::{ApiServer, UserInfo};
use dhow_base::pki::ClusterCa;
use dhow_client::leader::{self, LeaseSpec, LeaseTiming};
use dhow_controllers::{ClusterAutoscalerSettings, ControllersConfig, Pool};
use dhow_scheduler::SchedulerConfig;
use dhow_store::{Error, Kv};
use tokio_util::sync::CancellationToken;

use crate::networks::ClusterNetworks;
use crate::place::Place;
use crate::{build_kinds, cluster_dns, keys, publish};

/// Who leads, as `kubectl get lease -n kube-system` shows it.
const LEASE: &str = "dhow-server";
/// How much of etcd's history is kept, as upstream's API server does.
const HISTORY: Duration = Duration::from_secs(5 * 60);

const DNS_RETRY: Duration = Duration::from_secs(5);

const CONTROLLERS: &str = "system:kube-controller-manager";
const SCHEDULER: &str = "system:kube-scheduler";

pub struct Leading {
    pub server: Arc<ApiServer>,
    /// Published, and signs certificates.
    pub ca: Arc<ClusterCa>,
    pub balancer_pools: Vec<Pool>,
    pub cluster_autoscaler: Option<ClusterAutoscalerSettings>,
    /// The store, where other servers use it too.
    pub shared: Option<Arc<dyn Kv>>,
    pub schedulers: SchedulerConfig,
    pub builds: dhow_builder::cloud::Settings,
    /// What the registry beside it tells.
    pub pushes: dhow_builder::cloud::Pushes,
}

impl Leading {
    /// Until `shutdown`; on a shared store only while this server leads.
    pub async fn run(self, place: Place, shutdown: CancellationToken) {
        if self.shared.is_none() {
            return self.work(&place, shutdown.child_token()).await;
        }
        let spec = LeaseSpec {
            namespace: "kube-system".to_owned(),
            name: LEASE.to_owned(),
            identity: format!("{}_{}", place.node_name, uuid::Uuid::new_v4()),
            timing: timing(place.leader_lease),
        };
        let client = self.server.client(UserInfo::new(CONTROLLERS, &[]));
        leader::lead(client, spec, shutdown, |stop| self.work(&place, stop)).await;
    }

    /// All of it, until told to stop. One that ends by itself ends the others: half of it would only seem to run.
    async fn work(&self, place: &Place, stop: CancellationToken) {
        let client = self.server.client(UserInfo::new(CONTROLLERS, &[]));
        let config = ControllersConfig {
            root_ca_pem: self.ca.cert_pem().to_owned(),
            signer: Some(Arc::clone(&self.ca)),
            cluster_ranges: place.networks.ranges(),
            node_dns: Some(cluster_dns::of_nodes()),
            balancer_pools: self.balancer_pools.clone(),
            cluster_autoscaler: self.cluster_autoscaler.clone(),
            legacy_token_days: None,
        };
        let controllers = dhow_controllers::run_all(client, config, stop.clone());
        let client = self.server.client(UserInfo::new(SCHEDULER, &[]));
        let scheduler = dhow_scheduler::run(client, self.schedulers.clone(), stop.clone());
        let client = self.server.client(UserInfo::new(build_kinds::USER, &[]));
        let builds =
            dhow_builder::cloud::run(client, self.builds.clone(), Some(Arc::clone(&self.pushes)), stop.clone());
        let compaction = compact(self.shared.clone(), stop.clone());
        let published = async {
            tokio::select! { () = self.publish(&place.networks) => {}, () = stop.cancelled() => {} }
        };
        tokio::join!(
            ending(&stop, controllers),
            ending(&stop, scheduler),
            ending(&stop, builds),
            ending(&stop, compaction),
            published
        );
    }
}

impl Leading {
    /// Makes the Service of the cluster's DNS, and tells machines that join of the networks.
    async fn publish(&self, networks: &ClusterNetworks) {
        let administrator = self.server.client(UserInfo::new("system:dhow", &[keys::MASTERS]));
        let told = [networks.object()];
        let dns = async {
            while let Err(error) = cluster_dns::ensure(&administrator, networks.dns_service_ip()).await {
                tracing::warn!(error = format!("{error:#}"), "trying again");
                tokio::time::sleep(DNS_RETRY).await;
            }
        };
        tokio::join!(dns, publish::publish(&administrator, &told));
    }
}

/// Runs a part and, when it ends, stops the others.
async fn ending(stop: &CancellationToken, part: impl Future<Output = ()>) {
    part.await;
    stop.cancel();
}

/// Upstream's proportions: 15 s, 10 s and 2 s.
pub fn timing(duration: Duration) -> LeaseTiming {
    LeaseTiming { duration, renew_deadline: duration * 2 / 3, retry: duration * 2 / 15 }
}

/// Lets etcd forget what is older than [`HISTORY`]. The embedded store looks after itself.
async fn compact(shared: Option<Arc<dyn Kv>>, stop: CancellationToken) {
    let Some(kv) = shared else { return stop.cancelled().await };
    let (mut known, mut done) = (0, 0);
    loop {
        tokio::select! { () = tokio::time::sleep(HISTORY) => {}, () = stop.cancelled() => return }
        let compacted = async {
            let now = kv.current_revision().await?;
            if known > done {
                kv.compact(known).await?;
                done = known;
            }
            known = now;
            Ok(())
        };
        match compacted.await {
            Ok(()) | Err(Error::Compacted { .. }) => {}
            Err(error) => tracing::warn!(%error, "cannot compact etcd's history"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_timing_is_upstreams() {
        assert_eq!(timing(Duration::from_secs(15)), LeaseTiming::default());
    }

    #[tokio::test(start_paused = true)]
    async fn history_goes_when_it_is_old() {
        use dhow_store::{KeyRange, MemoryKv, Op, RangeRequest, Txn};
        let kv: Arc<dyn Kv> = Arc::new(MemoryKv::new());
        let stop = CancellationToken::new();
        let running = tokio::spawn(compact(Some(kv.clone()), stop.clone()));
        let put = async || {
            let op = Op::Put { key: "a".into(), value: "1".into(), lease: 0 };
            kv.txn(Txn { success: vec![op], ..Txn::default() }).await.unwrap().revision
        };
        let first = put().await;
        tokio::time::sleep(HISTORY + Duration::from_secs(1)).await;
        let second = put().await;
        tokio::time::sleep(HISTORY - Duration::from_secs(2)).await;
        let read = async |revision| kv.range(RangeRequest::at(KeyRange::key("a"), revision)).await;
        assert!(read(first).await.is_ok());
        let third = put().await;
        tokio::time::sleep(HISTORY + Duration::from_secs(2)).await;
        assert!(matches!(read(second).await, Err(Error::Compacted { .. })) && read(third).await.is_ok());
        stop.cancel();
        running.await.unwrap();
    }
}
