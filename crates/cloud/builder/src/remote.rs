//! Contexts by address: repositories, archives and single files that the node fetches itself.

use std::fs::File;
use std::path::{Path, PathBuf};

use dhow_image::View;

use crate::add;
use crate::copy::At;
use crate::error::{Error, Result, blocking};
use crate::event::{Events, Step};
use crate::git::{self, Who};
use crate::plan::Add;
use crate::report::Material;

/// A Dockerfile is text that people write.
const MAX_DOCKERFILE: u64 = 16 << 20;

/// What came of an address.
pub struct Brought {
    pub material: Material,
    /// It is a Dockerfile itself; there are no files.
    pub dockerfile: Option<String>,
}

/// Fetches a context into a folder.
pub async fn bring(address: &str, into: &Path, agent: Option<&PathBuf>, events: &Events) -> Result<Brought> {
    let step = events.begin(format!("[internal] load remote build context {address}"));
    let brought = fetch(address, into, agent, &step).await;
    step.end(&brought);
    brought
}

async fn fetch(address: &str, into: &Path, agent: Option<&PathBuf>, step: &Step) -> Result<Brought> {
    std::fs::create_dir_all(into).at("make a folder for the context")?;
    let repository = match address.strip_prefix("github.com/") {
        Some(rest) => Some(format!("https://github.com/{rest}")),
        None => add::is_git(address).then(|| address.to_owned()),
    };
    if let Some(repository) = repository {
        let commit = git::add(&repository, &Add::default(), into, Who::Machine(agent), step).await?;
        return Ok(Brought { material: Material::commit(&repository, &commit), dockerfile: None });
    }
    if !address.starts_with("http://") && !address.starts_with("https://") {
        return Err(Error::Invalid(format!("{address:?} is no address of a context: git, http and https are known")));
    }
    let folder = tempfile::tempdir_in(into.parent().unwrap_or(into)).at("make a folder for the context")?;
    let (name, digest) = add::download(address, &Add::default(), folder.path(), false).await?;
    let (file, into, address) = (folder.path().join(name), into.to_owned(), address.to_owned());
    blocking(move || {
        let material = Material::file(&address, &digest);
        if add::unpack(File::open(&file).at("open what was downloaded")?, &into)? {
            return Ok(Brought { material, dockerfile: None });
        }
        let wrong = || Error::Invalid(format!("{address} is neither an archive nor a Dockerfile"));
        if std::fs::metadata(&file).at("look at what was downloaded")?.len() > MAX_DOCKERFILE {
            return Err(wrong());
        }
        let text = std::fs::read(&file).at("read what was downloaded")?;
        let text = String::from_utf8(text).ok().filter(|text| !text.contains('\0')).ok_or_else(wrong)?;
        drop(folder);
        Ok(Brought { material, dockerfile: Some(text) })
    })
    .await
}

/// The Dockerfile of a context that was fetched.
pub async fn dockerfile(folder: PathBuf, file: String) -> Result<String> {
    blocking(move || {
        let view = View::open(&[folder])?;
        let text = view.text(Path::new(&file)).at("read the Dockerfile")?;
        text.ok_or_else(|| Error::Invalid(format!("the context has no {file}")))
    })
    .await
}
