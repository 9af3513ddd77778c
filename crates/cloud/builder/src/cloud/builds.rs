//! Builds: what their last runs came to, how many of these stay, and the runs that a change of their own asks for.

use std::sync::Arc;

use dhow_api::conditions;
use dhow_client::{Client, DeleteParams, Error, Informer, Key, Outcome, Patch, Reconcile, controller_reference};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};
use serde_json::json;

use super::kinds::{BUILD, Build, BuildRun, BuildStatus, Cause, CauseKind, Phase, RunSpec};

/// Index of runs: the build they are of.
pub const OF_BUILD: &str = "build";

pub struct Builds {
    pub client: Client,
    pub builds: Informer<Build>,
    /// With the index [`OF_BUILD`].
    pub runs: Informer<BuildRun>,
}

/// What [`OF_BUILD`] has for a run.
pub fn index(run: &BuildRun) -> String {
    format!("{}/{}", run.namespace(), run.spec.build)
}

/// A run of a build.
pub fn new_run(build: &Build, name: &str, spec: RunSpec) -> BuildRun {
    let labels = [(BUILD.to_owned(), spec.build.clone())];
    // Names that end in a dash are begun ones.
    let begun = name.ends_with('-');
    BuildRun {
        metadata: ObjectMeta {
            name: (!begun).then(|| name.to_owned()),
            generate_name: begun.then(|| name.to_owned()),
            namespace: build.metadata.namespace.clone(),
            labels: Some(labels.into()),
            owner_references: Some(vec![controller_reference(build)]),
            ..ObjectMeta::default()
        },
        spec,
        status: None,
    }
}

#[async_trait::async_trait]
impl Reconcile for Builds {
    fn name(&self) -> &'static str {
        "builds"
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let Some(build) = self.builds.get(key).filter(|build| build.metadata.deletion_timestamp.is_none()) else {
            return Ok(Outcome::Done);
        };
        let mut runs = self.runs.by_index(OF_BUILD, &format!("{}/{}", key.namespace().unwrap_or_default(), key.name));
        runs.sort_by(|a, b| b.age().cmp(&a.age()));
        let old = build.status.clone().unwrap_or_default();
        let generation = build.metadata.generation;
        let mut ran = old.ran_generation;
        if build.spec.triggers.on_change
            && !build.spec.suspend
            && build.spec.source.upload.is_none()
            && ran != generation
        {
            self.run_changed(&build).await?;
            ran = generation;
        }
        let status = BuildStatus { ran_generation: ran, ..status(&build, &runs, old.clone()) };
        if status != old {
            // Webhooks write here as well: not over something that was not seen.
            let seen = json!({"resourceVersion": build.metadata.resource_version});
            let patch = Patch::Merge(json!({"metadata": seen, "status": status}));
            match self.client.patch::<Build>(key.namespace(), &key.name, patch, Some("status")).await {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        for run in superfluous(&build, &runs) {
            let params = DeleteParams { uid: run.metadata.uid.clone(), ..DeleteParams::default() };
            match self.client.delete::<BuildRun>(key.namespace(), run.name(), &params).await {
                Err(error) if !error.is_not_found() && !error.is_conflict() => return Err(error),
                _ => {}
            }
        }
        Ok(Outcome::Done)
    }
}

impl Builds {
    /// One run of each generation, however often this is called.
    async fn run_changed(&self, build: &Build) -> Result<(), Error> {
        let name = build.metadata.name.as_deref().unwrap_or_default();
        let cause = Cause { kind: CauseKind::Change, ..Cause::default() };
        let spec = RunSpec { build: name.to_owned(), cause: Some(cause), ..RunSpec::default() };
        let uid: String = build.metadata.uid.iter().flat_map(|uid| uid.chars().take(5)).collect();
        let run = new_run(build, &format!("{name}-{uid}-{}", build.metadata.generation.unwrap_or(1)), spec);
        match self.client.create(&run).await {
            Err(error) if !error.is_already_exists() => Err(error),
            _ => Ok(()),
        }
    }
}

fn status(build: &Build, runs: &[Arc<BuildRun>], old: BuildStatus) -> BuildStatus {
    let verdict = build.spec.check();
    let (status, reason, message) = match &verdict {
        Ok(()) => ("True", "AsWritten", "it holds as it is written"),
        Err(why) => ("False", "Invalid", why.as_str()),
    };
    let accepted = Condition {
        type_: "Accepted".to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        last_transition_time: conditions::since(&old.conditions, "Accepted", status, Timestamp::now()),
        observed_generation: None,
    };
    let done = runs.iter().find(|run| run.phase() == Phase::Succeeded).and_then(|run| run.status.as_ref());
    BuildStatus {
        observed_generation: build.metadata.generation,
        source: build.spec.source.shown(),
        last_run: runs.first().map(|run| run.name().to_owned()).or(old.last_run),
        last_phase: runs.first().map(|run| run.phase()).or(old.last_phase),
        image: done.map_or(old.image, |done| done.image.clone()),
        commit: done.map_or(old.commit, |done| done.commit.clone()),
        conditions: vec![accepted],
        ..BuildStatus {
            ran_generation: old.ran_generation,
            deliveries: old.deliveries,
            images: old.images,
            ..BuildStatus::default()
        }
    }
}

/// Those beyond what is kept. `runs` are newest first.
fn superfluous<'a>(build: &Build, runs: &'a [Arc<BuildRun>]) -> Vec<&'a Arc<BuildRun>> {
    let over =
        |good: bool| runs.iter().filter(move |run| run.phase().is_over() && (run.phase() == Phase::Succeeded) == good);
    let history = &build.spec.history;
    over(true).skip(history.succeeded).chain(over(false).skip(history.failed)).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn run(name: &str, phase: &str) -> Arc<BuildRun> {
        let run = json!({"metadata": {"name": name}, "status": {"phase": phase, "image": format!("r/a@{name}")}});
        Arc::new(serde_json::from_value(run).unwrap())
    }

    #[test]
    fn a_build_says_what_its_runs_came_to() {
        let build: Build = serde_json::from_value(json!({
            "metadata": {"name": "a", "generation": 3},
            "spec": {"source": {"upload": {}}, "history": {"succeeded": 1, "failed": 1}},
        }))
        .unwrap();
        let runs = [
            run("r6", "Running"),
            run("r5", "Failed"),
            run("r4", "Cancelled"),
            run("r3", "Succeeded"),
            run("r2", "Succeeded"),
        ];
        let gone: Vec<&str> = superfluous(&build, &runs).into_iter().map(|run| run.name()).collect();
        assert_eq!(gone, ["r2", "r4"]);
        let status = status(&build, &runs, BuildStatus { ran_generation: Some(2), ..BuildStatus::default() });
        assert_eq!((status.last_run.as_deref(), status.last_phase), (Some("r6"), Some(Phase::Running)));
        assert_eq!((status.image.as_deref(), status.ran_generation), (Some("r/a@r3"), Some(2)));
    }
}
