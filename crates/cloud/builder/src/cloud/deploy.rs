//! Gives workloads the image that was built.

use dhow_client::{Client, Error, Object, Patch};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
use k8s_openapi::api::batch::v1::CronJob;
use serde_json::{Value, json};

use super::kinds::{Target, Workload};

/// Why a container did not get the image.
pub enum Undone {
    /// It will not get it like this.
    Refused(String),
    Failed(Error),
}

/// Sets the image of one container. Whoever wrote the workload may have written it by another name; that is changed.
pub async fn deploy(client: &Client, namespace: &str, target: &Target, image: &str) -> Result<String, Undone> {
    match target.kind {
        Workload::Deployment => set::<Deployment>(client, namespace, target, image).await,
        Workload::StatefulSet => set::<StatefulSet>(client, namespace, target, image).await,
        Workload::DaemonSet => set::<DaemonSet>(client, namespace, target, image).await,
        Workload::CronJob => set::<CronJob>(client, namespace, target, image).await,
    }
}

async fn set<K: Object>(client: &Client, namespace: &str, target: &Target, image: &str) -> Result<String, Undone> {
    let called = format!("{}/{}", K::KIND.to_ascii_lowercase(), target.name);
    let found = match client.get::<K>(Some(namespace), &target.name).await {
        Ok(found) => found,
        Err(error) if error.is_not_found() => return Err(Undone::Refused(format!("there is no {called}"))),
        Err(error) => return Err(Undone::Failed(error)),
    };
    let object = serde_json::to_value(&found).unwrap_or_default();
    let patch = patch(&object, target, image).map_err(|why| Undone::Refused(format!("{called} {why}")))?;
    if let Some(patch) = patch {
        let patched = client.patch::<K>(Some(namespace), &target.name, Patch::Strategic(patch), None).await;
        patched.map_err(|error| match error.is_invalid() || error.is_forbidden() {
            true => Undone::Refused(format!("{called}: {error}")),
            false => Undone::Failed(error),
        })?;
    }
    Ok(called)
}

/// What changes; `None` if nothing does.
fn patch(object: &Value, target: &Target, image: &str) -> Result<Option<Value>, String> {
    let nested = target.kind == Workload::CronJob;
    let at = if nested { "/spec/jobTemplate/spec/template/spec" } else { "/spec/template/spec" };
    let pod = object.pointer(at).unwrap_or(&Value::Null);
    let lists = ["containers", "initContainers"];
    let containers =
        lists.into_iter().flat_map(|list| pod[list].as_array().into_iter().flatten().map(move |one| (list, one)));
    let mut found = containers.filter(|(list, one)| match &target.container {
        Some(name) => one["name"] == name.as_str(),
        None => *list == "containers",
    });
    let (list, container) = found.next().ok_or_else(|| match &target.container {
        Some(name) => format!("has no container {name}"),
        None => "has no container".to_owned(),
    })?;
    if found.next().is_some() {
        return Err("has several containers; name one".to_owned());
    }
    if container["image"] == image {
        return Ok(None);
    }
    let pod = json!({"spec": {list: [{"name": container["name"], "image": image}]}});
    let template = json!({"spec": {"template": pod}});
    Ok(Some(if nested { json!({"spec": {"jobTemplate": template}}) } else { template }))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn one_container_gets_the_image() {
        let pod = json!({"containers": [{"name": "a", "image": "old"}, {"name": "b", "image": "b"}],
            "initContainers": [{"name": "i", "image": "old"}]});
        let object = json!({"spec": {"template": {"spec": pod}}});
        let target = |container: Option<&str>, kind| Target {
            kind,
            container: container.map(str::to_owned),
            ..Target::default()
        };
        let done = patch(&object, &target(Some("a"), Workload::Deployment), "new").unwrap().unwrap();
        assert_eq!(done, json!({"spec": {"template": {"spec": {"containers": [{"name": "a", "image": "new"}]}}}}));
        let done = patch(&object, &target(Some("i"), Workload::Deployment), "new").unwrap().unwrap();
        assert_eq!(done["spec"]["template"]["spec"]["initContainers"][0]["image"], "new");
        assert_eq!(patch(&object, &target(Some("b"), Workload::Deployment), "b").unwrap(), None);
        assert!(patch(&object, &target(None, Workload::Deployment), "new").unwrap_err().contains("several"));
        assert!(
            patch(&object, &target(Some("c"), Workload::Deployment), "new").unwrap_err().contains("no container c")
        );
        let cron = json!({"spec": {"jobTemplate": {"spec": {"template": {"spec": {"containers": [{"name": "a", "image": "old"}]}}}}}});
        let done = patch(&cron, &target(None, Workload::CronJob), "new").unwrap().unwrap();
        assert_eq!(done.pointer("/spec/jobTemplate/spec/template/spec/containers/0/image").unwrap(), "new");
    }
}
