//! The specification's `linux.resources` as limits and settings of control groups. Pure.

use oci_spec::runtime::{LinuxBlockIo, LinuxDeviceType, LinuxMemory, LinuxResources, LinuxThrottleDevice};

use crate::cgroup::Setting;
use crate::cgroup::devices::{self, Access, Kind, Rule};
use crate::error::{Error, Result};
use crate::spec::Limits;

/// What pods have names for.
pub fn limits(resources: &LinuxResources) -> Limits {
    let memory = resources.memory().as_ref();
    let cpu = resources.cpu().as_ref();
    Limits {
        cpu_quota: cpu.and_then(|cpu| cpu.quota()),
        cpu_period: cpu.and_then(|cpu| cpu.period()),
        cpu_shares: cpu.and_then(|cpu| cpu.shares()).filter(|shares| *shares != 0),
        memory: memory.and_then(LinuxMemory::limit),
        pids: resources.pids().as_ref().map(|pids| pids.limit()),
        cpuset_cpus: cpu.and_then(|cpu| cpu.cpus().clone()).filter(|list| !list.is_empty()),
        cpuset_mems: cpu.and_then(|cpu| cpu.mems().clone()).filter(|list| !list.is_empty()),
        // Among the settings: a size that the machine lacks is an error there.
        ..Limits::default()
    }
}

/// Everything else, as files to write.
pub fn settings(resources: &LinuxResources, unified: bool) -> Result<Vec<Setting>> {
    let mut all = Settings { unified, list: Vec::new() };
    if let Some(memory) = resources.memory() {
        all.memory(memory)?;
    }
    if let Some(cpu) = resources.cpu() {
        all.add("cpu", ("cpu.cfs_burst_us", "cpu.max.burst"), cpu.burst());
        all.add("cpu", ("cpu.idle", "cpu.idle"), cpu.idle());
        all.v1_only("cpu", "cpu.rt_period_us", cpu.realtime_period());
        all.v1_only("cpu", "cpu.rt_runtime_us", cpu.realtime_runtime());
    }
    for limit in resources.hugepage_limits().iter().flatten() {
        let size = limit.page_size();
        let (v1, v2) = (format!("hugetlb.{size}.limit_in_bytes"), format!("hugetlb.{size}.max"));
        all.add("hugetlb", (&v1, &v2), Some(limit.limit()));
    }
    if let Some(io) = resources.block_io() {
        all.block_io(io);
    }
    if let Some(network) = resources.network() {
        all.v1_only("net_cls", "net_cls.classid", network.class_id());
        for priority in network.priorities().iter().flatten() {
            all.v1_only("net_prio", "net_prio.ifpriomap", Some(format!("{} {}", priority.name(), priority.priority())));
        }
    }
    for (device, limit) in resources.rdma().iter().flatten() {
        let mut line = device.clone();
        for (name, value) in [("hca_handle", limit.hca_handles()), ("hca_object", limit.hca_objects())] {
            line.extend(value.map(|value| format!(" {name}={value}")));
        }
        all.add("rdma", ("rdma.max", "rdma.max"), Some(line));
    }
    for (file, value) in resources.unified().iter().flatten() {
        if !unified {
            return Err(Error::Invalid("linux.resources.unified needs cgroup v2 alone".into()));
        }
        if file.contains('/') || file.starts_with("cgroup.") {
            return Err(Error::Invalid(format!("linux.resources.unified: {file:?} must not be set")));
        }
        all.list.push(Setting { controller: "", file: file.clone(), value: value.clone() });
    }
    Ok(all.list)
}

/// The device rules; `None` if all devices may be used.
pub fn devices(resources: Option<&LinuxResources>) -> Result<Option<Vec<Rule>>> {
    let Some(given) = resources.and_then(|resources| resources.devices().as_ref()) else { return Ok(None) };
    let mut rules = Vec::new();
    for rule in given {
        let kinds: &[Option<Kind>] = match rule.typ() {
            None | Some(LinuxDeviceType::A) => &[None],
            Some(LinuxDeviceType::B) => &[Some(Kind::Block)],
            Some(LinuxDeviceType::C | LinuxDeviceType::U) => &[Some(Kind::Character)],
            Some(LinuxDeviceType::P) => &[],
        };
        let number = |number: Option<i64>| number.and_then(|number| u32::try_from(number).ok());
        let access = Access::parse(rule.access().as_deref().unwrap_or_default())?;
        rules.extend(kinds.iter().map(|kind| Rule {
            allow: rule.allow(),
            kind: *kind,
            major: number(rule.major()),
            minor: number(rule.minor()),
            access,
        }));
    }
    // Whatever is denied, every container has the devices that are made for it.
    if rules.iter().any(|rule| !rule.allow) {
        rules.extend(devices::standard());
    }
    Ok((!rules.is_empty()).then_some(rules))
}

struct Settings {
    unified: bool,
    list: Vec<Setting>,
}

impl Settings {
    /// A setting that both kinds of tree have: the file of v1, and that of v2.
    fn add(&mut self, controller: &'static str, (v1, v2): (&str, &str), value: Option<impl ToString>) {
        let file = if self.unified { v2 } else { v1 };
        let setting = |value: &dyn ToString| Setting { controller, file: file.to_owned(), value: value.to_string() };
        self.list.extend(value.map(|value| setting(&value)));
    }

