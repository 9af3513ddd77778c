//! The specification's `process` as ours.

use oci_spec::runtime::{
    Capabilities, IOPriorityClass, Linux, LinuxPersonalityDomain, LinuxSchedulerFlag, LinuxSchedulerPolicy,
    PosixRlimitType, Process as Given,
};

use crate::error::{Error, Result};
use crate::setup::seccomp::Profile;
use crate::spec::{CapabilityLists, CpuScheduling, Process, Rlimit, Scheduling, Seccomp, User};

/// `process` in a container with this `linux` section. `first` is false for one that runs beside the first process.
pub fn resolve(given: &Given, linux: &Linux, first: bool) -> Result<Process> {
    let user = given.user();
    let lists = capabilities(given);
    Ok(Process {
        args: given.args().clone().unwrap_or_default(),
        env: given.env().clone().unwrap_or_default(),
        cwd: given.cwd().to_string_lossy().into_owned(),
        user: User {
            name: String::new(),
            uid: Some(user.uid()),
            gid: Some(user.gid()),
            additional_gids: user.additional_gids().clone().unwrap_or_default(),
            only_given_groups: true,
            keeps_group: false,
        },
        tty: given.terminal().unwrap_or(false),
        // What conditions of a filter's rules look at.
        capabilities: lists.bounding.clone(),
        capability_sets: Some(Box::new(lists)),
        no_new_privs: given.no_new_privileges().unwrap_or(false),
        seccomp: seccomp(linux)?,
        oom_score_adj: given.oom_score_adj(),
        rlimits: given.rlimits().iter().flatten().map(rlimit).collect(),
        umask: user.umask(),
        apparmor: given.apparmor_profile().clone(),
        selinux_label: given.selinux_label().clone(),
        scheduling: scheduling(given, first)?,
        personality: personality(linux)?,
        preserve_fds: 0,
        detached: true,
    })
}

fn capabilities(given: &Given) -> CapabilityLists {
    let Some(sets) = given.capabilities() else { return CapabilityLists::default() };
    let names = |set: &Option<Capabilities>| {
        let mut names: Vec<String> = set.iter().flatten().map(ToString::to_string).collect();
        names.sort_unstable();
        names
    };
    CapabilityLists {
        bounding: names(sets.bounding()),
        effective: names(sets.effective()),
        permitted: names(sets.permitted()),
        inheritable: names(sets.inheritable()),
        ambient: names(sets.ambient()),
    }
}

/// The specification's profile is written as Docker's is.
fn seccomp(linux: &Linux) -> Result<Seccomp> {
    let Some(given) = linux.seccomp() else { return Ok(Seccomp::Unconfined) };
    let profile = serde_json::to_value(given).and_then(serde_json::from_value::<Profile>);
    let profile = profile.map_err(|error| Error::Invalid(format!("linux.seccomp: {error}")))?;
    Ok(Seccomp::Inline(Box::new(profile)))
}

fn rlimit(given: &oci_spec::runtime::PosixRlimit) -> Rlimit {
    use PosixRlimitType as Kind;
    let resource = match given.typ() {
        Kind::RlimitCpu => libc::RLIMIT_CPU,
        Kind::RlimitFsize => libc::RLIMIT_FSIZE,
        Kind::RlimitData => libc::RLIMIT_DATA,
        Kind::RlimitStack => libc::RLIMIT_STACK,
        Kind::RlimitCore => libc::RLIMIT_CORE,
        Kind::RlimitRss => libc::RLIMIT_RSS,
        Kind::RlimitNproc => libc::RLIMIT_NPROC,
        Kind::RlimitNofile => libc::RLIMIT_NOFILE,
        Kind::RlimitMemlock => libc::RLIMIT_MEMLOCK,
        Kind::RlimitAs => libc::RLIMIT_AS,
        Kind::RlimitLocks => libc::RLIMIT_LOCKS,
        Kind::RlimitSigpending => libc::RLIMIT_SIGPENDING,
        Kind::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
        Kind::RlimitNice => libc::RLIMIT_NICE,
        Kind::RlimitRtprio => libc::RLIMIT_RTPRIO,
        Kind::RlimitRttime => libc::RLIMIT_RTTIME,
    };
    Rlimit { resource, soft: given.soft(), hard: given.hard() }
}

