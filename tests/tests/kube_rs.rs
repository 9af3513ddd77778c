//! The client library that Rust controllers are written with, kube-rs, against `dhow server`.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use dhow_e2e::Server;
use futures::{Stream, StreamExt, TryStreamExt};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ApiResource, DeleteParams, DynamicObject, EvictParams, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{GroupVersionKind, ObjectMeta};
use kube::discovery::{Discovery, Scope};
use kube::runtime::controller::Action;
use kube::runtime::finalizer::{Event as Finalizing, finalizer};
use kube::runtime::wait::{await_condition, conditions};
use kube::runtime::{Controller, WatchStreamExt, reflector, watcher};
use kube::{Api, Client, Config, Error, ResourceExt};
use serde_json::{Value, json};

const LONGEST: Duration = Duration::from_secs(30);

async fn start() -> (Server, Client) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let server = tokio::task::spawn_blocking(|| Server::start().unwrap()).await.unwrap();
    let file = Kubeconfig::read_from(server.kubeconfig()).unwrap();
    let mut config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap();
    // Whatever the environment says, the server is on this machine.
    config.proxy_url = None;
    // A refused eviction is to be seen, not tried again for minutes.
    config.default_retry = false;
    (server, Client::try_from(config).unwrap())
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONGEST, future).await.expect("it takes too long")
}

/// The next thing that a stream of a watcher has.
async fn next<T, E: std::fmt::Debug>(stream: &mut (impl Stream<Item = Result<T, E>> + Unpin)) -> T {
    soon(stream.try_next()).await.unwrap().unwrap()
}

fn map(name: &str, value: &str) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(name.into()),
            labels: Some(BTreeMap::from([("app".into(), "x".into())])),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([("k".into(), value.into())])),
        ..ConfigMap::default()
    }
}

