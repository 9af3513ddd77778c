//! The official Python client: typed lists, watches, patches and server-side apply.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;

use std::process::{Command, Stdio};

use harness::Cluster;

/// Prints nothing when all is well; an exception fails the test.
const SCRIPT: &str = r#"
import json, sys
from kubernetes import client, config, watch, dynamic
config.load_kube_config(sys.argv[1])
core, apps = client.CoreV1Api(), client.AppsV1Api()
assert client.VersionApi().get_code().major == "1"
body = client.V1ConfigMap(metadata=client.V1ObjectMeta(generate_name="m-", labels={"of": "python"}), data={"k": "v"})
names = [core.create_namespaced_config_map("default", body).metadata.name for _ in range(5)]
page = core.list_namespaced_config_map("default", label_selector="of=python", limit=2)
seen = [one.metadata.name for one in page.items]
while page.metadata._continue:
    page = core.list_namespaced_config_map("default", label_selector="of=python", limit=2, _continue=page.metadata._continue)
    seen += [one.metadata.name for one in page.items]
assert sorted(seen) == sorted(names), seen
core.patch_namespaced_config_map(names[0], "default", {"data": {"k": None, "n": "1"}})
assert core.read_namespaced_config_map(names[0], "default").data == {"n": "1"}
events = watch.Watch().stream(core.list_namespaced_config_map, "default", label_selector="of=python", timeout_seconds=2)
assert sum(event["type"] == "ADDED" for event in events) == 5
labels = {"app": "p"}
template = client.V1PodTemplateSpec(metadata=client.V1ObjectMeta(labels=labels),
    spec=client.V1PodSpec(containers=[client.V1Container(name="c", image="i")]))
deployment = client.V1Deployment(metadata=client.V1ObjectMeta(name="p"),
    spec=client.V1DeploymentSpec(replicas=0, selector=client.V1LabelSelector(match_labels=labels), template=template))
made = apps.create_namespaced_deployment("default", deployment)
assert made.metadata.managed_fields[0].manager == "OpenAPI-Generator", made.metadata.managed_fields
assert apps.patch_namespaced_deployment_scale("p", "default", {"spec": {"replicas": 2}}).spec.replicas == 2
maps = dynamic.DynamicClient(client.ApiClient()).resources.get(api_version="v1", kind="ConfigMap")
# As text: not every version of the client knows how to write this media type.
applied = maps.server_side_apply(namespace="default", name="a", field_manager="py",
    body=json.dumps({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"x": "y"}}))
assert applied.data.x == "y"
try:
    core.read_namespaced_config_map("absent", "default")
    raise SystemExit("nothing was there")
except client.ApiException as error:
    assert error.status == 404 and "not found" in error.body
gone = core.delete_collection_namespaced_config_map("default", label_selector="of=python")
assert not core.list_namespaced_config_map("default", label_selector="of=python").items
"#;

/// A Python that has the client: of the path, or the system's own, for which there is a package.
fn python() -> String {
    let named = std::env::var("DHOW_PYTHON").ok();
    let candidates = named.into_iter().chain(["python3".to_owned(), "/usr/bin/python3".to_owned()]);
    let has_client = |python: &String| {
        let there = Command::new(python).args(["-c", "import kubernetes"]).stderr(Stdio::null()).status();
        there.is_ok_and(|status| status.success())
    };
    candidates.into_iter().find(has_client).expect("the package python3-kubernetes is missing")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_client_works() {
    let python = python();
    let cluster = Cluster::start().await;
    let config = cluster.folder.path().join("admin.kubeconfig");
    let run = move || {
        Command::new(python).arg("-c").arg(SCRIPT).arg(config).env("NO_PROXY", "*").env("no_proxy", "*").output()
    };
    let output = tokio::task::spawn_blocking(run).await.unwrap().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
