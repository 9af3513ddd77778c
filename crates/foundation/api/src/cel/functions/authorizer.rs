//! Kubernetes' authorizer library: an expression asks what the requesting user, or a service account, may do.

use std::fmt;
use std::sync::Arc;

use super::Result1;
use crate::cel::eval::{EvalError, Evaluation};
use crate::cel::value::Value;

/// Cost of one check, as upstream has it.
const CHECK_COST: usize = 350_000;

/// One question.
#[derive(Debug, Clone, Default)]
pub struct Question {
    /// Somebody else than the requesting user: namespace and name of a service account.
    pub account: Option<(String, String)>,
    /// A path that is no resource's.
    pub path: Option<String>,
    pub group: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
    pub verb: String,
}

/// An answer, and why it is that.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    pub allowed: bool,
    pub reason: String,
}

/// Answers questions.
pub trait Ask: Send + Sync {
    fn ask(&self, question: &Question) -> Answer;
}

/// A question in the making, or answered.
#[derive(Clone)]
pub struct Authorizer {
    ask: Arc<dyn Ask>,
    question: Question,
    answer: Option<Arc<Answer>>,
}

impl fmt::Debug for Authorizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authorizer").field("question", &self.question).finish_non_exhaustive()
    }
}

impl Authorizer {
    pub fn new(ask: Arc<dyn Ask>, question: Question) -> Self {
        Self { ask, question, answer: None }
    }
}

pub fn call(on: &mut Evaluation, authorizer: &Authorizer, name: &str, args: &[Value]) -> Result1 {
    let mut next = authorizer.clone();
    match (&authorizer.answer, name, args) {
        (Some(answer), "allowed", []) => return Ok(Value::Bool(answer.allowed)),
        (Some(answer), "reason", []) => return Ok(Value::text(&answer.reason)),
        // Roles are looked up in memory: that cannot fail.
        (Some(_), "errored", []) => return Ok(Value::Bool(false)),
        (Some(_), "error", []) => return Ok(Value::text("")),
        (None, "check", [Value::String(verb)]) => {
            on.meter.charge_only(CHECK_COST)?;
            next.question.verb = verb.to_string();
            next.answer = Some(Arc::new(next.ask.ask(&next.question)));
        }
        (None, "serviceAccount", [Value::String(namespace), Value::String(name)]) => {
            next.question.account = Some((namespace.to_string(), name.to_string()));
        }
        (None, "path", [Value::String(path)]) => next.question.path = Some(path.to_string()),
        (None, "group", [Value::String(group)]) => next.question.group = group.to_string(),
        (None, "resource", [Value::String(resource)]) => next.question.resource = resource.to_string(),
        (None, "subresource", [Value::String(subresource)]) => next.question.subresource = subresource.to_string(),
        (None, "namespace", [Value::String(namespace)]) => next.question.namespace = namespace.to_string(),
        (None, "name", [Value::String(name)]) => next.question.name = name.to_string(),
        // Selectors only narrow what is asked; the roles here do not look at them.
        (None, "fieldSelector" | "labelSelector", [Value::String(_)]) => {}
        _ => return Err(EvalError::no_overload()),
    }
    Ok(Value::Authorizer(next.into()))
}
