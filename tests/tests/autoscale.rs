//! Real containers that burn a processor are autoscaled by what the node measures, and a version that never gets ready
//! is taken back. What is to run on a schedule does meanwhile.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dhow_e2e::{Host, eventually, in_turn};
use serde_json::{Value, json};

const IMAGE: &str = "docker.io/library/busybox:latest";
/// A measurement takes up to half a minute to be seen, and a pod that starts is not believed at once.
const MEASURED: Duration = Duration::from_secs(150);
const SOON: Duration = Duration::from_secs(60);

type Step = fn(&Host) -> Result<()>;

#[test]
fn a_cloud_that_looks_after_its_workloads() {
    let host = Host::new().unwrap();
    let steps: &[(&str, Step)] = &[
        ("starts", starts),
        ("scales up under load", scales_up_under_load),
        ("scales down without", scales_down_without),
        ("takes a bad version back", takes_a_bad_version_back),
        ("runs on schedule", runs_on_schedule),
    ];
    in_turn(steps, |step| step(&host)).unwrap();
}

fn starts(host: &Host) -> Result<()> {
    host.dhow(&["up"])?;
    host.import(&["busybox"])?;
    let container =
        json!({"name": "a", "image": IMAGE, "imagePullPolicy": "IfNotPresent", "command": ["echo", "done"]});
    let pod = json!({"spec": {"restartPolicy": "Never", "containers": [container]}});
    let spec =
        json!({"schedule": "* * * * *", "successfulJobsHistoryLimit": 1, "jobTemplate": {"spec": {"template": pod}}});
    let job = json!({"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "each-minute"}, "spec": spec});
    host.apply(&job.to_string()).map(drop)
}

/// By the clock, and by hand; of what succeeded one is kept.
fn runs_on_schedule(host: &Host) -> Result<()> {
    eventually(Duration::from_secs(90), || {
        let status = &host.get(&["get", "cronjob", "each-minute"])?["status"];
        ensure!(status["lastSuccessfulTime"].is_string(), "{status}");
        Ok(())
    })?;
    host.kubectl(&["patch", "cronjob", "each-minute", "-p", r#"{"spec": {"suspend": true}}"#])?;
    host.kubectl(&["create", "job", "by-hand", "--from=cronjob/each-minute"])?;
    host.kubectl(&["wait", "--for=condition=complete", "job/by-hand", "--timeout=60s"])?;
    ensure!(host.kubectl(&["logs", "job/by-hand"])?.trim() == "done", "other words");
    eventually(SOON, || {
        let jobs = host.get(&["get", "jobs"])?;
        let jobs = jobs["items"].as_array().context("no jobs")?;
        ensure!(jobs.len() == 1 && jobs[0]["metadata"]["name"] == "by-hand", "{} are kept", jobs.len());
        Ok(())
    })?;
    let described = host.kubectl(&["describe", "cronjob", "each-minute"])?;
    ensure!(described.contains("SuccessfulCreate") && described.contains("SawCompletedJob"), "{described}");
    // What was made of it goes with it.
    host.kubectl(&["delete", "cronjob/each-minute"])?;
    host.kubectl(&["wait", "--for=delete", "job/by-hand", "--timeout=30s"]).map(drop)
}

fn deployment(name: &str, deadline: u32, script: &str, more: Value) -> String {
    let annotations = json!({"dhow.io/auto-rollback": "true"});
    let mut container = json!({"name": "a", "image": IMAGE, "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", script], "resources": {"requests": {"cpu": "50m"}, "limits": {"cpu": "200m"}}});
    if let (Some(container), Value::Object(more)) = (container.as_object_mut(), more) {
        container.extend(more);
    }
    let labels = json!({"app": name});
    let spec = json!({"terminationGracePeriodSeconds": 0, "containers": [container]});
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "annotations": annotations},
        "spec": {"replicas": 1, "progressDeadlineSeconds": deadline, "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": spec}}})
    .to_string()
}

fn replicas(host: &Host) -> Result<i64> {
    host.get(&["get", "deploy", "load"])?["spec"]["replicas"].as_i64().context("no replicas")
}

fn told(host: &Host) -> String {
    host.kubectl(&["describe", "hpa", "load"]).unwrap_or_default()
}

fn scales_up_under_load(host: &Host) -> Result<()> {
    // Busy as long as the file is there.
    let script = "touch /busy; while :; do [ -e /busy ] || sleep 1; done";
    host.apply(&deployment("load", 600, script, json!({})))?;
    host.kubectl(&["rollout", "status", "deploy/load", "--timeout=60s"])?;
    host.kubectl(&["autoscale", "deploy/load", "--cpu-percent=100", "--min=1", "--max=3"])?;
    let behavior = json!({"spec": {"behavior": {"scaleDown": {"stabilizationWindowSeconds": 10}}}}).to_string();
    host.kubectl(&["patch", "hpa", "load", "-p", &behavior])?;
    eventually(MEASURED, || {
        ensure!(replicas(host)? > 1, "{}", told(host));
        Ok(())
    })?;
    let described = told(host);
    ensure!(described.contains("SuccessfulRescale") && described.contains("above target"), "{described}");
    ensure!(described.contains("ValidMetricFound"), "{described}");
    Ok(())
}

fn scales_down_without(host: &Host) -> Result<()> {
    eventually(MEASURED, || {
        let pods = host.get(&["get", "pods", "-l", "app=load", "--field-selector=status.phase=Running"])?;
        for pod in pods["items"].as_array().context("no pods")? {
            let name = pod["metadata"]["name"].as_str().context("no name")?;
            // Some go meanwhile.
            let _ = host.kubectl(&["exec", name, "--", "rm", "-f", "/busy"]);
        }
        ensure!(replicas(host)? == 1, "{}", told(host));
        Ok(())
    })?;
    let described = told(host);
    ensure!(described.contains("All metrics below target"), "{described}");
    host.kubectl(&["delete", "hpa,deploy", "load"]).map(drop)
}

fn takes_a_bad_version_back(host: &Host) -> Result<()> {
    let probe = |file: &str| json!({"readinessProbe": {"exec": {"command": ["test", "-e", file]}, "periodSeconds": 1}});
    host.apply(&deployment("app", 20, "touch /up; sleep 1000", probe("/up")))?;
    host.kubectl(&["rollout", "status", "deploy/app", "--timeout=60s"])?;
    host.apply(&deployment("app", 20, "sleep 1001", probe("/never")))?;
    let app = eventually(SOON, || {
        let app = host.get(&["get", "deploy", "app"])?;
        let conditions = app["status"]["conditions"].as_array().context("no conditions")?;
        ensure!(conditions.iter().any(|one| one["type"] == "RolledBack"), "{:#}", app["status"]);
        Ok(app)
    })?;
    let command = &app["spec"]["template"]["spec"]["containers"][0]["command"][2];
    ensure!(command == "touch /up; sleep 1000", "{command}");
    host.kubectl(&["rollout", "status", "deploy/app", "--timeout=60s"])?;
    let described = host.kubectl(&["describe", "deploy", "app"])?;
    ensure!(
        described.contains("Rolled back from revision 2") && described.contains("has timed out progressing"),
        "{described}"
    );
    // One that keeps ending is taken back before its time is over.
    host.apply(&deployment("app", 600, "exit 3", probe("/never")))?;
    eventually(MEASURED, || {
        let events = host.kubectl(&["get", "events", "--field-selector=reason=AutoRollback"])?;
        ensure!(events.contains("exit code 3"), "{events}");
        Ok(())
    })?;
    host.kubectl(&["rollout", "status", "deploy/app", "--timeout=60s"]).map(drop)
}
