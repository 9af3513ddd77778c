//! Custom kinds from their definition to their end, with the machine's real kubectl.
#![allow(clippy::unwrap_used)]

mod harness;
#[path = "harness/webhook.rs"]
mod webhook;

use std::sync::Arc;

use dhow_apiserver::UserInfo;
use dhow_controllers::ControllersConfig;
use dhow_store::{Kv, MemoryKv};
use harness::Cluster;
use parking_lot::Mutex;
use serde_json::{Value, json};
use webhook::{Hook, Say};

/// The one of the documentation.
const CRON_TAB: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: crontabs.stable.example.com}
spec:
  group: stable.example.com
  scope: Namespaced
  names: {plural: crontabs, singular: crontab, kind: CronTab, shortNames: [ct], categories: [all]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources:
      status: {}
      scale: {specReplicasPath: .spec.replicas, statusReplicasPath: .status.replicas, labelSelectorPath: .status.selector}
    selectableFields: [{jsonPath: .spec.image}]
    additionalPrinterColumns:
    - {name: Spec, type: string, description: The cron spec, jsonPath: .spec.cronSpec}
    - {name: Replicas, type: integer, jsonPath: .spec.replicas}
    - {name: Image, type: string, priority: 1, jsonPath: .spec.image}
    - {name: Age, type: date, jsonPath: .metadata.creationTimestamp}
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            description: What the crontab should do.
            required: [cronSpec]
            x-kubernetes-validations: [{rule: self.image != 'none' || self.replicas == 0, message: who runs needs an image}]
            properties:
              cronSpec: {type: string, pattern: '^(\\d+|\\*)(/\\d+)?(\\s+(\\d+|\\*)(/\\d+)?){4}$'}
              image: {type: string, default: cron}
              replicas: {type: integer, minimum: 0, maximum: 10, default: 1}
              port: {x-kubernetes-int-or-string: true}
              free: {type: object, x-kubernetes-preserve-unknown-fields: true}
              parts:
                type: array
                x-kubernetes-list-type: map
                x-kubernetes-list-map-keys: [name]
                items:
                  type: object
                  required: [name]
                  properties: {name: {type: string}, size: {type: integer}}
          status:
            type: object
            properties: {replicas: {type: integer}, selector: {type: string}}
";

const ESTABLISHED: &[&str] =
    &["wait", "--for=condition=Established", "--timeout=30s", "crd/crontabs.stable.example.com"];
const PATH: &str = "/apis/stable.example.com/v1/namespaces/default/crontabs";

async fn define(cluster: &Cluster, definition: &str) {
    cluster.run("admin", &["apply", "-f", "-"], definition).await.unwrap();
    cluster.kubectl(ESTABLISHED).await;
}

fn cron_tab(name: &str, spec: &Value) -> String {
    json!({"apiVersion": "stable.example.com/v1", "kind": "CronTab", "metadata": {"name": name, "namespace": "default"},
        "spec": spec})
    .to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_definition_adds_a_kind() {
    let cluster = Cluster::start().await;
    define(&cluster, CRON_TAB).await;
    let created =
        cluster.run("admin", &["create", "-f", "-"], &cron_tab("a", &json!({"cronSpec": "* * * * */5"}))).await;
    assert_eq!(created.unwrap(), "crontab.stable.example.com/a created\n");

    let table = cluster.kubectl(&["get", "ct"]).await;
    let words: Vec<&str> = table.split_whitespace().collect();
    assert_eq!(words[..10], ["NAME", "SPEC", "REPLICAS", "AGE", "a", "*", "*", "*", "*", "*/5"], "{table}");
    assert!(cluster.kubectl(&["get", "crontabs", "-o", "wide"]).await.contains("cron"));
    assert!(cluster.kubectl(&["get", "all"]).await.contains("crontab.stable.example.com/a"));
    let shown =
        cluster.kubectl(&["get", "ct", "a", "-o", "jsonpath={.spec.image} {.spec.replicas} {.metadata.generation}"]);
    assert_eq!(shown.await, "cron 1 1");
    let explained = cluster.kubectl(&["explain", "crontab.spec"]).await;
    assert!(explained.contains("What the crontab should do.") && explained.contains("cronSpec"), "{explained}");
    let resources = cluster.kubectl(&["api-resources", "--api-group=stable.example.com"]).await;
    assert!(resources.contains("crontabs") && resources.contains("CronTab"), "{resources}");

    cluster.kubectl(&["scale", "ct/a", "--replicas=3"]).await;
    cluster.kubectl(&["patch", "ct", "a", "--type=merge", "-p", r#"{"spec":{"image":"x"}}"#]).await;
    let shown =
        cluster.kubectl(&["get", "ct", "a", "-o", "jsonpath={.spec.image} {.spec.replicas} {.metadata.generation}"]);
    assert_eq!(shown.await, "x 3 3");
    assert_eq!(
        cluster.kubectl(&["get", "ct", "--field-selector", "spec.image=x", "-o", "name"]).await,
        "crontab.stable.example.com/a\n"
    );
    assert_eq!(cluster.kubectl(&["get", "ct", "--field-selector", "spec.image!=x", "-o", "name"]).await, "");
    cluster.kubectl(&["delete", "ct", "a"]).await;
    assert_eq!(cluster.kubectl(&["get", "ct", "-o", "name"]).await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_are_held_to_the_schema() {
    let cluster = Cluster::start().await;
    define(&cluster, CRON_TAB).await;
    let refused = |spec: Value| {
        let cluster = &cluster;
        async move { cluster.run("admin", &["create", "-f", "-"], &cron_tab("bad", &spec)).await.unwrap_err() }
    };
    let missing = refused(json!({})).await;
    assert!(missing.contains("* spec.cronSpec: Required value"), "{missing}");
    let many = refused(json!({"cronSpec": "soon", "replicas": 11, "image": 5})).await;
    for wanted in [
        "spec.replicas: Invalid value: 11: spec.replicas in body should be less than or equal to 10",
        "spec.image: Invalid value: \"integer\": spec.image in body must be of type string: \"integer\"",
        "spec.cronSpec: Invalid value: \"soon\": spec.cronSpec in body should match '^(",
    ] {
        assert!(many.contains(wanted), "{many}");
    }
    let ruled = refused(json!({"cronSpec": "* * * * *", "image": "none"})).await;
    assert!(ruled.contains("is invalid: spec: Invalid value: \"object\": who runs needs an image"), "{ruled}");
    let unchecked =
        "<nil>: Invalid value: \"null\": some validation rules were not checked because the object was invalid";
    assert!(missing.contains(unchecked), "{missing}");
    let unknown = refused(json!({"cronSpec": "* * * * *", "odd": 1})).await;
    let wanted =
        "CronTab in version \"v1\" cannot be handled as a CronTab: strict decoding error: unknown field \"spec.odd\"";
    assert!(unknown.contains(wanted), "{unknown}");

    // Without strictness what is unknown goes, except where the schema keeps it.
    let spec = json!({"cronSpec": "* * * * *", "odd": 1, "free": {"kept": [1]}, "port": "http"});
    let loose = cluster.run("admin", &["create", "--validate=ignore", "-f", "-"], &cron_tab("loose", &spec)).await;
    assert!(loose.is_ok(), "{loose:?}");
    let (_, stored) = cluster.json("GET", &format!("{PATH}/loose"), "application/json", &json!({})).await;
    assert_eq!(
        stored["spec"],
        json!({"cronSpec": "* * * * *", "free": {"kept": [1]}, "image": "cron", "port": "http", "replicas": 1})
    );

    let (code, answer) = cluster
        .json(
            "PATCH",
            &format!("{PATH}/loose"),
            "application/strategic-merge-patch+json",
            &json!({"spec": {"image": "y"}}),
        )
        .await;
    assert_eq!((code, &answer["reason"]), (415, &json!("UnsupportedMediaType")));
    let patch = json!({"spec": {"replicas": 99}});
    let (code, answer) = cluster.json("PATCH", &format!("{PATH}/loose"), "application/merge-patch+json", &patch).await;
    assert_eq!(code, 422, "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn status_and_specification_are_written_apart() {
    let cluster = Cluster::start().await;
    define(&cluster, CRON_TAB).await;
    let object = json!({"apiVersion": "stable.example.com/v1", "kind": "CronTab", "metadata": {"name": "a"},
        "spec": {"cronSpec": "* * * * *"}, "status": {"replicas": 5}});
    let (code, created) = cluster.json("POST", PATH, "application/json", &object).await;
    assert_eq!((code, created.get("status")), (201, None), "{created}");

    let patch = json!({"spec": {"image": "no"}, "metadata": {"labels": {"a": "b"}}, "status": {"replicas": 2, "selector": "a=b"}});
    let path = format!("{PATH}/a/status");
    let (code, changed) = cluster.json("PATCH", &path, "application/merge-patch+json", &patch).await;
    assert_eq!(code, 200, "{changed}");
    assert_eq!((&changed["spec"]["image"], &changed["metadata"]["generation"]), (&json!("cron"), &json!(1)));
    assert_eq!((&changed["status"]["replicas"], changed["metadata"].get("labels")), (&json!(2), None));
    let (_, scale) = cluster.json("GET", &format!("{PATH}/a/scale"), "application/json", &json!({})).await;
    assert_eq!(scale["status"], json!({"replicas": 2, "selector": "a=b"}));

    let patch = json!({"spec": {"image": "yes"}, "status": {"replicas": 9}});
    let (_, changed) = cluster.json("PATCH", &format!("{PATH}/a"), "application/merge-patch+json", &patch).await;
    assert_eq!((&changed["spec"]["image"], &changed["status"]["replicas"]), (&json!("yes"), &json!(2)));
    assert_eq!(changed["metadata"]["generation"], 2);
    let (code, _) =
        cluster.json("PATCH", &path, "application/merge-patch+json", &json!({"status": {"replicas": "two"}})).await;
    assert_eq!(code, 422);
}

#[tokio::test(flavor = "multi_thread")]
async fn several_apply_to_one_object() {
    let cluster = Cluster::start().await;
    define(&cluster, CRON_TAB).await;
    let apply = |manager: &'static str, spec: Value| {
        let cluster = &cluster;
        async move {
            let args = ["apply", "--server-side", "--field-manager", manager, "-f", "-"];
            cluster.run("admin", &args, &cron_tab("a", &spec)).await
        }
    };
    let part = |name: &str, size: i64| json!({"name": name, "size": size});
    apply("one", json!({"cronSpec": "* * * * *", "parts": [part("x", 1)]})).await.unwrap();
    apply("two", json!({"parts": [part("y", 2)]})).await.unwrap();
    let sizes = cluster.kubectl(&["get", "ct", "a", "-o", "jsonpath={.spec.parts[*].name}"]).await;
    assert_eq!(sizes, "x y");
    let conflict = apply("two", json!({"parts": [part("x", 5), part("y", 2)]})).await.unwrap_err();
    assert!(conflict.contains("conflict with \"one\": .spec.parts[name=\"x\"].size"), "{conflict}");
    // Whoever stops to name an item takes it away.
    apply("two", json!({})).await.unwrap();
    assert_eq!(cluster.kubectl(&["get", "ct", "a", "-o", "jsonpath={.spec.parts[*].name}"]).await, "x");
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_outlive_the_server_and_end_with_their_definition() {
    let kv: Arc<dyn Kv> = Arc::new(MemoryKv::new());
    let cluster = Cluster::start_on(kv.clone()).await;
    define(&cluster, CRON_TAB).await;
    cluster.run("admin", &["create", "-f", "-"], &cron_tab("a", &json!({"cronSpec": "* * * * *"}))).await.unwrap();
    drop(cluster);

    let cluster = Cluster::start_on(kv).await;
    assert_eq!(cluster.kubectl(&["get", "ct", "a", "-o", "jsonpath={.spec.image}"]).await, "cron");
    let path = format!("{PATH}?watch=1");
    let watch = cluster.stream(&path, "application/json", |seen| seen.ends_with(b"\n"));
    let seen = String::from_utf8(watch.await).unwrap();
    assert!(seen.starts_with("{\"type\":\"ADDED\"") && seen.contains("\"name\":\"a\""), "{seen}");

    cluster
        .kubectl(&["patch", "ct", "a", "--type=merge", "-p", r#"{"metadata":{"finalizers":["example.com/hold"]}}"#])
        .await;
    cluster.kubectl(&["delete", "crd", "crontabs.stable.example.com", "--wait=false"]).await;
    cluster.kubectl(&["wait", "--for=condition=Terminating", "--timeout=30s", "crd/crontabs.stable.example.com"]).await;
    let late = cluster.run("admin", &["create", "-f", "-"], &cron_tab("b", &json!({"cronSpec": "* * * * *"}))).await;
    assert!(late.unwrap_err().contains("create not allowed while custom resource definition is terminating"));
    cluster.kubectl(&["wait", "--for=jsonpath={.metadata.deletionTimestamp}", "--timeout=30s", "ct/a"]).await;
    cluster.kubectl(&["patch", "ct", "a", "--type=merge", "-p", r#"{"metadata":{"finalizers":null}}"#]).await;
    cluster.kubectl(&["wait", "--for=delete", "--timeout=30s", "crd/crontabs.stable.example.com"]).await;
    let (code, _) = cluster.json("GET", PATH, "application/json", &json!({})).await;
    assert_eq!(code, 404);

    // The same again begins empty.
    define(&cluster, CRON_TAB).await;
    assert_eq!(cluster.kubectl(&["get", "ct", "-o", "name"]).await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_show_the_same_objects() {
    let cluster = Cluster::start().await;
    let version = |name: &str, storage: bool, extra: &str| {
        format!(
            "{{name: {name}, served: true, storage: {storage}, schema: {{openAPIV3Schema: {{type: object, properties: \
             {{spec: {{type: object, properties: {{size: {{type: integer}}{extra}}}}}}}}}}}}}"
        )
    };
    let definition = |versions: &[String]| {
        format!(
            "---\n{{apiVersion: apiextensions.k8s.io/v1, kind: CustomResourceDefinition, metadata: {{name: boxes.example.com}}, \
             spec: {{group: example.com, scope: Cluster, names: {{plural: boxes, singular: box, kind: Box}}, versions: [{}]}}}}",
            versions.join(", ")
        )
    };
    let apply = |text: String| {
        let cluster = &cluster;
        async move { cluster.run("admin", &["apply", "-f", "-"], &text).await }
    };
    let wait = ["wait", "--for=condition=Established", "--timeout=30s", "crd/boxes.example.com"];
    apply(definition(&[version("v1beta1", true, "")])).await.unwrap();
    cluster.kubectl(&wait).await;
    let path = |version: &str| format!("/apis/example.com/{version}/boxes");
    let object =
        json!({"apiVersion": "example.com/v1beta1", "kind": "Box", "metadata": {"name": "a"}, "spec": {"size": 1}});
    assert_eq!(cluster.json("POST", &path("v1beta1"), "application/json", &object).await.0, 201);

    // Another version with a default that the old one does not know; it is stored from now on.
    let color = ", color: {type: string, default: red}";
    apply(definition(&[version("v1beta1", false, ""), version("v1", true, color)])).await.unwrap();
    cluster
        .kubectl(&["wait", "--for=jsonpath={.status.storedVersions[1]}=v1", "--timeout=30s", "crd/boxes.example.com"])
        .await;
    let seen =
        cluster.stream(&format!("{}?watch=1", path("v1")), "application/json", |seen| seen.ends_with(b"\n")).await;
    let seen: Value = serde_json::from_slice(&seen).unwrap();
    assert_eq!(seen["object"]["apiVersion"], "example.com/v1");
    assert_eq!(seen["object"]["spec"], json!({"size": 1, "color": "red"}));
    let (_, old) = cluster.json("GET", &format!("{}/a", path("v1beta1")), "application/json", &json!({})).await;
    assert_eq!((&old["apiVersion"], &old["spec"]), (&json!("example.com/v1beta1"), &json!({"size": 1})));
    let (_, list) = cluster.json("GET", &path("v1beta1"), "application/json", &json!({})).await;
    assert_eq!(list["items"][0]["apiVersion"], "example.com/v1beta1");

    // Another definition cannot take the same kind.
    let other = definition(&[version("v1", true, "")]).replace("boxes", "crates");
    apply(other).await.unwrap();
    cluster.kubectl(&["wait", "--for=condition=NamesAccepted=false", "--timeout=30s", "crd/crates.example.com"]).await;
    assert_eq!(cluster.json("GET", "/apis/example.com/v1/crates", "application/json", &json!({})).await.0, 404);
    cluster.kubectl(&["delete", "crd", "boxes.example.com"]).await;
    cluster.kubectl(&["wait", "--for=condition=Established", "--timeout=30s", "crd/crates.example.com"]).await;
}

/// Converts gadgets: what v1 calls `host` is `address` in v2. Spoils its answer as it is told.
fn convert(request: &Value, mode: &str) -> Say {
    if mode == "down" {
        return Say::Fail(503);
    }
    let mut objects = request["objects"].as_array().unwrap().clone();
    for object in &mut objects {
        object["apiVersion"] = request["desiredAPIVersion"].clone();
        let (old, new) =
            if object["apiVersion"] == "example.com/v2" { ("host", "address") } else { ("address", "host") };
        let spec = object["spec"].as_object_mut().unwrap();
        if let Some(value) = spec.remove(old) {
            spec.insert(new.into(), value);
        }
        object["metadata"]["labels"]["converted"] = json!("yes");
        object["metadata"]["generation"] = json!(99);
        if mode == "rename" {
            object["metadata"]["name"] = json!("other");
        }
    }
    let result = match mode {
        "refuse" => json!({"status": "Failure", "message": "no such gadget"}),
        _ => json!({"status": "Success"}),
    };
    Say::Document(json!({"kind": "ConversionReview", "apiVersion": "apiextensions.k8s.io/v1",
        "response": {"uid": request["uid"], "result": result, "convertedObjects": objects}}))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_converts_between_versions() {
    let cluster = Cluster::start().await;
    let mode = Arc::new(Mutex::new("right"));
    let told = mode.clone();
    let hook = Hook::serve(&cluster, move |_, request| convert(request, *told.lock())).await;
    let version = |name: &str, stored: &str, field: &str| {
        json!({"name": name, "served": true, "storage": name == stored,
            "selectableFields": [{"jsonPath": format!(".spec.{field}")}],
            "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object",
                "required": [field], "properties": {field: {"type": "string"}}}}}}})
    };
    let definition = |stored: &str| {
        json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": "gadgets.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "gadgets", "singular": "gadget", "kind": "Gadget", "listKind": "GadgetList"},
            "versions": [version("v1", stored, "host"), version("v2", stored, "address")],
            "conversion": {"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1"],
                "clientConfig": hook.client_config(&cluster, "/convert")}}}})
        .to_string()
    };
    let apply = async |stored: &str| {
        cluster.run("admin", &["apply", "-f", "-"], &definition(stored)).await.unwrap();
        cluster.kubectl(&["wait", "--for=condition=Established", "--timeout=30s", "crd/gadgets.example.com"]).await;
    };
    apply("v1").await;
    let path = |version: &str| format!("/apis/example.com/{version}/namespaces/default/gadgets");
    let call = async |method: &str, path: String, body: Value| {
        let media_type = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        cluster.json(method, &path, media_type, &body).await
    };
    let gadget = |version: &str, name: &str, spec: Value| json!({"apiVersion": format!("example.com/{version}"), "kind": "Gadget", "metadata": {"name": name}, "spec": spec});
    for name in ["a", "b"] {
        let (code, made) = call("POST", path("v1"), gadget("v1", name, json!({"host": name}))).await;
        assert_eq!(code, 201, "{made}");
    }
    assert!(hook.paths().is_empty(), "nothing to convert yet");

    // A list is one question, and what was answered once is not asked again.
    let (code, list) = call("GET", path("v2"), Value::Null).await;
    assert_eq!(code, 200, "{list}");
    let addresses: Vec<&Value> = list["items"].as_array().unwrap().iter().map(|item| &item["spec"]).collect();
    assert_eq!(addresses, [&json!({"address": "a"}), &json!({"address": "b"})]);
    let (_, one) = call("GET", format!("{}/a", path("v2")), Value::Null).await;
    assert_eq!((&one["apiVersion"], &one["spec"]), (&json!("example.com/v2"), &json!({"address": "a"})));
    // Labels are the webhook's to change, the rest of the metadata is not.
    assert_eq!((&one["metadata"]["labels"]["converted"], &one["metadata"]["generation"]), (&json!("yes"), &json!(1)));
    let asked = hook.asked.lock().clone();
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert_eq!(asked[0].1["desiredAPIVersion"], "example.com/v2");
    assert_eq!(asked[0].1["objects"].as_array().unwrap().len(), 2);
    let (_, chosen) = call("GET", format!("{}?fieldSelector=spec.address%3Db", path("v2")), Value::Null).await;
    assert_eq!(chosen["items"].as_array().unwrap().len(), 1, "{chosen}");

    // Writes are judged in the version they are made in, and stored in the other.
    let (code, patched) = call("PATCH", format!("{}/a", path("v2")), json!({"spec": {"address": "z"}})).await;
    assert_eq!(
        (code, &patched["spec"], &patched["metadata"]["generation"]),
        (200, &json!({"address": "z"}), &json!(2))
    );
    let (code, refused) = call("POST", path("v2"), gadget("v2", "c", json!({}))).await;
    assert_eq!(code, 422);
    assert!(refused["message"].as_str().unwrap().contains("spec.address: Required value"), "{refused}");
    let (code, made) = call("POST", path("v2"), gadget("v2", "c", json!({"address": "c"}))).await;
    assert_eq!((code, &made["spec"]), (201, &json!({"address": "c"})), "{made}");
    let shown = cluster.kubectl(&["get", "gadgets.v1.example.com", "-o", "jsonpath={.items[*].spec.host}"]).await;
    assert_eq!(shown, "z b c");

    // Watches, of what is there and of what happened since.
    let since = list["metadata"]["resourceVersion"].as_str().unwrap();
    for (query, wanted) in
        [("watch=1".to_owned(), ["z", "b", "c"]), (format!("watch=1&resourceVersion={since}"), ["z", "c", "y"])]
    {
        let (server, more) = (&cluster, query.contains("resourceVersion"));
        let lines = |seen: &[u8]| seen.iter().filter(|byte| **byte == b'\n').count();
        let url = format!("{}?{query}", path("v2"));
        let watching = server.stream(&url, "application/json", |seen| lines(seen) == 3);
        let change = async {
            if more {
                let body = json!({"spec": {"host": "y"}});
                assert_eq!(call("PATCH", format!("{}/b", path("v1")), body).await.0, 200);
            }
        };
        let (seen, ()) = tokio::join!(watching, change);
        let seen: Vec<Value> = serde_json::Deserializer::from_slice(&seen).into_iter().map(Result::unwrap).collect();
        let got: Vec<&str> = seen.iter().map(|event| event["object"]["spec"]["address"].as_str().unwrap()).collect();
        assert_eq!(got, wanted, "{seen:?}");
    }

    // What was stored in the version of then converts too.
    apply("v2").await;
    cluster
        .kubectl(&["wait", "--for=jsonpath={.status.storedVersions[1]}=v2", "--timeout=30s", "crd/gadgets.example.com"])
        .await;
    let shown = cluster.kubectl(&["get", "gadgets.v2.example.com", "-o", "jsonpath={.items[*].spec.address}"]).await;
    assert_eq!(shown, "z y c");
    let (code, patched) = call("PATCH", format!("{}/a", path("v1")), json!({"spec": {"host": "w"}})).await;
    assert_eq!((code, &patched["spec"]), (200, &json!({"host": "w"})), "{patched}");
    let (_, one) = call("GET", format!("{}/a", path("v2")), Value::Null).await;
    assert_eq!(one["spec"], json!({"address": "w"}));

    let head = "conversion webhook for example.com/v1, Kind=Gadget";
    let renamed = format!("{head} returned invalid object: must have the same name: d != other");
    for (say, wanted) in [
        (
            "down",
            format!(
                "{head} failed: an error on the server (\"\\\"out of order\\\"\") has prevented the request from succeeding"
            ),
        ),
        ("refuse", format!("{head} failed: no such gadget")),
        ("rename", renamed),
    ] {
        *mode.lock() = say;
        let (code, answer) = call("POST", path("v1"), gadget("v1", "d", json!({"host": "d"}))).await;
        assert_eq!((code, answer["message"].as_str().unwrap()), (500, wanted.as_str()));
    }
    // What is in the stored version needs no webhook.
    let (code, one) = call("POST", path("v2"), gadget("v2", "d", json!({"address": "d"}))).await;
    assert_eq!((code, &one["spec"]), (201, &json!({"address": "d"})), "{one}");
    let failed = cluster.run("admin", &["get", "gadgets.v1.example.com"], "").await.unwrap_err();
    let list = "conversion webhook for example.com/v2, Kind=GadgetList returned invalid converted object at index 0: must have the same name: d != other";
    assert!(failed.contains(list), "{failed}");
    *mode.lock() = "right";
    assert_eq!(cluster.kubectl(&["get", "gadgets.v1.example.com", "d", "-o", "jsonpath={.spec.host}"]).await, "d");
    cluster.kubectl(&["delete", "crd", "gadgets.example.com", "--timeout=30s"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn owners_and_namespaces_take_custom_objects_with_them() {
    let cluster = Cluster::start().await;
    let client = cluster.server.client(UserInfo::new("controllers", &["system:masters"]));
    tokio::spawn(dhow_controllers::run_all(client, ControllersConfig::default(), cluster.shutdown.clone()));
    define(&cluster, CRON_TAB).await;
    let owned = |api_version: &str, kind: &str, name: &str, owner: &Value| {
        json!({"apiVersion": api_version, "kind": kind, "spec": {"cronSpec": "* * * * *"}, "metadata": {"name": name,
            "ownerReferences": [{"apiVersion": owner["apiVersion"], "kind": owner["kind"],
                "name": owner["metadata"]["name"], "uid": owner["metadata"]["uid"]}]}})
    };
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "top"}});
    let maps = "/api/v1/namespaces/default/configmaps";
    let (_, top) = cluster.json("POST", maps, "application/json", &object).await;
    let (_, middle) = cluster
        .json("POST", PATH, "application/json", &owned("stable.example.com/v1", "CronTab", "middle", &top))
        .await;
    let mut leaf = owned("v1", "ConfigMap", "leaf", &middle);
    leaf.as_object_mut().unwrap().remove("spec");
    assert_eq!(cluster.json("POST", maps, "application/json", &leaf).await.0, 201);
    cluster.kubectl(&["delete", "configmap", "top"]).await;
    for gone in ["crontab/middle", "configmap/leaf"] {
        cluster.kubectl(&["wait", "--for=delete", "--timeout=30s", gone]).await;
    }

    cluster.kubectl(&["create", "namespace", "brief"]).await;
    let inside = cron_tab("a", &json!({"cronSpec": "* * * * *"})).replace("\"default\"", "\"brief\"");
    cluster.run("admin", &["create", "-f", "-"], &inside).await.unwrap();
    cluster.kubectl(&["delete", "namespace", "brief", "--timeout=30s"]).await;
    assert_eq!(cluster.kubectl(&["get", "ct", "-A", "-o", "name"]).await, "");
}