fn value(map: &ConfigMap) -> &str {
    map.data.as_ref().and_then(|data| data.get("k")).map_or("", String::as_str)
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_are_made_changed_and_deleted() {
    let (_server, client) = start().await;
    let version = client.apiserver_version().await.unwrap();
    assert_eq!((version.major.as_str(), version.minor.as_str()), ("1", "35"));
    let api: Api<ConfigMap> = Api::namespaced(client, "default");
    let plain = PatchParams::default();
    let missing = api.get("a").await.unwrap_err();
    assert!(matches!(&missing, Error::Api(status) if status.code == 404 && status.is_not_found()), "{missing:?}");
    assert!(api.get_opt("a").await.unwrap().is_none());
    let post = PostParams::default();
    let tried = api.create(&PostParams { dry_run: true, ..post.clone() }, &map("a", "one")).await.unwrap();
    assert!(tried.uid().is_some() && api.get_opt("a").await.unwrap().is_none());
    let mut made = api.create(&post, &map("a", "one")).await.unwrap();
    let twice = api.create(&post, &map("a", "one")).await.unwrap_err();
    assert!(matches!(&twice, Error::Api(status) if status.is_already_exists()), "{twice:?}");
    let old = made.clone();
    made.data.as_mut().unwrap().insert("k".into(), "two".into());
    assert_eq!(value(&api.replace("a", &post, &made).await.unwrap()), "two");
    let stale = api.replace("a", &post, &old).await.unwrap_err();
    assert!(matches!(&stale, Error::Api(status) if status.is_conflict()), "{stale:?}");

    let merge = Patch::Merge(json!({"data": {"k": "three"}}));
    assert_eq!(value(&api.patch("a", &plain, &merge).await.unwrap()), "three");
    let strategic = Patch::Strategic(json!({"metadata": {"labels": {"tier": "one"}}, "data": {"k": "four"}}));
    let patched = api.patch("a", &plain, &strategic).await.unwrap();
    assert_eq!((value(&patched), patched.labels().len()), ("four", 2));
    let operations = json!([{"op": "test", "path": "/data/k", "value": "four"},
        {"op": "replace", "path": "/data/k", "value": "five"}]);
    let operations = Patch::Json::<()>(serde_json::from_value(operations).unwrap());
    assert_eq!(value(&api.patch("a", &plain, &operations).await.unwrap()), "five");
    let unfit = api.patch("a", &plain, &operations).await.unwrap_err();
    assert!(matches!(&unfit, Error::Api(status) if status.code == 422), "{unfit:?}");
    let apply = |value: &str| Patch::Apply(json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"k": value}}));
    let owner = PatchParams::apply("owner");
    let applied = api.patch("a", &owner, &apply("six")).await.unwrap_err();
    assert!(matches!(&applied, Error::Api(status) if status.is_conflict()), "{applied:?}");
    let applied = api.patch("a", &owner.clone().force(), &apply("six")).await.unwrap();
    assert_eq!(value(&applied), "six");
    assert!(applied.managed_fields().iter().any(|entry| entry.manager.as_deref() == Some("owner")));
    assert_eq!(value(&api.patch("b", &owner, &apply("new")).await.unwrap()), "new");
    let strict = owner.validation_strict();
    let unknown = Patch::Apply(json!({"apiVersion": "v1", "kind": "ConfigMap", "dato": {}}));
    let refused = api.patch("b", &strict, &unknown).await.unwrap_err();
    assert!(refused.to_string().contains("dato"), "{refused}");

    let labelled = ListParams::default().labels("app=x");
    assert_eq!(api.list(&labelled).await.unwrap().items.len(), 1);
    assert_eq!(api.list_metadata(&ListParams::default().fields("metadata.name=b")).await.unwrap().items.len(), 1);
    api.delete_collection(&DeleteParams::default(), &labelled).await.unwrap();
    assert_eq!(
        api.list(&ListParams::default().fields("metadata.name!=kube-root-ca.crt")).await.unwrap().items.len(),
        1
    );
    api.delete("b", &DeleteParams::default()).await.unwrap();
    assert!(api.get_opt("b").await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_come_in_pages() {
    let (_server, client) = start().await;
    let api: Api<ConfigMap> = Api::namespaced(client, "default");
    for number in 0..7 {
        api.create(&PostParams::default(), &map(&format!("n{number}"), "v")).await.unwrap();
    }
    let (mut names, mut token, mut version) = (Vec::new(), None, None);
    loop {
        let mut params = ListParams::default().labels("app=x").limit(3);
        params.continue_token = token;
        let page = api.list(&params).await.unwrap();
        assert!(page.items.len() <= 3);
        // What comes after the first page is not of it.
        api.create(&PostParams::default(), &map(&format!("z{}", names.len()), "v")).await.unwrap();
        assert_eq!(*version.get_or_insert(page.metadata.resource_version.clone()), page.metadata.resource_version);
        names.extend(page.items.iter().map(ResourceExt::name_any));
        token = page.metadata.continue_.filter(|token| !token.is_empty());
        if token.is_none() {
            break;
        }
    }
    assert_eq!(names, ["n0", "n1", "n2", "n3", "n4", "n5", "n6"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn reflectors_follow_lists_and_streams() {
    let (_server, client) = start().await;
    let api: Api<ConfigMap> = Api::namespaced(client, "default");
    for config in [
        watcher::Config::default(),
        watcher::Config::default().page_size(1),
        watcher::Config::default().streaming_lists(),
    ] {
        for name in ["a", "b"] {
            api.create(&PostParams::default(), &map(name, "one")).await.unwrap();
        }
        let (store, writer) = reflector::store();
        let mut events = pin!(watcher(api.clone(), config.labels("app=x")).reflect(writer));
        let mut before = 0;
        loop {
            match next(&mut events).await {
                watcher::Event::Init => {}
                watcher::Event::InitApply(_) => before += 1,
                watcher::Event::InitDone => break,
                other => panic!("{other:?} before the list was whole"),
            }
        }
        assert_eq!((before, store.state().len()), (2, 2));
        api.patch("a", &PatchParams::default(), &Patch::Merge(json!({"data": {"k": "two"}}))).await.unwrap();
        assert!(matches!(next(&mut events).await, watcher::Event::Apply(map) if value(&map) == "two"));
        // What no longer matches is gone for whoever selects.
        let unlabelled = json!({"metadata": {"labels": null}});
        api.patch("a", &PatchParams::default(), &Patch::Merge(unlabelled)).await.unwrap();
        assert!(matches!(next(&mut events).await, watcher::Event::Delete(map) if map.name_any() == "a"));
        api.delete("b", &DeleteParams::default()).await.unwrap();
        assert!(matches!(next(&mut events).await, watcher::Event::Delete(map) if map.name_any() == "b"));
        assert!(store.state().is_empty());
        api.delete("a", &DeleteParams::default()).await.unwrap();
    }
}

/// A controller that keeps a copy of every labelled ConfigMap, and owns it.
#[tokio::test(flavor = "multi_thread")]
async fn controllers_reconcile_what_they_own() {
    let (_server, client) = start().await;
    let api: Api<ConfigMap> = Api::namespaced(client, "default");
    let owned = watcher::Config::default().labels("role=copy");
    let controller = Controller::new(api.clone(), watcher::Config::default().labels("app=x")).owns(api.clone(), owned);
    let reconcile = |original: Arc<ConfigMap>, api: Arc<Api<ConfigMap>>| async move {
        let owner = kube::Resource::controller_owner_ref(&*original, &()).unwrap();
        let copy = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "data": original.data,
            "metadata": {"labels": {"role": "copy"}, "ownerReferences": [owner]},
        });
        let name = format!("{}-copy", original.name_any());
        api.patch(&name, &PatchParams::apply("copier").force(), &Patch::Apply(copy)).await?;
        Ok::<_, Error>(Action::await_change())
    };
    let running = controller.run(reconcile, |_, _, _| Action::requeue(Duration::from_secs(1)), Arc::new(api.clone()));
    let running = tokio::spawn(running.for_each(|_| std::future::ready(())));
    let copy_is = |wanted: &'static str| {
        let condition = move |map: Option<&ConfigMap>| map.is_some_and(|map| value(map) == wanted);
        soon(await_condition(api.clone(), "a-copy", condition))
    };
    api.create(&PostParams::default(), &map("a", "one")).await.unwrap();
    copy_is("one").await.unwrap();
    api.patch("a", &PatchParams::default(), &Patch::Merge(json!({"data": {"k": "two"}}))).await.unwrap();
    copy_is("two").await.unwrap();
    // Somebody meddles with the copy.
    api.patch("a-copy", &PatchParams::default(), &Patch::Merge(json!({"data": {"k": "x"}}))).await.unwrap();
    copy_is("two").await.unwrap();
    running.abort();
    // The owner's end is the copy's.
    let uid = api.get("a-copy").await.unwrap().uid().unwrap();
    api.delete("a", &DeleteParams::foreground()).await.unwrap();
    soon(await_condition(api.clone(), "a-copy", conditions::is_deleted(&uid))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn finalizers_hold_an_object_until_its_cleanup() {
    const NAME: &str = "example.com/cleanup";
    let (_server, client) = start().await;
    let api: Api<ConfigMap> = Api::namespaced(client, "default");
    api.create(&PostParams::default(), &map("a", "one")).await.unwrap();
    // The helper adds the finalizer first, and calls the reconciler the next time.
    let step = async || {
        let object = Arc::new(api.get("a").await.unwrap());
        let mut seen = "";
        finalizer(&api, NAME, object, |event| {
            seen = match event {
                Finalizing::Apply(_) => "apply",
                Finalizing::Cleanup(_) => "cleanup",
            };
            async { Ok::<_, std::io::Error>(Action::await_change()) }
        })
        .await
        .unwrap();
        seen
    };
    assert_eq!(step().await, "");
    assert_eq!(api.get("a").await.unwrap().finalizers(), [NAME]);
    assert_eq!(step().await, "apply");
    api.delete("a", &DeleteParams::default()).await.unwrap();
    assert!(api.get("a").await.unwrap().metadata.deletion_timestamp.is_some());
    assert_eq!(step().await, "cleanup");
    assert!(api.get_opt("a").await.unwrap().is_none());
}

fn definition() -> CustomResourceDefinition {
    let integer = json!({"type": "integer"});
    let schema = json!({"type": "object", "properties": {
        "spec": {"type": "object", "required": ["size"], "properties": {
            "size": {"type": "integer", "maximum": 10}, "colour": {"type": "string", "default": "red"}}},
        "status": {"type": "object", "properties": {"size": integer, "selector": {"type": "string"}}}}});
    serde_json::from_value(json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "boxes.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "boxes", "singular": "box", "kind": "Box", "shortNames": ["bx"]},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema},
                "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.size",
                    "statusReplicasPath": ".status.size", "labelSelectorPath": ".status.selector"}}}]},
    }))
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn custom_objects_are_found_and_dynamic() {
    let (_server, client) = start().await;
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    definitions.create(&PostParams::default(), &definition()).await.unwrap();
    let established = await_condition(definitions.clone(), "boxes.example.com", conditions::is_crd_established());
    soon(established).await.unwrap();

    let kind = GroupVersionKind::gvk("example.com", "v1", "Box");
    for discovery in [
        Discovery::new(client.clone()).run().await.unwrap(),
        Discovery::new(client.clone()).run_aggregated().await.unwrap(),
    ] {
        let (resource, capabilities) = discovery.resolve_gvk(&kind).unwrap();
        assert_eq!((resource.plural.as_str(), capabilities.scope == Scope::Namespaced), ("boxes", true));
        assert!(capabilities.supports_operation("watch"));
        assert_eq!(capabilities.subresources.len(), 2);
        let (pods, _) = discovery.resolve_gvk(&GroupVersionKind::gvk("", "v1", "Pod")).unwrap();
        assert_eq!(pods.plural, "pods");
    }
    let resource = ApiResource::from_gvk_with_plural(&kind, "boxes");
    let api: Api<DynamicObject> = Api::namespaced_with(client, "default", &resource);
    let small = DynamicObject::new("small", &resource).data(json!({"spec": {"size": 1, "dropped": true}}));
    let mut events = pin!(watcher(api.clone(), watcher::Config::default().streaming_lists()));
    while !matches!(next(&mut events).await, watcher::Event::InitDone) {}
    let made = api.create(&PostParams::default(), &small).await.unwrap();
    assert_eq!(made.data["spec"], json!({"size": 1, "colour": "red"}));
    assert!(matches!(next(&mut events).await, watcher::Event::Apply(object) if object.data == made.data));
    let large = DynamicObject::new("large", &resource).data(json!({"spec": {"size": 11}}));
    let refused = api.create(&PostParams::default(), &large).await.unwrap_err();
    assert!(matches!(&refused, Error::Api(status) if status.is_invalid()), "{refused:?}");

    let plain = PatchParams::default();
    let both = Patch::Merge(json!({"spec": {"size": 9}, "status": {"size": 1, "selector": "a=b"}}));
    let patched = api.patch_status("small", &plain, &both).await.unwrap();
    assert_eq!((&patched.data["spec"]["size"], &patched.data["status"]["size"]), (&json!(1), &json!(1)));
    let applied = Patch::Apply(json!({"apiVersion": "example.com/v1", "kind": "Box", "spec": {"size": 2}}));
    let applied = api.patch("small", &PatchParams::apply("me").force(), &applied).await.unwrap();
    assert_eq!((&applied.data["spec"]["size"], &applied.data["status"]["size"]), (&json!(2), &json!(1)));
    assert_eq!(applied.metadata.generation, Some(2));

    let scale = api.get_scale("small").await.unwrap();
    assert_eq!(scale.spec.as_ref().unwrap().replicas, Some(2));
    assert_eq!(
        scale.status.as_ref().map(|status| (status.replicas, status.selector.as_deref())),
        Some((1, Some("a=b")))
    );
    let scaled = api.patch_scale("small", &plain, &Patch::Merge(json!({"spec": {"replicas": 4}}))).await.unwrap();
    assert_eq!(scaled.spec.unwrap().replicas, Some(4));
    let strategic = Patch::Strategic(json!({"spec": {"size": 3}}));
    let refused = api.patch("small", &plain, &strategic).await.unwrap_err();
    assert!(matches!(&refused, Error::Api(status) if status.code == 415), "{refused:?}");
    let gone = api.delete("small", &DeleteParams::default()).await.unwrap();
    assert!(gone.is_right() || gone.left().is_some());
    assert!(api.get_opt("small").await.unwrap().is_none());
}

