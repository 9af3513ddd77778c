//! Images that Builds are made from: when one of them is another one than before, its Builds are run again.
//!
//! The cluster's own registry tells what is pushed; it and others are asked from time to time, too. Nodes ask, as they do when they build: with
//! what the Build's service account and Secrets show, and never the machine itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use dhow_client::{Client, Error, Informer, Key, Outcome, Patch, Reconcile};
use dhow_image::Reference;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use http_body_util::BodyExt;
use k8s_openapi::api::core::v1::Node;
use serde_json::json;

use super::builds::{OF_BUILD, new_run};
use super::execute::Failure;
use super::kinds::{Build, BuildRun, Cause, CauseKind, Phase, RunSpec, Seen};
use super::secrets::Secrets;
use super::turn::{self, Place};
use crate::run::{Digests, Names};

/// How long a token for asking is good.
const TOKEN: u64 = 600;
/// Before another attempt where nobody could be asked.
const REST: Duration = Duration::from_secs(60);

/// Tells of tags of the cluster's own registry that were set, as `repository:tag`, until it loses track.
pub type Pushes = Arc<dyn Fn() -> BoxFuture<'static, Option<BoxStream<'static, String>>> + Send + Sync>;

pub struct Images {
    pub client: Client,
    pub builds: Informer<Build>,
    /// With the index [`OF_BUILD`].
    pub runs: Informer<BuildRun>,
    pub nodes: Informer<Node>,
}

#[async_trait::async_trait]
impl Reconcile for Images {
    fn name(&self) -> &'static str {
        "build-images"
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let Some(build) = self.builds.get(key).filter(|build| build.metadata.deletion_timestamp.is_none()) else {
            return Ok(Outcome::Done);
        };
        let Some(pause) = build.spec.triggers.images.as_ref().and_then(|images| images.pause().ok()) else {
            return Ok(Outcome::Done);
        };
        if build.spec.suspend || build.spec.source.upload.is_some() {
            return Ok(Outcome::Done);
        }
        let namespace = key.namespace().unwrap_or_default();
        let last = self.last(namespace, &key.name);
        let names = watched(&build, last.as_deref());
        if names.is_empty() {
            return Ok(Outcome::Done);
        }
        let found = match self.ask(&build, namespace, names.keys().cloned().collect()).await {
            Ok(found) => found,
            Err(failure) => {
                tracing::debug!(build = %key.name, namespace, why = failure.message, "ask what images are now");
                return Ok(Outcome::RequeueAfter(REST.min(pause)));
            }
        };
        let old = build.status.clone().unwrap_or_default().images;
        let (seen, changed) = compare(&names, &old, &found);
        for image in &changed {
            self.run(&build, image).await?;
        }
        if seen != old {
            // Not over something that was not seen: then another look is taken.
            let version = json!({"resourceVersion": build.metadata.resource_version});
            let patch = Patch::Merge(json!({"metadata": version, "status": {"images": seen}}));
            match self.client.patch::<Build>(key.namespace(), &key.name, patch, Some("status")).await {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        Ok(Outcome::RequeueAfter(pause))
    }
}

impl Images {
    /// The builds that wait for `repository:tag`, or for anything.
    pub fn waiting(&self, tag: Option<&str>) -> Vec<Key> {
        let waits = |build: &Arc<Build>| {
            let (namespace, name) = (build.metadata.namespace.as_deref()?, build.metadata.name.as_deref()?);
            build.spec.triggers.images.as_ref()?;
            let tags = tags(build, self.last(namespace, name).as_deref());
            tag.is_none_or(|tag| tags.iter().any(|one| one == tag)).then(|| Key::new(Some(namespace), name))
        };
        self.builds.list().iter().filter_map(waits).collect()
    }

    /// The newest run that succeeded.
    fn last(&self, namespace: &str, build: &str) -> Option<Arc<BuildRun>> {
        let runs = self.runs.by_index(OF_BUILD, &format!("{namespace}/{build}"));
        let done = runs.into_iter().filter(|run| run.phase() == Phase::Succeeded);
        done.max_by(|a, b| a.age().cmp(&b.age()))
    }

    async fn ask(&self, build: &Build, namespace: &str, names: Vec<String>) -> Result<Vec<Digests>, Failure> {
        let spec = &build.spec;
        let secrets = Secrets { client: &self.client, namespace };
        let account = if spec.service_account_name.is_empty() { "default" } else { &spec.service_account_name };
        let (token, mut others) = secrets.account(account, TOKEN).await?;
        others.extend(spec.output.secrets.iter().cloned());
        let asked = Names { names, credentials: secrets.registries(&others).await?, token };
        let places: Vec<Place> = self.nodes.list().iter().filter_map(|node| Place::of(node)).collect();
        let gone = |why: String| Failure::passing("NodeUnreachable", why);
        let node = turn::place(&places, &[], &spec.node_selector, None, usize::MAX).map_err(gone)?;
        let path = format!("/api/v1/nodes/{node}/proxy{}/digests", crate::api::PATH);
        let body = serde_json::to_vec(&asked).map_err(|error| gone(error.to_string()))?;
        let request = http::Request::post(path).body(dhow_client::full(body.into()));
        let request = request.map_err(|error| gone(error.to_string()))?;
        let answer = self.client.upload(request).await.map_err(|error| gone(error.to_string()))?;
        let status = answer.status();
        let body = answer.into_body().collect().await.map_err(|error| gone(error.to_string()))?.to_bytes();
        if !status.is_success() {
            return Err(gone(dhow_client::status_error(status.as_u16(), &body).to_string()));
        }
        serde_json::from_slice(&body).map_err(|error| gone(error.to_string()))
    }

