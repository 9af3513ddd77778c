//! What every container gets unless told otherwise, as in Docker and containerd.

use crate::cgroup::Cgroup;

/// What every container may do unless told otherwise.
pub const CAPABILITIES: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// What of `/proc` and `/sys` tells about, or reaches, the whole machine.
pub const MASKED_PATHS: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
/// What of them may be read only.
pub const READONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Sysctls of every sandbox with its own network. Low ports and ping are for everyone, as with Docker and containerd;
/// connections whose large packets vanish without a word try smaller ones.
pub const NETWORK_SYSCTLS: [(&str, &str); 3] = [
    ("net.ipv4.ip_unprivileged_port_start", "0"),
    ("net.ipv4.ping_group_range", "0 2147483647"),
    ("net.ipv4.tcp_mtu_probing", "1"),
];

/// The capabilities, but where the kernel does not confine the use of device nodes, nobody may make them.
pub fn capabilities() -> Vec<String> {
    let may = |name: &&str| *name != "MKNOD" || Cgroup::confines_devices();
    CAPABILITIES.into_iter().filter(may).map(str::to_owned).collect()
}
