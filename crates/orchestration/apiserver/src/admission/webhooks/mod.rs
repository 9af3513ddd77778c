//! Webhooks: admission by servers of others, as `admissionregistration.k8s.io` configures them.
//!
//! [`hook`] is what a configuration says, [`rules`] and [`conditions`] whether it is about a write, [`review`] the
//! documents that go to and fro; the way there is [`crate::webhook`]. Without configurations, a write pays for comparing two numbers.

mod conditions;
mod hook;
mod review;
mod rules;

use std::collections::BTreeSet;
use std::sync::Arc;

use arc_swap::ArcSwap;
use dhow_api::{Status, defaulting, descriptor, meta};
use serde_json::{Value, json};

use super::Attributes;
use crate::ApiServer;
use crate::bootstrap::SERVER;
use crate::cache::Cache;
use crate::identity::UserInfo;
use hook::Hook;
use review::Review;

/// Largest answer that is read: an object's worth of patches.
const MAX_ANSWER: usize = 3 << 20;

/// All configurations, read when one of them changes.
pub struct Webhooks {
    cache: Arc<Cache>,
    compiled: ArcSwap<Compiled>,
}

#[derive(Default)]
struct Compiled {
    /// The newest change of each of [`hook::PLURALS`] that is in here.
    revisions: [u64; 2],
    mutating: Vec<Hook>,
    validating: Vec<Hook>,
}

impl Webhooks {
    pub fn new(cache: Arc<Cache>) -> Self {
        Self { cache, compiled: ArcSwap::default() }
    }

    /// The hooks for a user's writes. The server's own are nobody's to judge: it has to start also when a webhook that
    /// runs on it does not answer yet.
    fn of(&self, user: &UserInfo) -> Arc<Compiled> {
        if user.name == SERVER && user.is_master() { Arc::default() } else { self.current() }
    }

    fn current(&self) -> Arc<Compiled> {
        let revisions = hook::PLURALS.map(|plural| hook::kind(plural).map_or(0, |kind| self.cache.changed(kind)));
        let compiled = self.compiled.load_full();
        if compiled.revisions == revisions {
            return compiled;
        }
        // Two may do this at once; both make the same. Connections outlive the change.
        let known: Vec<&Hook> = compiled.mutating.iter().chain(&compiled.validating).collect();
        let read = |plural| hook::read(&self.cache, plural, &known);
        let fresh = Compiled { revisions, mutating: read(hook::PLURALS[0]), validating: read(hook::PLURALS[1]) };
        let fresh = Arc::new(fresh);
        self.compiled.store(fresh.clone());
        fresh
    }
}

/// Why a webhook does not let a write pass.
pub enum Failure {
    /// It could not be asked, or said nothing that makes sense: its failure policy decides.
    Call(String),
    Refused(Box<Status>),
}

/// One write's way through the mutating webhooks: once, and for some once more when others changed the object after
/// they had seen it.
pub struct Mutating {
    hooks: Arc<Compiled>,
    /// Asked since the object last changed; only those that want to be asked again.
    asked: BTreeSet<usize>,
    again: BTreeSet<usize>,
}

impl Mutating {
    pub fn new(server: &ApiServer, user: &UserInfo) -> Self {
        Self { hooks: server.webhooks.of(user), asked: BTreeSet::new(), again: BTreeSet::new() }
    }

    /// Asks all; returns whether one changed the object.
    pub async fn ask(&mut self, server: &ApiServer, attributes: &mut Attributes<'_>) -> Result<bool, Status> {
        self.run(server, attributes, false).await
    }

    /// Somebody else changed the object.
    pub fn changed(&mut self) {
        self.again.append(&mut self.asked);
    }

    /// Asks those again that saw another object.
    pub async fn ask_again(&mut self, server: &ApiServer, attributes: &mut Attributes<'_>) -> Result<(), Status> {
        if self.again.is_empty() {
            return Ok(());
        }
        self.run(server, attributes, true).await.map(drop)
    }

    async fn run(&mut self, server: &ApiServer, attributes: &mut Attributes<'_>, second: bool) -> Result<bool, Status> {
        let hooks = self.hooks.clone();
        let wanted = if second { std::mem::take(&mut self.again) } else { BTreeSet::new() };
        let mut any = false;
        for (index, hook) in hooks.mutating.iter().enumerate() {
            if second && !wanted.contains(&index) && !self.again.contains(&index) {
                continue;
            }
            let Some(review) = review_for(server, hook, attributes)? else { continue };
            let place = format!("round_{}_index_{index}", u8::from(second));
            let Some(answer) = answered(hook, ask(hook, &review, attributes).await, attributes, ("mutation", &place))?
            else {
                continue;
            };
            let changed = match &answer.patch {
                Some(patch) => apply(hook, &review, patch, attributes)?,
                None => false,
            };
            record_mutation(hook, attributes, &place, changed, answer.patch.as_ref());
            if changed {
                any = true;
                attributes.mutated = true;
                self.changed();
            }
            if hook.reinvoked {
                self.asked.insert(index);
            }
        }
        Ok(any)
    }
}

/// Asks all validating webhooks at once; the first refusal counts.
pub async fn validate(server: &ApiServer, attributes: &Attributes<'_>) -> Result<(), Status> {
    let hooks = server.webhooks.of(attributes.user);
    if hooks.validating.is_empty() {
        return Ok(());
    }
    let mut questions = Vec::new();
    for hook in &hooks.validating {
        if let Some(review) = review_for(server, hook, attributes)? {
            questions.push((hook, review));
        }
    }
    let answers = questions.iter().enumerate().map(|(index, (hook, review))| async move {
        let place = format!("round_0_index_{index}");
        answered(hook, ask(hook, review, attributes).await, attributes, ("validating", &place))
    });
    for answer in futures::future::join_all(answers).await {
        answer?;
    }
    Ok(())
}

