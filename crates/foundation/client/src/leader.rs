//! Leader election by a Lease: one holder at a time, taken over when it is not renewed.
//!
//! Invariant: whoever cannot renew stops well before another may begin, judged by its own clock alone; whoever ends in
//! order gives the lease back, so that another begins at once.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec as Held};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{Client, Error, Informer, Key, ListParams};

/// Which lease to hold, as whom.
#[derive(Debug, Clone)]
pub struct LeaseSpec {
    pub namespace: String,
    pub name: String,
    /// Different for every process.
    pub identity: String,
    pub timing: LeaseTiming,
}

/// How long a silent leader is waited for, and how often it speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseTiming {
    /// A lease that did not move for this long may be taken over.
    pub duration: Duration,
    /// A leader that could not renew for this long stops.
    pub renew_deadline: Duration,
    /// Between two attempts to get or renew the lease.
    pub retry: Duration,
}

impl Default for LeaseTiming {
    /// As upstream's components have them.
    fn default() -> Self {
        Self {
            duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry: Duration::from_secs(2),
        }
    }
}

/// Why `work` ended or was ended.
enum End {
    Shutdown,
    Lost,
    /// By itself.
    Work,
}

/// Runs `work` for as long as this process is the leader, again each time it becomes so, until `shutdown`.
///
/// `work` gets a token that says when to stop. At `shutdown` it is waited for, then the lease is given back. When
/// leadership is lost it is dropped where it stands: somebody else is about to do the same. Returns early if `work`
/// ends by itself.
pub async fn lead<F: Future<Output = ()>>(
    client: Client,
    spec: LeaseSpec,
    shutdown: CancellationToken,
    work: impl Fn(CancellationToken) -> F,
) {
    let mut election = Election { client, spec, held: None, seen: None };
    loop {
        let won = tokio::select! { won = election.win(&shutdown) => won, () = shutdown.cancelled() => return };
        tracing::info!(lease = election.spec.name, identity = election.spec.identity, "leading");
        let stop = shutdown.child_token();
        let end = {
            let working = work(stop.clone());
            tokio::pin!(working);
            tokio::select! {
                () = &mut working => if shutdown.is_cancelled() { End::Shutdown } else { End::Work },
                () = election.keep(won) => End::Lost,
            }
        };
        // What the work has started elsewhere ends with its token.
        stop.cancel();
        match end {
            End::Lost => tracing::warn!(lease = election.spec.name, "no longer leading"),
            End::Shutdown | End::Work => return election.release().await,
        }
    }
}

struct Election {
    client: Client,
    spec: LeaseSpec,
    /// Our own as it was written last.
    held: Option<Lease>,
    /// Another's lease in the version seen last, and since when it is so.
    seen: Option<(String, Instant)>,
}

impl Election {
    /// Returns once the lease is ours, with a moment before that was written. While another holds it, its changes are
    /// waited for; nothing is asked.
    async fn win(&mut self, shutdown: &CancellationToken) -> Instant {
        let stop = shutdown.child_token();
        let _ends = stop.clone().drop_guard();
        let scope =
            ListParams { field_selector: Some(format!("metadata.name={}", self.spec.name)), ..ListParams::default() };
        let copy = Informer::<Lease>::start(self.client.clone(), scope, Some(&self.spec.namespace), stop);
        let changed = Arc::<Notify>::default();
        let tell = changed.clone();
        copy.on_change(move |_| tell.notify_one());
        let key = Key::new(Some(&self.spec.namespace), &self.spec.name);
        loop {
            let begun = Instant::now();
            let pause = match copy.get(&key).and_then(|lease| self.judge(&lease)) {
                Some(left) => left,
                // A server that hangs must not make us miss that the lease is free.
                None => match tokio::time::timeout(self.spec.timing.renew_deadline, self.attempt()).await {
                    Ok(Ok(true)) => return begun,
                    Ok(Ok(false)) | Err(_) => self.spec.timing.retry,
                    Ok(Err(error)) => {
                        tracing::debug!(%error, lease = self.spec.name, "cannot get the lease");
                        self.spec.timing.retry
                    }
                },
            };
            tokio::select! { () = changed.notified() => {}, () = tokio::time::sleep(pause) => {} }
        }
    }

