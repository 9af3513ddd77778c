//! Several machines: each a network namespace with its own folders, all but the last on one link, the last behind a router.
//!
//! Only the Docker-free, embedded runtime is used, so machines share nothing but the kernel.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{apply, binary, ensure_purged, run};

/// The links' namespace: a switch, and the router to the machine that is apart.
struct Switch {
    namespace: String,
}

/// Which addresses machines, pods and services have; the first family is the primary one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Addresses {
    Four,
    FourAndSix,
    Six,
}

/// Name of a variable of `dhow`, and its value on every machine.
type Variable = (&'static str, &'static str);

impl Addresses {
    fn four(self) -> bool {
        self != Self::Six
    }

    fn six(self) -> bool {
        self != Self::Four
    }

    fn variables(self) -> &'static [Variable] {
        match self {
            Self::Four => &[],
            Self::FourAndSix => {
                &[("DHOW_POD_CIDR", "10.42.0.0/16,fd42::/56"), ("DHOW_SERVICE_CIDR", "10.43.0.0/16,fd43::/112")]
            }
            Self::Six => &[("DHOW_POD_CIDR", "fd42::/56"), ("DHOW_SERVICE_CIDR", "fd43::/112")],
        }
    }
}

/// One machine.
pub struct Machine {
    pub name: String,
    /// Of the primary family.
    pub address: String,
    /// All of them.
    pub addresses: Vec<String>,
    variables: &'static [Variable],
    namespace: String,
    switch: String,
    folder: PathBuf,
}

/// All machines; dropping them takes everything away.
pub struct Machines {
    /// The first is the server.
    pub all: Vec<Machine>,
    switch: Switch,
    folder: tempfile::TempDir,
}

impl Machines {
    /// `near` machines on one link and one behind a router.
    pub fn new(near: usize) -> Result<Self> {
        Self::with(near, Addresses::Four)
    }

    /// The same with these addresses.
    pub fn with(near: usize, addresses: Addresses) -> Result<Self> {
        let id = std::process::id();
        let folder = tempfile::Builder::new().prefix("dc").tempdir_in("/var/tmp").context("make a folder")?;
        let switch = Switch { namespace: format!("dhow-cl-{id}-sw") };
        run(Command::new("ip").args(["netns", "add", &switch.namespace]))?;
        let mut machines = Self { all: Vec::new(), switch, folder };
        for args in [
            ["link", "add", "near", "type", "bridge"].as_slice(),
            &["addr", "add", "198.18.0.254/24", "dev", "near"],
            &["addr", "add", "2001:db8:18::fe/64", "dev", "near", "nodad"],
            &["link", "set", "near", "up"],
            &["link", "set", "lo", "up"],
        ] {
            run(machines.switch.command("ip").args(args))?;
        }
        let forward = "echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding";
        run(machines.switch.command("sh").args(["-c", forward]))?;
        for index in 0..=near {
            machines.add(index, index < near, addresses)?;
        }
        Ok(machines)
    }

    fn add(&mut self, index: usize, near: bool, families: Addresses) -> Result<()> {
        let name = format!("m{index}");
        let namespace = format!("dhow-cl-{}-{name}", std::process::id());
        let (four, router) = match near {
            true => (format!("198.18.0.{}", index + 1), "198.18.0.254"),
            false => ("198.19.0.1".to_owned(), "198.19.0.254"),
        };
        let (six, router6) = match near {
            true => (format!("2001:db8:18::{}", index + 1), "2001:db8:18::fe"),
            false => ("2001:db8:19::1".to_owned(), "2001:db8:19::fe"),
        };
        let both = [(families.four(), four.clone()), (families.six(), six.clone())];
        let addresses: Vec<String> = both.into_iter().filter(|(has, _)| *has).map(|(_, address)| address).collect();
        let folder = self.folder.path().join(&name);
        std::fs::create_dir_all(&folder).context("make a machine's folder")?;
        run(Command::new("ip").args(["netns", "add", &namespace]))?;
        let switch = self.switch.namespace.clone();
        let machine = Machine {
            name: name.clone(),
            address: addresses[0].clone(),
            addresses,
            // Those that join are told by the cluster.
            variables: if index == 0 { families.variables() } else { &[] },
            namespace,
            switch,
            folder,
        };
        run(self.switch.command("ip").args([
            "link",
            "add",
            &name,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            &machine.namespace,
        ]))?;
        match near {
            true => run(self.switch.command("ip").args(["link", "set", &name, "master", "near"]))?,
            false => {
                run(self.switch.command("ip").args(["addr", "add", "2001:db8:19::fe/64", "dev", &name, "nodad"]))?;
                run(self.switch.command("ip").args(["addr", "add", "198.19.0.254/24", "dev", &name]))?
            }
        };
        run(self.switch.command("ip").args(["link", "set", &name, "up"]))?;
        run(machine.command("ip").args(["link", "set", "lo", "up"]))?;
        run(machine.command("ip").args(["link", "set", "eth0", "up"]))?;
        if families.four() {
            run(machine.command("ip").args(["addr", "add", &format!("{four}/24"), "dev", "eth0"]))?;
            run(machine.command("ip").args(["route", "add", "default", "via", router]))?;
        }
        if families.six() {
            run(machine.command("ip").args(["addr", "add", &format!("{six}/64"), "dev", "eth0", "nodad"]))?;
            run(machine.command("ip").args(["-6", "route", "add", "default", "via", router6]))?;
        }
        self.all.push(machine);
        Ok(())
    }

