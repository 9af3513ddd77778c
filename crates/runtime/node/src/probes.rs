//! Startup, liveness and readiness probes: one task per running container that has any.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use dhow_cri::Runtime;
use dhow_cri::runtime::{ContainerState, ContainerStatus, ExecResult};
use k8s_openapi::api::core::v1::{Container, EnvVar, ExecAction, PodSpec, PodStatus, Probe};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use crate::http_check::{self, Asked};

/// Output of a probe that goes into an event, in bytes.
const OUTPUT_LIMIT: usize = 10 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Startup,
    Liveness,
    Readiness,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }
}

/// A probe that gave its container up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure {
    pub kind: Kind,
    /// The probe's own, in place of the pod's.
    pub grace: Option<Duration>,
}

/// What is known, by container id.
#[derive(Debug, Default, Clone)]
pub struct Results {
    pub started: BTreeSet<String>,
    pub ready: BTreeSet<String>,
    pub unhealthy: BTreeMap<String, Failure>,
}

/// One check; the error says why it did not pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    pub container: String,
    pub kind: Kind,
    pub outcome: Result<(), String>,
}

/// Told of every check.
pub type Listener = Arc<dyn Fn(&Report) + Send + Sync>;

/// The probes of one pod; dropping it ends them.
#[derive(Default)]
pub struct Probes {
    results: Arc<Mutex<Results>>,
    tasks: BTreeMap<String, AbortHandle>,
}

impl Drop for Probes {
    fn drop(&mut self) {
        self.tasks.values().for_each(AbortHandle::abort);
    }
}

/// Whom a pod's probes ask and tell.
pub struct Around<'a> {
    pub runtime: &'a Arc<dyn Runtime>,
    /// Where the pod's ports are reached.
    pub ip: &'a str,
    pub wake: &'a Arc<Notify>,
    pub listener: &'a Listener,
    pub now: SystemTime,
    /// What was told of the pod last, perhaps by an agent before this one.
    pub told: Option<&'a PodStatus>,
}

impl Around<'_> {
    /// Whether a container was started, and ready, when it was told of last. It stays so until a probe finds otherwise:
    /// a new agent takes nobody out of service.
    fn was(&self, id: &str) -> (bool, bool) {
        let lists = self.told.map(|told| [&told.container_statuses, &told.init_container_statuses]);
        let all = lists.into_iter().flatten().flatten().flatten();
        let same = |told: &str| told.split_once("://").is_some_and(|(_, told)| told == id);
        let told = all.into_iter().find(|one| one.container_id.as_deref().is_some_and(same));
        told.map_or((false, false), |told| (told.started == Some(true), told.ready))
    }
}

impl Probes {
    /// Follows what runs now and returns what is known of it.
    pub fn update(&mut self, spec: &PodSpec, containers: &[ContainerStatus], around: &Around<'_>) -> Results {
        let running = |id: &str| containers.iter().any(|c| c.id == id && c.state == ContainerState::Running);
        self.tasks.retain(|id, task| {
            let keep = running(id);
            if !keep {
                task.abort();
            }
            keep
        });
        for seen in containers.iter().filter(|c| c.state == ContainerState::Running) {
            if self.tasks.contains_key(&seen.id) {
                continue;
            }
            let all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
            let Some(container) = all.into_iter().find(|c| c.name == seen.name) else {
                // Debug containers have no probes.
                self.results.lock().started.insert(seen.id.clone());
                continue;
            };
            let age = seen.started_at.and_then(|at| around.now.duration_since(at).ok()).unwrap_or_default();
            let was = around.was(&seen.id);
            let target = Target {
                was,
                runtime: Arc::clone(around.runtime),
                id: seen.id.clone(),
                ip: around.ip.to_owned(),
                container: container.clone(),
                age,
                results: Arc::clone(&self.results),
                wake: Arc::clone(around.wake),
                listener: Arc::clone(around.listener),
            };
            let mut results = self.results.lock();
            if container.startup_probe.is_none() || was.0 {
                results.started.insert(seen.id.clone());
                if container.readiness_probe.is_none() || was.1 {
                    results.ready.insert(seen.id.clone());
                }
            }
            drop(results);
            let task = tokio::spawn(target.run()).abort_handle();
            self.tasks.insert(seen.id.clone(), task);
        }
        let mut results = self.results.lock();
        let Results { started, ready, unhealthy } = &mut *results;
        for set in [started, ready] {
            set.retain(|id| running(id));
        }
        unhealthy.retain(|id, _| running(id));
        results.clone()
    }
}