fn scheduling(given: &Given, first: bool) -> Result<Option<Box<Scheduling>>> {
    let cpu = given.scheduler().as_ref().map(|scheduler| {
        use LinuxSchedulerFlag as Flag;
        use LinuxSchedulerPolicy as Policy;
        let policy = match scheduler.policy() {
            Policy::SchedOther => 0,
            Policy::SchedFifo => 1,
            Policy::SchedRr => 2,
            Policy::SchedBatch => 3,
            Policy::SchedIso => 4,
            Policy::SchedIdle => 5,
            Policy::SchedDeadline => 6,
        };
        let bit = |flag: &Flag| match flag {
            Flag::SchedResetOnFork => 0x01,
            Flag::SchedFlagReclaim => 0x02,
            Flag::SchedFlagDLOverrun => 0x04,
            Flag::SchedFlagKeepPolicy => 0x08,
            Flag::SchedFlagKeepParams => 0x10,
            Flag::SchedFlagUtilClampMin => 0x20,
            Flag::SchedFlagUtilClampMax => 0x40,
        };
        CpuScheduling {
            policy,
            flags: scheduler.flags().iter().flatten().fold(0, |flags, flag| flags | bit(flag)),
            nice: scheduler.nice().unwrap_or(0),
            priority: scheduler.priority().unwrap_or(0).unsigned_abs(),
            runtime: scheduler.runtime().unwrap_or(0),
            deadline: scheduler.deadline().unwrap_or(0),
            period: scheduler.period().unwrap_or(0),
        }
    });
    let io_priority = given.io_priority().as_ref().map(|wanted| {
        let class: u16 = match wanted.class() {
            IOPriorityClass::IoprioClassRt => 1,
            IOPriorityClass::IoprioClassBe => 2,
            IOPriorityClass::IoprioClassIdle => 3,
        };
        class << 13 | u16::try_from(wanted.priority()).unwrap_or(0)
    });
    // For programs that are run beside the first one only.
    let affinity = given.exec_cpu_affinity().as_ref().filter(|_| !first);
    let affinity = affinity.and_then(|wanted| wanted.cpu_affinity_final().as_ref().or(wanted.initial().as_ref()));
    let affinity = affinity.map(|list| processors(list)).transpose()?;
    let scheduling = Scheduling { cpu, io_priority, affinity };
    Ok((scheduling != Scheduling::default()).then(|| Box::new(scheduling)))
}

/// `0-3,7` as numbers.
fn processors(list: &str) -> Result<Vec<usize>> {
    let wrong = || Error::Invalid(format!("{list:?} is no list of processors such as 0-3,7"));
    let number = |text: &str| text.trim().parse::<usize>().map_err(|_| wrong());
    let mut all = Vec::new();
    for part in list.split(',') {
        match part.split_once('-') {
            Some((first, last)) => all.extend(number(first)?..=number(last)?),
            None => all.push(number(part)?),
        }
    }
    Ok(all)
}

fn personality(linux: &Linux) -> Result<Option<u32>> {
    let Some(given) = linux.personality() else { return Ok(None) };
    if let Some(flag) = given.flags().iter().flatten().next() {
        return Err(Error::Invalid(format!("linux.personality.flags: {flag:?} is not supported")));
    }
    Ok(Some(match given.domain() {
        LinuxPersonalityDomain::PerLinux => 0,
        LinuxPersonalityDomain::PerLinux32 => 8,
    }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn lists_of_processors() {
        assert_eq!(processors("0-2,7").unwrap(), [0, 1, 2, 7]);
        assert!(processors("a-b").is_err() && processors("").is_err());
    }

    #[test]
    fn a_process_is_resolved() {
        let given: Given = serde_json::from_value(serde_json::json!({
            "args": ["true"], "cwd": "/", "user": {"uid": 5, "gid": 6, "umask": 63, "additionalGids": [7]},
            "capabilities": {"bounding": ["CAP_NET_RAW", "CAP_CHOWN"], "ambient": ["CAP_CHOWN"]},
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 10, "hard": 20}],
            "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 4},
            "scheduler": {"policy": "SCHED_BATCH", "nice": 3},
        }))
        .unwrap();
        let process = resolve(&given, &Linux::default(), true).unwrap();
        assert_eq!(process.capabilities, ["CHOWN", "NET_RAW"]);
        assert_eq!(process.capability_sets.unwrap().ambient, ["CHOWN"]);
        assert_eq!(process.rlimits, [Rlimit { resource: libc::RLIMIT_NOFILE, soft: 10, hard: 20 }]);
        let scheduling = process.scheduling.unwrap();
        assert_eq!(
            (scheduling.io_priority, scheduling.cpu.map(|cpu| (cpu.policy, cpu.nice))),
            (Some(0x4004), Some((3, 3)))
        );
    }
}