    /// What v2 has nothing for is left out there, as the specification has it.
    fn v1_only(&mut self, controller: &'static str, file: &str, value: Option<impl ToString>) {
        if !self.unified {
            self.add(controller, (file, file), value);
        }
    }

    fn memory(&mut self, memory: &LinuxMemory) -> Result<()> {
        if self.unified {
            self.add("memory", ("", "memory.low"), memory.reservation().map(max));
            if let Some(both) = memory.swap() {
                // v1 counts memory with swap, v2 swap alone.
                let swap = match (both, memory.limit()) {
                    (-1, _) => "max".to_owned(),
                    (both, Some(limit)) if limit >= 0 && both >= limit => (both - limit).to_string(),
                    _ => return Err(Error::Invalid("linux.resources.memory.swap must not be below limit".into())),
                };
                self.add("memory", ("", "memory.swap.max"), Some(swap));
            }
            return Ok(());
        }
        self.v1_only("memory", "memory.soft_limit_in_bytes", memory.reservation());
        self.v1_only("memory", "memory.memsw.limit_in_bytes", memory.swap());
        self.v1_only("memory", "memory.kmem.tcp.limit_in_bytes", memory.kernel_tcp());
        self.v1_only("memory", "memory.swappiness", memory.swappiness());
        self.v1_only("memory", "memory.oom_control", memory.disable_oom_killer().filter(|off| *off).map(|_| 1));
        Ok(())
    }

    fn block_io(&mut self, io: &LinuxBlockIo) {
        if let Some(weight) = io.weight().filter(|weight| *weight != 0) {
            // The conversion that runc and systemd agree on: 10..=1000 to 1..=10000.
            let v2 = 1 + (u32::from(weight).saturating_sub(10)) * 9999 / 990;
            let value = if self.unified { v2.to_string() } else { weight.to_string() };
            self.add("blkio", ("blkio.weight", "io.weight"), Some(value));
        }
        self.v1_only("blkio", "blkio.leaf_weight", io.leaf_weight());
        for device in io.weight_device().iter().flatten() {
            let line = |weight| format!("{}:{} {weight}", device.major(), device.minor());
            self.v1_only("blkio", "blkio.weight_device", device.weight().map(line));
            self.v1_only("blkio", "blkio.leaf_weight_device", device.leaf_weight().map(line));
        }
        let mut throttle = |list: &Option<Vec<LinuxThrottleDevice>>, v1: &str, name: &str| {
            for device in list.iter().flatten() {
                let (place, rate) = (format!("{}:{}", device.major(), device.minor()), device.rate());
                let value = if self.unified { format!("{place} {name}={rate}") } else { format!("{place} {rate}") };
                self.add("blkio", (v1, "io.max"), Some(value));
            }
        };
        throttle(io.throttle_read_bps_device(), "blkio.throttle.read_bps_device", "rbps");
        throttle(io.throttle_write_bps_device(), "blkio.throttle.write_bps_device", "wbps");
        throttle(io.throttle_read_iops_device(), "blkio.throttle.read_iops_device", "riops");
        throttle(io.throttle_write_iops_device(), "blkio.throttle.write_iops_device", "wiops");
    }
}

fn max(number: i64) -> String {
    if number < 0 { "max".into() } else { number.to_string() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn resources(value: serde_json::Value) -> LinuxResources {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn both_kinds_of_tree() {
        let given = resources(serde_json::json!({
            "memory": {"limit": 100, "swap": 150, "reservation": 50},
            "cpu": {"burst": 7, "idle": 1},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 4}],
            "blockIO": {"weight": 10, "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 600}]},
            "network": {"classID": 9},
        }));
        let of = |unified| {
            let settings = settings(&given, unified).unwrap();
            let mut lines: Vec<String> = settings.into_iter().map(|s| format!("{}={}", s.file, s.value)).collect();
            lines.sort();
            lines.join(" ")
        };
        assert_eq!(
            of(false),
            "blkio.throttle.read_bps_device=8:0 600 blkio.weight=10 cpu.cfs_burst_us=7 cpu.idle=1 \
             hugetlb.2MB.limit_in_bytes=4 memory.memsw.limit_in_bytes=150 memory.soft_limit_in_bytes=50 net_cls.classid=9"
        );
        assert_eq!(
            of(true),
            "cpu.idle=1 cpu.max.burst=7 hugetlb.2MB.max=4 io.max=8:0 rbps=600 io.weight=1 memory.low=50 memory.swap.max=50"
        );
    }

    #[test]
    fn raw_settings_are_for_v2_and_stay_in_the_group() {
        let given = |file: &str| resources(serde_json::json!({"unified": {file: "1"}}));
        assert!(settings(&given("memory.high"), false).is_err());
        assert_eq!(settings(&given("memory.high"), true).unwrap()[0].file, "memory.high");
        assert!(settings(&given("../memory.high"), true).is_err());
        assert!(settings(&given("cgroup.procs"), true).is_err());
    }
}
