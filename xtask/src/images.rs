//! `cargo xtask images`: real images from Debian packages, as oci-archives, without any registry.
//!
//! One base root is bootstrapped once. Each further layer is an overlay on its parent in which packages are
//! installed; the overlay's upper directory becomes the layer. Every step is cached under the hash of its
//! inputs, so a second run only compares hashes.

mod archive;
mod build;
mod recipes;
mod tarball;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use self::build::Builder;
use crate::{setup, shell};

#[derive(clap::Args)]
pub struct ImagesArgs {
    /// Where the archives go.
    #[arg(long, default_value = "target/images")]
    out: PathBuf,
    /// Only these images, by the names of their archives; default: all.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
}

impl ImagesArgs {
    /// All of them, in the usual place.
    pub fn all() -> Self {
        Self::only(&[])
    }

    /// Just these, in the usual place.
    pub fn only(names: &[&str]) -> Self {
        Self { out: "target/images".into(), only: names.iter().map(|name| (*name).to_owned()).collect() }
    }
}

pub fn run(args: ImagesArgs) -> Result<()> {
    let started = Instant::now();
    if !is_root() {
        bail!("building images installs packages into a new root, which takes root; run it with sudo");
    }
    setup::ensure(&[("mmdebstrap", "mmdebstrap"), ("unshare", "util-linux")])?;
    let out = shell::root().join(&args.out);
    std::fs::create_dir_all(&out).with_context(|| format!("create {}", out.display()))?;
    let builder = Builder::new(&out.join(".cache"))?;
    let images = recipes::images(&shell::root())?;
    let unknown: Vec<_> = args.only.iter().filter(|name| images.iter().all(|i| i.file != name.as_str())).collect();
    if !unknown.is_empty() {
        let known: Vec<_> = images.iter().map(|i| i.file).collect();
        bail!("no such image: {unknown:?}; there are {}", known.join(", "));
    }
    for image in images.iter().filter(|i| args.only.is_empty() || args.only.iter().any(|o| o == i.file)) {
        let layers = image.layers.iter().try_fold(Vec::new(), |mut below, layer| {
            let built = builder.layer(layer, &below).with_context(|| format!("build layer {}", layer.name))?;
            below.push(built);
            anyhow::Ok(below)
        })?;
        let target = out.join(format!("{}.tar", image.file));
        if archive::write(&target, image, &layers).with_context(|| format!("write {}", target.display()))? {
            let size = std::fs::metadata(&target)?.len() >> 20;
            eprintln!("    {} -> {} ({size} MiB)", image.reference, target.display());
        } else {
            eprintln!("    {} is up to date", image.reference);
        }
    }
    shell::step(&format!("images ready in {:.1} s", started.elapsed().as_secs_f64()));
    Ok(())
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0)
}
