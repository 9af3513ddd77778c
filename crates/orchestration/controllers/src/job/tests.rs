//! Jobs played against the plan, with a small world that does what the plan says.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::indexes;
use super::plan::{Plan, Snapshot, condition, finished, plan};
use super::template::{FINALIZER, failures, new_pod, tracked};

struct World {
    job: Job,
    pods: Vec<Pod>,
    now: Timestamp,
    made: usize,
    events: Vec<String>,
}

impl World {
    fn new(spec: Value) -> Self {
        let mut whole = json!({
            "parallelism": 1, "backoffLimit": 6, "podReplacementPolicy": "TerminatingOrFailed",
            "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c"}]}}
        });
        whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        let job = serde_json::from_value(json!({"metadata": {"name": "j", "uid": "j"}, "spec": whole})).unwrap();
        Self { job, pods: Vec::new(), now: "2026-01-01T00:00:00Z".parse().unwrap(), made: 0, events: Vec::new() }
    }

    fn pass(&mut self, seconds: i64) {
        self.now = Timestamp::from_second(self.now.as_second() + seconds).unwrap();
    }

    /// One reconciliation, carried out.
    fn step(&mut self) -> Plan {
        let pods: Vec<_> = self.pods.iter().cloned().map(Arc::new).collect();
        let plan = plan(&Snapshot { job: &self.job, pods: &pods, settled: true, now: self.now });
        self.job.status = Some(plan.status.clone());
        self.events.extend(plan.events.iter().map(|(_, reason, _)| reason.clone()));
        let among = |list: &[Arc<Pod>], pod: &Pod| list.iter().any(|one| one.metadata.uid == pod.metadata.uid);
        self.pods.retain(|pod| !among(&plan.withdraw, pod));
        for pod in &mut self.pods {
            if among(&plan.release, pod) {
                pod.metadata.finalizers.as_mut().unwrap().retain(|one| one != FINALIZER);
            }
            if among(&plan.kill, pod) {
                pod.metadata.deletion_timestamp = Some(Time(self.now));
            }
        }
        for new in &plan.create {
            let mut pod = new_pod(&self.job, new);
            self.made += 1;
            pod.metadata.uid = Some(format!("p{}", self.made));
            pod.metadata.name = pod.metadata.uid.clone();
            pod.metadata.creation_timestamp = Some(Time(self.now));
            self.pods.push(pod);
        }
        plan
    }

    fn settle(&mut self) {
        for _ in 0..6 {
            self.step();
        }
    }

    /// Ends active pods that `which` chooses.
    fn end(&mut self, phase: &str, code: i32, which: impl Fn(&Pod) -> bool) {
        for pod in self.pods.iter_mut().filter(|pod| pod.status.is_none() && which(pod)) {
            let terminated = json!({"exitCode": code, "finishedAt": self.now.to_string()});
            pod.status = serde_json::from_value(json!({"phase": phase, "containerStatuses": [
                {"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                 "state": {"terminated": terminated}}
            ]}))
            .unwrap();
        }
    }

    fn running(&self) -> usize {
        self.pods.iter().filter(|pod| super::is_active(pod)).count()
    }

    fn result(&self) -> Option<(&str, &str)> {
        finished(&self.job).map(|end| (end.type_.as_str(), end.reason.as_deref().unwrap_or_default()))
    }

    fn counters(&self) -> (Option<i32>, Option<i32>, Option<i32>) {
        let status = self.job.status.as_ref().unwrap();
        (status.active, status.succeeded, status.failed)
    }
}

fn at(index: i32) -> impl Fn(&Pod) -> bool {
    move |pod| indexes::of(pod) == Some(index)
}

