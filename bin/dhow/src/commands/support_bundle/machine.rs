//! The machine's part of a bundle: logs, network, mounts, control groups, processes, sizes.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{Bundle, end_of};
use crate::cli::ConnectArgs;
use crate::place;

/// Of the daemon's log.
const LOG: u64 = 16 << 20;
const JOURNAL_LINES: &str = "20000";
/// Folders of the data folder that are counted by themselves, so deep.
const DEPTH: usize = 2;

/// Programs whose answer is taken where they are there: file, program, arguments.
const PROGRAMS: &[(&str, &str, &[&str])] = &[
    ("machine/nftables.txt", "nft", &["list", "ruleset"]),
    ("machine/addresses.txt", "ip", &["-details", "address"]),
    ("machine/routes.txt", "ip", &["-4", "route", "show", "table", "all"]),
    ("machine/routes-6.txt", "ip", &["-6", "route", "show", "table", "all"]),
    ("machine/rules.txt", "ip", &["rule"]),
    ("machine/neighbours.txt", "ip", &["neighbour"]),
    ("machine/network-namespaces.txt", "ip", &["netns"]),
    ("machine/sockets.txt", "ss", &["-tulpn"]),
];

/// Files of the kernel that are taken as they are.
const FILES: &[(&str, &str)] = &[
    ("machine/mounts.txt", "/proc/self/mountinfo"),
    ("machine/memory.txt", "/proc/meminfo"),
    ("machine/kernel.txt", "/proc/version"),
    ("machine/load.txt", "/proc/loadavg"),
    ("machine/links.txt", "/proc/net/dev"),
    ("machine/modules.txt", "/proc/modules"),
    ("machine/os.txt", "/etc/os-release"),
];

pub fn gather(connect: &ConnectArgs, bundle: &mut Bundle) -> Result<()> {
    let log = connect.data_dir.join("dhow.log");
    // Under systemd there is only the journal.
    if log.exists() {
        bundle.try_text("logs/dhow.log", end_of(&log, LOG))?;
    }
    if Path::new("/run/systemd/system").is_dir() {
        let journal = ["--unit", "dhow", "--no-pager", "--output", "short-iso-precise", "--lines", JOURNAL_LINES];
        bundle.try_text("logs/journal.txt", output("journalctl", &journal))?;
        bundle.try_text("machine/journal-size.txt", output("journalctl", &["--disk-usage"]))?;
    }
    for (file, program, arguments) in PROGRAMS {
        bundle.try_text(file, output(program, arguments))?;
    }
    for (file, path) in FILES {
        let text = fs::read_to_string(path).with_context(|| format!("read {path}"));
        bundle.try_text(file, text)?;
    }
    bundle.text("machine/control-groups.txt", &control_groups(&connect.data_dir))?;
    bundle.text("machine/processes.txt", &processes())?;
    let mut sizes = BTreeMap::new();
    size(&connect.data_dir, Path::new(""), DEPTH, &mut sizes);
    let sizes: String = sizes.iter().map(|(path, bytes)| format!("{bytes:>14}  {}\n", path.display())).collect();
    bundle.text("machine/data-sizes.txt", &sizes)
}

/// What a program prints.
fn output(program: &str, arguments: &[&str]) -> Result<String> {
    let output = match Command::new(program).args(arguments).output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => bail!("{program} is not installed"),
        output => output.with_context(|| format!("run {program}"))?,
    };
    if !output.status.success() {
        bail!("{program} ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The cloud's control groups with what they use, in all hierarchies.
fn control_groups(data_dir: &Path) -> String {
    const SHOWN: &[&str] = &[
        "memory.current",
        "memory.max",
        "memory.usage_in_bytes",
        "pids.current",
        "cpu.max",
        "cpu.stat",
        "cgroup.events",
    ];
    let top = place::cgroup(data_dir);
    let mut roots = vec![PathBuf::from("/sys/fs/cgroup")];
    roots.extend(fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path()));
    let mut out = String::new();
    let mut waiting: Vec<PathBuf> = roots.iter().map(|root| root.join(&top)).filter(|path| path.is_dir()).collect();
    while let Some(folder) = waiting.pop() {
        let _ = write!(out, "{}:", folder.display());
        for name in SHOWN {
            if let Ok(text) = fs::read_to_string(folder.join(name)) {
                let _ = write!(out, " {name}={}", text.trim().replace('\n', ","));
            }
        }
        let processes = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
        let _ = writeln!(out, " processes={}", processes.split_whitespace().collect::<Vec<_>>().join(","));
        let below = fs::read_dir(&folder).into_iter().flatten().flatten();
        waiting.extend(below.map(|entry| entry.path()).filter(|path| path.is_dir()));
    }
    out
}

/// The processes that run this program, with their memory and threads.
fn processes() -> String {
    let mut out = String::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let folder = entry.path();
        if !entry.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let Ok(command) = fs::read(folder.join("cmdline")) else { continue };
        let first = command.split(|byte| *byte == 0).next().unwrap_or_default();
        let name = first.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        if !name.starts_with(b"dhow") {
            continue;
        }
        let status = fs::read_to_string(folder.join("status")).unwrap_or_default();
        let wanted = ["PPid:", "State:", "VmRSS:", "VmSwap:", "Threads:", "FDSize:"];
        let shown: Vec<String> = status
            .lines()
            .filter(|line| wanted.iter().any(|name| line.starts_with(name)))
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let _ = writeln!(out, "{} {} | {}", entry.file_name().display(), shown.join(", "), command.trim());
    }
    out
}

/// Bytes below a folder, which are returned, and of the folders and files in it down to a depth.
fn size(root: &Path, path: &Path, depth: usize, sizes: &mut BTreeMap<PathBuf, u64>) -> u64 {
    let folder = root.join(path);
    let mut all = 0;
    for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
        let Ok(metadata) = entry.metadata() else { continue };
        let below = path.join(entry.file_name());
        let bytes = if metadata.is_dir() {
            size(root, &below, depth.saturating_sub(1), sizes)
        } else {
            std::os::unix::fs::MetadataExt::blocks(&metadata) * 512
        };
        if depth > 0 {
            sizes.insert(below, bytes);
        }
        all += bytes;
    }
    all
}
