//! Where the result goes.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use dhow_builder::api::Output;
use dhow_client::Body;
use dhow_image::Compression;
use http_body_util::BodyExt;
use tokio_util::io::{StreamReader, SyncIoBridge};

use crate::cli::BuildArgs;

/// `--output`, read.
pub struct Destination {
    pub output: Output,
    pub push: bool,
    pub compression: Option<Compression>,
    to: Option<To>,
}

enum To {
    File(PathBuf),
    Stdout,
    Folder(PathBuf),
}

impl Destination {
    pub fn parse(args: &BuildArgs) -> Result<Self> {
        let mut this = Destination { output: Output::Store, push: false, compression: None, to: None };
        let Some(text) = &args.output else { return Ok(this) };
        if text == "-" {
            return Ok(Destination { output: Output::Tar, to: Some(stdout()?), ..this });
        }
        if !text.contains('=') {
            return Ok(Destination { output: Output::Tar, to: Some(To::Folder(text.into())), ..this });
        }
        let (mut kind, mut dest) = ("image", None);
        for field in text.split(',') {
            let (name, value) = field.split_once('=').unwrap_or((field, "true"));
            match name {
                "type" => kind = value,
                "dest" => dest = Some(value),
                "push" => this.push = value == "true",
                "compression" => this.compression = Some(Self::compression(value).context("--output")?),
                other => bail!("--output: {other:?} is none of type, dest, push and compression"),
            }
        }
        let file = || match dest {
            None | Some("-") => stdout(),
            Some(path) => Ok(To::File(path.into())),
        };
        match kind {
            "image" => {}
            "registry" => this.push = true,
            "oci" => (this.output, this.to) = (Output::Oci, Some(file()?)),
            "docker" => (this.output, this.to) = (Output::Docker, Some(file()?)),
            "tar" => (this.output, this.to) = (Output::Tar, Some(file()?)),
            "local" => {
                let folder = dest.context("--output: type=local needs dest=")?;
                (this.output, this.to) = (Output::Tar, Some(To::Folder(folder.into())));
            }
            "cacheonly" => this.output = Output::Nothing,
            other => {
                bail!("--output: type {other:?} is none of image, registry, oci, docker, tar, local and cacheonly")
            }
        }
        Ok(this)
    }

    /// A compression by its name.
    pub fn compression(name: &str) -> Result<Compression> {
        Ok(match name {
            "gzip" => Compression::Gzip,
            "zstd" => Compression::Zstd,
            "uncompressed" => Compression::Uncompressed,
            other => bail!("compression {other:?} is none of gzip, zstd and uncompressed"),
        })
    }

    pub fn wants_archive(&self) -> bool {
        self.to.is_some()
    }

    /// Takes the archive that comes.
    pub async fn take(self, first: Bytes, body: Body) -> Result<()> {
        let Some(to) = self.to else { return Ok(()) };
        let pieces = futures::TryStreamExt::map_err(body.into_data_stream(), io::Error::other);
        let pieces = futures::StreamExt::chain(futures::stream::iter([Ok(first)]), pieces);
        let mut reader = SyncIoBridge::new(StreamReader::new(Box::pin(pieces)));
        let written = tokio::task::spawn_blocking(move || match to {
            To::Stdout => {
                let mut out = io::stdout().lock();
                io::copy(&mut reader, &mut out).and_then(|_| out.flush()).context("write the archive")
            }
            To::File(path) => {
                // It appears under its name once it is whole.
                let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
                let mut file = tempfile::NamedTempFile::new_in(folder)
                    .with_context(|| format!("create a file in {}", folder.display()))?;
                io::copy(&mut reader, &mut file).context("write the archive")?;
                file.persist(&path).with_context(|| format!("create {}", path.display()))?;
                Ok(())
            }
            To::Folder(path) => {
                std::fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
                let mut archive = tar::Archive::new(&mut reader);
                archive.set_preserve_permissions(true);
                archive.unpack(&path).with_context(|| format!("write to {}", path.display()))?;
                io::copy(&mut reader, &mut io::sink()).context("read the files")?;
                Ok(())
            }
        });
        written.await.context("write the result")?
    }
}

fn stdout() -> Result<To> {
    if io::stdout().is_terminal() {
        bail!("an archive is nothing to look at: name a file by dest=, or redirect standard output");
    }
    Ok(To::Stdout)
}