#[test]
fn pods_are_counted_once_and_the_job_completes() {
    let mut world = World::new(json!({"completions": 3, "parallelism": 2}));
    world.step();
    assert_eq!(world.running(), 2);
    world.end("Succeeded", 0, |_| true);
    let plan = world.step();
    assert_eq!(plan.create.len(), 1, "two of three are done, though not counted yet");
    assert_eq!(plan.status.uncounted_terminated_pods.unwrap().succeeded.unwrap().len(), 2);
    assert_eq!(plan.status.succeeded, None);
    world.step();
    assert_eq!(world.counters(), (Some(1), Some(2), None));
    world.end("Succeeded", 0, |_| true);
    let plan = world.step();
    assert!(condition(&plan.status, "SuccessCriteriaMet").is_some() && finished(&world.job).is_none());
    world.settle();
    assert_eq!(world.result(), Some(("Complete", "CompletionsReached")));
    assert_eq!(world.counters(), (None, Some(3), None));
    assert!(world.pods.iter().all(|pod| !tracked(pod)));
    assert_eq!(world.events, ["Completed"]);
    let before = world.job.clone();
    world.settle();
    assert_eq!(world.job, before, "a finished job rests");
}

#[test]
fn failures_back_off_and_end_the_job() {
    let mut world = World::new(json!({"completions": 1, "backoffLimit": 1}));
    world.step();
    world.end("Failed", 1, |_| true);
    let plan = world.step();
    assert_eq!((plan.create.len(), plan.wait.unwrap().as_secs()), (0, 10));
    world.pass(10);
    assert_eq!(world.step().create.len(), 1);
    world.end("Failed", 1, |_| true);
    world.settle();
    assert_eq!(world.result(), Some(("Failed", "BackoffLimitExceeded")));
    assert_eq!(world.counters(), (None, None, Some(2)));
    assert!(condition(world.job.status.as_ref().unwrap(), "FailureTarget").is_some());
}

#[test]
fn a_deadline_kills_and_waits_for_the_end_of_pods() {
    let mut world =
        World::new(json!({"completions": 1, "activeDeadlineSeconds": 30, "podReplacementPolicy": "Failed"}));
    assert_eq!(world.step().wait.unwrap().as_secs(), 30);
    world.pass(31);
    let plan = world.step();
    assert_eq!((plan.kill.len(), plan.status.terminating), (1, Some(1)));
    world.settle();
    assert_eq!(world.result(), None, "the pod has not ended yet");
    world.end("Failed", 137, |_| true);
    world.settle();
    assert_eq!(world.result(), Some(("Failed", "DeadlineExceeded")));
    assert_eq!(world.counters(), (None, None, Some(1)));
}

#[test]
fn a_suspended_job_withdraws_its_pods_and_starts_anew() {
    let mut world = World::new(json!({"completions": 2, "parallelism": 2, "activeDeadlineSeconds": 30}));
    world.step();
    world.job.spec.as_mut().unwrap().suspend = Some(true);
    assert_eq!(world.step().withdraw.len(), 2);
    world.settle();
    assert_eq!(world.counters(), (None, None, None), "withdrawn pods do not count");
    world.pass(100);
    assert!(world.step().wait.is_none(), "no deadline runs");
    world.job.spec.as_mut().unwrap().suspend = Some(false);
    world.settle();
    assert_eq!((world.running(), world.result()), (2, None));
    assert_eq!(world.job.status.as_ref().unwrap().start_time, Some(Time(world.now)));
    assert_eq!(world.events, ["Suspended", "Resumed"]);
}

#[test]
fn indexed_jobs_do_each_index_and_may_shrink() {
    let mut world = World::new(json!({"completions": 4, "parallelism": 4, "completionMode": "Indexed"}));
    world.step();
    let pod = &world.pods[2];
    assert_eq!(pod.metadata.generate_name.as_deref(), Some("j-2-"));
    assert_eq!(pod.spec.as_ref().unwrap().hostname.as_deref(), Some("j-2"));
    assert_eq!(pod.spec.as_ref().unwrap().containers[0].env.as_ref().unwrap()[0].name, "JOB_COMPLETION_INDEX");
    world.end("Succeeded", 0, at(0));
    world.end("Succeeded", 0, at(3));
    world.settle();
    assert_eq!(world.job.status.as_ref().unwrap().completed_indexes.as_deref(), Some("0,3"));
    let spec = world.job.spec.as_mut().unwrap();
    (spec.completions, spec.parallelism) = (Some(2), Some(2));
    world.settle();
    assert_eq!(world.counters(), (Some(1), Some(1), None));
    world.end("Succeeded", 0, at(1));
    world.settle();
    assert_eq!(world.result(), Some(("Complete", "CompletionsReached")));
    assert_eq!(world.job.status.as_ref().unwrap().completed_indexes.as_deref(), Some("0,1"));
}

