//! What runs on the node and what it uses: one measurement, and how fast processors were used since the one before.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dhow_cri::links::{self, LinkStats};
use dhow_cri::runtime::{ContainerState, ContainerStats, ContainerStatus, SandboxState, SandboxStatus};
use dhow_cri::{Error, Runtime};
use parking_lot::Mutex;

use super::system::{self, System};

/// Two measurements tell a speed if they are at least this far apart.
const WINDOW: Duration = Duration::from_millis(500);
/// One that is older says nothing about now.
const OLD: Duration = Duration::from_secs(90);

pub struct Run {
    pub sandbox: SandboxStatus,
    pub container: ContainerStatus,
    pub stats: ContainerStats,
}

/// One measurement.
pub struct Usage {
    pub at: jiff::Timestamp,
    /// The containers that run; one that ends while it is asked is left out.
    pub runs: Vec<Run>,
    /// Sandboxes that are ready.
    pub pods: usize,
    /// Containers by state.
    pub states: BTreeMap<&'static str, usize>,
    pub node: NodeUsage,
    /// The agent, the runtime, and all pods together.
    pub systems: Vec<System>,
    /// What passed the links of the pods that have their own, by sandbox id; the node's under the empty name.
    pub links: HashMap<String, Vec<LinkStats>>,
    /// Billionths of a processor by container id; the node's under the empty name, those of systems by theirs.
    pub speeds: HashMap<String, u64>,
}

/// The machine as a whole.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct NodeUsage {
    pub cpu_nanos: u64,
    pub memory_total: u64,
    pub memory_available: u64,
    /// Seconds since 1970.
    pub booted_at: i64,
    pub processes: u64,
    pub max_processes: u64,
}

impl NodeUsage {
    pub fn working_set(&self) -> u64 {
        self.memory_total.saturating_sub(self.memory_available)
    }

    pub fn read() -> Self {
        let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        // Each bounds how many there can be; of both, the lower one counts.
        let bounds = ["/proc/sys/kernel/pid_max", "/proc/sys/kernel/threads-max"];
        let max_processes = bounds.into_iter().filter_map(|path| text(path).trim().parse().ok()).min().unwrap_or(0);
        Self { max_processes, ..Self::parse(&text("/proc/stat"), &text("/proc/meminfo"), &text("/proc/loadavg")) }
    }

    /// From `/proc/stat`, `/proc/meminfo` and `/proc/loadavg`.
    fn parse(stat: &str, memory: &str, load: &str) -> Self {
        /// Billionths of a second per tick of `/proc/stat`, which has 100 a second on every architecture of ours.
        const TICK: u64 = 10_000_000;
        let line = |text: &'_ str, name: &str| -> Vec<u64> {
            let found = text.lines().find_map(|line| line.strip_prefix(name));
            found.into_iter().flat_map(str::split_whitespace).filter_map(|word| word.parse().ok()).collect()
        };
        // user, nice, system; not idle and iowait; irq, softirq, steal.
        let cpu = line(stat, "cpu ");
        let busy: u64 = cpu.iter().take(8).enumerate().filter(|(at, _)| !matches!(at, 3 | 4)).map(|(_, v)| v).sum();
        let kib = |name: &str| line(memory, name).first().map_or(0, |kib| kib << 10);
        let threads = load.split_whitespace().nth(3).and_then(|pair| pair.split_once('/'));
        Self {
            cpu_nanos: busy * TICK,
            memory_total: kib("MemTotal:"),
            memory_available: kib("MemAvailable:"),
            booted_at: line(stat, "btime ").first().and_then(|at| i64::try_from(*at).ok()).unwrap_or(0),
            processes: threads.and_then(|(_, all)| all.parse().ok()).unwrap_or(0),
            max_processes: 0,
        }
    }
}

struct Before {
    at: Instant,
    cpu: HashMap<String, u64>,
}

/// Measures on demand; nothing is measured while nobody asks.
#[derive(Default)]
pub struct Meter {
    before: Mutex<Option<Arc<Before>>>,
}

