//! Startup, liveness and readiness probes: one task per running container that has any.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use dhow_cri::Runtime;
use dhow_cri::runtime::{ContainerState, ContainerStatus};
use k8s_openapi::api::core::v1::{Container, HTTPGetAction, PodSpec, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

#[derive(Debug, Default, Clone)]
pub struct Results {
    pub started: BTreeSet<String>,
    pub ready: BTreeSet<String>,
    pub unhealthy: BTreeSet<String>,
}

/// The probes of one pod; dropping it ends them.
#[derive(Default)]
pub struct Probes {
    results: Arc<Mutex<Results>>,
    tasks: BTreeMap<String, Vec<AbortHandle>>,
}

impl Drop for Probes {
    fn drop(&mut self) {
        self.tasks.values().flatten().for_each(AbortHandle::abort);
    }
}

impl Probes {
    /// Follows what runs now and returns what is known of it.
    pub fn update(
        &mut self,
        runtime: &Arc<dyn Runtime>,
        spec: &PodSpec,
        containers: &[ContainerStatus],
        ip: &str,
        wake: &Arc<Notify>,
    ) -> Results {
        let running = |id: &str| containers.iter().any(|c| c.id == id && c.state == ContainerState::Running);
        self.tasks.retain(|id, tasks| {
            let keep = running(id);
            if !keep {
                tasks.iter().for_each(AbortHandle::abort);
            }
            keep
        });
        for seen in containers.iter().filter(|c| c.state == ContainerState::Running) {
            if self.tasks.contains_key(&seen.id) {
                continue;
            }
            let all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
            let Some(container) = all.into_iter().find(|c| c.name == seen.name) else { continue };
            let target = Target {
                runtime: Arc::clone(runtime),
                id: seen.id.clone(),
                ip: ip.into(),
                container: container.clone(),
                results: Arc::clone(&self.results),
                wake: Arc::clone(wake),
            };
            self.tasks.insert(seen.id.clone(), vec![tokio::spawn(target.run()).abort_handle()]);
            let mut results = self.results.lock();
            if container.startup_probe.is_none() {
                results.started.insert(seen.id.clone());
                if container.readiness_probe.is_none() {
                    results.ready.insert(seen.id.clone());
                }
            }
        }
        let mut results = self.results.lock();
        let Results { started, ready, unhealthy } = &mut *results;
        for set in [started, ready, unhealthy] {
            set.retain(|id| running(id));
        }
        results.clone()
    }
}

#[derive(Clone)]
struct Target {
    runtime: Arc<dyn Runtime>,
    id: String,
    ip: String,
    container: Container,
    results: Arc<Mutex<Results>>,
    wake: Arc<Notify>,
}

fn seconds(value: Option<i32>, default: u64) -> Duration {
    Duration::from_secs(value.and_then(|v| u64::try_from(v).ok()).unwrap_or(default))
}

impl Target {
    async fn run(self) {
        if let Some(probe) = &self.container.startup_probe {
            let passed = self.watch(probe, |ok| ok).await;
            self.tell(|r| if passed { &mut r.started } else { &mut r.unhealthy }, true);
            if !passed {
                return;
            }
        }
        let liveness = async {
            if let Some(probe) = &self.container.liveness_probe {
                self.watch(probe, |_| false).await;
                self.tell(|r| &mut r.unhealthy, true);
            }
        };
        let readiness = async {
            match &self.container.readiness_probe {
                None => self.tell(|r| &mut r.ready, true),
                Some(probe) => {
                    let set = |ok| self.tell(|r| &mut r.ready, ok);
                    let mut first = true;
                    loop {
                        let ok = self.until(probe, true, first).await;
                        set(ok);
                        first = false;
                        self.until(probe, false, first).await;
                        set(false);
                    }
                }
            }
        };
        tokio::join!(liveness, readiness);
    }

    fn tell(&self, set: impl FnOnce(&mut Results) -> &mut BTreeSet<String>, member: bool) {
        let mut results = self.results.lock();
        let set = set(&mut results);
        if member {
            set.insert(self.id.clone())
        } else {
            set.remove(&self.id)
        };
        drop(results);
        self.wake.notify_one();
    }

    /// Until enough failures in a row (false), or a success that `enough` accepts (true).
    async fn watch(&self, probe: &Probe, enough: impl Fn(bool) -> bool) -> bool {
        tokio::time::sleep(seconds(probe.initial_delay_seconds, 0)).await;
        let mut failures = 0;
        loop {
            let ok = self.check(probe).await;
            failures = if ok { 0 } else { failures + 1 };
            if failures >= probe.failure_threshold.unwrap_or(3) {
                return false;
            }
            if enough(ok) {
                return true;
            }
            tokio::time::sleep(seconds(probe.period_seconds, 10)).await;
        }
    }

    /// Until enough results in a row are `wanted`.
    async fn until(&self, probe: &Probe, wanted: bool, first: bool) -> bool {
        if first {
            tokio::time::sleep(seconds(probe.initial_delay_seconds, 0)).await;
        }
        let needed = if wanted { probe.success_threshold.unwrap_or(1) } else { probe.failure_threshold.unwrap_or(3) };
        let mut run = 0;
        loop {
            run = if self.check(probe).await == wanted { run + 1 } else { 0 };
            if run >= needed {
                return wanted;
            }
            tokio::time::sleep(seconds(probe.period_seconds, 10)).await;
        }
    }

    async fn check(&self, probe: &Probe) -> bool {
        let timeout = seconds(probe.timeout_seconds, 1);
        if let Some(exec) = &probe.exec {
            let command = exec.command.clone().unwrap_or_default();
            return self.runtime.exec_sync(&self.id, &command, Some(timeout)).await.is_ok_and(|r| r.exit_code == 0);
        }
        if let Some(grpc) = &probe.grpc {
            let Ok(port) = u16::try_from(grpc.port) else { return false };
            let call = crate::grpc::is_serving(&self.ip, port, grpc.service.as_deref().unwrap_or_default());
            return tokio::time::timeout(timeout, call).await.unwrap_or(false);
        }
        let (host, port) = if let Some(http) = &probe.http_get {
            (http.host.as_deref(), port(&self.container, &http.port))
        } else if let Some(tcp) = &probe.tcp_socket {
            (tcp.host.as_deref(), port(&self.container, &tcp.port))
        } else {
            return false;
        };
        let Some(port) = port else { return false };
        let host = host.unwrap_or(&self.ip);
        let attempt = async {
            match &probe.http_get {
                Some(http) => http_get(host, port, http).await.is_some_and(|code| (200..400).contains(&code)),
                None => tokio::net::TcpStream::connect((host, port)).await.is_ok(),
            }
        };
        tokio::time::timeout(timeout, attempt).await.unwrap_or(false)
    }
}

/// A port by number, or by its name in the container.
pub fn port(container: &Container, port: &IntOrString) -> Option<u16> {
    match port {
        IntOrString::Int(port) => u16::try_from(*port).ok(),
        IntOrString::String(name) => {
            let found = container.ports.iter().flatten().find(|p| p.name.as_ref() == Some(name))?;
            u16::try_from(found.container_port).ok()
        }
    }
}

/// Sends the request and returns the status code of the answer.
pub async fn http_get(host: &str, port: u16, http: &HTTPGetAction) -> Option<u16> {
    let mut stream = tokio::net::TcpStream::connect((host, port)).await.ok()?;
    let path = http.path.as_deref().unwrap_or("/");
    let request = format!("GET {path} HTTP/1.1\r\n{}Connection: close\r\n\r\n", headers(host, port, http));
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut head = [0; 12];
    stream.read_exact(&mut head).await.ok()?;
    std::str::from_utf8(&head[9..12]).ok()?.parse().ok()
}

/// The request's headers; those of the spec take the place of the ones sent by default, and an empty one drops it.
fn headers(host: &str, port: u16, http: &HTTPGetAction) -> String {
    let own = || http.http_headers.iter().flatten();
    let mut all = String::new();
    for (name, value) in
        [("Host", format!("{host}:{port}")), ("User-Agent", "kube-probe/1.35".into()), ("Accept", "*/*".into())]
    {
        if !own().any(|h| h.name.eq_ignore_ascii_case(name)) {
            all.push_str(&format!("{name}: {value}\r\n"));
        }
    }
    // HTTP/1.1 wants a host in any case, and an empty Accept or User-Agent means none.
    for header in own().filter(|h| !h.value.is_empty() || h.name.eq_ignore_ascii_case("host")) {
        all.push_str(&format!("{}: {}\r\n", header.name, header.value));
    }
    all
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_the_spec_replace_the_default_ones() {
        let http = serde_json::json!({"port": 80, "httpHeaders": [
            {"name": "host", "value": "a.example"}, {"name": "Accept", "value": ""}, {"name": "X", "value": "1"}]});
        let http: HTTPGetAction = serde_json::from_value(http).unwrap();
        let expected = "User-Agent: kube-probe/1.35\r\nhost: a.example\r\nX: 1\r\n";
        assert_eq!(headers("10.0.0.1", 80, &http), expected);
    }
}