struct Target {
    runtime: Arc<dyn Runtime>,
    id: String,
    ip: String,
    container: Container,
    /// How long it had run when the agent met it.
    age: Duration,
    /// Started, and ready; see [`Around::was`].
    was: (bool, bool),
    results: Arc<Mutex<Results>>,
    wake: Arc<Notify>,
    listener: Listener,
}

fn seconds(value: Option<i32>, default: u64) -> Duration {
    Duration::from_secs(value.and_then(|v| u64::try_from(v).ok()).unwrap_or(default))
}

fn count(value: Option<i32>, default: u32) -> u32 {
    value.and_then(|v| u32::try_from(v).ok()).unwrap_or(default)
}

/// How long after meeting it a container is first checked: its initial delay counts from its start, and one that ran
/// before the agent did waits a part of its period, so that the probes of many pods do not fall together.
fn first_wait(probe: &Probe, age: Duration, id: &str) -> Duration {
    const MET_AT_BIRTH: Duration = Duration::from_secs(10);
    let initial = seconds(probe.initial_delay_seconds, 0).saturating_sub(age);
    if age < MET_AT_BIRTH {
        return initial;
    }
    let spread = id.bytes().fold(0_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(byte))) % 1000;
    initial + seconds(probe.period_seconds, 10).mul_f64(f64::from(spread) / 1000.0)
}

impl Target {
    async fn run(self) {
        if let Some(probe) = self.container.startup_probe.as_ref().filter(|_| !self.was.0) {
            let passed = self.follow(Kind::Startup, probe, self.age, |ok| ok.then_some(true)).await;
            if !passed {
                return self.give_up(Kind::Startup, probe);
            }
            self.tell(|results, id| _ = results.started.insert(id));
        }
        let liveness = async {
            if let Some(probe) = &self.container.liveness_probe {
                self.follow(Kind::Liveness, probe, self.age, |_| None).await;
                self.give_up(Kind::Liveness, probe);
            }
        };
        let readiness = async {
            let Some(probe) = &self.container.readiness_probe else {
                return self.tell(|results, id| _ = results.ready.insert(id));
            };
            self.follow(Kind::Readiness, probe, self.age, |ok| {
                self.tell(|results, id| _ = if ok { results.ready.insert(id) } else { results.ready.remove(&id) });
                None
            })
            .await;
        };
        tokio::join!(liveness, readiness);
    }

    fn tell(&self, change: impl FnOnce(&mut Results, String)) {
        change(&mut self.results.lock(), self.id.clone());
        self.wake.notify_one();
    }

    fn give_up(&self, kind: Kind, probe: &Probe) {
        let grace = probe.termination_grace_period_seconds.and_then(|s| u64::try_from(s).ok()).map(Duration::from_secs);
        self.tell(|results, id| _ = results.unhealthy.insert(id, Failure { kind, grace }));
    }

    /// Checks for ever and hands each change of the result to `changed`, which may end it. Readiness goes on after
    /// failures; the others end at the threshold with false.
    async fn follow(&self, kind: Kind, probe: &Probe, age: Duration, changed: impl Fn(bool) -> Option<bool>) -> bool {
        tokio::time::sleep(first_wait(probe, age, &self.id)).await;
        // A container counts as alive, and as neither started nor ready unless it was, until something else is found.
        let mut state = kind == Kind::Liveness || kind == Kind::Readiness && self.was.0 && self.was.1;
        let mut run = (state, 0_u32);
        loop {
            let outcome = self.check(probe).await;
            let ok = outcome.is_ok();
            (self.listener)(&Report { container: self.container.name.clone(), kind, outcome });
            run = if run.0 == ok { (ok, run.1 + 1) } else { (ok, 1) };
            let needed = if ok { count(probe.success_threshold, 1) } else { count(probe.failure_threshold, 3) };
            if run.1 >= needed {
                if !ok && kind != Kind::Readiness {
                    return false;
                }
                if state != ok {
                    state = ok;
                    if let Some(end) = changed(ok) {
                        return end;
                    }
                }
            }
            tokio::time::sleep(seconds(probe.period_seconds, 10)).await;
        }
    }

