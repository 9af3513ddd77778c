//! A request fulfilled: built for each platform, stated about, made an image, pushed, and its steps given to others.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use dhow_image::{ArchiveFormat, Auth, Compression, Digest, Layer, PushOptions, Reference, Variant};
use futures::TryStreamExt;
use tokio::io::DuplexStream;
use tokio::sync::{mpsc, oneshot};
use tokio_util::io::{ReaderStream, SyncIoBridge};

use crate::api::{CacheTarget, Output, Received, Request};
use crate::attest::Asked;
use crate::build::Tree;
use crate::copy::{self, At};
use crate::error::{Error, Result, blocking};
use crate::event::{Event, Events};
use crate::report::{Material, Report};
use crate::{Builder, Job, cache};

/// One platform's result.
struct Done {
    job: Job,
    tree: Tree,
    report: Report,
}

/// An archive that is to be sent.
pub enum Archive {
    /// With the folder that each one's files go into, if there are several.
    Files(Vec<(Option<String>, Tree)>),
    Image {
        id: String,
        holder: String,
        names: Vec<String>,
        format: ArchiveFormat,
    },
    /// Steps for a folder of the caller's, who asked for it by this number.
    Steps {
        number: usize,
        steps: Vec<(Digest, Vec<Layer>)>,
        tag: String,
        compression: Compression,
    },
}

impl Builder {
    /// Does what is asked for; what is left to do is to send these archives.
    pub(crate) async fn fulfil(&self, received: Received, events: Events) -> Result<Vec<Archive>> {
        let Received { mut request, folder, kept } = received;
        self.gather(&mut request, folder.path(), &events).await?;
        // Steps that are found stay until they are written.
        let _building = self.inner.config.store.build();
        let (jobs, source) = self.jobs(&request, (folder.path(), &kept), &events).await?;
        if request.output == Output::Docker && jobs.len() > 1 {
            let why = "an archive as docker has them is of one platform; type=oci is of several";
            return Err(Error::Invalid(why.to_owned()));
        }
        let mut done = Vec::new();
        for job in jobs {
            let (tree, report) = self.build_noted(job.clone(), events.clone()).await?;
            done.push(Done { job, tree, report });
        }
        let grown = kept.values().any(|lease| lease.changed);
        drop(kept);
        // Nobody has to wait for it.
        let builder = self.clone();
        tokio::spawn(async move {
            let removed = blocking(move || folder.close().at("remove a build's context")).await;
            let trimmed = if grown { builder.inner.contexts.trim().await } else { Ok(()) };
            if let Err(error) = removed.and(trimmed) {
                tracing::warn!(%error, "contexts of builds cannot be removed");
            }
        });
        let mut archives = self.give_steps(&request, &done, &events).await?;
        match request.output {
            Output::Nothing if !request.push => return Ok(archives),
            Output::Tar => {
                archives.push(files(done));
                return Ok(archives);
            }
            _ => {}
        }
        let archive = matches!(request.output, Output::Oci | Output::Docker);
        // A tenant's names are for the registry alone: here they could stand for somebody else's image.
        let nameless = archive && !request.push || request.run.is_some();
        let kept: &[String] = if nameless { &[] } else { &request.names };
        let step = events.begin("exporting to image");
        let made = self.make_held(&request, &done, source.as_ref(), kept).await;
        step.end(&made);
        let (image, holder) = made?;
        events.tell(Event::Built { id: image.id.clone(), names: request.names.clone() });
        let store = &self.inner.config.store;
        if request.push
            && let Err(error) = self.push(&request, &image.id, &events).await
        {
            store.release(&holder)?;
            return Err(error);
        }
        let format = match request.output {
            Output::Oci => ArchiveFormat::Oci,
            Output::Docker => ArchiveFormat::Docker,
            _ => {
                store.release(&holder)?;
                return Ok(archives);
            }
        };
        archives.push(Archive::Image { id: image.id, holder, names: request.names, format });
        Ok(archives)
    }

