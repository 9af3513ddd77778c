//! Which images pods may run: those that every policy about them finds signed.
//!
//! Whoever is not known to be signed is not: a registry that cannot be asked, a policy that cannot be read and policies that
//! are not known yet refuse.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use dhow_client::{
    Client, Error, Informer, Key, ListParams, Outcome, Patch, Queue, Reconcile, run_controller, while_served,
};
use dhow_image::{Auth, Digest, Reference, Registries, Remote};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::kinds::{SecretReference, VERSION};
use super::policy::{ImagePolicy, Mode, NAME, PolicyStatus};
use super::{condition, secrets};
use crate::Registry;
use crate::signatures::{Images, MAX_BLOB, verify};

/// For policies to be known after a start.
const KNOWN_WITHIN: Duration = Duration::from_secs(5);
/// For all that one image needs.
const PATIENCE: Duration = Duration::from_secs(12);
/// A signature that was found is believed for so long.
const BELIEVED: Duration = Duration::from_secs(60);
const REMEMBERED: usize = 4096;
const RETRY: Duration = Duration::from_secs(60);

/// A pod as far as its images go.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    pub namespace: String,
    pub namespace_labels: BTreeMap<String, String>,
    /// Secrets of that namespace.
    pub pull_secrets: Vec<String>,
    /// As the pod has them.
    pub images: Vec<String>,
}

/// What is said of a pod's images.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Why it may not run.
    pub refused: Vec<String>,
    /// What its maker is to know.
    pub warnings: Vec<String>,
    /// What is written down.
    pub audit: Vec<String>,
    /// What an image is to be called, so that what was verified is what runs.
    pub pinned: BTreeMap<String, String>,
}

/// The registry of this process, and what references call it.
type Own = (Registry, Vec<String>);

pub struct Judge {
    registries: Arc<Registries>,
    own: OnceLock<Own>,
    known: watch::Sender<Option<Known>>,
    /// By policy and digest.
    verified: Mutex<HashMap<(String, Digest), Instant>>,
}

#[derive(Clone)]
struct Known {
    client: Client,
    policies: Informer<ImagePolicy>,
}

impl Judge {
    /// Knows no policy, and refuses, until [`Judge::run`] tells it.
    pub fn new(registries: Arc<Registries>) -> Arc<Self> {
        Arc::new(Self { registries, own: OnceLock::new(), known: watch::Sender::default(), verified: Mutex::default() })
    }

    /// Images of the registry of this process are looked at in this process.
    pub fn live_beside(&self, registry: Registry, hosts: Vec<String>) {
        // Once, at start.
        let _ = self.own.set((registry, hosts));
    }

    /// Follows the policies, and says of each whether it is understood, until `shutdown`. `client` may read Secrets.
    pub async fn run(self: Arc<Self>, client: Client, shutdown: CancellationToken) {
        let start = |stop: CancellationToken| {
            let policies = Informer::start(client.clone(), ListParams::default(), None, stop.clone());
            let known = Known { client: client.clone(), policies };
            tokio::spawn(Arc::clone(&self).work(known, stop));
        };
        while_served(&client, &[NAME], VERSION, &shutdown, start).await;
    }

    async fn work(self: Arc<Self>, known: Known, stop: CancellationToken) {
        tokio::select! { () = known.policies.synced() => {}, () = stop.cancelled() => return }
        self.known.send_replace(Some(known.clone()));
        let queue = Queue::new("image-policies");
        let changed = queue.clone();
        known.policies.on_change(move |change| changed.add(Key::of(&change.object().metadata)));
        run_controller(Arc::new(Statuses(known)), queue, 1, stop).await;
        self.known.send_replace(None);
    }

