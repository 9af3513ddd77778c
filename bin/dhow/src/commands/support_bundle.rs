//! `dhow support-bundle`: one file with what helps to find out what is wrong, for people who must not see secrets.
//!
//! Invariants
//! - Objects are taken by a list of kinds; Secrets and ConfigMaps come with names and sizes only.
//! - Every byte passes [`redact::Redactor`], which knows the cluster's secret values and the looks of keys and tokens.
//! - What cannot be had is told of in the bundle, and stops nothing: a bundle is wanted most where little works.
#![allow(clippy::print_stderr)]

mod cluster;
mod machine;
mod redact;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use dhow_client::Client;
use flate2::Compression;
use flate2::write::GzEncoder;
use k8s_openapi::jiff::Timestamp;
use rustix::fs::{Mode, OFlags};
use serde::Serialize;
use tempfile::NamedTempFile;

use self::redact::{Known, Redactor};
use super::version::Versions;
use super::{connect, doctor};
use crate::cli::SupportBundleArgs;
use crate::settings::Settings;

const README: &str = "\
What Dhow gathered to find out what is wrong with a cloud.

versions.yaml   of the program, the server and the nodes
settings.yaml   the settings in force; passwords and tokens are taken out
doctor.txt      what `dhow doctor` says
logs/           the end of the daemon's log, and of its unit's in the journal
cluster/        objects as YAML, without what Secrets and ConfigMaps hold, and without values of variables that are
                named like secrets
metrics/        of the server and of the nodes
machine/        network, nftables, mounts, control groups, processes, sizes of the data folder

Wherever a value of a Secret, a key or a token of the cluster appeared, it says [redacted] now.
";

pub async fn run(args: SupportBundleArgs) -> Result<()> {
    let now = Timestamp::now();
    let name = format!("dhow-support-{}", now.strftime("%Y%m%dT%H%M%SZ"));
    let file = args.file.clone().unwrap_or_else(|| PathBuf::from(format!("{name}.tar.gz")));
    let mut missing = Vec::new();
    let client = connect(&args.connect);
    let client = noted(client, "the API", &mut missing);
    let mut known = Known::default();
    let local = args.connect.kubeconfig.is_none();
    if local {
        known.of_machine(&args.connect.data_dir);
    }
    let settings = noted(Settings::load(&args.config.config), "the settings", &mut missing);
    if let Some(client) = &client {
        noted(cluster::secrets(client, &mut known).await, "the Secrets, to look for their values", &mut missing);
    }
    let settings = settings.map(|settings| redact::settings(&settings, &mut known)).transpose()?;
    let mut bundle = Bundle::begin(&file, name, known.redactor()?, missing, now)?;
    bundle.text("README.txt", README)?;
    if let Some(settings) = settings {
        bundle.yaml("settings.yaml", &settings)?;
    }
    let (versions, error) = Versions::find(&args.connect).await;
    bundle.missing.extend(error.map(|error| format!("the cluster's versions: {error:#}")));
    bundle.yaml("versions.yaml", &versions)?;
    let findings = doctor::look(&args.connect, &args.config.config).await;
    let lines: String = findings.iter().map(|finding| format!("{finding}\n")).collect();
    bundle.text("doctor.txt", &lines)?;
    if let Some(client) = &client {
        cluster::gather(client, &mut bundle).await?;
    }
    if local {
        let connect = args.connect.clone();
        bundle = tokio::task::spawn_blocking(move || machine::gather(&connect, &mut bundle).map(|()| bundle))
            .await
            .context("look at the machine")??;
    }
    let (missing, short) = (std::mem::take(&mut bundle.missing), known.too_short);
    if !missing.is_empty() {
        bundle.text("missing.txt", &format!("{}\n", missing.join("\n")))?;
    }
    bundle.end(&file)?;
    eprintln!("{} is written.", file.display());
    if !missing.is_empty() {
        eprintln!("What could not be had is named in missing.txt: {} in all.", missing.len());
    }
    if short > 0 {
        eprintln!("{short} secret values are too short to be looked for in logs; look yourself before you pass it on.");
    }
    Ok(())
}

