//! Files that the node brings here itself: a run's, and the contexts that are given by address.
//!
//! Whoever they are for, the same is done; but for people who do not run the machine nothing of the machine itself is fetched.

mod artifact;
mod bucket;
mod files;

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use dhow_image::{Auth, DownloadOptions, Hasher, Platform, PullOptions, View};
use serde::{Deserialize, Serialize};

pub use self::bucket::Bucket;
pub use self::files::below;
use self::files::{alone, check, dockerfile, open, text};
use crate::api::{Context, Request};
use crate::cloud::kinds::without_password;
use crate::copy::At;
use crate::error::{Error, Result, blocking};
use crate::event::{Event, Events, Step};
use crate::git::{Commit, Logins, Repository, Who};
use crate::report::Material;
use crate::run::Run;
use crate::{Builder, add, git};

/// Largest archive that is fetched, and most bytes of what comes in pieces.
pub(crate) const MOST: u64 = 4 << 30;

/// Where a run's files come from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Origin {
    Git(Repository),
    /// By HTTP; a Dockerfile that needs no files may stand in its place.
    #[serde(rename_all = "camelCase")]
    Archive {
        url: String,
        /// `sha256:…` or `sha512:…`.
        checksum: Option<String>,
        /// Of the header of that name.
        authorization: Option<String>,
        /// PEM of authorities that are believed as well.
        authorities: Option<String>,
    },
    Bucket(Bucket),
    /// What was sent to this node under that name.
    Upload(String),
    /// The files of an image.
    Image(String),
    /// The files that an artifact of a registry consists of.
    Artifact(String),
    /// No files; the Dockerfile is in the request.
    #[default]
    Nothing,
}

/// What came.
#[derive(Default)]
struct Brought {
    commit: Option<Commit>,
    material: Option<Material>,
    /// It is a Dockerfile itself; there are no files.
    dockerfile: Option<String>,
}

/// A context that was given by address.
pub(crate) struct Fetched {
    pub folder: PathBuf,
    /// `None` unless it was asked for.
    pub dockerfile: Option<String>,
    pub material: Option<Material>,
}

impl Origin {
    /// What an address stands for, and which folder of it.
    fn of_address(address: &str) -> Result<(Self, String)> {
        let repository = match address.strip_prefix("github.com/") {
            Some(rest) => Some(format!("https://github.com/{rest}")),
            None => add::is_git(address).then(|| address.to_owned()),
        };
        if let Some(repository) = repository {
            let (from, folder) = git::parse(&repository);
            return Ok((Self::Git(from), folder));
        }
        if !address.starts_with("http://") && !address.starts_with("https://") {
            let why = format!("{address:?} is no address of a context: git, http and https are known");
            return Err(Error::Invalid(why));
        }
        let url = address.to_owned();
        Ok((Self::Archive { url, checksum: None, authorization: None, authorities: None }, String::new()))
    }

    /// As a step of a build is called.
    fn title(&self) -> String {
        let plain = |url: &str| without_password(url.split('?').next().unwrap_or_default());
        match self {
            Self::Git(from) if from.reference.is_empty() => format!("[internal] load {}", without_password(&from.url)),
            Self::Git(from) => format!("[internal] load {}#{}", without_password(&from.url), from.reference),
            Self::Archive { url, .. } => format!("[internal] load {}", plain(url)),
            Self::Bucket(bucket) => format!("[internal] load {}", bucket.shown()),
            Self::Upload(_) => "[internal] load what was sent".to_owned(),
            Self::Image(name) => format!("[internal] load the files of {name}"),
            Self::Artifact(name) => format!("[internal] load {name}"),
            Self::Nothing => "[internal] load the Dockerfile".to_owned(),
        }
    }
}

