//! `dhow logs`: what the containers of a pod, or of all pods of a workload, write; merged by line, and with `--follow`
//! from those that come later, too.
#![allow(clippy::print_stdout)]

use std::collections::BTreeSet;
use std::io::{IsTerminal, Write};

use anyhow::{Context, Result, bail};
use bytes::{Bytes, BytesMut};
use dhow_client::{Body, Change, Client, Informer, ListParams};
use http_body_util::BodyExt;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::connect;
use crate::cli::LogsArgs;
use crate::exit::NotFound;

/// Lines that wait to be printed; a slow reader slows the streams down.
const WAITING: usize = 256;

pub async fn run(args: LogsArgs) -> Result<()> {
    let client = connect(&args.connect)?;
    let scope = scope(&client, &args.namespace, &args.target).await?;
    let (lines, printed) = mpsc::channel(WAITING);
    let reading = async {
        if args.follow { follow(&client, &args, scope, lines).await } else { read(&client, &args, scope, lines).await }
    };
    let (reading, printing) = tokio::join!(reading, print(printed));
    printing?;
    reading
}

/// Which pods are meant: one by its name, or those that a workload's selector finds.
pub async fn scope(client: &Client, namespace: &str, target: &str) -> Result<ListParams> {
    let (kind, name) = target.split_once('/').map_or(("", target), |(kind, name)| (kind, name));
    let by_name = || ListParams { field_selector: Some(format!("metadata.name={name}")), ..ListParams::default() };
    let by_labels = |text: String| ListParams { label_selector: Some(text), ..ListParams::default() };
    let within = Some(namespace);
    macro_rules! workload {
        ($kind:ty, $selector:expr) => {
            match client.get::<$kind>(within, name).await {
                Ok(object) => {
                    let selector: fn($kind) -> Option<String> = $selector;
                    match selector(object) {
                        Some(text) => return Ok(by_labels(text)),
                        None => bail!("{target} selects no pods"),
                    }
                }
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error.into()),
            }
        };
    }
    let any = kind.is_empty();
    if any || matches!(kind, "pod" | "pods" | "po") {
        match client.get::<Pod>(within, name).await {
            Ok(_) => return Ok(by_name()),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
    }
    if any || matches!(kind, "deployment" | "deployments" | "deploy") {
        workload!(Deployment, |object| selector_text(&object.spec?.selector));
    }
    if any || matches!(kind, "statefulset" | "statefulsets" | "sts") {
        workload!(StatefulSet, |object| selector_text(&object.spec?.selector));
    }
    if any || matches!(kind, "daemonset" | "daemonsets" | "ds") {
        workload!(DaemonSet, |object| selector_text(&object.spec?.selector));
    }
    if any || matches!(kind, "job" | "jobs") {
        workload!(Job, |object| selector_text(&object.spec?.selector?));
    }
    if any || matches!(kind, "replicaset" | "replicasets" | "rs") {
        workload!(ReplicaSet, |object| selector_text(&object.spec?.selector));
    }
    if any || matches!(kind, "service" | "services" | "svc") {
        workload!(Service, |object| selector_text(&LabelSelector {
            match_labels: Some(object.spec?.selector?),
            ..LabelSelector::default()
        }));
    }
    bail!(NotFound(format!("no pod and no workload {target:?} in namespace {namespace}")))
}

/// As queries have it; `None` for a selector that would take everything.
fn selector_text(selector: &LabelSelector) -> Option<String> {
    Some(dhow_client::selector_text(selector)).filter(|text| !text.is_empty())
}

/// A container, and where in the log its lines come from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Source {
    pod: String,
    container: String,
    /// A container of the same name that was started again is another source.
    id: String,
}

/// The containers of a pod that have run, or run.
fn sources(pod: &Pod, only: Option<&str>) -> Vec<Source> {
    let Some(status) = &pod.status else { return Vec::new() };
    let all = status.init_container_statuses.iter().chain(&status.container_statuses);
    all.chain(&status.ephemeral_container_statuses)
        .flatten()
        .filter(|container| only.is_none_or(|only| only == container.name))
        .filter_map(|container| {
            Some(Source {
                pod: pod.metadata.name.clone()?,
                container: container.name.clone(),
                id: container.container_id.clone()?,
            })
        })
        .collect()
}