impl Meter {
    pub async fn measure(&self, runtime: &dyn Runtime, pods: Option<&str>) -> Result<Usage, Error> {
        let mut before = self.before.lock().clone().filter(|before| before.at.elapsed() < OLD);
        if before.as_ref().is_none_or(|before| before.at.elapsed() < WINDOW) {
            if before.is_none() {
                let (usage, cpu) = look(runtime, pods).await?;
                drop(usage);
                before = Some(Arc::new(Before { at: Instant::now(), cpu }));
            }
            let age = before.as_ref().map_or(Duration::ZERO, |before| before.at.elapsed());
            tokio::time::sleep(WINDOW.saturating_sub(age)).await;
        }
        let (mut usage, cpu) = look(runtime, pods).await?;
        let now = Instant::now();
        if let Some(before) = before {
            let passed = now.duration_since(before.at).as_nanos().max(1);
            usage.speeds = speeds(&before.cpu, &cpu, passed);
        }
        *self.before.lock() = Some(Arc::new(Before { at: now, cpu }));
        Ok(usage)
    }
}

fn speeds(before: &HashMap<String, u64>, now: &HashMap<String, u64>, passed: u128) -> HashMap<String, u64> {
    let speed = |(id, used): (&String, &u64)| {
        let grown = used.checked_sub(*before.get(id)?)?;
        Some((id.clone(), u64::try_from(u128::from(grown) * 1_000_000_000 / passed).unwrap_or(u64::MAX)))
    };
    now.iter().filter_map(speed).collect()
}

/// A measurement without speeds, at once.
pub async fn now(runtime: &dyn Runtime) -> Result<Usage, Error> {
    look(runtime, None).await.map(|(usage, _)| usage)
}

async fn look(runtime: &dyn Runtime, pods: Option<&str>) -> Result<(Usage, HashMap<String, u64>), Error> {
    let sandboxes: BTreeMap<_, _> = runtime.list_sandboxes().await?.into_iter().map(|s| (s.id.clone(), s)).collect();
    let (mut runs, mut states) = (Vec::new(), BTreeMap::new());
    let node = NodeUsage::read();
    let systems = system::all(runtime, pods).await;
    let mut cpu: HashMap<_, _> = systems.iter().map(|system| (system.name.to_owned(), system.cpu_nanos)).collect();
    cpu.insert(String::new(), node.cpu_nanos);
    let mut links = HashMap::from([(String::new(), links::of_process(std::process::id()))]);
    for sandbox in sandboxes.values().filter(|sandbox| !sandbox.ips.is_empty()) {
        if let Ok(Some(process)) = runtime.sandbox_process(&sandbox.id).await {
            links.insert(sandbox.id.clone(), links::of_process(process));
        }
    }
    for container in runtime.list_containers().await? {
        let state = match container.state {
            ContainerState::Created => "created",
            ContainerState::Running => "running",
            ContainerState::Exited => "exited",
            ContainerState::Unknown => "unknown",
        };
        *states.entry(state).or_default() += 1;
        let Some(sandbox) = sandboxes.get(&container.sandbox_id) else { continue };
        if container.state != ContainerState::Running {
            continue;
        }
        if let Ok(stats) = runtime.container_stats(&container.id).await {
            cpu.insert(container.id.clone(), stats.cpu_usage_core_nanos);
            runs.push(Run { sandbox: sandbox.clone(), container, stats });
        }
    }
    let ready = sandboxes.values().filter(|s| s.state == SandboxState::Ready).count();
    let usage =
        Usage { at: jiff::Timestamp::now(), runs, pods: ready, states, node, systems, links, speeds: HashMap::new() };
    Ok((usage, cpu))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_read_from_proc() {
        let stat = "cpu  100 10 50 1000 500 5 5 0 0 0\ncpu0 1 1 1 1\nbtime 1700000000\n";
        let memory = "MemTotal:       1000 kB\nMemFree: 1 kB\nMemAvailable:    400 kB\n";
        let got = NodeUsage::parse(stat, memory, "0.1 0.2 0.3 2/345 678\n");
        assert_eq!(got.cpu_nanos, 170 * 10_000_000);
        assert_eq!((got.working_set(), got.booted_at, got.processes), (600 << 10, 1_700_000_000, 345));
    }

    #[test]
    fn speeds_are_growth_over_time() {
        let map = |pairs: &[(&str, u64)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), *v)).collect();
        let got = speeds(&map(&[("a", 100), ("b", 9)]), &map(&[("a", 600), ("b", 3), ("new", 7)]), 1000);
        assert_eq!(got, map(&[("a", 500_000_000)]));
    }
}