impl Builder {
    /// Brings a run's files to `folder`, and completes the request with what is in them.
    pub(crate) async fn gather(&self, request: &mut Request, folder: &Path, events: &Events) -> Result<()> {
        let Some(run) = request.run.clone() else { return Ok(()) };
        let step = events.begin(run.origin.title());
        let done = self.complete(&run, request, folder, &step).await;
        step.end(&done);
        if let Some(commit) = done? {
            for name in &mut request.names {
                *name = name.replace("$(commit)", commit.id.get(..12).unwrap_or(&commit.id));
            }
            events.tell(Event::Source { commit: commit.id, author: commit.author, subject: commit.subject });
        }
        if let Some(name) = request.names.iter().find(|name| name.contains("$(")) {
            return Err(Error::Invalid(format!("nothing is known to put into the name {name}")));
        }
        for name in &request.names {
            self.check_registry(name).await?;
        }
        Ok(())
    }

    async fn complete(&self, run: &Run, request: &mut Request, folder: &Path, step: &Step) -> Result<Option<Commit>> {
        match &run.origin {
            Origin::Nothing => return Ok(None),
            Origin::Image(name) => {
                let inner = &self.inner.config;
                self.check_registry(name).await?;
                let platform = request.platform.as_deref().and_then(Platform::parse);
                let auth = self.auth_of(run, request, name)?;
                let options = PullOptions { auth, registries: Arc::clone(&inner.registries), platform };
                let image = inner.store.pull(name, options, None).await?;
                let layers = inner.store.folders(&inner.store.layers_of(&image)?).await?;
                let file = request.file.clone();
                request.dockerfile = blocking(move || text(&View::open(&layers)?, &file)).await?;
                request.contexts.insert(String::new(), Context::Image(name.clone()));
                return Ok(None);
            }
            _ => {}
        }
        let context = folder.join("contexts").join("0");
        let logins = Logins::of_secrets(secrets(request)?.iter());
        let auth = match &run.origin {
            Origin::Artifact(name) => {
                self.check_registry(name).await?;
                self.auth_of(run, request, name)?
            }
            _ => Auth::Anonymous,
        };
        let origin = match &run.origin {
            Origin::Upload(id) => Origin::Upload(self.inner.runs.upload(&run.namespace, id)?.display().to_string()),
            origin => origin.clone(),
        };
        let brought = self.bring(&origin, &context, (&logins, auth), Who::Tenant, step).await?;
        if let Some(text) = brought.dockerfile {
            request.dockerfile = text;
            return Ok(None);
        }
        let (wanted, file) = (run.context_dir.clone(), request.file.clone());
        let (text, number) = blocking(move || {
            let root = below(&context, &wanted)?;
            let text = dockerfile(&root, &file)?;
            if root == context {
                return Ok((text, 0));
            }
            let own = context.with_file_name("1");
            fs::rename(&root, &own).at("take a folder of the context")?;
            Ok((text, 1))
        })
        .await?;
        request.dockerfile = text;
        request.contexts.insert(String::new(), Context::Folder(number));
        Ok(brought.commit)
    }

    /// Fetches a context into a folder, for whoever runs the machine. `file` is the Dockerfile in it that is wanted.
    pub(crate) async fn fetch_context(
        &self,
        address: &str,
        file: Option<&str>,
        into: &Path,
        (logins, agent): (&Logins, Option<&PathBuf>),
        events: &Events,
    ) -> Result<Fetched> {
        let (origin, wanted) = Origin::of_address(address)?;
        let step = events.begin(format!("[internal] load remote build context {}", without_password(address)));
        let brought = self.bring(&origin, into, (logins, Auth::Anonymous), Who::Machine(agent), &step).await;
        let done = match brought {
            Ok(Brought { dockerfile: Some(text), material, .. }) => {
                Ok(Fetched { folder: into.to_owned(), dockerfile: Some(text), material })
            }
            Ok(Brought { material, .. }) => {
                let (into, file) = (into.to_owned(), file.map(str::to_owned));
                blocking(move || {
                    let folder = below(&into, &wanted)?;
                    let dockerfile = file.map(|file| dockerfile(&folder, &file)).transpose()?;
                    Ok(Fetched { folder, dockerfile, material })
                })
                .await
            }
            Err(error) => Err(error),
        };
        step.end(&done);
        done
    }

