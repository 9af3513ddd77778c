//! One file per command.

pub mod backup;
pub mod build;
pub mod builds;
pub mod config;
pub mod cri;
pub mod deploy;
pub mod doctor;
pub mod down;
pub mod exec;
pub mod image;
pub mod install;
pub mod join;
pub mod logs;
pub mod registry;
pub mod server;
pub mod sim;
pub mod status;
pub mod support_bundle;
pub mod token;
pub mod top;
pub mod up;
pub mod version;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use dhow_client::Client;

use crate::cli::ConnectArgs;
use crate::kubeconfig;

/// The kubeconfig that reaches the cloud, and the context in it (`None` is the file's current one).
pub fn kubeconfig_path(args: &ConnectArgs) -> Result<(PathBuf, Option<&'static str>)> {
    if let Some(named) = &args.kubeconfig {
        return Ok((named.clone(), None));
    }
    let own = args.data_dir.join("admin.kubeconfig");
    if std::fs::File::open(&own).is_ok() {
        return Ok((own, None));
    }
    let users = kubeconfig::of_user();
    if !users.exists() {
        bail!("no cloud found: run `dhow up` first, or name a kubeconfig with --kubeconfig");
    }
    Ok((users, Some(kubeconfig::NAME)))
}

fn connect(args: &ConnectArgs) -> Result<Client> {
    let (path, context) = kubeconfig_path(args)?;
    Client::from_kubeconfig(&path, context).with_context(|| format!("use {}", path.display()))
}

/// `dhow kubeconfig`: the administrator's file on standard output.
#[allow(clippy::print_stdout)]
pub fn print_kubeconfig(args: &ConnectArgs) -> Result<()> {
    let (path, _) = kubeconfig_path(args)?;
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    print!("{text}");
    Ok(())
}