/// Where a source's log is read; `whole` from its beginning, whatever part was asked for.
fn path(args: &LogsArgs, source: &Source, whole: bool) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.append_pair("container", &source.container);
    let flags = [("follow", args.follow), ("previous", args.previous), ("timestamps", args.timestamps)];
    for (name, _) in flags.into_iter().filter(|(_, set)| *set) {
        query.append_pair(name, "true");
    }
    if let Some(lines) = args.tail.filter(|_| !whole) {
        query.append_pair("tailLines", &lines.to_string());
    }
    if let Some(since) = args.since.filter(|_| !whole) {
        query.append_pair("sinceSeconds", &since.as_secs().max(1).to_string());
    }
    format!("/api/v1/namespaces/{}/pods/{}/log?{}", args.namespace, source.pod, query.finish())
}

/// One source after the other.
async fn read(client: &Client, args: &LogsArgs, scope: ListParams, lines: mpsc::Sender<Bytes>) -> Result<()> {
    let pods = client.list::<Pod>(Some(&args.namespace), &scope).await?.items;
    let all: Vec<Source> = pods.iter().flat_map(|pod| sources(pod, args.container.as_deref())).collect();
    if let (true, Some(container)) = (all.is_empty(), &args.container) {
        bail!(NotFound(format!("no container {container:?} of {} has run", args.target)));
    }
    let prefix = all.len() > 1;
    for source in &all {
        let body = client.open(&path(args, source, false)).await;
        // A container without a former run is no reason to keep the others' logs back.
        let body = match body {
            Err(error) if args.previous && prefix => {
                tracing::debug!(%error, pod = source.pod, "no earlier log");
                continue;
            }
            body => body.with_context(|| format!("read the log of {}/{}", source.pod, source.container))?,
        };
        if !copy(body, prefix.then_some(source), &lines).await? {
            break;
        }
    }
    Ok(())
}

/// All at once, and each that appears later, until the end or the reader's.
async fn follow(client: &Client, args: &LogsArgs, scope: ListParams, lines: mpsc::Sender<Bytes>) -> Result<()> {
    let shutdown = CancellationToken::new();
    let _stop = shutdown.clone().drop_guard();
    let one = scope.field_selector.is_some();
    let pods = Informer::<Pod>::start(client.clone(), scope, Some(&args.namespace), shutdown);
    pods.synced().await;
    let of = |pod: &Pod| sources(pod, args.container.as_deref());
    // What starts later is followed from its beginning.
    let first: BTreeSet<Source> = pods.list().iter().flat_map(|pod| of(pod)).collect();
    let (changes, mut changed) = mpsc::unbounded_channel();
    pods.on_change(move |change| {
        // Once nobody follows any more, changes are of no use.
        let _ = changes.send((change.object().clone(), matches!(change, Change::Deleted(_))));
    });
    let mut known = BTreeSet::new();
    let mut streams = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            change = changed.recv() => {
                let Some((pod, deleted)) = change else { return Ok(()) };
                let containers = pod.spec.as_ref().map_or(0, |spec| spec.containers.len());
                let prefix = !one || containers > 1;
                if !deleted {
                    for source in of(&pod) {
                        if !known.insert(source.clone()) {
                            continue;
                        }
                        let path = path(args, &source, !first.contains(&source));
                        let (client, lines) = (client.clone(), lines.clone());
                        streams.spawn(async move {
                            let body = client.open(&path).await?;
                            copy(body, prefix.then_some(&source), &lines).await
                        });
                    }
                }
                let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
                if one && (deleted || matches!(phase, Some("Succeeded" | "Failed"))) {
                    break;
                }
            }
            Some(ended) = streams.join_next() => {
                // Of a pod that went away there is nothing more to say; a reader that went away ends all.
                match ended.context("follow a log")? {
                    Ok(true) => {}
                    Ok(false) => return Ok(()),
                    Err(error) => tracing::debug!(error = format!("{error:#}"), "a log ended"),
                }
            }
            () = lines.closed() => return Ok(()),
        }
    }
    while let Some(ended) = streams.join_next().await {
        let _ = ended.context("follow a log")?;
    }
    Ok(())
}

