//! `dhow server backup|verify|restore|token|migrate-store|rotate-keys`.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::fs::File;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, bail};
use dhow_client::Client;
use dhow_store::FjallKv;
use http_body_util::BodyExt;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::connect;
use crate::backup::{self, Contents, Present};
use crate::cli::{BackupArgs, ConnectArgs, Output, RestoreArgs, ServerCommand};
use crate::place::{self, Place};
use crate::shared::ServerToken;
use crate::{daemon, migrate, pidfile, store};

const STOP_FIRST: &str = "the cloud has to be stopped first, with `dhow down`";

pub async fn run(command: ServerCommand) -> Result<()> {
    match command {
        ServerCommand::Backup(args) => make_backup(args).await,
        ServerCommand::Verify { file, output } => {
            let contents = tokio::task::spawn_blocking(move || backup::verify(&file)).await??;
            print_contents(&contents, output)
        }
        ServerCommand::Token(args) => print_token(&args),
        ServerCommand::MigrateStore(args) => migrate_store(&Place::resolve(&args)?).await,
        ServerCommand::RotateKeys(args) => rotate_keys(&Place::resolve(&args)?).await,
        ServerCommand::Restore(args) => tokio::task::spawn_blocking(move || restore(&args)).await?,
    }
}

async fn make_backup(args: BackupArgs) -> Result<()> {
    let keys = args.connect.data_dir.join("pki");
    let with_keys = !args.without_keys;
    if with_keys && std::fs::read_dir(&keys).is_err() {
        bail!(
            "the cluster's keys in {} cannot be read; run this as root on the server, or leave them out with \
             --without-keys",
            keys.display()
        );
    }
    // Where the archive will be there is room for it.
    let scratch = backup::folder_beside(&args.file)?;
    let store_path = scratch.path().join("store");
    let own_store = args.connect.data_dir.join("store");
    if args.connect.kubeconfig.is_none()
        && own_store.is_dir()
        && !place::moved_file(&args.connect.data_dir).exists()
        && pidfile::holder(&args.connect.run_dir.join("dhow.pid")).is_none()
    {
        // No daemon has the store: it is read here.
        let (data_dir, path) = (args.connect.data_dir.clone(), store_path.clone());
        tokio::task::spawn_blocking(move || -> Result<()> {
            let _lock = daemon::lock(&data_dir)?;
            let kv = FjallKv::open(own_store).context("open the store")?;
            kv.backup_file(&path).context("write the store's backup")?;
            Ok(())
        })
        .await??;
    } else {
        download(&connect(&args.connect)?, &store_path).await?;
    }
    let file = args.file.clone();
    let contents =
        tokio::task::spawn_blocking(move || backup::write(&file, &store_path, with_keys.then_some(keys.as_path())))
            .await??;
    eprintln!("{} holds {}.", args.file.display(), summary(&contents));
    if with_keys {
        eprintln!("It holds the cluster's keys too: whoever has it can be anyone in the cluster.");
    }
    Ok(())
}

/// Fetches the store's backup from the running server.
async fn download(client: &Client, path: &Path) -> Result<()> {
    let mut body = client.open("/backup").await?;
    let mut file = File::options().create_new(true).write(true).open(path).context("write the store's backup")?;
    let style = ProgressStyle::with_template("{spinner} {bytes} {bytes_per_sec}").context("draw the progress")?;
    let progress = ProgressBar::no_length().with_style(style);
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.context("the backup was cut off")?.into_data() {
            // Small writes into the page cache; the archive is what is made durable.
            file.write_all(&data).context("write the store's backup")?;
            progress.inc(data.len() as u64);
        }
    }
    progress.finish_and_clear();
    Ok(())
}

fn restore(args: &RestoreArgs) -> Result<()> {
    let data_dir = &args.connect.data_dir;
    std::fs::create_dir_all(data_dir).with_context(|| format!("create {}", data_dir.display()))?;
    let _lock = daemon::lock(data_dir).context(STOP_FIRST)?;
    let present = if args.replace { Present::PutAside } else { Present::Refuse };
    let contents = backup::restore(&args.file, data_dir, present)?;
    // What is restored is the state, wherever it was before.
    match std::fs::remove_file(place::moved_file(data_dir)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).context("use the restored store");
        }
        _ => {}
    }
    eprintln!("{} now holds {}.", data_dir.display(), summary(&contents));
    eprintln!("Next: dhow up");
    Ok(())
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

fn summary(contents: &Contents) -> String {
    let keys = if contents.keys > 0 { " and the cluster's keys" } else { "" };
    format!("revision {} with {} entries{keys}", contents.store.revision, contents.store.keys)
}

fn print_contents(contents: &Contents, output: Output) -> Result<()> {
    let created = k8s_openapi::jiff::Timestamp::try_from(contents.store.created).context("read the backup's date")?;
    let value = json!({
        "revision": contents.store.revision,
        "created": created.to_string(),
        "entries": contents.store.keys,
        "leases": contents.store.leases,
        "bytes": contents.store.bytes,
        "keys": contents.keys,
    });
    match output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&value)?),
        Output::Yaml => print!("{}", serde_saphyr::to_string(&value)?),
        Output::Table => println!(
            "REVISION  {}\nCREATED   {created}\nENTRIES   {}\nSIZE      {:.1} MiB\nKEYS      {}",
            contents.store.revision,
            contents.store.keys,
            contents.store.bytes as f64 / (1024.0 * 1024.0),
            if contents.keys > 0 { "included" } else { "not included" },
        ),
    }
    Ok(())
}