    /// What is to be said of a pod's images.
    pub async fn judge(&self, asked: &Asked) -> Verdict {
        let mut verdict = Verdict::default();
        let mut seen = self.known.subscribe();
        let waited = tokio::time::timeout(KNOWN_WITHIN, seen.wait_for(Option::is_some)).await;
        let known = waited.ok().and_then(Result::ok).and_then(|known| known.clone());
        let Some(known) = known else {
            verdict.refused.push("the image policies are not known yet; try again in a moment".to_owned());
            return verdict;
        };
        let policies = known.policies.list();
        for image in &asked.images {
            // What is no reference is nothing that could be pulled.
            let Ok(reference) = Reference::parse(image) else { continue };
            let names = self.names(&reference);
            // Who cannot say whom it is for is for all.
            let about = |policy: &&Arc<ImagePolicy>| {
                policy.spec.covers(&names) && policy.spec.selects(&asked.namespace_labels).unwrap_or(true)
            };
            let about: Vec<&Arc<ImagePolicy>> = policies.iter().filter(about).collect();
            if !about.is_empty() {
                self.image(&known.client, asked, image, &reference, &about, &mut verdict).await;
            }
        }
        verdict
    }

    /// All that an image may be called: a policy that names the cluster's registry by one of its names means the others, too.
    fn names(&self, reference: &Reference) -> Vec<String> {
        match self.own.get() {
            Some((_, hosts)) if hosts.contains(&reference.registry) => {
                hosts.iter().map(|host| format!("{host}/{}", reference.repository)).collect()
            }
            _ => vec![reference.name()],
        }
    }

    async fn image(
        &self,
        client: &Client,
        asked: &Asked,
        image: &str,
        reference: &Reference,
        policies: &[&Arc<ImagePolicy>],
        verdict: &mut Verdict,
    ) {
        let mut digest = reference.digest.clone();
        let (mut enforced, mut refused) = (false, false);
        for policy in policies {
            let checked = self.check(client, asked, reference, policy, &mut digest);
            let checked = tokio::time::timeout(PATIENCE, checked).await;
            let checked = checked.unwrap_or_else(|_| Err("its registry does not answer in time".to_owned()));
            let name = policy.metadata.name.as_deref().unwrap_or_default();
            let told = checked.err().map(|why| format!("image policy {name:?}: {image}: {why}"));
            enforced |= policy.spec.mode == Mode::Enforce;
            match (policy.spec.mode, told) {
                (_, None) => {}
                (Mode::Enforce, Some(told)) => {
                    refused = true;
                    verdict.refused.push(told);
                }
                (Mode::Warn, Some(told)) => verdict.warnings.push(told),
                (Mode::Audit, Some(told)) => verdict.audit.push(told),
            }
        }
        if let Some(digest) = digest.filter(|_| enforced && !refused && reference.digest.is_none()) {
            verdict.pinned.insert(image.to_owned(), format!("{}@{digest}", reference.name()));
        }
    }

    /// Whether a policy finds an image signed. What its tag names is looked up once for all policies.
    async fn check(
        &self,
        client: &Client,
        asked: &Asked,
        reference: &Reference,
        policy: &ImagePolicy,
        digest: &mut Option<Digest>,
    ) -> Result<(), String> {
        let images = self.images(client, asked, reference, policy).await?;
        let digest = match digest {
            Some(digest) => digest.clone(),
            None => {
                let found = images.manifest(reference.target()).await?;
                let (found, _) = found.ok_or("there is no such image")?;
                digest.insert(found).clone()
            }
        };
        let (uid, generation) = (policy.metadata.uid.as_deref().unwrap_or_default(), policy.metadata.generation);
        let key = (format!("{uid}/{}/{}", generation.unwrap_or_default(), reference.name()), digest.clone());
        if self.verified.lock().get(&key).is_some_and(|at| at.elapsed() < BELIEVED) {
            return Ok(());
        }
        let authorities = policy.spec.read(client).await?;
        verify(&*images, &digest, &authorities, SystemTime::now()).await?;
        let mut verified = self.verified.lock();
        if verified.len() >= REMEMBERED {
            verified.retain(|_, at| at.elapsed() < BELIEVED);
        }
        if verified.len() < REMEMBERED {
            verified.insert(key, Instant::now());
        }
        Ok(())
    }

