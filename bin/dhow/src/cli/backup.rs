//! Flags of `dhow backup`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{ConfigArgs, ConnectArgs, Output};

#[derive(Debug, Subcommand)]
pub enum BackupCommand {
    /// Write a backup of the state, and of the cluster's keys, while everything runs or while nothing does.
    Create(BackupArgs),
    /// List the backups in the folder or bucket of the settings, or in another one, the newest first.
    #[command(alias = "ls")]
    List(ListBackupsArgs),
    /// Say what a backup holds, after checking all of it.
    Verify(VerifyArgs),
    /// Make the state, and the cluster's keys, of a stopped cloud from a backup.
    Restore(RestoreArgs),
}

#[derive(Debug, Args)]
pub struct BackupArgs {
    #[command(flatten)]
    pub connect: ConnectArgs,
    #[command(flatten)]
    pub config: ConfigArgs,
    /// File, or s3://BUCKET/KEY, to write; it appears once it is whole and durable [default: beside the scheduled ones].
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Leave out the cluster's keys: a restore then needs a machine that has them.
    #[arg(long)]
    pub without_keys: bool,
}

#[derive(Debug, Args)]
pub struct ListBackupsArgs {
    #[command(flatten)]
    pub config: ConfigArgs,
    /// The folder, or s3://BUCKET/PREFIX [default: that of the settings].
    #[arg(value_name = "DIR")]
    pub folder: Option<PathBuf>,
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

#[derive(Debug, Args)]
pub struct VerifyArgs {
    #[command(flatten)]
    pub config: ConfigArgs,
    /// File, or s3://BUCKET/KEY.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

#[derive(Debug, Args)]
pub struct RestoreArgs {
    #[command(flatten)]
    pub connect: ConnectArgs,
    #[command(flatten)]
    pub config: ConfigArgs,
    /// File, or s3://BUCKET/KEY.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Put state that is already there aside instead of refusing.
    #[arg(long)]
    pub replace: bool,
}
