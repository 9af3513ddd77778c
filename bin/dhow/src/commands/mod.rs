//! One file per command.

pub mod deploy;
pub mod down;
pub mod image;
pub mod status;
pub mod up;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use dhow_client::Client;

use crate::cli::ConnectArgs;

/// The kubeconfig that reaches the cloud: the one named, else that of the cloud on this machine.
fn kubeconfig_path(args: &ConnectArgs) -> Result<PathBuf> {
    let own = args.data_dir.join("admin.kubeconfig");
    if own.exists() && std::fs::File::open(&own).is_ok() {
        return Ok(own);
    }
    let named = args.kubeconfig.clone().or_else(|| std::env::home_dir().map(|home| home.join(".kube/config")));
    match named {
        Some(path) if path.exists() => Ok(path),
        _ => bail!("no cloud found: run `dhow up` first, or name a kubeconfig with --kubeconfig"),
    }
}

fn connect(args: &ConnectArgs) -> Result<Client> {
    let path = kubeconfig_path(args)?;
    Client::from_kubeconfig(&path, Some("dhow")).with_context(|| format!("use {}", path.display()))
}

/// `dhow kubeconfig`: the administrator's file on standard output.
#[allow(clippy::print_stdout)]
pub fn kubeconfig(args: &ConnectArgs) -> Result<()> {
    let path = kubeconfig_path(args)?;
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    print!("{text}");
    Ok(())
}