    /// Where an image's signatures are looked for.
    async fn images(
        &self,
        client: &Client,
        asked: &Asked,
        reference: &Reference,
        policy: &ImagePolicy,
    ) -> Result<Box<dyn Images>, String> {
        if let Some((registry, hosts)) = self.own.get()
            && hosts.contains(&reference.registry)
        {
            return Ok(Box::new(Here { registry: registry.clone(), repository: reference.repository.clone() }));
        }
        let own = asked
            .pull_secrets
            .iter()
            .map(|name| SecretReference { namespace: asked.namespace.clone(), name: name.clone() });
        let mut auth = Auth::Anonymous;
        for SecretReference { namespace, name } in policy.spec.credentials.iter().cloned().chain(own) {
            // Nodes go on without a Secret that is not there, too.
            if let Ok(Some(found)) = secrets::credentials(client, &namespace, &name, &reference.name()).await {
                auth = found;
                break;
            }
        }
        let remote = Remote::connect(&self.registries, reference, &auth).await.map_err(|error| error.chain())?;
        Ok(Box::new(There(remote)))
    }
}

/// A repository of this process's registry.
struct Here {
    registry: Registry,
    repository: String,
}

#[async_trait::async_trait]
impl Images for Here {
    async fn manifest(&self, target: &str) -> Result<Option<(Digest, Vec<u8>)>, String> {
        self.registry.read_manifest(&self.repository, target).await.map_err(|error| error.to_string())
    }

    async fn blob(&self, digest: &Digest) -> Result<Vec<u8>, String> {
        let found =
            self.registry.read_blob(&self.repository, digest, MAX_BLOB).await.map_err(|error| error.to_string())?;
        let bytes = found.ok_or_else(|| format!("{digest} is missing or too large"))?;
        digest.verify("a signature", &bytes).map_err(|error| error.to_string())?;
        Ok(bytes)
    }

    async fn referrers(&self, subject: &Digest) -> Result<Vec<Value>, String> {
        self.registry.read_referrers(&self.repository, subject).await.map_err(|error| error.to_string())
    }
}

/// One of another registry.
struct There(Remote);

#[async_trait::async_trait]
impl Images for There {
    async fn manifest(&self, target: &str) -> Result<Option<(Digest, Vec<u8>)>, String> {
        match self.0.manifest(target).await {
            Ok(found) => Ok(Some((found.digest, found.bytes))),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error.chain()),
        }
    }

    async fn blob(&self, digest: &Digest) -> Result<Vec<u8>, String> {
        let mut blob = self.0.blob(digest).await.map_err(|error| error.chain())?;
        let mut bytes = Vec::new();
        while let Some(piece) = blob.next().await.map_err(|error| error.chain())? {
            bytes.extend_from_slice(&piece);
            if bytes.len() as u64 > MAX_BLOB {
                return Err(format!("{digest} is too large for a signature"));
            }
        }
        digest.verify("a signature", &bytes).map_err(|error| error.to_string())?;
        Ok(bytes)
    }

    async fn referrers(&self, subject: &Digest) -> Result<Vec<Value>, String> {
        self.0.referrers(subject).await.map_err(|error| error.chain())
    }
}

/// Says of each policy whether it is understood.
struct Statuses(Known);

#[async_trait::async_trait]
impl Reconcile for Statuses {
    fn name(&self) -> &'static str {
        "image-policies"
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let Known { client, policies } = &self.0;
        let Some(policy) = policies.get(key) else { return Ok(Outcome::Done) };
        let read = policy.spec.read(client).await;
        let old = policy.status.clone().unwrap_or_default();
        let verdict = read.as_ref().map(|_| "it holds as it is written").map_err(|why| ("Invalid", why.as_str()));
        let status = PolicyStatus {
            observed_generation: policy.metadata.generation,
            conditions: vec![condition("Accepted", verdict, &old.conditions)],
        };
        if status != old {
            let patch = Patch::Merge(json!({ "status": status }));
            match client.patch::<ImagePolicy>(None, &key.name, patch, Some("status")).await {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        // A Secret may come later.
        Ok(if read.is_err() { Outcome::RequeueAfter(RETRY) } else { Outcome::Done })
    }
}
