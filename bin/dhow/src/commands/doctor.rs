//! `dhow doctor`: looks at machine, daemon and cluster, and says of all that is not well why, and what helps.
#![allow(clippy::print_stdout)]

mod findings;

use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use dhow_base::pki;
use dhow_client::{Client, ListParams, Object};
use futures::TryFutureExt;
use k8s_openapi::jiff::Timestamp;
use serde::Serialize;

pub use self::findings::Finding;
use self::findings::{Cluster, Level};
use super::connect;
use crate::cli::{ConnectArgs, DoctorArgs, Output};
use crate::registry_settings::{Bucket, Storage};
use crate::settings::Settings;
use crate::{backups, pidfile, preflight};

/// How long the API may take for one answer before it counts as dead.
const QUESTION: Duration = Duration::from_secs(10);
/// How late a backup may be: it takes its time, and a failure is tried again.
const GRACE: Duration = Duration::from_secs(60 * 60);

#[derive(Serialize)]
struct Report {
    findings: Vec<Finding>,
}

/// All that can be said of the machine and the cluster.
pub async fn look(connect: &ConnectArgs, config: &Path) -> Vec<Finding> {
    let mut findings = Vec::new();
    // A kubeconfig leads to a cluster, which need not be on this machine.
    if connect.kubeconfig.is_none() {
        machine(connect, &mut findings);
        certificates(&connect.data_dir, SystemTime::now(), &mut findings);
        if connect.data_dir.join("store").is_dir() {
            storage(config, &mut findings).await;
        }
    }
    match cluster(connect).await {
        Ok(cluster) => findings.extend(cluster.findings()),
        Err(error) => findings.push(
            Finding::problem("API", format!("it does not answer: {error:#}")).fix("see the daemon's log, or `dhow up`"),
        ),
    }
    findings
}

pub async fn run(args: DoctorArgs) -> Result<()> {
    let findings = look(&args.connect, &args.config.config).await;
    let problems = findings.iter().filter(|finding| finding.level == Level::Problem).count();
    let report = Report { findings };
    match args.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&report).context("encode the findings")?),
        Output::Yaml => print!("{}", serde_saphyr::to_string(&report).context("encode the findings")?),
        Output::Table => report.findings.iter().for_each(|finding| println!("{finding}")),
    }
    match problems {
        0 => Ok(()),
        1 => bail!("one problem was found"),
        many => bail!("{many} problems were found"),
    }
}

fn machine(connect: &ConnectArgs, findings: &mut Vec<Finding>) {
    if rustix::process::geteuid().is_root() {
        let machine = preflight::machine(&connect.data_dir);
        let well = machine.problems.is_empty() && machine.warnings.is_empty();
        findings.extend(machine.problems.into_iter().map(|problem| Finding::problem("machine", problem)));
        findings.extend(machine.warnings.into_iter().map(|warning| Finding::warning("machine", warning)));
        if well {
            findings.push(Finding::well("machine", "kernel, control groups and disk offer what is needed"));
        }
    } else {
        findings.push(Finding::warning("machine", "not looked at").fix("run `dhow doctor` as root"));
    }
    findings.extend(disk(&connect.data_dir));
    let daemon = pidfile::holder(&connect.run_dir.join("dhow.pid"));
    findings.push(match daemon {
        Some(pid) => Finding::well("daemon", format!("runs (pid {})", pid.as_raw_nonzero())),
        None => Finding::problem("daemon", "does not run on this machine").fix(
            "`dhow up` starts it (on a node: `dhow join`); the end of dhow.log in the data folder says how it ended",
        ),
    });
}

/// Free space of the disk with the data.
fn disk(data_dir: &Path) -> Option<Finding> {
    let folder = data_dir.ancestors().find(|folder| folder.is_dir())?;
    let stat = rustix::fs::statvfs(folder).ok()?;
    let (free, all) = (stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize);
    Some(findings::disk(&folder.display().to_string(), free, all))
}