fn pod_of(labels: &Value) -> Value {
    json!({"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "image.invalid/x:1"}]}})
}

#[tokio::test(flavor = "multi_thread")]
async fn deployments_scale_and_pods_are_evicted() {
    let (_server, client) = start().await;
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), "default");
    let plain = PatchParams::default();
    let labels = json!({"app": "web"});
    let web: Deployment = serde_json::from_value(json!({
        "metadata": {"name": "web"},
        "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": pod_of(&labels)},
    }))
    .unwrap();
    deployments.create(&PostParams::default(), &web).await.unwrap();
    // Its controller writes too, and may be faster.
    let scale = loop {
        let mut scale = deployments.get_scale("web").await.unwrap();
        assert_eq!(scale.spec.as_ref().unwrap().replicas, Some(1));
        scale.spec.as_mut().unwrap().replicas = Some(2);
        match deployments.replace_scale("web", &PostParams::default(), &scale).await {
            Ok(_) => break scale,
            Err(Error::Api(status)) if status.is_conflict() => {}
            Err(error) => panic!("{error:?}"),
        }
    };
    let stale = deployments.replace_scale("web", &PostParams::default(), &scale).await.unwrap_err();
    assert!(matches!(&stale, Error::Api(status) if status.is_conflict()), "{stale:?}");
    let scaled = deployments.patch_scale("web", &plain, &Patch::Merge(json!({"spec": {"replicas": 3}}))).await.unwrap();
    assert_eq!(scaled.spec.unwrap().replicas, Some(3));
    let own = PatchParams::apply("scaler").force();
    let applied = Patch::Apply(json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "spec": {"replicas": 3}}));
    assert_eq!(deployments.patch_scale("web", &own, &applied).await.unwrap().spec.unwrap().replicas, Some(3));
    let has_three = |web: Option<&Deployment>| {
        web.and_then(|web| web.status.as_ref()).is_some_and(|status| status.replicas == Some(3))
    };
    soon(await_condition(deployments.clone(), "web", has_three)).await.unwrap();

    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    let mut alone: Pod = serde_json::from_value(pod_of(&json!({"app": "alone"}))).unwrap();
    alone.metadata.name = Some("alone".into());
    let uid = pods.create(&PostParams::default(), &alone).await.unwrap().uid().unwrap();
    let running =
        Patch::Merge(json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}}));
    pods.patch_status("alone", &plain, &running).await.unwrap();
    let budgets: Api<PodDisruptionBudget> = Api::namespaced(client, "default");
    let budget = json!({"metadata": {"name": "alone"}, "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "alone"}}}});
    budgets.create(&PostParams::default(), &serde_json::from_value(budget).unwrap()).await.unwrap();
    let counted = |budget: Option<&PodDisruptionBudget>| {
        budget.and_then(|budget| budget.status.as_ref()).is_some_and(|status| status.current_healthy == 1)
    };
    soon(await_condition(budgets.clone(), "alone", counted)).await.unwrap();
    let refused = pods.evict("alone", &EvictParams::default()).await.unwrap_err();
    let words = "Cannot evict pod as it would violate the pod's disruption budget.";
    assert!(matches!(&refused, Error::Api(status) if status.code == 429 && status.message == words), "{refused:?}");
    budgets.delete("alone", &DeleteParams::default()).await.unwrap();
    pods.evict("alone", &EvictParams::default()).await.unwrap();
    soon(await_condition(pods, "alone", conditions::is_deleted(&uid))).await.unwrap();
}
