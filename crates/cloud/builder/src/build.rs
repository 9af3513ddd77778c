//! Runs a plan: stages beside each other, each step once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dhow_image::{
    Compression, Digest, Image, ImageStore, Layer, Platform, PullOptions, Reference, Remote, RemoteSteps, View,
};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::config::{History, ImageConfig};
use crate::copy::{self, At};
use crate::dockerfile::{Dockerfile, Mistake};
use crate::error::{Error, Result, blocking};
use crate::event::{Event, Events};
use crate::plan::{Copy, Item, Op, Origin, Planner, StagePlan};
use crate::report::{Material, Report};
use crate::{Builder, ContextSource, Digests, Job, owner};

/// Holds on base images begin with it.
pub const HOLDER: &str = "build-";

/// What a stage came to.
#[derive(Clone, Debug)]
pub struct Tree {
    /// Base first.
    pub layers: Vec<Layer>,
    pub config: ImageConfig,
}

impl Tree {
    /// Which files there are, in one number.
    pub fn chain(layers: &[Layer]) -> String {
        let ids: Vec<&str> = layers.iter().map(|layer| layer.diff_id.as_str()).collect();
        Digest::of(ids.join(" ").as_bytes()).to_string()
    }
}

type Finished = watch::Receiver<Option<Arc<Tree>>>;

/// One build under way.
pub struct Build {
    pub builder: Builder,
    pub job: Job,
    pub events: Events,
    /// For holds and folders.
    pub id: String,
    images: tokio::sync::Mutex<BTreeMap<(String, String), Arc<Tree>>>,
    stages: HashMap<usize, Finished>,
    names: HashMap<usize, (String, usize)>,
    /// What other builders made.
    pub imported: Vec<RemoteSteps>,
    pub report: Mutex<Report>,
}

/// Gives base images back.
struct Holding {
    builder: Builder,
    id: String,
}

impl Drop for Holding {
    fn drop(&mut self) {
        if let Err(error) = self.builder.inner.config.store.release(&self.id) {
            tracing::warn!(%error, "release the base images of a build");
        }
    }
}

impl Builder {
    /// Builds the stage that is asked for.
    pub async fn build(&self, job: Job, events: Events) -> Result<Tree> {
        self.build_noted(job, events).await.map(|(tree, _)| tree)
    }

    /// The same, with what was used for it and made on the way.
    pub async fn build_noted(&self, job: Job, events: Events) -> Result<(Tree, Report)> {
        let store = &self.inner.config.store;
        let _building = store.build();
        let id = format!("{HOLDER}{}", uuid::Uuid::new_v4().simple());
        let _holding = Holding { builder: self.clone(), id: id.clone() };
        let wrong = |mistake: &Mistake| Error::mistake(mistake, &job.file, &job.dockerfile);
        let file = Dockerfile::parse(&job.dockerfile).map_err(|mistake| wrong(&mistake))?;
        for text in &file.warnings {
            events.tell(Event::Warning { text: text.clone() });
        }
        let imported = self.import(&job, &events).await;
        let build = Build {
            builder: self.clone(),
            job,
            events,
            id,
            imported,
            report: Mutex::new(Report::begin()),
            images: tokio::sync::Mutex::default(),
            stages: HashMap::new(),
            names: HashMap::new(),
        };
        let (plans, target) = build.plan(&file).await?;
        build.permit(&plans)?;
        let (tree, mut report) = build.run(plans, target).await?;
        report.finished = jiff::Timestamp::now();
        let (store, limit) = (store.clone(), self.inner.config.keep_bytes);
        blocking(move || Ok(store.trim_kept(limit)?)).await?;
        Ok((tree, report))
    }

    /// Makes an image of what was built, under these names.
    pub async fn image(&self, tree: &Tree, names: &[String], compression: Compression) -> Result<Image> {
        let text = serde_json::to_vec(&tree.config)
            .map_err(|error| Error::Io { doing: "write the configuration".into(), source: error.into() })?;
        Ok(self.inner.config.store.assemble(text, tree.layers.clone(), names, compression).await?)
    }