/// Certificates of the data folder; the daemon renews them while it runs.
fn certificates(data_dir: &Path, now: SystemTime, findings: &mut Vec<Finding>) {
    let folder = data_dir.join("pki");
    let Ok(entries) = std::fs::read_dir(&folder) else { return };
    let mut seen = 0;
    let before = findings.len();
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.extension().is_none_or(|extension| extension != "crt") {
            continue;
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let end = std::fs::read_to_string(&path).map_err(anyhow::Error::from).and_then(|text| Ok(pki::expires(&text)?));
        seen += 1;
        findings.extend(match end {
            Ok(end) => findings::certificate(&name, end, now),
            Err(error) => {
                Some(Finding::problem("certificates", format!("{} cannot be read: {error:#}", path.display())))
            }
        });
    }
    if seen > 0 && findings.len() == before {
        findings.push(Finding::well("certificates", format!("all {seen} are valid for longer than a week")));
    }
}

/// Whether the scheduled backups are there, and the bucket of the registry.
async fn storage(config: &Path, findings: &mut Vec<Finding>) {
    let settings = Settings::load(config).and_then(|settings| Ok((settings.backups.plan()?, settings.registry)));
    let (plan, registry) = match settings {
        Ok(settings) => settings,
        Err(error) => return findings.push(Finding::problem("settings", format!("{error:#}"))),
    };
    if let Some(plan) = plan {
        findings.push(backups(&plan).await);
    }
    if let Some(Storage::S3(Bucket { s3 })) = &registry.storage
        && registry.enabled != Some(false)
    {
        let checked = async { s3.open("registry.storage.s3")?.check().await.map_err(anyhow::Error::from) };
        findings.push(match checked.await {
            Ok(()) => Finding::well("registry", format!("its bucket {} answers", s3.bucket)),
            Err(error) => Finding::problem("registry", format!("its bucket cannot be used: {error:#}")),
        });
    }
}

async fn backups(plan: &backups::Plan) -> Finding {
    const FIX: &str =
        "`kubectl get events -A` and the daemon's log say what failed; `dhow backup create` makes one now";
    let now = Timestamp::now();
    let newest = match plan.place.kept().await {
        Ok(kept) => kept.first().map(|kept| kept.made),
        Err(error) => return Finding::problem("backups", format!("they cannot be listed: {error:#}")).fix(FIX),
    };
    let due = plan.due(newest, now);
    let late = due.is_some_and(|due| due.checked_add(GRACE).is_ok_and(|late| late < now));
    match newest {
        None => Finding::problem("backups", format!("there is none in {}", plan.place)).fix(FIX),
        Some(newest) if late => Finding::problem("backups", format!("the newest one is of {newest}")).fix(FIX),
        Some(newest) => Finding::well("backups", format!("the newest one is of {newest}")),
    }
}

async fn cluster(connect: &ConnectArgs) -> Result<Cluster> {
    let client = self::connect(connect)?;
    let ready = http::Request::builder().uri("/readyz?verbose").body(Bytes::new()).context("build the request")?;
    let ready = tokio::time::timeout(QUESTION, async {
        let answer = client.request(ready).await?;
        let well = answer.status().is_success();
        let body = http_body_util::BodyExt::collect(answer.into_body()).await.context("read the answer")?.to_bytes();
        anyhow::Ok((well, String::from_utf8_lossy(&body).into_owned()))
    })
    .await
    .with_context(|| format!("no answer within {} s", QUESTION.as_secs()))??;
    Ok(Cluster {
        not_ready: (!ready.0).then_some(ready.1),
        nodes: all(&client).await?,
        pods: all(&client).await?,
        deployments: all(&client).await?,
        stateful_sets: all(&client).await?,
        daemon_sets: all(&client).await?,
        claims: all(&client).await?,
        api_services: all(&client).await?,
        events: all(&client).await?,
    })
}

async fn all<K: Object>(client: &Client) -> Result<Vec<K>> {
    let every = ListParams::default();
    let list = client.list::<K>(None, &every).map_err(anyhow::Error::from);
    Ok(tokio::time::timeout(QUESTION, list).await.context("the API does not answer")??.items)
}