#[test]
fn an_index_fails_for_itself_alone() {
    let spec = json!({"completions": 2, "parallelism": 2, "completionMode": "Indexed", "backoffLimit": i32::MAX,
        "backoffLimitPerIndex": 1});
    let mut world = World::new(spec.clone());
    world.step();
    world.end("Failed", 1, at(0));
    world.step();
    assert!(tracked(&world.pods[0]), "held until its successor knows");
    world.pass(11);
    world.settle();
    let successor = world.pods.iter().find(|pod| at(0)(pod) && super::is_active(pod)).unwrap();
    assert_eq!(failures(successor).counted, 1);
    assert!(!tracked(&world.pods[0]));
    world.end("Failed", 1, at(0));
    world.settle();
    assert_eq!(world.job.status.as_ref().unwrap().failed_indexes.as_deref(), Some("0"));
    assert_eq!(world.result(), None, "the other index goes on");
    world.end("Succeeded", 0, at(1));
    world.settle();
    assert_eq!(world.result(), Some(("Failed", "FailedIndexes")));
    assert_eq!(world.counters(), (None, Some(1), Some(2)));

    let mut strict = spec;
    strict["maxFailedIndexes"] = json!(0);
    strict["podFailurePolicy"] =
        json!({"rules": [{"action": "FailIndex", "onExitCodes": {"operator": "In", "values": [42]}}]});
    let mut world = World::new(strict);
    world.step();
    world.end("Failed", 42, at(1));
    world.settle();
    world.pods.retain(|pod| pod.metadata.deletion_timestamp.is_none());
    world.settle();
    assert_eq!(world.result(), Some(("Failed", "MaxFailedIndexesExceeded")));
}

#[test]
fn policies_ignore_fail_and_let_succeed_early() {
    let rule = |action: &str| {
        json!({"completions": 1, "backoffLimit": 0, "podReplacementPolicy": "Failed", "podFailurePolicy": {"rules": [
            {"action": action, "onExitCodes": {"operator": "In", "values": [42]}}]}})
    };
    let mut world = World::new(rule("Ignore"));
    world.step();
    world.end("Failed", 42, |_| true);
    world.settle();
    assert_eq!((world.running(), world.counters()), (1, (Some(1), None, None)));
    let mut world = World::new(rule("FailJob"));
    world.step();
    world.end("Failed", 42, |_| true);
    world.settle();
    assert_eq!(world.result(), Some(("Failed", "PodFailurePolicy")));

    let mut world = World::new(json!({"completions": 3, "parallelism": 3, "completionMode": "Indexed",
        "successPolicy": {"rules": [{"succeededIndexes": "1"}]}}));
    world.step();
    world.end("Succeeded", 0, at(1));
    world.settle();
    assert_eq!(world.running(), 0);
    world.pods.retain(|pod| pod.metadata.deletion_timestamp.is_none());
    world.settle();
    assert_eq!(world.result(), Some(("Complete", "SuccessPolicy")));
}

#[test]
fn a_replacement_waits_for_the_end_where_asked_to() {
    let mut world = World::new(json!({"completions": 1, "podReplacementPolicy": "Failed"}));
    world.step();
    world.pods[0].metadata.deletion_timestamp = Some(Time(world.now));
    world.settle();
    assert_eq!((world.made, world.job.status.as_ref().unwrap().terminating), (1, Some(1)));
    world.job.spec.as_mut().unwrap().pod_replacement_policy = Some("TerminatingOrFailed".into());
    world.settle();
    assert_eq!(world.made, 2);
}

#[test]
fn a_work_queue_ends_with_its_first_success_and_last_pod() {
    let mut world = World::new(json!({"parallelism": 2}));
    world.step();
    world.end("Succeeded", 0, |pod| pod.metadata.uid.as_deref() == Some("p1"));
    world.settle();
    assert_eq!((world.made, world.result()), (2, None));
    world.end("Succeeded", 0, |_| true);
    world.settle();
    assert_eq!(world.result(), Some(("Complete", "CompletionsReached")));
}
