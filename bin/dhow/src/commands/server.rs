//! `dhow server token|migrate-store|rotate-keys`; backups are `dhow backup`.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use anyhow::{Context, Result, bail};

use super::backup;
use crate::cli::{BackupCommand, ConnectArgs, ServerCommand};
use crate::place::{self, Place};
use crate::shared::ServerToken;
use crate::{daemon, migrate, store};

/// What a command says that needs the store for itself.
pub const STOP_FIRST: &str = "the cloud has to be stopped first, with `dhow down`";

pub async fn run(command: ServerCommand) -> Result<()> {
    match command {
        ServerCommand::Backup(args) => backup::run(BackupCommand::Create(args)).await,
        ServerCommand::Verify(args) => backup::run(BackupCommand::Verify(args)).await,
        ServerCommand::Restore(args) => backup::run(BackupCommand::Restore(args)).await,
        ServerCommand::Token(args) => print_token(&args),
        ServerCommand::MigrateStore(args) => migrate_store(&Place::resolve(&args)?).await,
        ServerCommand::RotateKeys(args) => rotate_keys(&Place::resolve(&args)?).await,
    }
}

fn print_token(args: &ConnectArgs) -> Result<()> {
    let path = place::server_token(&args.data_dir);
    match ServerToken::read(&path)? {
        Some(token) => println!("{token}"),
        None => bail!(
            "{} does not exist: servers join a cluster whose state is in etcd (--store, `dhow server migrate-store`)",
            path.display()
        ),
    }
    Ok(())
}

async fn migrate_store(place: &Place) -> Result<()> {
    let _lock = daemon::lock(&place.data_dir).context(STOP_FIRST)?;
    let moved = migrate::run(place).await?;
    let etcd = place.etcd.as_ref().map(|etcd| etcd.endpoints.text.as_str()).unwrap_or_default();
    eprintln!("{} keys are in {etcd}; resource versions go on from {}.", moved.keys, moved.revision);
    eprintln!("The data folder keeps its keys and the store as it was; servers refuse to start on that.");
    eprintln!("Next: dhow up (or dhow server) with --store {etcd}");
    Ok(())
}

async fn rotate_keys(place: &Place) -> Result<()> {
    let _lock = daemon::lock(&place.data_dir).context(STOP_FIRST)?;
    let written = store::rotate_keys(place).await?;
    eprintln!("{written} Secrets are sealed with a new key; older backups still need the keys that are in them.");
    Ok(())
}