    /// One check; the error is for the pod's events.
    async fn check(&self, probe: &Probe) -> Result<(), String> {
        let timeout = seconds(probe.timeout_seconds, 1);
        if let Some(exec) = &probe.exec {
            let command = command(exec, &self.container);
            return match self.runtime.exec_sync(&self.id, &command, Some(timeout)).await {
                Ok(result) if result.exit_code == 0 => Ok(()),
                Ok(result) => Err(output(&result)),
                Err(dhow_cri::Error::DeadlineExceeded(_)) => {
                    Err(format!("command timed out: {:?} timed out after {}s", command.join(" "), timeout.as_secs()))
                }
                Err(error) => Err(error.to_string()),
            };
        }
        let check = async {
            if let Some(grpc) = &probe.grpc {
                let port = u16::try_from(grpc.port).map_err(|_| format!("invalid port number: {}", grpc.port))?;
                return crate::grpc::check(&self.ip, port, grpc.service.as_deref().unwrap_or_default()).await;
            }
            if let Some(http) = &probe.http_get {
                return match Asked::new(http, &self.container, &self.ip)?.send().await?.status {
                    200..400 => Ok(()),
                    status => Err(format!("HTTP probe failed with statuscode: {status}")),
                };
            }
            if let Some(tcp) = &probe.tcp_socket {
                let port = http_check::port(&self.container, &tcp.port)?;
                let host = tcp.host.as_deref().filter(|host| !host.is_empty()).unwrap_or(&self.ip);
                return http_check::connect(host, port).await.map(drop);
            }
            Err("missing probe handler".into())
        };
        let late = || match (&probe.http_get, &probe.grpc) {
            (Some(_), _) => "context deadline exceeded (Client.Timeout exceeded while awaiting headers)".to_owned(),
            (_, Some(grpc)) => {
                let address = http_check::authority(&self.ip, u16::try_from(grpc.port).unwrap_or(0));
                format!("timeout: failed to connect service {address:?} within {}s", timeout.as_secs())
            }
            _ => format!("i/o timeout after {}s", timeout.as_secs()),
        };
        tokio::time::timeout(timeout, check).await.unwrap_or_else(|_| Err(late()))
    }
}

/// The command with the container's variables in it: those that are written out in its spec, as they are written. What
/// they would come from is not asked for again, so that others are empty.
fn command(exec: &ExecAction, container: &Container) -> Vec<String> {
    let written = |env: &EnvVar| (env.name.clone(), env.value.clone().unwrap_or_default());
    let vars = container.env.iter().flatten().map(written).collect();
    exec.command.iter().flatten().map(|word| crate::env::expand(word, &vars)).collect()
}

