//! `RUN --mount`: what each becomes for the sandbox, and the caches that stay.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dhow_image::{Digest, View};
use dhow_oci::spec::Mount as Bind;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::{OwnedMutexGuard, OwnedRwLockReadGuard, RwLock};

use crate::Job;
use crate::build::Place;
use crate::copy::{self, At};
use crate::error::{Error, Result};
use crate::plan::{Copy, Mount, MountKind, Origin, Run, Sharing};

/// The name of a copy in its folder.
const COPIED: &str = "files";

/// Folders that stay from build to build.
pub struct Caches {
    root: PathBuf,
    locks: Mutex<HashMap<String, Arc<Lock>>>,
}

#[derive(Default)]
struct Lock {
    /// Held by whoever wants a cache for itself.
    alone: Arc<tokio::sync::Mutex<()>>,
    shared: Arc<RwLock<()>>,
}

/// A cache in use.
pub struct Using {
    folder: PathBuf,
    _alone: Option<OwnedMutexGuard<()>>,
    _shared: Option<OwnedRwLockReadGuard<()>>,
    /// A private one that nobody else uses goes with the step.
    _temporary: Option<tempfile::TempDir>,
}

impl Caches {
    pub fn new(root: PathBuf) -> Self {
        Caches { root, locks: Mutex::default() }
    }

    /// The cache of this name, once it may be used.
    pub async fn open(&self, id: &str, sharing: Sharing) -> Result<Using> {
        let name = Digest::of(id.as_bytes()).hex()[..32].to_owned();
        let folder = self.root.join(&name);
        fs::create_dir_all(&folder).at("make a cache")?;
        let lock = Arc::clone(self.locks.lock().entry(name).or_default());
        let mut using = Using { folder, _alone: None, _shared: None, _temporary: None };
        match sharing {
            Sharing::Shared => using._shared = Some(Arc::clone(&lock.shared).read_owned().await),
            Sharing::Locked => using._alone = Some(Arc::clone(&lock.alone).lock_owned().await),
            Sharing::Private => match Arc::clone(&lock.alone).try_lock_owned() {
                Ok(alone) => using._alone = Some(alone),
                Err(_) => {
                    let own = tempfile::tempdir_in(&self.root).at("make a cache")?;
                    using.folder = own.path().to_owned();
                    using._temporary = Some(own);
                }
            },
        }
        Ok(using)
    }
}

/// What the mounts of a step mean for its result: no secrets, no caches, but the files of binds.
pub fn digest(run: &Run, places: &[Option<Place>]) -> Result<Value> {
    let mut all = Vec::new();
    for (mount, place) in run.mounts.iter().zip(places) {
        all.push(match (&mount.kind, place) {
            (MountKind::Bind { source, .. }, Some(place)) => match &place.chain {
                Some(chain) => json!(["bind", mount.target, chain, source]),
                None => {
                    let view = View::open(&place.folders)?;
                    let empty = View::open(&[])?;
                    let copy = Copy::plain(Origin::Scratch, source, &format!("/{COPIED}"));
                    let job =
                        copy::Job { copy: &copy, source: &view, of_context: true, target: &empty, owner: None, now: 0 };
                    json!(["bind", mount.target, copy::digest(&copy::choose(&job)?, &view, &place.digests)?.as_str()])
                }
            },
            (MountKind::Cache { id, .. }, _) => json!(["cache", mount.target, id]),
            (MountKind::Tmpfs { .. }, _) => json!(["tmpfs", mount.target]),
            (MountKind::Secret { id, env, .. }, _) => json!(["secret", mount.target, id, env]),
            (kind, _) => json!([format!("{kind:?}"), mount.target]),
        });
    }
    Ok(Value::Array(all))
}

/// The mounts of one step, ready.
#[derive(Default)]
pub struct Ready {
    pub binds: Vec<Bind>,
    pub env: Vec<String>,
    pub using: Vec<Using>,
}

/// Prepares all mounts of a step below `folder`, which goes with the step.
pub async fn prepare(caches: &Caches, job: &Job, run: &Run, places: &[Option<Place>], folder: &Path) -> Result<Ready> {
    let mut ready = Ready::default();
    for (at, (mount, place)) in run.mounts.iter().zip(places).enumerate() {
        let own = folder.join(format!("mount-{at}"));
        one(&mut ready, caches, job, mount, place.as_ref(), &own).await?;
    }
    if let Some((target, text)) = &run.script {
        let source = folder.join("script");
        fs::write(&source, text).at("write a script")?;
        fs::set_permissions(&source, fs::Permissions::from_mode(0o755)).at("write a script")?;
        ready.binds.push(Bind { source, target: target.into(), readonly: true, ..Bind::default() });
    }
    Ok(ready)
}

