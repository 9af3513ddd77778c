//! `dhow top`: what nodes and pods use, beside what they have or asked for.
#![allow(clippy::print_stdout)]

use std::cmp::Reverse;
use std::collections::BTreeMap;

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, Table, presets};
use dhow_api::quantity::Quantity;
use dhow_client::{Client, ListParams};
use http_body_util::BodyExt;
use k8s_openapi::api::core::v1::{Node, Pod};
use serde::Serialize;
use serde_json::Value;

use super::connect;
use crate::cli::{Output, SortBy, TopCommand, TopOutput};

#[derive(Debug, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
struct Line {
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<String>,
    name: String,
    /// Thousandths of a core.
    cpu_millis: i64,
    memory_bytes: i64,
    /// What a node has to give, or a pod asked for; 0 if it did not.
    cpu_base_millis: i64,
    memory_base_bytes: i64,
}

pub async fn run(command: TopCommand) -> Result<()> {
    match command {
        TopCommand::Nodes(output) => {
            let client = connect(&output.connect)?;
            let used = usage(&client, "/apis/metrics.k8s.io/v1beta1/nodes").await?;
            let nodes = client.list::<Node>(None, &ListParams::default()).await?.items;
            show(node_lines(&used, &nodes), "OF NODE", &output)
        }
        TopCommand::Pods { output, namespace, all_namespaces, selector } => {
            let client = connect(&output.connect)?;
            let within = (!all_namespaces).then_some(namespace);
            let path = within.as_ref().map_or_else(
                || "/apis/metrics.k8s.io/v1beta1/pods".to_owned(),
                |name| format!("/apis/metrics.k8s.io/v1beta1/namespaces/{name}/pods"),
            );
            let params = ListParams { label_selector: selector, ..ListParams::default() };
            let (used, pods) = tokio::try_join!(usage(&client, &path), async {
                Ok(client.list::<Pod>(within.as_deref(), &params).await?)
            })?;
            show(pod_lines(&used, &pods.items, all_namespaces), "OF REQUEST", &output)
        }
    }
}

/// The items of a list of `metrics.k8s.io`.
async fn usage(client: &Client, path: &str) -> Result<Vec<Value>> {
    let body = client.open(path).await?.collect().await?.to_bytes();
    let mut list: Value = serde_json::from_slice(&body).context("read the metrics")?;
    Ok(serde_json::from_value(list["items"].take()).unwrap_or_default())
}

fn amount(value: Option<&str>) -> Quantity {
    value.and_then(|text| text.parse().ok()).unwrap_or(Quantity::ZERO)
}

fn node_lines(used: &[Value], nodes: &[Node]) -> Vec<Line> {
    used.iter()
        .filter_map(|item| {
            let name = item["metadata"]["name"].as_str()?;
            let node = nodes.iter().find(|node| node.metadata.name.as_deref() == Some(name))?;
            let has = node.status.as_ref().and_then(|status| status.allocatable.as_ref());
            let base =
                |resource: &str| amount(has.and_then(|has| has.get(resource)).map(|quantity| quantity.0.as_str()));
            Some(Line {
                namespace: None,
                name: name.to_owned(),
                cpu_millis: amount(item["usage"]["cpu"].as_str()).millis(),
                memory_bytes: amount(item["usage"]["memory"].as_str()).units(),
                cpu_base_millis: base("cpu").millis(),
                memory_base_bytes: base("memory").units(),
            })
        })
        .collect()
}

/// One line for each pod of `pods` that is measured.
fn pod_lines(used: &[Value], pods: &[Pod], namespaces: bool) -> Vec<Line> {
    let used: BTreeMap<(&str, &str), &Value> = used
        .iter()
        .filter_map(|item| Some(((item["metadata"]["namespace"].as_str()?, item["metadata"]["name"].as_str()?), item)))
        .collect();
    let sum = |item: &Value, resource: &str, of: fn(&Quantity) -> i64| -> i64 {
        let containers = item["containers"].as_array().into_iter().flatten();
        containers.map(|container| of(&amount(container["usage"][resource].as_str()))).sum()
    };
    pods.iter()
        .filter_map(|pod| {
            let (namespace, name) = (pod.metadata.namespace.as_deref()?, pod.metadata.name.as_deref()?);
            let item = used.get(&(namespace, name))?;
            let asked = |resource: &str, of: fn(&Quantity) -> i64| -> i64 {
                let requests = pod.spec.iter().flat_map(|spec| &spec.containers).filter_map(|container| {
                    container.resources.as_ref()?.requests.as_ref()?.get(resource).map(|quantity| quantity.0.as_str())
                });
                requests.map(|text| of(&amount(Some(text)))).sum()
            };
            Some(Line {
                namespace: namespaces.then(|| namespace.to_owned()),
                name: name.to_owned(),
                cpu_millis: sum(item, "cpu", Quantity::millis),
                memory_bytes: sum(item, "memory", Quantity::units),
                cpu_base_millis: asked("cpu", Quantity::millis),
                memory_base_bytes: asked("memory", Quantity::units),
            })
        })
        .collect()
}

fn show(mut lines: Vec<Line>, of: &str, output: &TopOutput) -> Result<()> {
    match output.sort_by {
        Some(SortBy::Cpu) => lines.sort_by_key(|line| Reverse(line.cpu_millis)),
        Some(SortBy::Memory) => lines.sort_by_key(|line| Reverse(line.memory_bytes)),
        None => lines.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name))),
    }
    match output.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&lines).context("encode")?),
        Output::Yaml => print!("{}", serde_saphyr::to_string(&lines).context("encode")?),
        Output::Table => println!("{}", table(&lines, of)),
    }
    Ok(())
}

fn table(lines: &[Line], of: &str) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let namespaces = lines.iter().any(|line| line.namespace.is_some());
    let mut header: Vec<String> = namespaces.then(|| "NAMESPACE".to_owned()).into_iter().collect();
    header.extend(["NAME", "CPU", of, "MEMORY", of].map(str::to_owned));
    let first = header.len() - 4;
    table.set_header(header);
    for line in lines {
        let mut row: Vec<String> = line.namespace.iter().cloned().collect();
        row.extend([
            line.name.clone(),
            format!("{}m", line.cpu_millis),
            share(line.cpu_millis, line.cpu_base_millis),
            format!("{}Mi", line.memory_bytes >> 20),
            share(line.memory_bytes, line.memory_base_bytes),
        ]);
        table.add_row(row);
    }
    for column in table.column_iter_mut().skip(first) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn share(used: i64, of: i64) -> String {
    if of <= 0 { "-".to_owned() } else { format!("{}%", used.saturating_mul(100) / of) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn containers_are_added_up_and_compared_with_what_was_asked_for() {
        let used = vec![json!({"metadata": {"namespace": "a", "name": "p"}, "containers": [
            {"usage": {"cpu": "150m", "memory": "64Mi"}}, {"usage": {"cpu": "50m", "memory": "64Mi"}}]})];
        let pod = |name: &str| -> Pod {
            serde_json::from_value(json!({"metadata": {"namespace": "a", "name": name}, "spec": {"containers": [
                {"name": "x", "resources": {"requests": {"cpu": "400m"}}}, {"name": "y"}]}}))
            .unwrap()
        };
        let lines = pod_lines(&used, &[pod("p"), pod("unmeasured")], true);
        assert_eq!(lines.len(), 1);
        let text = table(&lines, "OF REQUEST").to_string();
        let words: Vec<&str> = text.lines().last().unwrap().split_whitespace().collect();
        assert_eq!(words, ["a", "p", "200m", "50%", "128Mi", "-"]);
    }
}