/// What to ask a hook about the write; `None` if it is not the hook's.
fn review_for(server: &ApiServer, hook: &Hook, attributes: &Attributes<'_>) -> Result<Option<Review>, Status> {
    let Some(row) = rules::row_for(server, hook, attributes) else { return Ok(None) };
    if !rules::in_namespace(server, hook, attributes)? || !rules::selects(hook, attributes) {
        return Ok(None);
    }
    let review = Review::new(row, attributes);
    match conditions::hold(server, attributes, &hook.conditions, &review.document["request"]) {
        Ok(holds) => Ok(holds.then_some(review)),
        Err(why) if hook.ignores_failure => {
            tracing::warn!(webhook = hook.name, why, "cannot tell whether a webhook is concerned; going on without");
            Ok(None)
        }
        Err(why) => Err(attributes.forbidden(&why)),
    }
}

async fn ask(hook: &Hook, review: &Review, attributes: &Attributes<'_>) -> Result<review::Answer, Failure> {
    if attributes.dry_run && !hook.dry_runs {
        let why = format!("admission webhook {:?} does not support dry run", hook.name);
        return Err(Failure::Refused(Box::new(Status::bad_request(why))));
    }
    let bytes = hook.endpoint.post(&review.document, MAX_ANSWER).await;
    let bytes = bytes.map_err(|why| Failure::Call(format!("failed to call webhook: {why}")))?;
    let answer = review.read(hook, &bytes)?;
    for text in &answer.warnings {
        attributes.warnings.add(text);
    }
    for (key, value) in &answer.annotations {
        attributes.record(&format!("{}/{key}", hook.name), value);
    }
    match answer.refusal {
        Some(status) => Err(Failure::Refused(status)),
        None => Ok(answer),
    }
}

/// Records which webhook was asked, and what it changed where bodies are recorded too.
fn record_mutation(hook: &Hook, attributes: &Attributes<'_>, place: &str, changed: bool, patch: Option<&Value>) {
    let Some(trail) = &attributes.trail else { return };
    let (configuration, webhook) = (&hook.configuration, &hook.name);
    let asked = json!({"configuration": configuration, "webhook": webhook, "mutated": changed});
    trail.annotate(&format!("mutation.webhook.admission.k8s.io/{place}"), &asked.to_string());
    if let Some(patch) = patch.filter(|_| changed && trail.wants_bodies()) {
        let patch =
            json!({"configuration": configuration, "webhook": webhook, "patch": patch, "patchType": "JSONPatch"});
        trail.annotate(&format!("patch.webhook.admission.k8s.io/{place}"), &patch.to_string());
    }
}

/// A failed call passes if the hook's policy is to ignore it. `sort` and `place` say which call it was.
fn answered(
    hook: &Hook,
    result: Result<review::Answer, Failure>,
    attributes: &Attributes<'_>,
    (sort, place): (&str, &str),
) -> Result<Option<review::Answer>, Status> {
    match result {
        Ok(answer) => Ok(Some(answer)),
        Err(Failure::Refused(status)) => Err(*status),
        Err(Failure::Call(why)) if hook.ignores_failure => {
            tracing::warn!(webhook = hook.name, why, "cannot ask a webhook; going on without");
            attributes.record(&format!("failed-open.{sort}.webhook.admission.k8s.io/{place}"), &hook.name);
            Ok(None)
        }
        Err(Failure::Call(why)) => Err(Status::internal(format!("failed calling webhook {:?}: {why}", hook.name))),
    }
}

/// Applies a patch to the object in the form the hook saw; returns whether it changed anything.
fn apply(hook: &Hook, review: &Review, patch: &Value, attributes: &mut Attributes<'_>) -> Result<bool, Status> {
    if patch.as_array().is_some_and(Vec::is_empty) {
        return Ok(false);
    }
    if attributes.object.is_null() {
        return Err(Status::internal(format!(
            "admission webhook {:?} attempted to modify the object, which is not supported for this operation",
            hook.name
        )));
    }
    let mut seen = review.object(attributes);
    dhow_api::patch::json(&mut seen, patch).map_err(|error| Status::internal(error.to_string()))?;
    let mut patched = review.back(seen, attributes)?;
    if !attributes.speaks_otherwise() {
        settle(hook, &mut patched, attributes)?;
    }
    if patched == attributes.object {
        return Ok(false);
    }
    attributes.object = patched;
    Ok(true)
}

/// What comes from a webhook is held to the kind like what comes from a client, and cannot become another object.
fn settle(hook: &Hook, object: &mut Value, attributes: &Attributes<'_>) -> Result<(), Status> {
    let identity = |object: &Value| {
        let fields: [&[&str]; 4] = [&["apiVersion"], &["kind"], &["metadata", "name"], &["metadata", "namespace"]];
        fields.map(|path| meta::text(object, path).to_owned())
    };
    if identity(object) != identity(&attributes.object) {
        let why =
            format!("admission webhook {:?} attempted to change the type, name or namespace of the object", hook.name);
        return Err(Status::internal(why));
    }
    // Fields that the kind does not have are dropped.
    let kind = attributes.kind;
    let dropped = match (kind.message(), &kind.custom) {
        (Some(message), _) => descriptor::settle(message, object),
        (None, Some(served)) => served.settle(object),
        (None, None) => Ok(Vec::new()),
    };
    dropped.map_err(|error| Status::internal(error.to_string()))?;
    defaulting::apply(kind, object);
    Ok(())
}