    /// One run of each image that is new, however often this is called.
    async fn run(&self, build: &Build, image: &Seen) -> Result<(), Error> {
        let name = build.metadata.name.as_deref().unwrap_or_default();
        let by_digest = format!("{}@{}", image.name, image.digest);
        let cause = Cause { kind: CauseKind::Image, image: by_digest.clone(), ..Cause::default() };
        let spec = RunSpec { build: name.to_owned(), cause: Some(cause), ..RunSpec::default() };
        let uid = build.metadata.uid.as_deref().unwrap_or_default();
        let hash = dhow_image::Digest::of(format!("{uid} {by_digest}").as_bytes());
        let run = new_run(build, &format!("{name}-{}", &hash.hex()[..10]), spec);
        match self.client.create(&run).await {
            Err(error) if !error.is_already_exists() => Err(error),
            _ => Ok(()),
        }
    }
}

/// The images that a build waits for, with what the last run began with where that is known.
fn watched(build: &Build, last: Option<&BuildRun>) -> BTreeMap<String, Option<String>> {
    let Some(images) = &build.spec.triggers.images else { return BTreeMap::new() };
    let bases = last.and_then(|run| run.status.as_ref()).map(|status| status.bases.as_slice()).unwrap_or_default();
    let base = |name: &str| bases.iter().find(|base| base.name == name).map(|base| base.digest.clone());
    let named = images.names.iter().map(|name| (name.clone(), base(name)));
    let of_last = bases.iter().filter(|_| images.bases).map(|base| (base.name.clone(), Some(base.digest.clone())));
    // By digest they never change.
    named.chain(of_last).filter(|(name, _)| Reference::parse(name).is_ok_and(|one| one.digest.is_none())).collect()
}

/// What is to be remembered of each image, and which of them a run is made for. One that is seen for the first time is new only if the
/// last run began with another one; one that cannot be seen stays as it was.
fn compare(names: &BTreeMap<String, Option<String>>, old: &[Seen], found: &[Digests]) -> (Vec<Seen>, Vec<Seen>) {
    let (mut seen, mut changed) = (Vec::new(), Vec::new());
    for (name, base) in names {
        let before = old.iter().find(|one| one.name == *name);
        let now = found.iter().find(|one| one.name == *name).and_then(|one| one.digest.clone());
        let Some(digest) = now else {
            seen.extend(before.cloned());
            continue;
        };
        let is_new = match (before, base) {
            (Some(before), _) if before.digest == digest => false,
            // The last run has it already.
            (_, Some(base)) => *base != digest,
            (Some(_), None) => true,
            (None, None) => false,
        };
        let now = Seen { name: name.clone(), digest };
        if is_new {
            changed.push(now.clone());
        }
        seen.push(now);
    }
    (seen, changed)
}

/// The images that a build waits for as the cluster's registry calls them, whatever its own name is.
fn tags(build: &Build, last: Option<&BuildRun>) -> Vec<String> {
    watched(build, last).keys().filter_map(|name| tag_of(name)).collect()
}

/// `repository:tag`.
fn tag_of(name: &str) -> Option<String> {
    let parsed = Reference::parse(name).ok()?;
    Some(format!("{}:{}", parsed.repository, parsed.tag.as_deref().unwrap_or("latest")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn seen(name: &str, digest: &str) -> Seen {
        Seen { name: name.to_owned(), digest: digest.to_owned() }
    }

    #[test]
    fn an_image_is_new_once() {
        let found =
            |digest: Option<&str>| [Digests { name: "a".to_owned(), digest: digest.map(str::to_owned), error: None }];
        let of = |base: Option<&str>, old: Option<&str>, now: Option<&str>| {
            let names = BTreeMap::from([("a".to_owned(), base.map(str::to_owned))]);
            let old: Vec<Seen> = old.map(|digest| seen("a", digest)).into_iter().collect();
            let (seen, changed) = compare(&names, &old, &found(now));
            (seen.first().map(|one| one.digest.clone()), !changed.is_empty())
        };
        let want = |digest: &str, changed: bool| (Some(digest.to_owned()), changed);
        assert_eq!(of(None, None, Some("1")), want("1", false));
        assert_eq!(of(None, Some("1"), Some("2")), want("2", true));
        assert_eq!(of(Some("1"), None, Some("2")), want("2", true));
        assert_eq!(of(Some("1"), Some("2"), Some("2")), want("2", false), "a run was made; it failed, or is under way");
        assert_eq!(of(Some("2"), Some("1"), Some("2")), want("2", false), "somebody built it already");
        assert_eq!(of(Some("1"), Some("1"), None), want("1", false));
        assert_eq!(of(None, None, None), (None, false));
    }

    #[test]
    fn builds_wait_for_what_they_name_and_began_with() {
        let build = |bases: bool| -> Build {
            let images = json!({"bases": bases, "names": ["r.example/tool:2"]});
            serde_json::from_value(
                json!({"metadata": {"name": "b"}, "spec": {"source": {"inline": "x"}, "triggers": {"images": images}}}),
            )
            .unwrap()
        };
        let run: BuildRun =
            serde_json::from_value(json!({"spec": {"build": "b"}, "status": {"phase": "Succeeded", "bases": [
                {"name": "r.example/team/base", "digest": "sha256:1"},
                {"name": format!("r.example/x@sha256:{}", "0".repeat(64)), "digest": "sha256:2"},
            ]}}))
            .unwrap();
        assert_eq!(tags(&build(true), Some(&run)), ["team/base:latest", "tool:2"]);
        assert_eq!(tags(&build(false), Some(&run)), ["tool:2"]);
        assert_eq!(watched(&build(true), Some(&run))["r.example/team/base"], Some("sha256:1".to_owned()));
        assert_eq!(tags(&build(true), None), ["tool:2"]);
    }
}
