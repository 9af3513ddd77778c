//! What a claim's status says of the devices that were chosen for it.

use k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm};
use k8s_openapi::api::resource::v1::{
    AllocationResult, DeviceAllocationConfiguration, DeviceAllocationResult, DeviceRequestAllocationResult,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::allocate::{Chosen, Problem};

pub(crate) fn of(problem: &Problem<'_>, claim: usize, chosen: &[Chosen], node: &str) -> AllocationResult {
    let own: Vec<&Chosen> = chosen.iter().filter(|chosen| chosen.at.claim == claim).collect();
    let results = own.iter().map(|chosen| {
        let (one, ask) = (&problem.candidates[chosen.candidate], problem.ask(chosen.at));
        let consumed = chosen.consumed.iter().map(|(name, part)| (name.clone(), Quantity(part.to_string())));
        DeviceRequestAllocationResult {
            request: ask.name.clone(),
            driver: one.id.driver.clone(),
            pool: one.id.pool.clone(),
            device: one.id.device.clone(),
            admin_access: ask.admin.then_some(true),
            tolerations: Some(ask.tolerations.to_vec()).filter(|all| !all.is_empty()),
            share_id: (one.is_shared() && !ask.admin).then(|| uuid::Uuid::new_v4().to_string()),
            consumed_capacity: (!chosen.consumed.is_empty()).then(|| consumed.collect()),
            binding_conditions: one.device.binding_conditions.clone(),
            binding_failure_conditions: one.device.binding_failure_conditions.clone(),
        }
    });
    let results: Vec<_> = results.collect();
    let config = config(problem, claim, &own);
    AllocationResult {
        devices: Some(DeviceAllocationResult {
            results: (!results.is_empty()).then_some(results),
            config: (!config.is_empty()).then_some(config),
        }),
        node_selector: node_selector(problem, &own, node),
        allocation_timestamp: None,
    }
}

/// What classes say comes first, so that claims have the last word.
fn config(problem: &Problem<'_>, claim: usize, own: &[&Chosen]) -> Vec<DeviceAllocationConfiguration> {
    let mut all = Vec::new();
    let asks: Vec<_> = own.iter().map(|chosen| problem.ask(chosen.at)).collect();
    let mut seen: Vec<&str> = Vec::new();
    for ask in &asks {
        if seen.contains(&ask.name.as_str()) {
            continue;
        }
        seen.push(&ask.name);
        all.extend(ask.class.spec.config.iter().flatten().map(|config| DeviceAllocationConfiguration {
            source: "FromClass".to_owned(),
            requests: None,
            opaque: config.opaque.clone(),
        }));
    }
    let devices = problem.asked[claim].claim.spec.devices.as_ref();
    for config in devices.iter().flat_map(|devices| devices.config.iter().flatten()) {
        let requests = config.requests.as_ref();
        if requests.is_none_or(Vec::is_empty) || asks.iter().any(|ask| ask.is_named(requests)) {
            all.push(DeviceAllocationConfiguration {
                source: "FromClaim".to_owned(),
                requests: config.requests.clone(),
                opaque: config.opaque.clone(),
            });
        }
    }
    all
}

/// Nodes that can use the devices; none is named if all can.
fn node_selector(problem: &Problem<'_>, own: &[&Chosen], node: &str) -> Option<NodeSelector> {
    let mut term = NodeSelectorTerm::default();
    for chosen in own {
        let one = &problem.candidates[chosen.candidate];
        let (name, selector) = one.place();
        if name.is_some() || one.device.binds_to_node == Some(true) {
            let here = NodeSelectorRequirement {
                key: "metadata.name".to_owned(),
                operator: "In".to_owned(),
                values: Some(vec![node.to_owned()]),
            };
            let term = NodeSelectorTerm { match_fields: Some(vec![here]), ..NodeSelectorTerm::default() };
            return Some(NodeSelector { node_selector_terms: vec![term] });
        }
        if let Some(NodeSelector { node_selector_terms }) = selector
            && let Some(more) = node_selector_terms.first()
        {
            add(&mut term.match_fields, more.match_fields.as_ref());
            add(&mut term.match_expressions, more.match_expressions.as_ref());
        }
    }
    let empty = term.match_fields.is_none() && term.match_expressions.is_none();
    (!empty).then(|| NodeSelector { node_selector_terms: vec![term] })
}

fn add(to: &mut Option<Vec<NodeSelectorRequirement>>, more: Option<&Vec<NodeSelectorRequirement>>) {
    for one in more.into_iter().flatten() {
        let all = to.get_or_insert_default();
        if !all.contains(one) {
            all.push(one.clone());
        }
    }
}
