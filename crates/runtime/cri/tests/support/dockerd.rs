//! A Docker daemon of the test's own, with a containerd below it that is private, too.

use std::fs;
use std::io::Result;
use std::path::Path;
use std::process::Command;

use crate::daemon::Daemon;

/// containerd with all it has in the folder; it answers at `c.sock` there. `command` makes a program's command.
pub fn containerd(command: impl Fn(&str) -> Command, folder: &Path) -> Result<Daemon> {
    let at = |name: &str| folder.join(name).display().to_string();
    let config = format!(
        "version = 2\nroot = \"{}\"\nstate = \"{}\"\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\", \
         \"io.containerd.internal.v1.opt\"]\n[grpc]\naddress = \"{}\"\n",
        at("c-root"),
        at("c-state"),
        at("c.sock")
    );
    fs::write(at("config.toml"), config)?;
    let mut containerd = command("containerd");
    containerd.args(["--config", &at("config.toml")]);
    Daemon::start(containerd, "containerd", folder, &folder.join("c.sock"))
}

/// containerd and dockerd, to be ended in the other order; Docker has all in the folder, too, and answers at `d.sock`.
pub fn start(command: impl Fn(&str) -> Command, folder: &Path) -> Result<(Daemon, Daemon)> {
    let at = |name: &str| folder.join(name).display().to_string();
    let containerd = containerd(&command, folder)?;
    fs::write(at("none.json"), "{}")?;
    let mut docker = command("dockerd");
    docker.args(["--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false"]);
    for (flag, value) in [
        ("--config-file", at("none.json")),
        ("--containerd", at("c.sock")),
        ("--data-root", at("data")),
        ("--exec-root", at("exec")),
        ("--pidfile", at("docker.pid")),
        ("--host", format!("unix://{}", at("d.sock"))),
    ] {
        docker.arg(flag).arg(value);
    }
    let docker = Daemon::start(docker, "dockerd", folder, &folder.join("d.sock"))?;
    Ok((containerd, docker))
}
