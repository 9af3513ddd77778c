//! A containerd of the test's own, whose pods ask the test binary for their network.

use std::path::PathBuf;
use std::process::Command;

use dhow_cri::cni;
use libtest_mimic::Failed;

use crate::daemon::{Daemon, Folder};

pub struct Containerd {
    pub daemon: Daemon,
    pub folder: Folder,
}

impl Containerd {
    pub fn start() -> Result<Self, Failed> {
        let folder = Folder::new()?;
        let at = |name: &str| folder.path().join(name).display().to_string();
        let config = format!(
            r#"version = 2
root = "{root}"
state = "{state}"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs", "io.containerd.internal.v1.opt"]
[grpc]
  address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "dhow.local/pause:1"
  netns_mounts_under_state_dir = true
  # This machine may not be allowed to lower a score.
  restrict_oom_score_adj = true
  stats_collect_period = 1
  [plugins."io.containerd.grpc.v1.cri".cni]
    conf_dir = "{net}"
    bin_dir = "{bin}"
"#,
            root = at("root"),
            state = at("state"),
            socket = at("c.sock"),
            net = at("net.d"),
            bin = at("bin"),
        );
        std::fs::write(folder.path().join("config.toml"), config)?;
        let socket = folder.path().join("c.sock");
        let folders = dhow_cri::cri_client::CniFolders { configuration: at("net.d").into(), plugins: at("bin").into() };
        cni::install(&folders, &std::env::current_exe()?, &folder.path().join("cni.sock"))?;
        let mut command = Command::new("containerd");
        command.arg("--config").arg(folder.path().join("config.toml"));
        let daemon = Daemon::start(command, "containerd", folder.path(), &socket)?;
        Ok(Self { daemon, folder })
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("c.sock")
    }
}
