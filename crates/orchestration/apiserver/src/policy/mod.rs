//! Admission policies: what administrators wrote as expressions over requests (validating and mutating).
//!
//! - [`compile`]: policies and their bindings, read once per change of one of them, never per request.
//! - [`matching`]: which requests a policy or binding is about. [`params`]: the parameters of a binding.
//! - [`input`]: the values an expression sees of one request; each is made when first asked for.
//! - [`typecheck`]: what policies say of fields that what they match does not have, told in their status.
//! - [`validating`], [`mutating`]: the two phases. Without policies each is one look at a few revisions.

mod compile;
mod input;
mod matching;
mod mutating;
mod params;
mod typecheck;
mod validating;

use std::sync::{Arc, LazyLock};

use arc_swap::ArcSwap;
use dhow_api::Status;
use dhow_api::cel::Pace;
use dhow_api::registry::{self, Kind};
use serde_json::Value;

use crate::admission::Attributes;
use crate::cache::Cache;
use crate::{ApiServer, offload};
use compile::{Compiled, Policy};
pub use input::authorizer;
pub use typecheck::follow;

/// Group of the policies. Requests for its kinds are never subject to policies: nobody can lock themselves out.
const GROUP: &str = "admissionregistration.k8s.io";

/// The rows of policies and bindings.
static KINDS: LazyLock<[Option<&'static Kind>; 4]> = LazyLock::new(|| {
    [
        ("v1", "validatingadmissionpolicies"),
        ("v1", "validatingadmissionpolicybindings"),
        ("v1beta1", "mutatingadmissionpolicies"),
        ("v1beta1", "mutatingadmissionpolicybindings"),
    ]
    .map(|(version, plural)| registry::builtin().get(GROUP, version, plural))
});

/// All policies, compiled. Made anew when one of them, or a binding, changes.
pub struct Policies {
    cache: Arc<Cache>,
    compiled: ArcSwap<Compiled>,
}

impl Policies {
    pub fn new(cache: Arc<Cache>) -> Self {
        Self { cache, compiled: ArcSwap::default() }
    }

    fn current(&self) -> Arc<Compiled> {
        let revisions = KINDS.map(|kind| kind.map_or(0, |kind| self.cache.changed(kind)));
        let compiled = self.compiled.load_full();
        if compiled.revisions == revisions {
            return compiled;
        }
        // Two may do this at once; both make the same.
        let all = |kind: Option<&Kind>| -> Vec<Value> {
            let objects = kind.and_then(|kind| self.cache.objects(kind).ok()).unwrap_or_default();
            objects.values().filter_map(|object| object.value().ok()).collect()
        };
        let [policies, bindings, mutating, mutating_bindings] = KINDS.map(all);
        let fresh = Arc::new(Compiled {
            revisions,
            validating: compile::policies(&policies, &bindings, false),
            mutating: compile::policies(&mutating, &mutating_bindings, true),
        });
        self.compiled.store(fresh.clone());
        fresh
    }
}

/// The mutating policies of the first phase. May change `attributes.object`.
pub fn mutate(server: &ApiServer, attributes: &mut Attributes<'_>) -> Result<(), Status> {
    run_mutating(server, attributes, false)
}

/// Those of them that want to see again what others have changed since.
pub fn mutate_again(server: &ApiServer, attributes: &mut Attributes<'_>) -> Result<(), Status> {
    run_mutating(server, attributes, true)
}

fn run_mutating(server: &ApiServer, attributes: &mut Attributes<'_>, again: bool) -> Result<(), Status> {
    let compiled = server.policies.current();
    if compiled.mutating.is_empty() || exempt(attributes) || attributes.object.is_null() {
        return Ok(());
    }
    let (object, mutated) = (attributes.object.clone(), attributes.mutated);
    let pace = Pace::new(offload::INLINE);
    let result = mutating::run(server, &compiled.mutating, attributes, again, Some(&pace));
    if !pace.is_over() {
        return result;
    }
    (attributes.object, attributes.mutated) = (object, mutated);
    offload::blocking(|| mutating::run(server, &compiled.mutating, attributes, again, None))
}

/// The validating policies of the second phase.
pub fn validate(server: &ApiServer, attributes: &Attributes<'_>) -> Result<(), Status> {
    let compiled = server.policies.current();
    if compiled.validating.is_empty() || exempt(attributes) {
        return Ok(());
    }
    let judge = |pace: Option<&Pace>| validating::judge(server, &compiled.validating, attributes, pace);
    validating::act(offload::evaluate(judge), attributes)
}

/// Policies and webhooks themselves, and questions about access, which are not writes.
fn exempt(attributes: &Attributes<'_>) -> bool {
    let questions = ["authentication.k8s.io", "authorization.k8s.io"];
    attributes.kind.group == GROUP || questions.contains(&attributes.kind.group)
}

/// Why a policy could not judge a request; its failure policy says what becomes of that.
struct Failure {
    binding: Option<String>,
    message: String,
}

impl Failure {
    fn policy(why: &str) -> Self {
        Self { binding: None, message: format!("failed to configure policy: {why}") }
    }

    fn binding(name: &str, why: &str) -> Self {
        Self { binding: Some(name.to_owned()), message: format!("failed to configure binding: {why}") }
    }
}

/// A policy that is to run: under a binding, with one parameter object or none.
struct Invocation<'a> {
    policy: &'a Policy,
    binding: &'a compile::Binding,
    params: Option<Value>,
    /// The row in whose form the policy sees the object.
    row: matching::Row<'a>,
}

/// The policies that are about a request, with each of their parameters; and what failed on the way.
fn select<'a>(
    server: &ApiServer,
    policies: &'a [Policy],
    attributes: &Attributes<'a>,
) -> (Vec<Invocation<'a>>, Vec<(&'a Policy, Failure)>) {
    let (mut invocations, mut failures) = (Vec::new(), Vec::new());
    for policy in policies {
        let Some(row) = policy.constraints.matches(server, attributes) else { continue };
        if let Some(why) = policy.param_kind.as_ref().and_then(|kind| params::unknown(server, kind)) {
            failures.push((policy, Failure::policy(&why)));
            continue;
        }
        for binding in &policy.bindings {
            if binding.resources.as_ref().is_some_and(|resources| resources.matches(server, attributes).is_none()) {
                continue;
            }
            match params::collect(server, policy, binding, attributes.namespace) {
                Ok(all) => invocations.extend(all.into_iter().map(|params| {
                    let row = row.clone();
                    Invocation { policy, binding, params, row }
                })),
                Err(why) => failures.push((policy, Failure::binding(&binding.name, &why))),
            }
        }
    }
    (invocations, failures)
}
