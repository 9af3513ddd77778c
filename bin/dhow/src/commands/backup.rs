//! `dhow backup create|list|verify|restore`.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use comfy_table::{Table, presets};
use dhow_client::Client;
use dhow_store::{FjallKv, S3Blob};
use http_body_util::BodyExt;
use indicatif::{ProgressBar, ProgressStyle};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use tempfile::NamedTempFile;

use super::connect;
use super::server::STOP_FIRST;
use crate::backup::{self, Contents, Present};
use crate::backup_object;
use crate::backups::{self, Destination, Plan};
use crate::cli::{BackupArgs, BackupCommand, ListBackupsArgs, Output, RestoreArgs};
use crate::settings::Settings;
use crate::{daemon, pidfile, place, s3_settings};

pub async fn run(command: BackupCommand) -> Result<()> {
    match command {
        BackupCommand::Create(args) => make_backup(args).await,
        BackupCommand::List(args) => list(&args).await,
        BackupCommand::Verify(args) => {
            let here = local(&args.file, &args.config.config, &std::env::temp_dir()).await?;
            let contents = tokio::task::spawn_blocking(move || backup::verify(here.path())).await??;
            print_contents(&contents, args.output)
        }
        BackupCommand::Restore(args) => {
            let data_dir = &args.connect.data_dir;
            std::fs::create_dir_all(data_dir).with_context(|| format!("create {}", data_dir.display()))?;
            let here = local(&args.file, &args.config.config, data_dir).await?;
            tokio::task::spawn_blocking(move || restore(&args, here.path())).await?
        }
    }
}

/// A backup as a file of this machine.
enum Local {
    File(PathBuf),
    Fetched(NamedTempFile),
}

impl Local {
    fn path(&self) -> &Path {
        match self {
            Self::File(file) => file,
            Self::Fetched(file) => file.path(),
        }
    }
}

/// Fetches one that is in a bucket into `folder`.
async fn local(file: &Path, config: &Path, folder: &Path) -> Result<Local> {
    match object(file, config)? {
        Some((bucket, key)) => Ok(Local::Fetched(backup_object::fetch(&bucket, &key, folder).await?)),
        None => Ok(Local::File(file.to_owned())),
    }
}

/// What `s3://bucket/key` names; the settings need not be there for files.
fn object(file: &Path, config: &Path) -> Result<Option<(S3Blob, String)>> {
    if !file.starts_with("s3:") {
        return Ok(None);
    }
    s3_settings::object(file, Settings::load(config)?.backups.s3.as_ref())
}

/// The plan of the settings, for a command that was given no place of its own.
fn plan(config: &Path) -> Result<Plan> {
    let plan = Settings::load(config)?.backups.plan()?;
    plan.with_context(|| {
        format!("name a place: the settings ({}) have no backups.folder and no backups.s3", config.display())
    })
}

/// Where a new backup goes.
enum Target {
    File(PathBuf),
    Object(S3Blob, String),
}

impl Target {
    fn of(args: &BackupArgs) -> Result<Self> {
        let config = &args.config.config;
        if let Some(file) = &args.file {
            return Ok(match object(file, config)? {
                Some((bucket, key)) => Self::Object(bucket, key),
                None => Self::File(file.clone()),
            });
        }
        // Where the schedule would put it.
        let name = backups::name(Timestamp::now());
        Ok(match plan(config)?.place {
            Destination::Folder(folder) => {
                backups::make_folder(&folder)?;
                Self::File(folder.join(name))
            }
            Destination::Bucket(bucket) => Self::Object(bucket.open("backups.s3")?, name),
        })
    }
}

async fn list(args: &ListBackupsArgs) -> Result<()> {
    let kept = match &args.folder {
        // Any name will do: what is listed is what is beside it.
        Some(folder) => match object(&folder.join("x"), &args.config.config)? {
            Some((bucket, _)) => backups::kept_in(&bucket).await?,
            None => Destination::Folder(folder.clone()).kept().await?,
        },
        None => plan(&args.config.config)?.place.kept().await?,
    };
    match args.output {
        Output::Table => {
            let mut table = Table::new();
            table.load_style(presets::NOTHING).set_header(["FILE", "MADE", "SIZE"]);
            for one in &kept {
                let size = format!("{:.1} MiB", mebibytes(one.bytes));
                table.add_row([one.path.display().to_string(), one.made.to_string(), size]);
            }
            println!("{table}");
        }
        output => {
            let all: Vec<Value> = kept
                .iter()
                .map(|one| json!({"file": one.path, "made": one.made.to_string(), "bytes": one.bytes}))
                .collect();
            match output {
                Output::Json => println!("{}", serde_json::to_string_pretty(&all)?),
                _ => print!("{}", serde_saphyr::to_string(&all)?),
            }
        }
    }
    Ok(())
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
    let target = Target::of(&args)?;
    // Where the archive will be there is room for it.
    let scratch = match &target {
        Target::File(file) => backup::folder_beside(file)?,
        Target::Object(..) => tempfile::tempdir().context("make a folder")?,
    };
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
    let keys = with_keys.then_some(keys);
    let (place, contents) = match target {
        Target::File(file) => {
            let archive = file.clone();
            let writing = move || backup::write(&archive, &store_path, keys.as_deref());
            (file.display().to_string(), tokio::task::spawn_blocking(writing).await??)
        }
        Target::Object(bucket, key) => (bucket.url(&key), backup_object::send(&bucket, &key, store_path, keys).await?),
    };
    eprintln!("{place} holds {}.", summary(&contents));
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

fn restore(args: &RestoreArgs, file: &Path) -> Result<()> {
    let data_dir = &args.connect.data_dir;
    let _lock = daemon::lock(data_dir).context(STOP_FIRST)?;
    let present = if args.replace { Present::PutAside } else { Present::Refuse };
    let contents = backup::restore(file, data_dir, present)?;
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
            mebibytes(contents.store.bytes),
            if contents.keys > 0 { "included" } else { "not included" },
        ),
    }
    Ok(())
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / (1024.0 * 1024.0)
}