/// The value, or a line about why there is none.
fn noted<T, E: Into<anyhow::Error>>(result: Result<T, E>, what: &str, missing: &mut Vec<String>) -> Option<T> {
    result.map_err(|error| missing.push(format!("{what}: {:#}", error.into()))).ok()
}

/// The archive while it is written.
struct Bundle {
    archive: tar::Builder<GzEncoder<NamedTempFile>>,
    folder: String,
    redactor: Redactor,
    missing: Vec<String>,
    now: Timestamp,
}

impl Bundle {
    fn begin(file: &Path, folder: String, redactor: Redactor, missing: Vec<String>, now: Timestamp) -> Result<Self> {
        let beside = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let temporary = tempfile::Builder::new().prefix(".support-").tempfile_in(beside);
        let temporary = temporary.with_context(|| format!("write into {}", beside.display()))?;
        let archive = tar::Builder::new(GzEncoder::new(temporary, Compression::default()));
        Ok(Self { archive, folder, redactor, missing, now })
    }

    /// Adds a file. The only way into the archive.
    fn text(&mut self, name: &str, text: &str) -> Result<()> {
        self.bytes(name, text.as_bytes())
    }

    fn bytes(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let clean = self.redactor.clean(bytes);
        let mut header = tar::Header::new_gnu();
        header.set_size(clean.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(self.now.as_second().try_into().unwrap_or_default());
        let path = Path::new(&self.folder).join(name);
        self.archive.append_data(&mut header, path, clean.as_ref()).context("write the bundle")
    }

    fn yaml(&mut self, name: &str, value: &impl Serialize) -> Result<()> {
        let text = serde_saphyr::to_string(value).with_context(|| format!("encode {name}"))?;
        self.text(name, &text)
    }

    /// Adds a file if it can be had.
    fn try_text(&mut self, name: &str, text: Result<String>) -> Result<()> {
        match text {
            Ok(text) => self.text(name, &text),
            Err(error) => {
                self.missing.push(format!("{name}: {error:#}"));
                Ok(())
            }
        }
    }

    /// The file appears once it is whole; its owner alone may read it.
    fn end(self, file: &Path) -> Result<()> {
        let encoder = self.archive.into_inner().context("write the bundle")?;
        let mut temporary = encoder.finish().context("write the bundle")?;
        temporary.flush().context("write the bundle")?;
        temporary.as_file().sync_all().context("write the bundle")?;
        temporary.persist(file).map_err(|error| error.error).with_context(|| format!("write {}", file.display()))?;
        Ok(())
    }
}

/// The end of a file, from the beginning of a line on.
fn end_of(path: &Path, bytes: u64) -> Result<String> {
    use std::os::unix::fs::FileExt;
    let reading = || format!("read {}", path.display());
    // A log may be anything by now, so nothing is waited for.
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty());
    let file = fs::File::from(file.with_context(reading)?);
    let length = file.metadata().with_context(reading)?.len();
    let from = length.saturating_sub(bytes);
    let mut buffer = vec![0; usize::try_from(length - from).with_context(reading)?];
    file.read_exact_at(&mut buffer, from).with_context(reading)?;
    let text = String::from_utf8_lossy(&buffer);
    Ok(match text.split_once('\n') {
        Some((_, rest)) if from > 0 => rest.to_owned(),
        _ => text.into_owned(),
    })
}

async fn body(client: &Client, path: &str) -> Result<Vec<u8>> {
    let read = async {
        let body = client.open(path).await?;
        let body = http_body_util::BodyExt::collect(body).await.with_context(|| format!("read {path}"))?;
        anyhow::Ok(body.to_bytes().to_vec())
    };
    tokio::time::timeout(cluster::QUESTION, read).await.with_context(|| format!("{path}: no answer"))?
}