    pub fn server(&self) -> &Machine {
        &self.all[0]
    }

    /// Takes everything away, the server last, and makes sure that nothing is left.
    pub fn purge(&self) -> Result<()> {
        for machine in self.all.iter().rev() {
            machine.dhow(&["down", "--purge"])?;
            machine.ensure_purged().with_context(|| machine.name.clone())?;
        }
        Ok(())
    }

    /// The real kubectl on the server; returns standard output.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        run(self.server().command("kubectl").args(args))
    }

    /// `kubectl … -o json`, parsed.
    pub fn get(&self, args: &[&str]) -> Result<Value> {
        let text = run(self.server().command("kubectl").args(args).args(["-o", "json"]))?;
        serde_json::from_str(&text).context("read kubectl's JSON")
    }

    /// `kubectl apply` of a manifest.
    pub fn apply(&self, manifest: &str) -> Result<String> {
        apply(self.server().command("kubectl"), manifest)
    }

    /// What a URL gives to a pod that has python in it; `patience` in seconds.
    pub fn fetch(&self, pod: &str, url: &str, patience: u32) -> Result<String> {
        let get = "import sys, urllib.request as u; \
                   sys.stdout.write(u.urlopen(sys.argv[1], timeout=float(sys.argv[2])).read().decode())";
        self.exec(pod, &format!("python3 -c '{get}' {url} {patience}"))
    }

    /// A shell command in a pod of namespace `default`; returns standard output.
    pub fn exec(&self, pod: &str, script: &str) -> Result<String> {
        self.kubectl(&["exec", pod, "--", "sh", "-c", script])
    }
}

impl Switch {
    fn command(&self, program: &str) -> Command {
        inside(&self.namespace, program)
    }
}

fn inside(namespace: &str, program: impl AsRef<Path>) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{namespace}")).arg("--").arg(program.as_ref()).stdin(Stdio::null());
    command
}

impl Machine {
    pub fn data_dir(&self) -> PathBuf {
        self.folder.join("data")
    }

    fn run_dir(&self) -> PathBuf {
        self.folder.join("run")
    }

    /// A program inside the machine's network.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = inside(&self.namespace, program);
        command
            .env("KUBECONFIG", self.folder.join("kubeconfig"))
            .env("DHOW_DATA_DIR", self.data_dir())
            .env("DHOW_RUN_DIR", self.run_dir())
            .env("DHOW_NODE_IP", self.addresses.join(","))
            .env("DHOW_NODE_NAME", &self.name)
            // How full the disk of the machine is that tests is not part of them.
            .env("DHOW_IMAGES_GC_HIGH_THRESHOLD_PERCENT", "100")
            .env("DHOW_POD_SLOTS", "0")
            .envs(self.variables.iter().copied())
            .env_remove("SUDO_UID")
            .env("NO_PROXY", "*");
        if self.settings().exists() {
            command.env("DHOW_CONFIG", self.settings());
        }
        for proxy in ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"] {
            command.env_remove(proxy);
        }
        command
    }

    /// Its settings; used from the next start on if it is there.
    pub fn settings(&self) -> PathBuf {
        self.folder.join("config.yaml")
    }

    /// `dhow` with these arguments; returns standard output.
    pub fn dhow(&self, args: &[&str]) -> Result<String> {
        run(self.command(binary()?).args(args))
    }

    /// `dhow` with these arguments, whatever comes of it: both outputs.
    pub fn dhow_said(&self, args: &[&str]) -> Result<String> {
        let output = self.command(binary()?).args(args).output().context("start dhow")?;
        Ok(format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)))
    }

    /// Takes the machine's cable out, or puts it back.
    pub fn plug(&self, on: bool) -> Result<()> {
        let state = if on { "up" } else { "down" };
        run(inside(&self.switch, "ip").args(["link", "set", &self.name, state])).map(drop)
    }

    /// Lets the machine's link carry no more than this, at the other end only.
    pub fn narrow(&self, mtu: u32) -> Result<()> {
        run(inside(&self.switch, "ip").args(["link", "set", &self.name, "mtu", &mtu.to_string()])).map(drop)
    }

    pub fn daemon_pid(&self) -> Result<u32> {
        let text = std::fs::read_to_string(self.run_dir().join("dhow.pid")).context("read the pid file")?;
        text.trim().parse().context("read the pid")
    }

    /// Ends the daemon as a power cut would.
    pub fn kill(&self) -> Result<()> {
        run(Command::new("kill").args(["-9", &self.daemon_pid()?.to_string()])).map(drop)
    }

    pub fn log(&self) -> String {
        let text = std::fs::read_to_string(self.data_dir().join("dhow.log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(25)..].join("\n")
    }

    /// Fails if anything of a purged node is left.
    pub fn ensure_purged(&self) -> Result<()> {
        ensure_purged(&self.data_dir(), &self.run_dir(), 2, |program| self.command(program))
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for machine in &self.all {
                eprintln!("the log of {} ends:\n{}", machine.name, machine.log());
            }
            if let Ok(all) = self.kubectl(&["get", "nodes,pods,csr", "-A", "-o", "wide"]) {
                eprintln!("{all}");
            }
        }
        for machine in self.all.iter().rev() {
            if machine.data_dir().exists()
                && let Err(error) = machine.dhow(&["down", "--purge"])
            {
                eprintln!("clean up {}: {error:#}", machine.name);
            }
            let _ = Command::new("ip").args(["netns", "del", &machine.namespace]).status();
        }
        let _ = Command::new("ip").args(["netns", "del", &self.switch.namespace]).status();
    }
}
