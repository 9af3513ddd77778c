//! Evicting a pod: a delete that a disruption budget may refuse, and that uses the budget up.

use std::sync::Arc;

use dhow_api::registry::{self, Kind};
use dhow_api::selectors::LabelSelector;
use dhow_api::{Status, meta, time};
use dhow_client::Body;
use http::Response;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use crate::admission::{Attributes, Operation};
use crate::delete::{self, DeleteOptions};
use crate::encode::{self, Accept};
use crate::object::Stored;
use crate::pipeline::{Authorized, Request};
use crate::store::{RETRIES, Written};
use crate::{ApiServer, admission, body, read};

/// Evictions that a budget may have under way.
const MAX_DISRUPTED: usize = 2000;

pub async fn evict(
    server: &Arc<ApiServer>,
    request: &Request<Authorized>,
    accept: &Accept,
) -> Result<Response<Body>, Status> {
    let eviction = body::decode(request)?;
    let name = meta::name(&eviction);
    if !name.is_empty() && Some(name) != request.target.name.as_deref() {
        return Err(Status::bad_request("name in URL does not match name in Eviction object"));
    }
    let mut options: DeleteOptions = match eviction.get("deleteOptions") {
        Some(options) => {
            serde_json::from_value(options.clone()).map_err(|error| Status::bad_request(error.to_string()))?
        }
        None => DeleteOptions::default(),
    };
    if request.dry_run() {
        options.dry_run = vec!["All".into()];
    }
    let pod = read::existing(server, &request.target).await?;
    let mut asked = Attributes::of(request, Operation::Create, &pod.header.name, eviction, None);
    asked.dry_run = !options.dry_run.is_empty();
    admission::admit(server, &mut asked).await?;
    use_budget(server, &pod, !options.dry_run.is_empty()).await?;
    delete::delete(server, &request.target, &pod.header.name, &options, None).await?;
    encode::value(201, &Status::success().to_value(), accept)
}

/// Takes one disruption from the pod's budget, if it has one.
async fn use_budget(server: &ApiServer, pod: &Stored, dry_run: bool) -> Result<(), Status> {
    let value = pod.value()?;
    let idle = matches!(meta::text(&value, &["status", "phase"]), "Succeeded" | "Failed" | "Pending");
    if idle || meta::deletion_timestamp(&value).is_some() {
        return Ok(());
    }
    let Some(kind) = registry::builtin().get("policy", "v1", "poddisruptionbudgets") else { return Ok(()) };
    for _ in 0..RETRIES {
        let Some(budget) = budget_of(server, kind, pod)? else { return Ok(()) };
        let mut object = budget.value()?;
        if spares_unready(&object, &value) {
            return Ok(());
        }
        check(&object)?;
        if dry_run {
            return Ok(());
        }
        let allowed = meta::int(&object, &["status", "disruptionsAllowed"]);
        let status = meta::child_mut(&mut object, "status");
        status.insert("disruptionsAllowed".into(), json!(allowed - 1));
        let disrupted = status.entry("disruptedPods").or_insert_with(|| json!({}));
        disrupted[pod.header.name.as_str()] = json!(time::rfc3339(Timestamp::now()));
        if let Written::Done(_) = server.store.update(kind, &budget, &object).await? {
            return Ok(());
        }
    }
    Err(Status::too_many_requests("Cannot evict pod: its disruption budget changes all the time.", 1))
}

fn budget_of(server: &ApiServer, kind: &Kind, pod: &Stored) -> Result<Option<Arc<Stored>>, Status> {
    let mut found = None;
    for budget in server.store.cache.objects(kind)?.values() {
        if budget.header.namespace != pod.header.namespace {
            continue;
        }
        let value = budget.value()?;
        let selector = LabelSelector::from_object(value["spec"].get("selector"))?;
        if !selector.matches_with(|key| pod.header.labels.get(key)) {
            continue;
        }
        if found.replace(budget.clone()).is_some() {
            return Err(Status::internal(
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
            ));
        }
    }
    Ok(found)
}

/// A pod that does not serve anyway may go where the budget says so, or while enough others serve.
fn spares_unready(budget: &Value, pod: &Value) -> bool {
    let ready = meta::items(pod, &["status", "conditions"])
        .iter()
        .any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
    if ready {
        return false;
    }
    let status = |field: &str| meta::int(budget, &["status", field]);
    meta::text(budget, &["spec", "unhealthyPodEvictionPolicy"]) == "AlwaysAllow"
        || status("desiredHealthy") > 0 && status("currentHealthy") >= status("desiredHealthy")
}

fn check(budget: &Value) -> Result<(), Status> {
    let name = meta::name(budget);
    let status = |field: &str| meta::int(budget, &["status", field]);
    let forbidden = |why: &str| Status::forbidden("policy", "poddisruptionbudgets", name, why);
    if status("observedGeneration") < meta::int(budget, &["metadata", "generation"]) {
        let mut refused = Status::disruption_budget(name, 0, 0);
        for cause in refused.details.iter_mut().flat_map(|details| &mut details.causes) {
            cause.message = format!("The disruption budget {name} is still being processed by the server.");
        }
        return Err(refused);
    }
    if status("disruptionsAllowed") < 0 {
        return Err(forbidden("pdb disruptions allowed is negative"));
    }
    if meta::object(budget, &["status", "disruptedPods"]).is_some_and(|pods| pods.len() > MAX_DISRUPTED) {
        return Err(forbidden("DisruptedPods map too big - too many evictions not confirmed by PDB controller"));
    }
    if status("disruptionsAllowed") == 0 {
        return Err(Status::disruption_budget(name, status("desiredHealthy"), status("currentHealthy")));
    }
    Ok(())
}