    /// The files of what was built.
    pub async fn view(&self, tree: &Tree) -> Result<View> {
        Ok(View::open(&self.inner.config.store.folders(&tree.layers).await?)?)
    }
}

impl Build {
    /// Plans the target and all that it needs; what comes first is planned first.
    async fn plan(&self, file: &Dockerfile) -> Result<(Vec<StagePlan>, usize)> {
        let wrong = |mistake: Mistake| Error::mistake(&mistake, &self.job.file, &self.job.dockerfile);
        let planner = Planner::new(file, &self.job.wanted).map_err(wrong)?;
        for name in planner.unused_args() {
            self.events.tell(Event::Warning { text: format!("build-arg {name} was not consumed") });
        }
        let target = planner.target().map_err(wrong)?;
        let mut plans: Vec<StagePlan> = Vec::new();
        let (mut todo, mut open) = (vec![target], BTreeSet::new());
        while let Some(&index) = todo.last() {
            if plans.iter().any(|plan| plan.index == index) {
                todo.pop();
                continue;
            }
            let base = planner.base(index).map_err(wrong)?;
            let known = |stage: usize| plans.iter().find(|plan| plan.index == stage);
            let config = match &base {
                Origin::Stage(stage) => match known(*stage) {
                    Some(plan) => plan.config.clone(),
                    None => {
                        todo.push(*stage);
                        continue;
                    }
                },
                Origin::Image { name, platform } => self.image(name, platform).await?.config.clone(),
                Origin::Context(name) => match self.job.contexts.get(name) {
                    Some(ContextSource::Image(image)) => {
                        self.image(image, &self.job.wanted.platform.to_string()).await?.config.clone()
                    }
                    _ => ImageConfig::scratch(&self.job.wanted.platform),
                },
                Origin::Scratch => ImageConfig::scratch(&self.job.wanted.platform),
            };
            let plan = planner.stage(index, &config).map_err(wrong)?;
            let needed: Vec<usize> = plan
                .origins()
                .into_iter()
                .filter_map(|origin| match origin {
                    Origin::Stage(stage) if known(*stage).is_none() => Some(*stage),
                    _ => None,
                })
                .collect();
            if needed.is_empty() {
                plans.push(plan);
                todo.pop();
                continue;
            }
            if !open.insert(index) {
                let stage = &file.stages[index];
                return Err(wrong(Mistake::new(
                    stage.lines,
                    format!("circular dependency detected on stage: {}", plan.name),
                )));
            }
            todo.extend(needed);
        }
        Ok((plans, target))
    }

    /// Whether all of it may be done: a sandbox that is none is for those who run the machine.
    fn permit(&self, plans: &[StagePlan]) -> Result<()> {
        if self.job.tenant.is_none() {
            return Ok(());
        }
        for item in plans.iter().flat_map(|plan| &plan.items) {
            let Some(Op::Run(run)) = &item.op else { continue };
            let refused = if run.insecure { "--security=insecure" } else { "--network=host" };
            if run.insecure || run.network == "host" {
                let message = format!("{refused} is for those who administer the node (dhow build)");
                let mistake = Mistake::new(item.lines, message).at(refused);
                return Err(Error::mistake(&mistake, &self.job.file, &self.job.dockerfile));
            }
        }
        Ok(())
    }

