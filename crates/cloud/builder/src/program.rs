//! RUN: whether it was run before, and if not, how.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use dhow_image::{Layer, View};
use serde_json::json;

use crate::build::{Build, Place, Tree, make_upper};
use crate::copy::At;
use crate::error::{Error, Result, blocking};
use crate::event::Step;
use crate::plan::{Run, is_proxy};
use crate::{mounts, sandbox};

impl Build {
    /// Runs a program over the layers; what it changed is a layer more.
    pub async fn program(
        &self,
        run: &Run,
        places: Vec<Option<Place>>,
        layers: Vec<Layer>,
        step: &Step,
        fresh: bool,
    ) -> Result<Vec<Layer>> {
        let inner = &self.builder.inner;
        let store = inner.config.store.clone();
        let network = match run.network.as_str() {
            "default" => self.job.network.clone().unwrap_or_else(|| "default".to_owned()),
            other => other.to_owned(),
        };
        let (asked, origins) = (run.clone(), places.clone());
        let files = blocking(move || mounts::digest(&asked, &origins)).await?;
        let env: Vec<&String> =
            run.env.iter().filter(|variable| !is_proxy(variable.split('=').next().unwrap_or_default())).collect();
        let key = self.key(&json!([
            "run",
            Tree::chain(&layers),
            run.args,
            env,
            run.cwd,
            run.user,
            files,
            network,
            run.insecure,
            run.script
        ]));
        if let Some(known) = store.kept(&key).filter(|_| !fresh) {
            step.cached();
            return Ok(known);
        }
        let lower = store.folders(&layers).await?;
        let workspace = Arc::new(store.workspace()?);
        let upper = workspace.path().join("upper");
        for folder in ["work", "root"] {
            std::fs::create_dir_all(workspace.path().join(folder)).at("make a folder")?;
        }
        make_upper(&upper)?;
        let ready = mounts::prepare(&inner.caches, &self.job, run, &places, workspace.path()).await?;
        let targets: Vec<PathBuf> = ready.binds.iter().map(|bind| bind.target.clone()).collect();
        let (below, wanted) = (lower.clone(), targets);
        let stubs = blocking(move || missing(&below, &wanted)).await?;
        let permit = inner.running.acquire().await.map_err(|error| Error::Interrupted(error.to_string()))?;
        let mut env = run.env.clone();
        env.extend(ready.env);
        let program = sandbox::Step {
            lower: lower.clone(),
            workspace: workspace.path().to_owned(),
            args: run.args.clone(),
            env,
            cwd: run.cwd.clone(),
            user: run.user.clone(),
            mounts: ready.binds,
            network,
            insecure: run.insecure,
            limits: self.job.tenant.as_ref().map(|tenant| tenant.limits.clone()),
        };
        let (events, number) = (self.events.clone(), step.number);
        let sink: sandbox::Sink = Arc::new(move |stderr, bytes| {
            let text = String::from_utf8_lossy(bytes).into_owned();
            events.tell(crate::Event::Output { step: number, stderr, text });
        });
        let held = (Arc::clone(&workspace), ready.using);
        let code = inner.config.sandboxes.run(program, sink, held).await;
        drop(permit);
        match code? {
            0 => {}
            code => return Err(Error::Exit { command: run.args.join(" "), code }),
        }
        let cleaned = upper.clone();
        blocking(move || clear(&cleaned, &lower, &stubs)).await?;
        let done = store.commit(&key, upper, layers, self.job.epoch).await?;
        blocking(move || {
            drop(workspace);
            Ok(())
        })
        .await?;
        Ok(done)
    }
}

/// Places that the runtime makes because something is mounted there, deepest first.
fn missing(lower: &[PathBuf], targets: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let view = View::open(lower)?;
    let standard = ["/proc", "/sys", "/dev", "/etc/resolv.conf", "/etc/hosts"].map(PathBuf::from);
    let mut found = Vec::new();
    for target in targets.iter().chain(&standard) {
        let real = view.resolve(target, true).at("look at a mount's place")?;
        for path in real.ancestors().filter(|path| !path.as_os_str().is_empty()) {
            if view.lstat(path).at("look at a mount's place")?.is_some() {
                break;
            }
            if !found.contains(&path.to_owned()) {
                found.push(path.to_owned());
            }
        }
    }
    found.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
    Ok(found)
}

/// Removes those places again if nobody put anything there, and folders that were copied up for their sake alone.
fn clear(upper: &Path, lower: &[PathBuf], stubs: &[PathBuf]) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    let below = View::open(lower)?;
    for stub in stubs {
        let path = upper.join(stub);
        let Ok(meta) = std::fs::symlink_metadata(&path) else { continue };
        let removed = match meta.is_dir() {
            true => std::fs::remove_dir(&path).is_ok(),
            false => meta.is_file() && meta.len() == 0 && std::fs::remove_file(&path).is_ok(),
        };
        if !removed {
            continue;
        }
        for parent in stub.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty()) {
            let Some(was) = below.lstat(parent).at("look at a folder below")? else { break };
            let path = upper.join(parent);
            let Ok(now) = std::fs::symlink_metadata(&path) else { break };
            let same = (now.mode(), now.uid(), now.gid()) == (was.stat.st_mode, was.stat.st_uid, was.stat.st_gid);
            if same && std::fs::remove_dir(&path).is_err() {
                // Something else is in it: at least its time is as it was.
                let time =
                    std::time::UNIX_EPOCH + std::time::Duration::new(u64::try_from(was.stat.st_mtime).unwrap_or(0), 0);
                std::fs::File::open(&path).and_then(|dir| dir.set_modified(time)).at("date a folder")?;
                break;
            }
        }
    }
    Ok(())
}