    /// Makes the image, and holds it for whoever is returned.
    async fn make_held(
        &self,
        request: &Request,
        done: &[Done],
        source: Option<&Material>,
        names: &[String],
    ) -> Result<(dhow_image::Image, String)> {
        let holder = format!("{}{}", crate::build::HOLDER, uuid::Uuid::new_v4().simple());
        loop {
            let image = self.make_image(request, done, source, names).await?;
            match self.inner.config.store.hold(&image.id, &holder) {
                Ok(()) => return Ok((image, holder)),
                // Another build made the same image, and has just let go of it.
                Err(dhow_image::Error::NotFound(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn make_image(
        &self,
        request: &Request,
        done: &[Done],
        source: Option<&Material>,
        names: &[String],
    ) -> Result<dhow_image::Image> {
        let invocation = uuid::Uuid::new_v4().to_string();
        let inline = request.cache_to.iter().any(|to| to.to == CacheTarget::Inline);
        let mut variants = Vec::new();
        for Done { job, tree, report } in done {
            let mut config = tree.config.clone();
            if inline {
                let steps = cache::chosen(tree, report, cache::CacheMode::Min);
                config
                    .other
                    .insert(dhow_image::INLINE_CACHE.to_owned(), dhow_image::inline_cache(&steps, &tree.layers));
            }
            let config = serde_json::to_vec(&config)
                .map_err(|error| Error::Io { doing: "write the configuration".into(), source: error.into() })?;
            let asked = Asked { job, source, invocation: &invocation };
            variants.push(Variant {
                config,
                layers: tree.layers.clone(),
                platform: Some(tree.config.platform()),
                statements: self.attest(request.attest, &asked, tree, report).await?,
            });
        }
        let compression = request.compression.unwrap_or(match request.push {
            true => Compression::Gzip,
            false => Compression::Uncompressed,
        });
        Ok(self.inner.config.store.assemble_all(variants, names, compression).await?)
    }

    fn auth(&self, request: &Request, name: &str) -> Result<Auth> {
        let registry = Reference::parse(name)?.registry;
        let cluster = || request.run.as_ref()?.cluster(&self.inner.config.registries, &registry);
        let auth = request.credentials.get(&registry).cloned().map(Into::into).or_else(cluster);
        Ok(auth.unwrap_or(Auth::Anonymous))
    }

    async fn push(&self, request: &Request, id: &str, events: &Events) -> Result<()> {
        if request.names.is_empty() {
            return Err(Error::Invalid("an image is pushed under a name: give one".to_owned()));
        }
        for name in &request.names {
            let auth = self.auth(request, name)?;
            let options =
                PushOptions { auth, registries: Arc::clone(&self.inner.config.registries), chunk_bytes: None };
            let step = events.begin(format!("pushing {name}"));
            let pushed = self.inner.config.store.push(id, name, options, None).await.map_err(Error::from);
            step.end(&pushed);
            events.tell(Event::Pushed { name: name.clone(), digest: pushed?.to_string() });
        }
        Ok(())
    }

    /// Gives the steps to whoever else is to have them; folders of the caller's are archives that are sent last.
    async fn give_steps(&self, request: &Request, done: &[Done], events: &Events) -> Result<Vec<Archive>> {
        let mut archives = Vec::new();
        for (number, to) in request.cache_to.iter().enumerate() {
            let chosen = done.iter().flat_map(|done| cache::chosen(&done.tree, &done.report, to.mode));
            let (steps, compression) = (chosen.collect(), to.compression.unwrap_or(Compression::Gzip));
            match &to.to {
                CacheTarget::Inline => {}
                CacheTarget::Folder(tag) => {
                    archives.push(Archive::Steps { number, steps, tag: tag.clone(), compression });
                }
                CacheTarget::Registry(name) => {
                    let step = events.begin(format!("exporting cache to {name}"));
                    let auth = self.auth(request, name)?;
                    let pushed = self.push_cache(steps, name, auth, compression).await;
                    step.end(&pushed);
                    match pushed {
                        Ok(digest) => {
                            events.tell(Event::Pushed { name: name.clone(), digest: digest.to_string() });
                        }
                        Err(error) if to.ignore_error => {
                            events.tell(Event::Warning { text: format!("the cache was not written: {error}") });
                        }
                        Err(error) => return Err(error),
                    }
                }
            }
        }
        Ok(archives)
    }

    /// Sends an archive: a line that says what it is, then its bytes; the last one to the end.
    pub(crate) async fn write(&self, archive: Archive, to: &mpsc::Sender<io::Result<Bytes>>) -> Result<()> {
        let (from, into) = tokio::io::duplex(256 << 10);
        let store = &self.inner.config.store;
        match archive {
            Archive::Files(trees) => {
                say(&Event::Archive, to).await?;
                let mut views = Vec::new();
                for (folder, tree) in &trees {
                    views.push((folder.clone(), self.view(tree).await?));
                }
                let bridge = SyncIoBridge::new(into);
                let writing = blocking(move || {
                    let mut bridge = io::BufWriter::with_capacity(128 << 10, bridge);
                    copy::export(&views, &mut bridge)?;
                    let mut bridge =
                        bridge.into_inner().map_err(io::IntoInnerError::into_error).at("write the files")?;
                    bridge.shutdown().at("write the files")
                });
                tokio::try_join!(send(from, to), writing).map(drop)
            }
            Archive::Image { id, holder, names, format } => {
                say(&Event::Archive, to).await?;
                let writing = async { Ok(store.export_as(&id, names, format, into).await?) };
                let done = tokio::try_join!(send(from, to), writing).map(drop);
                // Nobody asked for it to stay.
                store.release(&holder)?;
                done
            }
            Archive::Steps { number, steps, tag, compression } => {
                let (told, size) = oneshot::channel();
                let tell = move |bytes: u64| {
                    // Nobody may be listening any more.
                    let _ = told.send(bytes);
                };
                let writing = async { Ok(store.export_steps(steps, tag, compression, tell, into).await?) };
                let sending = async {
                    // Nothing comes if it cannot be written: the other side says why.
                    let Ok(bytes) = size.await else { return Ok(()) };
                    say(&Event::Cache { number, bytes }, to).await?;
                    send(from, to).await
                };
                tokio::try_join!(sending, writing).map(drop)
            }
        }
    }
}

fn files(done: Vec<Done>) -> Archive {
    let several = done.len() > 1;
    let folder = |done: &Done| several.then(|| done.job.wanted.platform.to_string().replace('/', "_"));
    Archive::Files(done.into_iter().map(|done| (folder(&done), done.tree)).collect())
}

async fn say(event: &Event, to: &mpsc::Sender<io::Result<Bytes>>) -> Result<()> {
    let line = serde_json::to_string(event).unwrap_or_default() + "\n";
    to.send(Ok(Bytes::from(line))).await.map_err(|_| Error::Interrupted("nobody listens any more".to_owned()))
}

async fn send(from: DuplexStream, to: &mpsc::Sender<io::Result<Bytes>>) -> Result<()> {
    let mut pieces = ReaderStream::with_capacity(from, 128 << 10);
    while let Some(piece) = pieces.try_next().await.at("send the archive")? {
        if to.send(Ok(piece)).await.is_err() {
            return Err(Error::Interrupted("nobody takes the archive".to_owned()));
        }
    }
    Ok(())
}
