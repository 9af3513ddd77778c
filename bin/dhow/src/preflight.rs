//! What the machine must offer, checked before anything starts; each failure comes with its fix.

use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::place::Place;
use crate::runtimes::{self, RuntimeChoice};

/// Durable writes slower than this make the API feel slow.
const SLOW_FSYNC: Duration = Duration::from_millis(20);

/// Fails with every problem at once; returns warnings. `ports` are those that are to be listened on, with their flags.
pub fn check(place: &Place, ports: &[(u16, &str)]) -> Result<Vec<String>> {
    root("dhow")?;
    let Machine { mut problems, warnings } = machine(&place.data_dir);
    match runtimes::choose(place) {
        Ok(choice) => runtime(&choice, &mut problems),
        Err(error) => problems.push(format!("{error:#}")),
    }
    for (port, flag) in ports {
        if let Err(error) = TcpListener::bind((Ipv4Addr::UNSPECIFIED, *port)) {
            problems.push(format!(
                "port {port} cannot be used: {error}; stop what listens there or choose another with {flag}"
            ));
        }
    }
    if problems.is_empty() {
        return Ok(warnings);
    }
    bail!("this machine is not ready:\n  - {}", problems.join("\n  - "))
}

/// What kernel and disk lack, each with its fix.
#[derive(Debug, Default)]
pub struct Machine {
    pub problems: Vec<String>,
    pub warnings: Vec<String>,
}

/// Looks at kernel and disk, whether a cloud runs or not.
pub fn machine(data_dir: &Path) -> Machine {
    let mut machine = Machine::default();
    filesystems(&mut machine.problems);
    cgroups(&mut machine.problems);
    match measure_fsync(data_dir) {
        Ok(took) if took > SLOW_FSYNC => machine.warnings.push(format!(
            "a durable write to {} takes {} ms; a faster disk makes everything faster",
            data_dir.display(),
            took.as_millis()
        )),
        Ok(_) => {}
        Err(error) => machine.problems.push(format!("{} cannot be written: {error}", data_dir.display())),
    }
    machine
}

/// Fails unless this process may make and remove containers and networks.
pub fn root(command: &str) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("{command} needs root for containers and networks; run it with sudo");
    }
    Ok(())
}

/// Whether somebody answers at a runtime's socket.
fn runtime(choice: &RuntimeChoice, problems: &mut Vec<String>) {
    let Some(socket) = choice.socket() else { return };
    let service = match choice {
        RuntimeChoice::Docker(_) => "docker",
        RuntimeChoice::Crio(_) => "crio",
        _ => "containerd",
    };
    if let Err(error) = UnixStream::connect(socket) {
        problems.push(format!(
            "no container runtime answers at {}: {error}; start it (`systemctl start {service}`) or choose another with \
             --runtime",
            socket.display()
        ));
    }
}

fn filesystems(problems: &mut Vec<String>) {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let has = |name: &str| known.lines().any(|line| line.split_whitespace().last() == Some(name));
    // The module may be loadable on demand; then the first mount loads it.
    if !has("overlay") && !module_exists("overlay") {
        problems.push("the kernel has no overlay file system; load it with `modprobe overlay`".into());
    }
}

fn module_exists(name: &str) -> bool {
    let Ok(release) = fs::read_to_string("/proc/sys/kernel/osrelease") else { return false };
    fs::read_to_string(format!("/lib/modules/{}/modules.dep", release.trim()))
        .is_ok_and(|modules| modules.contains(&format!("/{name}.ko")))
}

fn cgroups(problems: &mut Vec<String>) {
    let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    for name in ["cpu", "memory", "pids"] {
        let unified = controllers.split_whitespace().any(|controller| controller == name);
        if !unified && !Path::new("/sys/fs/cgroup").join(name).is_dir() {
            problems.push(format!(
                "the cgroup controller {name:?} is missing; mount cgroup2 at /sys/fs/cgroup or enable it on the kernel's command line"
            ));
        }
    }
}

/// Measures where the folder is or will be: a check that fails should leave nothing behind.
fn measure_fsync(folder: &Path) -> std::io::Result<Duration> {
    let folder = folder.ancestors().find(|folder| folder.is_dir()).unwrap_or(folder);
    let path = folder.join(".dhow-preflight");
    let mut file = fs::File::create(&path)?;
    let begin = Instant::now();
    file.write_all(&[0; 4096])?;
    file.sync_data()?;
    let took = begin.elapsed();
    fs::remove_file(&path)?;
    Ok(took)
}