/// Whole lines of a body, each with its prefix. False once nobody reads them any more.
async fn copy(mut body: Body, source: Option<&Source>, lines: &mpsc::Sender<Bytes>) -> Result<bool> {
    let prefix = source.map(prefix).unwrap_or_default();
    let mut rest = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.context("read the log")?.into_data() else { continue };
        rest.extend_from_slice(&data);
        // As many lines as there are go as one piece.
        let Some(end) = rest.iter().rposition(|byte| *byte == b'\n') else { continue };
        let piece = with_prefix(&prefix, &rest.split_to(end + 1));
        if lines.send(piece).await.is_err() {
            return Ok(false);
        }
    }
    if !rest.is_empty() {
        rest.extend_from_slice(b"\n");
        return Ok(lines.send(with_prefix(&prefix, &rest)).await.is_ok());
    }
    Ok(true)
}

fn with_prefix(prefix: &str, lines: &[u8]) -> Bytes {
    if prefix.is_empty() {
        return Bytes::copy_from_slice(lines);
    }
    let mut out = Vec::with_capacity(lines.len() + prefix.len());
    for line in lines.split_inclusive(|byte| *byte == b'\n') {
        out.extend_from_slice(prefix.as_bytes());
        out.extend_from_slice(line);
    }
    out.into()
}

/// `[pod/container] `, in a colour of its own on a terminal.
fn prefix(source: &Source) -> String {
    let text = format!("[{}/{}]", source.pod, source.container);
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()) || !std::io::stdout().is_terminal();
    if plain {
        return format!("{text} ");
    }
    // Cyan, green, yellow, blue, magenta and their bright ones: red is for errors.
    const COLOURS: [u8; 10] = [36, 32, 33, 34, 35, 96, 92, 93, 94, 95];
    let sum = text.bytes().fold(0_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
    format!("\x1b[{}m{text}\x1b[0m ", COLOURS[sum % COLOURS.len()])
}

/// Prints until the streams end; a reader that went away (such as `head`) ends it without an error.
async fn print(mut lines: mpsc::Receiver<Bytes>) -> Result<()> {
    while let Some(piece) = lines.recv().await {
        let mut out = std::io::stdout().lock();
        match out.write_all(&piece).and_then(|()| out.flush()) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => return Err(error).context("write to standard output"),
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn selectors_become_queries() {
        let text = |selector: serde_json::Value| selector_text(&serde_json::from_value(selector).unwrap());
        assert_eq!(text(json!({})), None);
        let expressions = json!([{"key": "b", "operator": "In", "values": ["x", "y"]}, {"key": "c", "operator": "Exists"},
            {"key": "d", "operator": "DoesNotExist"}, {"key": "e", "operator": "NotIn", "values": ["z"]}]);
        let all = json!({"matchLabels": {"a": "1"}, "matchExpressions": expressions});
        assert_eq!(text(all).unwrap(), "a=1,b in (x,y),c,!d,e notin (z)");
    }

    #[test]
    fn only_containers_that_ran_are_sources() {
        let status = |name: &str, id: Option<&str>| {
            json!({"name": name, "containerID": id, "ready": false, "image": "",
            "imageID": "", "restartCount": 0})
        };
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "status": {
            "initContainerStatuses": [status("init", Some("x://1"))],
            "containerStatuses": [status("a", Some("x://2")), status("b", None)]}}))
        .unwrap();
        let names = |only| sources(&pod, only).into_iter().map(|source| source.container).collect::<Vec<_>>();
        assert_eq!(names(None), ["init", "a"]);
        assert_eq!(names(Some("a")), ["a"]);
        assert!(names(Some("b")).is_empty());
    }

    #[tokio::test]
    async fn lines_stay_whole_and_have_their_prefix() {
        let (lines, mut printed) = mpsc::channel(8);
        let chunks = ["one\ntw", "o\n", "three"]
            .map(|text| Ok::<_, dhow_client::Error>(hyper::body::Frame::data(Bytes::from(text))));
        let body = http_body_util::StreamBody::new(futures::stream::iter(chunks)).boxed_unsync();
        let source = Source { pod: "p".into(), container: "c".into(), id: "1".into() };
        assert!(copy(body, Some(&source), &lines).await.unwrap());
        drop(lines);
        let mut all = Vec::new();
        while let Some(piece) = printed.recv().await {
            all.extend_from_slice(&piece);
        }
        assert_eq!(String::from_utf8(all).unwrap(), "[p/c] one\n[p/c] two\n[p/c] three\n");
    }
}