    async fn run(mut self, plans: Vec<StagePlan>, target: usize) -> Result<(Tree, Report)> {
        let total: usize = plans.iter().flat_map(|plan| &plan.items).filter(|item| item.op.is_some()).count();
        let mut senders = HashMap::new();
        let mut before = 0;
        for plan in &plans {
            let (sender, receiver) = watch::channel(None);
            senders.insert(plan.index, sender);
            self.stages.insert(plan.index, receiver);
            self.names.insert(plan.index, (plan.name.clone(), before));
            before += plan.items.iter().filter(|item| item.op.is_some()).count();
        }
        let only = plans.len() == 1;
        let this = Arc::new(self);
        let mut tasks = JoinSet::new();
        for plan in plans {
            let sender = senders.remove(&plan.index);
            let this = Arc::clone(&this);
            tasks.spawn(async move {
                let tree = Arc::new(this.stage(plan, total, only).await?);
                if let Some(sender) = sender {
                    sender.send_replace(Some(tree));
                }
                Ok::<_, Error>(())
            });
        }
        // The first that fails ends all: the others are dropped, and their programs stopped.
        let mut waited = None;
        while let Some(ended) = tasks.join_next().await {
            match ended.unwrap_or_else(|error| Err(Error::Interrupted(error.to_string()))) {
                Ok(()) => {}
                // It waited for another, which says itself what is wrong.
                Err(error @ Error::Interrupted(_)) => waited = waited.or(Some(error)),
                Err(error) => return Err(error),
            }
        }
        if let Some(error) = waited {
            return Err(error);
        }
        let tree = this.stages.get(&target).and_then(|finished| finished.borrow().clone());
        let tree = tree.ok_or_else(|| Error::Interrupted("the target was not built".into()))?;
        let report = std::mem::take(&mut *this.report.lock());
        Ok(((*tree).clone(), report))
    }

    /// A base image: here, or pulled.
    pub async fn image(&self, name: &str, platform: &str) -> Result<Arc<Tree>> {
        let mut images = self.images.lock().await;
        let key = (name.to_owned(), platform.to_owned());
        if let Some(known) = images.get(&key) {
            return Ok(Arc::clone(known));
        }
        let step = self.events.begin(format!("[internal] load metadata for {name}"));
        let found = self.resolve(name, platform).await;
        step.end(&found);
        let tree = Arc::new(found?);
        images.insert(key, Arc::clone(&tree));
        Ok(tree)
    }

    async fn resolve(&self, name: &str, platform: &str) -> Result<Tree> {
        let config = &self.builder.inner.config;
        let wanted = Platform::parse(platform).unwrap_or_else(Platform::host);
        let read = |image: &Image| -> Result<ImageConfig> {
            let text = config.store.config_bytes(image)?;
            serde_json::from_slice(&text)
                .map_err(|error| Error::Invalid(format!("the configuration of {name}: {error}")))
        };
        let fits = |of: &ImageConfig| of.os == wanted.os && of.architecture == wanted.architecture;
        let here = match config.store.get(name).filter(|_| !self.job.pull) {
            Some(image) => Some((read(&image)?, image)).filter(|(of, _)| fits(of)),
            None => None,
        };
        let (of, image) = match here {
            Some(here) => here,
            None => {
                let reference = Reference::parse(name)?;
                if self.job.tenant.is_some() && !config.registries.is_clusters(&reference.registry) {
                    crate::git::check_registry(&reference.registry).await?;
                }
                let cluster = || self.job.tenant.as_ref()?.cluster(&config.registries, &reference.registry);
                let auth = self.job.auth.get(&reference.registry).cloned().or_else(cluster);
                let nameless = auth.is_none();
                let pulled = self.pull(name, &reference, &wanted, auth.unwrap_or(dhow_image::Auth::Anonymous)).await;
                if nameless && let Err(Error::Image(dhow_image::Error::Unauthorized { .. })) = &pulled {
                    self.events.tell(Event::Unauthorized { registry: reference.registry.clone() });
                }
                let image = pulled?;
                (read(&image)?, image)
            }
        };
        config.store.hold(&image.id, &self.id)?;
        let material = Material::image(name, &wanted, &image);
        if self.job.tenant.is_some()
            && let Some((algorithm, hex)) = material.digest.first_key_value()
        {
            self.events.tell(Event::Base { name: name.to_owned(), digest: format!("{algorithm}:{hex}") });
        }
        self.report.lock().uses(material);
        let mut of = of;
        // Its layers' keys are not those of what is built on it.
        of.other.remove(dhow_image::INLINE_CACHE);
        // Who made it may have left it out.
        if of.os.is_empty() {
            of.os = wanted.os;
        }
        Ok(Tree { layers: config.store.layers_of(&image)?, config: of })
    }

