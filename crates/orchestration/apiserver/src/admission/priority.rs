//! Priority: the number behind a pod's priority class.

use dhow_api::{Status, meta};
use serde_json::{Value, json};

use super::cached;
use crate::ApiServer;

/// Resolves the priority class, or takes the default one.
pub fn mutate(server: &ApiServer, pod: &mut Value) -> Result<(), Status> {
    let name = meta::text(pod, &["spec", "priorityClassName"]).to_owned();
    let (name, value, policy) = if name.is_empty() {
        match default_priority_class(server) {
            Some(class) => (meta::name(&class).to_owned(), class["value"].clone(), class["preemptionPolicy"].clone()),
            None => (String::new(), json!(0), Value::Null),
        }
    } else {
        let found = cached(server, "scheduling.k8s.io", "priorityclasses", None, &name).ok_or_else(|| {
            Status::forbidden("", "pods", meta::name(pod), &format!("no PriorityClass with name {name} was found"))
        })?;
        let class = found.value()?;
        (name, class["value"].clone(), class["preemptionPolicy"].clone())
    };
    let spec = meta::child_mut(pod, "spec");
    if !name.is_empty() {
        spec.insert("priorityClassName".into(), json!(name));
    }
    spec.insert("priority".into(), value);
    let policy = if policy.is_null() { json!("PreemptLowerPriority") } else { policy };
    meta::default_to(spec, "preemptionPolicy", policy);
    Ok(())
}

fn default_priority_class(server: &ApiServer) -> Option<Value> {
    let kind = dhow_api::registry::builtin().get("scheduling.k8s.io", "v1", "priorityclasses")?;
    let snapshot = server.store.cache.snapshot(kind).ok()?;
    let classes = snapshot.objects.values().filter_map(|class| class.value().ok());
    classes.filter(|class| class["globalDefault"] == true).max_by_key(|class| class["value"].as_i64())
}
