//! `Build` and `BuildRun`, group `build.dhow.io/v1alpha1`, as users write them. Their schemas are `crds.yaml`.

use std::collections::BTreeMap;
use std::time::Duration;

use dhow_api::quantity::Quantity;
use dhow_client::kind;
use dhow_image::Reference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta, Time};
use serde::{Deserialize, Serialize};

/// The definitions that the API serves the kinds by.
pub const DEFINITIONS: &str = include_str!("crds.yaml");
pub const GROUP: &str = "build.dhow.io";
pub const VERSION: &str = "v1alpha1";
/// What [`DEFINITIONS`] are called.
pub const NAMES: [&str; 2] = ["builds.build.dhow.io", "buildruns.build.dhow.io"];
/// On runs: the name of their Build.
pub const BUILD: &str = "build.dhow.io/build";

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Build {
    pub metadata: ObjectMeta,
    pub spec: BuildSpec,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<BuildStatus>,
}
kind!(Build, "build.dhow.io", "v1alpha1", "builds", NamespaceResourceScope);

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct BuildSpec {
    pub source: Source,
    pub dockerfile: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    pub args: BTreeMap<String, String>,
    pub labels: BTreeMap<String, String>,
    pub secrets: Vec<BuildSecret>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    pub no_cache: bool,
    pub output: Output,
    pub service_account_name: String,
    pub node_selector: BTreeMap<String, String>,
    pub resources: Resources,
    /// As Go writes durations.
    pub timeout: String,
    pub run_policy: RunPolicy,
    pub suspend: bool,
    pub triggers: Triggers,
    pub deploy: Vec<Target>,
    pub history: History,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl_seconds_after_finished: Option<u64>,
}