    /// Brings files into a folder, which is made.
    async fn bring(
        &self,
        origin: &Origin,
        into: &Path,
        (logins, auth): (&Logins, Auth),
        who: Who<'_>,
        step: &Step,
    ) -> Result<Brought> {
        fs::create_dir_all(into).at("make a folder for the context")?;
        let beside = tempfile::tempdir_in(into.parent().unwrap_or(into)).at("make a folder for what is fetched")?;
        let guarded = matches!(who, Who::Tenant);
        match origin {
            Origin::Nothing | Origin::Image(_) => Ok(Brought::default()),
            Origin::Git(from) => {
                let logins = logins.clone().with(&from.url, from.login.clone());
                let commit = git::checkout(from, &logins, who, into, beside.path(), step).await?;
                let (folder, material) = (into.to_owned(), Material::commit(&from.url, &commit.id));
                blocking(move || git::forget(&folder)).await?;
                Ok(Brought { commit: Some(commit), material: Some(material), dockerfile: None })
            }
            Origin::Archive { url, checksum, authorization, authorities } => {
                let path = beside.path().join("archive");
                let options = DownloadOptions {
                    authorization: authorization.clone(),
                    guarded,
                    most: Some(MOST),
                    authorities: authorities.clone(),
                };
                dhow_image::download(url, &options, File::create(&path).at("make a file")?).await?;
                let (checksum, into, url) = (checksum.clone(), into.to_owned(), url.clone());
                blocking(move || {
                    if let Some(checksum) = &checksum {
                        check(&path, checksum, &url)?;
                    }
                    let digest = add::hash(File::open(&path).at("read what was downloaded")?, Hasher::sha256())?;
                    let material = Some(Material::file(&without_password(&url), &digest));
                    if add::unpack(File::open(&path).at("open what was downloaded")?, &into)? {
                        return Ok(Brought { material, ..Brought::default() });
                    }
                    let wrong =
                        || Error::Invalid(format!("{} is neither an archive nor a Dockerfile", without_password(&url)));
                    let dockerfile = Some(alone(&path)?.ok_or_else(wrong)?);
                    drop(beside);
                    Ok(Brought { material, dockerfile, ..Brought::default() })
                })
                .await
            }
            Origin::Bucket(bucket) => {
                bucket.bring(into, beside.path(), guarded).await?;
                Ok(Brought::default())
            }
            Origin::Artifact(name) => {
                let registries = &self.inner.config.registries;
                let material = artifact::bring(registries, name, auth, into, beside.path(), step).await?;
                Ok(Brought { material: Some(material), ..Brought::default() })
            }
            Origin::Upload(path) => {
                let (path, into) = (PathBuf::from(path), into.to_owned());
                blocking(move || open(&path, &into, "what was sent")).await?;
                Ok(Brought::default())
            }
        }
    }

    /// Refuses to speak to the machine itself on behalf of others.
    pub(crate) async fn check_registry(&self, name: &str) -> Result<()> {
        let registry = dhow_image::Reference::parse(name)?.registry;
        match self.inner.config.registries.is_clusters(&registry) {
            true => Ok(()),
            false => git::check_registry(&registry).await,
        }
    }

    /// What a registry is shown on behalf of a run.
    fn auth_of(&self, run: &Run, request: &Request, name: &str) -> Result<Auth> {
        let registry = dhow_image::Reference::parse(name)?.registry;
        let given = request.credentials.get(&registry).cloned().map(Into::into);
        let own = || run.cluster(&self.inner.config.registries, &registry);
        Ok(given.or_else(own).unwrap_or(Auth::Anonymous))
    }
}

/// The secrets of a request, by id.
pub(crate) fn secrets(request: &Request) -> Result<HashMap<String, Vec<u8>>> {
    let decode = |(id, text): (&String, &String)| {
        let secret = base64::engine::general_purpose::STANDARD.decode(text);
        Ok((id.clone(), secret.map_err(|error| Error::Invalid(format!("secret {id}: {error}")))?))
    };
    request.secrets.iter().map(decode).collect()
}