    async fn pull(
        &self,
        name: &str,
        reference: &Reference,
        wanted: &Platform,
        auth: dhow_image::Auth,
    ) -> Result<Image> {
        let config = &self.builder.inner.config;
        // What this machine knows by the name is what it runs.
        let name = match Platform::host().runs(wanted) {
            true => name.to_owned(),
            false => {
                let remote = Remote::connect(&config.registries, reference, &auth).await?;
                format!("{}@{}", reference.name(), remote.manifest(reference.target()).await?.digest)
            }
        };
        let options = PullOptions { auth, registries: Arc::clone(&config.registries), platform: Some(wanted.clone()) };
        Ok(config.store.pull(&name, options, None).await?)
    }

    async fn finished(&self, stage: usize) -> Result<Arc<Tree>> {
        let gone = || Error::Interrupted("a stage that is needed failed".into());
        let mut receiver = self.stages.get(&stage).cloned().ok_or_else(gone)?;
        let tree = receiver.wait_for(Option::is_some).await.map_err(|_| gone())?.clone();
        tree.ok_or_else(gone)
    }

    async fn stage(&self, plan: StagePlan, total: usize, only: bool) -> Result<Tree> {
        let base = match &plan.origin {
            Origin::Stage(stage) => Some(self.finished(*stage).await?),
            Origin::Image { name, platform } => Some(self.image(name, platform).await?),
            Origin::Context(name) => match self.job.contexts.get(name) {
                Some(ContextSource::Image(image)) => {
                    Some(self.image(image, &self.job.wanted.platform.to_string()).await?)
                }
                _ => None,
            },
            Origin::Scratch => None,
        };
        let (mut layers, mut history) =
            base.as_ref().map_or_else(Default::default, |base| (base.layers.clone(), base.config.history.clone()));
        let fresh = self.job.no_cache || self.job.no_cache_stages.contains(&plan.name);
        let mut number = self.names.get(&plan.index).map_or(0, |(_, before)| *before);
        // As old as the newest of what it is made of: what did not change is the same image again.
        let mut created: Option<jiff::Timestamp> =
            base.as_ref().and_then(|base| base.config.created.as_deref()?.parse().ok());
        if let Some(seconds) = self.job.epoch {
            created = Some(jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::UNIX_EPOCH));
        }
        for item in &plan.items {
            let before = layers.len();
            if let Some(op) = &item.op {
                // An image in the place of a stage brings its files itself.
                let replaced = matches!(op, Op::Copy(Copy { origin: Origin::Context(name), .. })
                    if item.text.starts_with("FROM ") && matches!(self.job.contexts.get(name), Some(ContextSource::Image(_))));
                if replaced {
                    continue;
                }
                number += 1;
                let stage = (!only).then_some(plan.name.as_str());
                let place = self.job.shown_as.as_deref().into_iter().chain(stage);
                let place: String = place.flat_map(|part| [part, " "]).collect();
                let title = format!("[{place}{number}/{total}] {}", item.text);
                layers = self.step(op, item, layers, title, fresh).await?;
                if self.job.epoch.is_none() {
                    created = created.max(self.made(&layers));
                }
            }
            history.push(History {
                created: created.map(|created| created.to_string()),
                created_by: Some(item.history.clone()),
                author: plan.config.author.clone(),
                comment: None,
                empty_layer: layers.len() == before,
            });
        }
        let mut config = plan.config;
        config.created = Some(created.unwrap_or_else(jiff::Timestamp::now).to_string());
        config.history = history;
        config.rootfs.diff_ids = layers.iter().map(|layer| layer.diff_id.clone()).collect();
        Ok(Tree { layers, config })
    }

    /// When the step that came to these layers was made.
    fn made(&self, layers: &[Layer]) -> Option<jiff::Timestamp> {
        let report = self.report.lock();
        let (key, _) = report.steps.iter().rev().find(|(_, of)| of == layers)?;
        let seconds = self.builder.inner.config.store.made(key)?;
        jiff::Timestamp::from_second(i64::try_from(seconds).ok()?).ok()
    }

    async fn step(&self, op: &Op, item: &Item, layers: Vec<Layer>, title: String, fresh: bool) -> Result<Vec<Layer>> {
        // What it waits for is not its own time.
        let prepared = self.prepare(op).await;
        let step = self.events.begin(title);
        let done = match prepared {
            Ok(prepared) => match op {
                Op::Copy(copy) => self.copy(copy, prepared, layers, &step, fresh).await,
                Op::Folder { path, user } => self.folder(path, user, layers, &step, fresh).await,
                Op::Run(run) => self.program(run, prepared, layers, &step, fresh).await,
            },
            Err(error) => Err(error),
        };
        step.end(&done);
        done.map_err(|error| {
            let mistake = Mistake::new(item.lines, format!("failed to solve: {error}"));
            let shown = mistake.show(&self.job.file, &self.job.dockerfile);
            Error::Step { shown: shown.trim_end().to_owned(), line: mistake.line, source: Box::new(error) }
        })
    }

    /// Waits for all that the step takes files from.
    async fn prepare(&self, op: &Op) -> Result<Vec<Option<Place>>> {
        let origins: Vec<Option<&Origin>> = match op {
            Op::Copy(copy) => vec![Some(&copy.origin)],
            Op::Run(run) => run.origins.iter().map(Option::as_ref).collect(),
            Op::Folder { .. } => Vec::new(),
        };
        let mut places = Vec::new();
        for origin in origins {
            places.push(match origin {
                None => None,
                Some(origin) => Some(self.place(origin).await?),
            });
        }
        Ok(places)
    }

    async fn place(&self, origin: &Origin) -> Result<Place> {
        let store = &self.builder.inner.config.store;
        let of_tree = async |tree: Arc<Tree>| -> Result<Place> {
            let folders = store.folders(&tree.layers).await?;
            Ok(Place { folders, chain: Some(Tree::chain(&tree.layers)), ..Place::default() })
        };
        match origin {
            Origin::Stage(stage) => of_tree(self.finished(*stage).await?).await,
            Origin::Image { name, platform } => of_tree(self.image(name, platform).await?).await,
            Origin::Scratch => Ok(Place { chain: Some("scratch".to_owned()), ..Place::default() }),
            Origin::Context(name) => match self.job.contexts.get(name) {
                Some(ContextSource::Folder(folder)) => Ok(Place {
                    folders: vec![folder.path.clone()],
                    chain: None,
                    of_context: true,
                    digests: Arc::clone(&folder.digests),
                }),
                Some(ContextSource::Image(image)) => {
                    let platform = self.job.wanted.platform.to_string();
                    of_tree(self.image(image, &platform).await?).await
                }
                None => Err(Error::Invalid("the build has no context".to_owned())),
            },
        }
    }

    fn now(&self) -> i64 {
        self.job.epoch.unwrap_or_else(|| jiff::Timestamp::now().as_second())
    }

    /// The key of a step: all that its result depends on.
    pub fn key(&self, what: &serde_json::Value) -> Digest {
        let mut key = json!({"what": what, "epoch": self.job.epoch, "version": 2});
        if let Some(tenant) = &self.job.tenant {
            // A step may depend on caches and secrets, which its key leaves out: nobody is given what others made.
            key["for"] = json!(tenant.namespace);
        }
        Digest::of(key.to_string().as_bytes())
    }

    async fn copy(
        &self,
        copy: &Copy,
        mut places: Vec<Option<Place>>,
        layers: Vec<Layer>,
        step: &crate::event::Step,
        fresh: bool,
    ) -> Result<Vec<Layer>> {
        let store = self.builder.inner.config.store.clone();
        let place = places.pop().flatten().ok_or_else(|| Error::Invalid("nothing to copy from".to_owned()))?;
        let folders = store.folders(&layers).await?;
        let chain = Tree::chain(&layers);
        // What depends on nothing but trees that are known by their layers needs no look at the files.
        let simple = serde_json::to_value(format!("{copy:?}")).unwrap_or_default();
        let quick = place.chain.as_ref().map(|from| self.key(&json!(["copy", chain, from, simple])));
        if let Some(quick) = &quick
            && let Some(known) = self.kept(quick, &layers, fresh).await?
        {
            step.cached();
            return Ok(known);
        }
        let fetched = crate::add::fetch(self, copy, &place, step).await?;
        let (copy_, now, epoch) = (copy.clone(), self.now(), self.job.epoch);
        let workspace = store.workspace()?;
        let (this_place, lower) = (place.clone(), folders.clone());
        let chosen = blocking(move || {
            let whole = View::open(&lower)?;
            let owner = copy_.chown.as_deref().map(|text| owner::find(text, &whole)).transpose()?;
            let target = if copy_.link { View::open(&[])? } else { whole };
            let jobs = fetched.jobs(&this_place);
            let mut all = Vec::new();
            let mut hasher = String::new();
            for (copy, place) in jobs {
                let (source, of_context) = (View::open(&place.folders)?, place.of_context);
                let job = copy::Job { copy: &copy, source: &source, of_context, target: &target, owner, now };
                let chosen = copy::choose(&job)?;
                hasher.push_str(copy::digest(&chosen, &source, &place.digests)?.as_str());
                all.push((chosen, source));
            }
            Ok((all, Digest::of(hasher.as_bytes()), fetched))
        })
        .await?;
        let (all, content, fetched) = chosen;
        let key = match copy.link {
            true => self.key(&json!(["copy", "link", content.as_str()])),
            false => self.key(&json!(["copy", chain, content.as_str()])),
        };
        let on = |own: Vec<Layer>| if copy.link { [layers.clone(), own].concat() } else { own };
        let under = if copy.link { &[][..] } else { &layers[..] };
        if let Some(known) = self.kept(&key, under, fresh).await? {
            step.cached();
            let known = on(known);
            if let Some(quick) = quick {
                store.keep(&quick, &known)?;
                self.note(&quick, &known);
            }
            return Ok(known);
        }
        let (upper, below) = (workspace.path().join("upper"), if copy.link { Vec::new() } else { layers.clone() });
        let lower = if copy.link { Vec::new() } else { folders };
        let committed = key.clone();
        let own = blocking(move || {
            make_upper(&upper)?;
            let own = commit_chosen(&store, &committed, &all, &upper, (below, &lower), epoch)?;
            drop(fetched);
            workspace.close().at("remove a workspace")?;
            Ok(own)
        })
        .await?;
        self.note(&key, &own);
        let store = &self.builder.inner.config.store;
        let done = on(own);
        if let Some(quick) = quick {
            store.keep(&quick, &done)?;
            self.note(&quick, &done);
        }
        Ok(done)
    }

    async fn folder(
        &self,
        path: &str,
        user: &str,
        layers: Vec<Layer>,
        step: &crate::event::Step,
        fresh: bool,
    ) -> Result<Vec<Layer>> {
        let store = self.builder.inner.config.store.clone();
        let key = self.key(&json!(["folder", Tree::chain(&layers), path, user]));
        if let Some(known) = self.kept(&key, &layers, fresh).await? {
            step.cached();
            return Ok(known);
        }
        let lower = store.folders(&layers).await?;
        let workspace = store.workspace()?;
        let upper = workspace.path().join("upper");
        let (into, path, user, now) = (upper.clone(), path.to_owned(), user.to_owned(), self.now());
        blocking(move || {
            make_upper(&into)?;
            let view = View::open(&lower)?;
            let at = view.resolve(Path::new(&path), true).at("look at the working directory")?;
            let there = view.lstat(&at).at("look at the working directory")?;
            if let Some(node) = there {
                if !node.is_dir() {
                    return Err(Error::Invalid(format!("{path} is not a directory")));
                }
                return Ok(());
            }
            if at.as_os_str().is_empty() {
                return Ok(());
            }
            let owner = if user.is_empty() { None } else { Some(owner::find(&user, &view)?) };
            let copy = Copy::plain(Origin::Scratch, "/", "/");
            let job = copy::Job { copy: &copy, source: &view, of_context: true, target: &view, owner, now };
            let chosen = copy::folder(&job, &at)?;
            unpack_chosen(&[(chosen, view)], &into, &lower)
        })
        .await?;
        let done = store.commit(&key, upper, layers, self.job.epoch).await?;
        self.note(&key, &done);
        blocking(move || workspace.close().at("remove a workspace")).await?;
        Ok(done)
    }
}