/// What a command printed, cut to what an event holds.
fn output(result: &ExecResult) -> String {
    let mut all = result.stdout.clone();
    all.extend_from_slice(&result.stderr);
    all.truncate(OUTPUT_LIMIT);
    String::from_utf8_lossy(&all).into_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::{FakeRuntime, container};

    struct Fixture {
        fake: Arc<FakeRuntime>,
        runtime: Arc<dyn Runtime>,
        probes: Probes,
        wake: Arc<Notify>,
        reports: Arc<Mutex<Vec<Report>>>,
        listener: Listener,
        spec: PodSpec,
        told: Option<PodStatus>,
    }

    impl Fixture {
        fn new(probes: serde_json::Value) -> Self {
            let fake = Arc::new(FakeRuntime::default());
            let mut container = serde_json::json!({"name": "a"});
            container.as_object_mut().unwrap().extend(probes.as_object().unwrap().clone());
            let reports = Arc::<Mutex<Vec<Report>>>::default();
            let told = Arc::clone(&reports);
            Self {
                runtime: fake.clone(),
                fake,
                probes: Probes::default(),
                wake: Arc::default(),
                reports,
                listener: Arc::new(move |report| told.lock().push(report.clone())),
                spec: serde_json::from_value(serde_json::json!({"containers": [container]})).unwrap(),
                told: None,
            }
        }

        /// What is known after this many (virtual) seconds of a container that just started.
        async fn after(&mut self, seconds: u64) -> Results {
            let run = container("s", "a", 0, None);
            let around = Around {
                runtime: &self.runtime,
                ip: "127.0.0.1",
                wake: &self.wake,
                listener: &self.listener,
                now: run.started_at.unwrap(),
                told: self.told.as_ref(),
            };
            self.probes.update(&self.spec, std::slice::from_ref(&run), &around);
            tokio::time::sleep(Duration::from_millis(seconds * 1000 + 1)).await;
            self.probes.update(&self.spec, &[run], &around)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_container_without_probes_is_ready_at_once() {
        let results = Fixture::new(serde_json::json!({})).after(0).await;
        assert!(results.started.contains("s-a-0") && results.ready.contains("s-a-0"));
    }

    #[tokio::test(start_paused = true)]
    async fn readiness_waits_for_its_delay_and_follows_thresholds_both_ways() {
        let probe = serde_json::json!({"exec": {"command": ["x"]}, "initialDelaySeconds": 5, "periodSeconds": 2,
            "successThreshold": 2, "failureThreshold": 2});
        let mut fixture = Fixture::new(serde_json::json!({"readinessProbe": probe}));
        assert!(fixture.after(5).await.ready.is_empty());
        assert!(fixture.after(2).await.ready.contains("s-a-0"));
        fixture.fake.exit_code.store(1, std::sync::atomic::Ordering::Relaxed);
        assert!(fixture.after(2).await.ready.contains("s-a-0"));
        assert!(fixture.after(2).await.ready.is_empty());
        let last = fixture.reports.lock().last().cloned().unwrap();
        assert_eq!((last.kind, last.outcome), (Kind::Readiness, Err("no\n".to_owned())));
    }

    #[tokio::test(start_paused = true)]
    async fn liveness_waits_for_startup_and_gives_up_at_its_threshold_with_its_own_grace() {
        let exec = serde_json::json!({"command": ["x"]});
        let mut fixture = Fixture::new(serde_json::json!({
            "startupProbe": {"exec": exec, "periodSeconds": 1, "failureThreshold": 30},
            "livenessProbe": {"exec": exec, "periodSeconds": 10, "terminationGracePeriodSeconds": 3}}));
        fixture.fake.exit_code.store(1, std::sync::atomic::Ordering::Relaxed);
        assert!(fixture.after(10).await.started.is_empty());
        fixture.fake.exit_code.store(0, std::sync::atomic::Ordering::Relaxed);
        let results = fixture.after(1).await;
        assert!(results.started.contains("s-a-0") && results.unhealthy.is_empty() && results.ready.contains("s-a-0"));
        fixture.fake.exit_code.store(1, std::sync::atomic::Ordering::Relaxed);
        let failure = Failure { kind: Kind::Liveness, grace: Some(Duration::from_secs(3)) };
        assert_eq!(fixture.after(30).await.unhealthy.get("s-a-0"), Some(&failure));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_ready_stays_so_until_a_probe_finds_otherwise() {
        let exec = serde_json::json!({"command": ["x"]});
        let mut fixture = Fixture::new(serde_json::json!({
            "startupProbe": {"exec": exec, "periodSeconds": 60},
            "readinessProbe": {"exec": exec, "initialDelaySeconds": 5, "periodSeconds": 1, "failureThreshold": 2}}));
        fixture.told = serde_json::from_value(serde_json::json!({"containerStatuses": [{
            "name": "a", "image": "i", "imageID": "", "restartCount": 0, "containerID": "dhow://s-a-0",
            "ready": true, "started": true}]}))
        .unwrap();
        fixture.fake.exit_code.store(1, std::sync::atomic::Ordering::Relaxed);
        let results = fixture.after(0).await;
        assert!(results.started.contains("s-a-0") && results.ready.contains("s-a-0"));
        assert!(fixture.after(4).await.ready.contains("s-a-0"));
        assert!(fixture.after(3).await.ready.is_empty());
        // Of another container nothing is known.
        let mut fixture =
            Fixture { told: fixture.told, ..Fixture::new(serde_json::json!({"readinessProbe": {"exec": exec}})) };
        fixture.told.as_mut().unwrap().container_statuses.as_mut().unwrap()[0].container_id =
            Some("dhow://other".into());
        fixture.fake.exit_code.store(1, std::sync::atomic::Ordering::Relaxed);
        assert!(fixture.after(0).await.ready.is_empty());
    }

    #[test]
    fn commands_have_the_variables_that_are_written_out() {
        let container = serde_json::json!({"name": "a", "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "$(A)"},
            {"name": "C", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]});
        let container: Container = serde_json::from_value(container).unwrap();
        let words = ["test", "$(A)", "$(B)", "<$(C)>", "$(D)", "$$(A)"];
        let exec = ExecAction { command: Some(words.map(str::to_owned).to_vec()) };
        assert_eq!(command(&exec, &container), ["test", "1", "$(A)", "<>", "$(D)", "$(A)"]);
    }

    #[test]
    fn a_container_met_late_waits_part_of_its_period_but_not_its_delay_again() {
        let probe = Probe { initial_delay_seconds: Some(60), period_seconds: Some(10), ..Probe::default() };
        assert_eq!(first_wait(&probe, Duration::ZERO, "a"), Duration::from_secs(60));
        assert!(first_wait(&probe, Duration::from_secs(3600), "a") < Duration::from_secs(10));
    }
}