async fn one(
    ready: &mut Ready,
    caches: &Caches,
    job: &Job,
    mount: &Mount,
    place: Option<&Place>,
    own: &Path,
) -> Result<()> {
    let target = PathBuf::from(&mount.target);
    let bind = |source: PathBuf, readonly: bool| Bind { source, target: target.clone(), readonly, ..Bind::default() };
    match &mount.kind {
        MountKind::Bind { source, writable, .. } => {
            let place = place.ok_or_else(|| Error::Invalid("nothing to mount".to_owned()))?;
            if *writable {
                // What is written is thrown away, so it may be a copy.
                let copy = Copy::plain(Origin::Scratch, source, &format!("/{COPIED}"));
                let from = duplicate(&copy, place, own)?;
                ready.binds.push(bind(from, false));
                return Ok(());
            }
            let view = View::open(&place.folders)?;
            let at = view.resolve(Path::new(source), true).at("look at a mount's source")?;
            if view.lstat(&at).at("look at a mount's source")?.is_none() {
                return Err(Error::Invalid(format!("\"/{}\": not found", at.display())));
            }
            ready.binds.push(match place.folders.as_slice() {
                // A folder without links on the way: it was just walked.
                [only] if place.of_context => bind(only.join(at), true),
                layers => Bind { layers: layers.to_vec(), ..bind(Path::new("/").join(at), true) },
            });
        }
        MountKind::Cache { id, sharing, source, mode, uid, gid, readonly, .. } => {
            let own = job.tenant.as_ref().map(|tenant| format!("{}\0{id}", tenant.namespace));
            let using = caches.open(own.as_ref().unwrap_or(id), *sharing).await?;
            let marker = using.folder.join(COPIED);
            if !marker.exists() {
                match place {
                    Some(place) => {
                        let copy = Copy::plain(Origin::Scratch, source, &format!("/{COPIED}"));
                        duplicate(&copy, place, &using.folder)?;
                    }
                    None => fs::create_dir_all(&marker).at("make a cache")?,
                }
                std::os::unix::fs::chown(&marker, Some(*uid), Some(*gid)).at("give a cache away")?;
                fs::set_permissions(&marker, fs::Permissions::from_mode(*mode)).at("open a cache")?;
            }
            ready.binds.push(bind(marker, *readonly));
            ready.using.push(using);
        }
        MountKind::Tmpfs { .. } => {
            fs::create_dir_all(own).at("make a folder")?;
            fs::set_permissions(own, fs::Permissions::from_mode(0o1777)).at("open a folder")?;
            ready.binds.push(bind(own.to_owned(), false));
        }
        MountKind::Secret { id, required, mode, uid, gid, env } => {
            let Some(secret) = job.secrets.get(id) else {
                if *required {
                    return Err(Error::Invalid(format!("secret {id}: not found")));
                }
                return Ok(());
            };
            if let Some(name) = env {
                ready.env.push(format!("{name}={}", String::from_utf8_lossy(secret)));
            }
            if !mount.target.is_empty() {
                fs::write(own, secret).at("write a secret")?;
                std::os::unix::fs::chown(own, Some(*uid), Some(*gid)).at("give a secret away")?;
                fs::set_permissions(own, fs::Permissions::from_mode(*mode)).at("close a secret")?;
                ready.binds.push(bind(own.to_owned(), true));
            }
        }
        MountKind::Ssh { id, required, .. } => {
            let Some(agent) = job.agents.get(id) else {
                if *required {
                    return Err(Error::Invalid(format!("unset ssh forward key {id}")));
                }
                return Ok(());
            };
            let target = match mount.target.is_empty() {
                true => PathBuf::from(format!("/run/buildkit/ssh_agent.{}", ready.binds.len())),
                false => target.clone(),
            };
            ready.env.push(format!("SSH_AUTH_SOCK={}", target.display()));
            ready.binds.push(Bind { source: agent.clone(), target, ..Bind::default() });
        }
    }
    Ok(())
}

/// A file or folder of a place as one of its own.
fn duplicate(copy: &Copy, place: &Place, into: &Path) -> Result<PathBuf> {
    let view = View::open(&place.folders)?;
    let empty = View::open(&[])?;
    let job = copy::Job { copy, source: &view, of_context: place.of_context, target: &empty, owner: None, now: 0 };
    fs::create_dir_all(into).at("make a folder")?;
    let chosen = copy::choose(&job)?;
    crate::build::unpack_chosen(&[(chosen, view)], into, &[])?;
    Ok(into.join(COPIED))
}