/// Where a step takes files from.
#[derive(Clone, Debug, Default)]
pub struct Place {
    /// Top first.
    pub folders: Vec<PathBuf>,
    /// What is in them, if that is known without looking.
    pub chain: Option<String>,
    /// Its files belong to root.
    pub of_context: bool,
    /// Of those files that are known without reading.
    pub digests: Arc<Digests>,
}

/// The folder that becomes a layer.
pub fn make_upper(upper: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::create_dir_all(upper).at("make a layer's folder")?;
    // It is the container's `/` while the layer is made.
    std::fs::set_permissions(upper, std::fs::Permissions::from_mode(0o755)).at("make a layer's folder")
}

/// What was chosen of each source.
pub type Part = (Vec<copy::Chosen>, View);

/// Through an archive, as any layer: the one piece of code that knows how a layer is laid on others.
pub fn unpack_chosen(parts: &[Part], upper: &Path, lower: &[PathBuf]) -> Result<()> {
    through_archive(parts, None, |mut reader| {
        dhow_image::unpack(&mut reader, upper, lower, "of the step", &dhow_image::Limits::default())?;
        std::io::copy(&mut reader, &mut std::io::sink()).at("copy files")?;
        Ok(())
    })
}

/// Makes a layer on `below`, which is unpacked in the folders `lower`, of what was chosen.
fn commit_chosen(
    store: &ImageStore,
    key: &Digest,
    parts: &[Part],
    upper: &Path,
    (below, lower): (Vec<Layer>, &[PathBuf]),
    latest: Option<i64>,
) -> Result<Vec<Layer>> {
    if parts.iter().all(|(chosen, _)| chosen.is_empty()) {
        store.keep(key, &below)?;
        return Ok(below);
    }
    through_archive(parts, latest, |reader| Ok(store.commit_archive(key, reader, upper, below, lower)?))
}

/// Writes an archive while it is read.
fn through_archive<T>(
    parts: &[Part],
    latest: Option<i64>,
    read: impl FnOnce(std::io::PipeReader) -> Result<T>,
) -> Result<T> {
    let (reader, writer) = std::io::pipe().at("make a pipe")?;
    // Larger than usual: the two take turns less often. What is over the user's share is refused, and not needed.
    let _ = rustix::pipe::fcntl_setpipe_size(&writer, 1 << 20);
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| {
            let buffered = std::io::BufWriter::with_capacity(256 << 10, writer);
            copy::write(parts, latest, buffered)
        });
        let done = read(reader);
        let written = writing.join().unwrap_or_else(|_| Err(std::io::Error::other("the writer panicked")));
        match (done, written) {
            // Why it stopped reading says more than that nobody reads.
            (Err(error), Err(broken)) if broken.kind() == std::io::ErrorKind::BrokenPipe => Err(error),
            (_, Err(error)) => Err(error).at("copy files"),
            (done, Ok(())) => done,
        }
    })
}