/// Where the files are; the API lets one of them be given.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Source {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub git: Option<GitSource>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub archive: Option<ArchiveSource>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bucket: Option<BucketSource>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub artifact: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upload: Option<BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inline: Option<String>,
    pub context_dir: String,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct GitSource {
    pub url: String,
    #[serde(rename = "ref")]
    pub reference: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
    /// Whether they are fetched; they are if it is not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub submodules: Option<bool>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ArchiveSource {
    pub url: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checksum: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct BucketSource {
    pub endpoint: String,
    pub name: String,
    pub region: String,
    /// The key of an archive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// What the keys of all files begin with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checksum: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct BuildSecret {
    pub id: String,
    pub secret: String,
    pub key: String,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Output {
    pub images: Vec<String>,
    pub secrets: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RunPolicy {
    #[default]
    Serial,
    SerialLatestOnly,
    Parallel,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Triggers {
    pub on_change: bool,
    pub webhooks: Vec<Webhook>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub images: Option<ImageTrigger>,
}

/// Images that a build is run for when they change.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageTrigger {
    /// Those that the last run began with.
    pub bases: bool,
    pub names: Vec<String>,
    /// How often registries are asked; as Go writes durations.
    pub interval: String,
}

impl ImageTrigger {
    /// # Errors
    /// With what is not understood.
    pub fn pause(&self) -> Result<Duration, String> {
        let text = if self.interval.is_empty() { "15m" } else { &self.interval };
        let seconds = dhow_base::duration::go_seconds(text).filter(|seconds| *seconds >= 10.0);
        let wrong = || format!("spec.triggers.images.interval: {text:?} is no time of ten seconds or more");
        seconds.map(Duration::from_secs_f64).ok_or_else(wrong)
    }
}

/// What a name stood for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Seen {
    pub name: String,
    pub digest: String,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Webhook {
    pub name: String,
    #[serde(rename = "type")]
    pub kind: WebhookKind,
    pub secret: String,
    pub key: String,
    pub refs: Vec<String>,
}

/// Whose pushes are told, in whose words.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum WebhookKind {
    #[default]
    GitHub,
    GitLab,
    Gitea,
    Generic,
}

/// A container that gets the image.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Target {
    pub kind: Workload,
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Workload {
    #[default]
    Deployment,
    StatefulSet,
    DaemonSet,
    CronJob,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct History {
    pub succeeded: usize,
    pub failed: usize,
}

impl Default for History {
    fn default() -> Self {
        Self { succeeded: 5, failed: 5 }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct BuildStatus {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    pub source: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_run: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_phase: Option<Phase>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// The generation that `onChange` made a run of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ran_generation: Option<i64>,
    pub deliveries: Vec<String>,
    /// What the images of the triggers stood for when they were asked for last.
    pub images: Vec<Seen>,
    pub conditions: Vec<Condition>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct BuildRun {
    pub metadata: ObjectMeta,
    pub spec: RunSpec,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<RunStatus>,
}
kind!(BuildRun, "build.dhow.io", "v1alpha1", "buildruns", NamespaceResourceScope);

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunSpec {
    pub build: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub cancel: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upload: Option<Upload>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
}

/// An archive on a node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Upload {
    pub node: String,
    pub id: String,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cause {
    #[serde(rename = "type")]
    pub kind: CauseKind,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub webhook: String,
    #[serde(rename = "ref", skip_serializing_if = "String::is_empty")]
    pub reference: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub commit: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub image: String,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CauseKind {
    #[default]
    Change,
    Webhook,
    Upload,
    Image,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    #[default]
    Pending,
    Running,
    Succeeded,
    Failed,
    Cancelled,
}

impl Phase {
    pub fn is_over(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RunStatus {
    pub phase: Phase,
    pub reason: String,
    pub message: String,
    pub attempts: u32,
    pub node_name: Option<String>,
    pub start_time: Option<Time>,
    pub completion_time: Option<Time>,
    pub commit: Option<String>,
    pub commit_message: Option<String>,
    pub author: Option<String>,
    pub image: Option<String>,
    pub digest: Option<String>,
    pub names: Vec<String>,
    /// The images that it began with.
    pub bases: Vec<Seen>,
    pub step: Option<String>,
    pub line: Option<usize>,
    pub deployed: Vec<String>,
    pub spec: Option<BuildSpec>,
    pub conditions: Vec<Condition>,
}

impl BuildRun {
    pub fn phase(&self) -> Phase {
        self.status.as_ref().map_or(Phase::Pending, |status| status.phase)
    }

    pub fn uid(&self) -> &str {
        self.metadata.uid.as_deref().unwrap_or_default()
    }

    pub fn name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    pub fn namespace(&self) -> &str {
        self.metadata.namespace.as_deref().unwrap_or_default()
    }

    /// Older ones first; a clock of seconds leaves some to their names.
    pub fn age(&self) -> (Option<Time>, &str) {
        (self.metadata.creation_timestamp.clone(), self.name())
    }
}

impl Source {
    /// As people recognise it.
    pub fn shown(&self) -> String {
        if let Some(git) = &self.git {
            let url = without_password(&git.url);
            return if git.reference.is_empty() { url } else { format!("{url}#{}", git.reference) };
        }
        if let Some(archive) = &self.archive {
            return without_password(archive.url.split('?').next().unwrap_or_default());
        }
        if let Some(bucket) = &self.bucket {
            let what = bucket.object.as_ref().or(bucket.prefix.as_ref()).map_or("", String::as_str);
            return format!("{}/{}/{what}", bucket.endpoint.trim_end_matches('/'), bucket.name);
        }
        let named = self.artifact.as_ref().or(self.image.as_ref());
        named.cloned().unwrap_or_else(|| if self.upload.is_some() { "upload" } else { "inline" }.to_owned())
    }
}

/// An address as anyone may read it.
pub(crate) fn without_password(url: &str) -> String {
    match url.split_once("://").and_then(|(scheme, rest)| Some((scheme, rest.split_once('@')?))) {
        Some((scheme, (user, rest))) if !user.contains('/') => format!("{scheme}://{rest}"),
        _ => url.to_owned(),
    }
}

impl BuildSpec {
    /// What does not hold of it, as users may read it.
    ///
    /// # Errors
    /// With the field and why.
    pub fn check(&self) -> Result<(), String> {
        for name in &self.output.images {
            let plain = name.replace("$(commit)", "c").replace("$(run)", "r");
            let parsed = Reference::parse(&plain).map_err(|error| format!("spec.output.images: {error}"))?;
            if parsed.digest.is_some() {
                return Err(format!("spec.output.images: {name} has a digest, which only the built image knows"));
            }
            if name.contains("$(commit)") && self.source.git.is_none() {
                return Err(format!("spec.output.images: {name}: only a git source has a commit"));
            }
        }
        for name in self.triggers.images.iter().flat_map(|images| &images.names) {
            let parsed = Reference::parse(name).map_err(|error| format!("spec.triggers.images.names: {error}"))?;
            if parsed.digest.is_some() {
                return Err(format!("spec.triggers.images.names: {name} has a digest, and never changes"));
            }
        }
        self.triggers.images.as_ref().map(ImageTrigger::pause).transpose()?;
        self.limits().map(drop)?;
        self.deadline().map(drop)
    }

    /// Thousandths of a processor, and bytes.
    ///
    /// # Errors
    /// With what is not understood.
    pub fn limits(&self) -> Result<(Option<u64>, Option<u64>), String> {
        let read = |field: &str, text: &Option<String>, scale: i64| -> Result<Option<u64>, String> {
            let Some(text) = text else { return Ok(None) };
            let bad = || format!("spec.resources.{field}: {text:?} is no quantity above zero");
            let quantity: Quantity = text.parse().map_err(|_| bad())?;
            let value = if scale == 1000 { quantity.millis() } else { quantity.units() };
            u64::try_from(value).ok().filter(|value| *value > 0).map(Some).ok_or_else(bad)
        };
        Ok((read("cpu", &self.resources.cpu, 1000)?, read("memory", &self.resources.memory, 1)?))
    }

    /// # Errors
    /// With what is not understood.
    pub fn deadline(&self) -> Result<Duration, String> {
        let text = if self.timeout.is_empty() { "1h" } else { &self.timeout };
        let seconds = dhow_base::duration::go_seconds(text).filter(|seconds| *seconds >= 1.0);
        seconds
            .map(Duration::from_secs_f64)
            .ok_or_else(|| format!("spec.timeout: {text:?} is no time of a second or more"))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn sources_are_shown_without_their_secrets() {
        let shown = |value| serde_json::from_value::<Source>(value).unwrap().shown();
        assert_eq!(shown(json!({"git": {"url": "https://u:p@h/a.git", "ref": "main"}})), "https://h/a.git#main");
        assert_eq!(shown(json!({"git": {"url": "git@h:a.git"}})), "git@h:a.git");
        assert_eq!(shown(json!({"archive": {"url": "https://b.s3/x.tgz?signature=1"}})), "https://b.s3/x.tgz");
        assert_eq!(shown(json!({"upload": {}})), "upload");
    }

    #[test]
    fn specs_are_checked_beyond_their_schema() {
        let check = |value| serde_json::from_value::<BuildSpec>(value).unwrap().check();
        let git = json!({"git": {"url": "https://h/a"}});
        let fine = json!({"source": git, "output": {"images": ["r.example/a:$(commit)"]}, "timeout": "1h30m",
            "resources": {"cpu": "1500m", "memory": "1Gi"}});
        assert_eq!(check(fine.clone()), Ok(()));
        let spec: BuildSpec = serde_json::from_value(fine).unwrap();
        assert_eq!(spec.limits(), Ok((Some(1500), Some(1 << 30))));
        assert_eq!(spec.deadline(), Ok(Duration::from_secs(5400)));
        for (value, says) in [
            (json!({"output": {"images": ["UPPER"]}}), "spec.output.images"),
            (json!({"source": {"upload": {}}, "output": {"images": ["a:$(commit)"]}}), "only a git source"),
            (json!({"resources": {"memory": "0"}}), "spec.resources.memory"),
            (json!({"timeout": "0s"}), "spec.timeout"),
            (json!({"triggers": {"images": {"interval": "1s"}}}), "spec.triggers.images.interval"),
            (json!({"triggers": {"images": {"names": ["UPPER"]}}}), "spec.triggers.images.names"),
        ] {
            assert!(check(value).unwrap_err().contains(says), "{says}");
        }
    }

    #[test]
    fn the_definitions_are_named_as_we_ask_for_them() {
        for name in NAMES {
            assert!(DEFINITIONS.contains(&format!("name: {name}\n")), "{name}");
        }
    }
}