    /// How long another may still hold the lease without moving it; `None` if it is free or ours. Only this process's
    /// clock judges its age.
    fn judge(&mut self, lease: &Lease) -> Option<Duration> {
        let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default();
        if holder.is_empty() || holder == self.spec.identity {
            return None;
        }
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        let since = match &self.seen {
            Some((known, since)) if *known == version => *since,
            _ => self.seen.insert((version, Instant::now())).1,
        };
        Some(self.spec.timing.duration.saturating_sub(since.elapsed())).filter(|left| !left.is_zero())
    }

    /// Renews until that is not possible any more; `renewed` is when it was done last.
    async fn keep(&mut self, mut renewed: Instant) {
        let timing = self.spec.timing;
        loop {
            tokio::time::sleep_until((Instant::now() + timing.retry).min(renewed + timing.renew_deadline)).await;
            // Counted from before the attempt: others may count from the moment it was written.
            let begun = Instant::now();
            let left = (renewed + timing.renew_deadline).saturating_duration_since(begun);
            match tokio::time::timeout(left, self.attempt()).await {
                Ok(Ok(true)) => renewed = begun,
                Ok(Ok(false)) => return,
                Ok(Err(error)) => tracing::debug!(%error, lease = self.spec.name, "cannot renew the lease"),
                Err(_) => return,
            }
        }
    }

    /// Gives the lease back; if that fails it runs out.
    async fn release(&mut self) {
        let released = async {
            let (namespace, name) = (Some(self.spec.namespace.as_str()), self.spec.name.as_str());
            let mut lease = self.client.get::<Lease>(namespace, name).await?;
            let held: &mut Held = lease.spec.get_or_insert_default();
            if held.holder_identity.as_deref() == Some(&self.spec.identity) {
                held.holder_identity = Some(String::new());
                held.lease_duration_seconds = Some(1);
                held.renew_time = Some(MicroTime(Timestamp::now()));
                self.client.update(&lease).await?;
            }
            Ok::<_, Error>(())
        };
        match tokio::time::timeout(self.spec.timing.retry, released).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, lease = self.spec.name, "cannot give the lease back"),
            Err(_) => tracing::warn!(lease = self.spec.name, "cannot give the lease back in time"),
        }
    }

    /// Takes or renews the lease; false while another holds it.
    async fn attempt(&mut self) -> Result<bool, Error> {
        // One that is ours is written without being asked for: if it changed, that is a conflict.
        let mut lease = match self.held.take() {
            Some(held) => held,
            None => self.current().await?,
        };
        if self.judge(&lease).is_some() {
            return Ok(false);
        }
        let (spec, now) = (&self.spec, MicroTime(Timestamp::now()));
        let held: &mut Held = lease.spec.get_or_insert_default();
        if held.holder_identity.as_deref() != Some(&spec.identity) {
            held.acquire_time = Some(now.clone());
            held.lease_transitions = Some(held.lease_transitions.map_or(0, |times| times + 1));
        }
        held.holder_identity = Some(spec.identity.clone());
        held.lease_duration_seconds = Some(i32::try_from(spec.timing.duration.as_secs()).unwrap_or(i32::MAX).max(1));
        held.renew_time = Some(now);
        self.held = Some(self.client.update(&lease).await?);
        Ok(true)
    }

    /// The lease as the server has it, made if there is none.
    async fn current(&self) -> Result<Lease, Error> {
        let spec = &self.spec;
        match self.client.get::<Lease>(Some(&spec.namespace), &spec.name).await {
            Err(error) if error.is_not_found() => {
                let metadata = ObjectMeta {
                    namespace: Some(spec.namespace.clone()),
                    name: Some(spec.name.clone()),
                    ..ObjectMeta::default()
                };
                self.client.create(&Lease { metadata, ..Lease::default() }).await
            }
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use bytes::Bytes;
    use parking_lot::Mutex;
    use serde_json::{Value, json};

    /// A server with one lease and versions.
    #[derive(Default)]
    struct OneLease(Mutex<(u64, Option<Value>)>, std::sync::atomic::AtomicBool);

    #[async_trait::async_trait]
    impl crate::Transport for OneLease {
        async fn call(&self, request: http::Request<Bytes>) -> Result<http::Response<crate::Body>, Error> {
            if self.1.load(std::sync::atomic::Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
            let mut state = self.0.lock();
            let answer = |code: u16, value: &Value| {
                Ok(http::Response::builder().status(code).body(crate::full(value.to_string().into())).unwrap())
            };
            if request.method() == http::Method::GET {
                return state.1.as_ref().map_or_else(|| answer(404, &json!({})), |lease| answer(200, lease));
            }
            let mut sent: Value = serde_json::from_slice(request.body()).unwrap();
            let known = state.1.as_ref().map(|lease| lease["metadata"]["resourceVersion"].clone());
            if known.is_some_and(|known| known != sent["metadata"]["resourceVersion"]) {
                return answer(409, &json!({"reason": "Conflict"}));
            }
            state.0 += 1;
            sent["metadata"]["resourceVersion"] = json!(state.0.to_string());
            state.1 = Some(sent.clone());
            answer(200, &sent)
        }
    }

    /// Runs for a leadership; its number is what `busy` counts.
    fn start(
        server: &Arc<OneLease>,
        identity: &str,
        busy: &Arc<std::sync::atomic::AtomicUsize>,
    ) -> (CancellationToken, tokio::task::JoinHandle<()>) {
        let stop = CancellationToken::new();
        let spec = LeaseSpec {
            namespace: "kube-system".into(),
            name: "dhow".into(),
            identity: identity.into(),
            timing: LeaseTiming::default(),
        };
        let busy = busy.clone();
        let work = move |stop: CancellationToken| {
            let busy = busy.clone();
            async move {
                let _working = Working::begin(busy);
                stop.cancelled().await;
            }
        };
        (stop.clone(), tokio::spawn(lead(Client::new(server.clone()), spec, stop, work)))
    }

    /// Counts who works, also one that is dropped at work.
    struct Working(Arc<std::sync::atomic::AtomicUsize>);

    impl Working {
        fn begin(busy: Arc<std::sync::atomic::AtomicUsize>) -> Self {
            assert_eq!(busy.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0, "two lead at once");
            Self(busy)
        }
    }

    impl Drop for Working {
        fn drop(&mut self) {
            self.0.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
        }
    }

    fn holder(server: &OneLease) -> String {
        server.0.lock().1.as_ref().unwrap()["spec"]["holderIdentity"].as_str().unwrap().to_owned()
    }

    #[tokio::test(start_paused = true)]
    async fn another_leads_only_after_the_first_is_silent() {
        let (server, busy) = (Arc::new(OneLease::default()), Arc::default());
        let (_, first) = start(&server, "a", &busy);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let (_, second) = start(&server, "b", &busy);
        tokio::time::sleep(Duration::from_secs(120)).await;
        assert_eq!(holder(&server), "a", "the first renews");
        // As by kill -9.
        first.abort();
        tokio::time::sleep(Duration::from_secs(12)).await;
        assert_eq!(holder(&server), "a");
        tokio::time::sleep(Duration::from_secs(8)).await;
        assert_eq!(holder(&server), "b");
        second.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_that_ends_in_order_is_followed_at_once() {
        let (server, busy) = (Arc::new(OneLease::default()), Arc::default());
        let (stop, first) = start(&server, "a", &busy);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let (_, second) = start(&server, "b", &busy);
        tokio::time::sleep(Duration::from_secs(5)).await;
        stop.cancel();
        first.await.unwrap();
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(holder(&server), "b");
        second.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_that_cannot_renew_stops_in_time() {
        let (server, busy) = (Arc::new(OneLease::default()), Arc::<std::sync::atomic::AtomicUsize>::default());
        let (_, first) = start(&server, "a", &busy);
        tokio::time::sleep(Duration::from_secs(9)).await;
        assert_eq!(busy.load(std::sync::atomic::Ordering::SeqCst), 1);
        server.1.store(true, std::sync::atomic::Ordering::Relaxed);
        // Its last renewal was at 8 s; others may begin at 23 s.
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(busy.load(std::sync::atomic::Ordering::SeqCst), 0);
        first.abort();
    }
}
