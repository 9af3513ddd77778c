//! Kubernetes' expression language (CEL): compile once, evaluate often, at a bounded cost.
//!
//! - [`Program::compile`]: text to a checked tree ([`lexer`], [`parser`], [`check`]).
//! - [`Program::evaluate`]: the tree to a value ([`eval`]); every step is charged to a [`Meter`], in units close to
//!   upstream's, so that no expression runs long or grows large.
//! - [`Program::estimate`]: what it may cost at most, for values of a known extent ([`cost`]).
//! - [`admission`]: what expressions in policies and webhooks may name.
//! - [`devices`]: selectors of devices.
//! - [`functions`]: the libraries: the language's own, and Kubernetes'.
//!
//! Nothing here panics or recurses without bound, whatever the text: trees and values have a greatest depth.

pub mod admission;
mod ast;
mod check;
mod cost;
pub mod declared;
pub mod devices;
mod eval;
mod functions;
mod lexer;
mod parser;
#[cfg(test)]
mod tests;
mod types;
mod value;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use regex::Regex;

pub use cost::{Extent, ExtentKind};
pub use eval::{EvalError, Meter, NoVariables, Pace, Variables};
pub use functions::authorizer::{Answer, Ask, Authorizer, Question};
pub use functions::escaped;
pub use functions::time::parse_duration;
pub use types::{ObjectType, Type};
pub use value::{Key, List, Map, Value};

/// Whether the language keeps the name for itself; a field may have it all the same, see [`escaped`].
pub fn is_keyword(name: &str) -> bool {
    ["true", "false", "null", "in"].contains(&name) || parser::RESERVED.contains(&name)
}

/// Cost that one evaluation may have.
pub const CALL_LIMIT: u64 = 1_000_000;
/// Cost that all expressions about one object may have together.
pub const BUDGET: u64 = 10_000_000;
/// Cost that the match conditions of a policy or webhook may have together.
pub const CONDITIONS_BUDGET: u64 = 2_500_000;

/// Why an expression is none, in upstream's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CompileError(String);

impl CompileError {
    /// An error at a character of the source, shown with its line.
    fn at(source: &str, at: usize, why: &str) -> Self {
        let mut line = 1;
        let mut column = 0;
        let mut text = String::new();
        for (index, c) in source.chars().enumerate() {
            if c == '\n' {
                if index >= at {
                    break;
                }
                line += 1;
                column = 0;
                text.clear();
                continue;
            }
            text.push(c);
            column += usize::from(index < at);
        }
        let marker = format!("{}^", ".".repeat(column));
        Self(format!("ERROR: <input>:{line}:{}: {why}\n | {text}\n | {marker}", column + 1))
    }

    pub fn new(why: impl Into<String>) -> Self {
        Self(why.into())
    }
}

/// What an expression may name, and what it is.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    pub variables: Vec<(Arc<str>, Type)>,
    /// Whether `Object{…}` and `JSONPatch{…}` may be written.
    pub mutation: bool,
}

impl Environment {
    /// Variables of which nothing is known before they have a value.
    pub fn of(names: &[&str]) -> Self {
        Self { variables: names.iter().map(|name| ((*name).into(), Type::Any)).collect(), mutation: false }
    }

    #[must_use]
    pub fn with(mut self, name: &str, of: Type) -> Self {
        self.variables.retain(|(known, _)| &**known != name);
        self.variables.push((name.into(), of));
        self
    }
}

/// An expression that was checked.
#[derive(Debug, Clone)]
pub struct Program {
    source: Arc<str>,
    root: Arc<ast::Node>,
    /// What it gives, as far as that is known.
    result: Type,
    variables: BTreeSet<Arc<str>>,
    /// Fields of variables that it reads, as `variable.field`.
    members: BTreeSet<String>,
    /// Patterns written in the expression, compiled.
    patterns: Arc<HashMap<String, Regex>>,
}

impl Program {
    /// Reads and checks an expression.
    pub fn compile(source: &str, environment: &Environment) -> Result<Self, CompileError> {
        let root = parser::parse(source)?;
        let checked = check::check(source, &root, environment)?;
        Ok(Self {
            source: source.into(),
            root: Arc::new(root),
            result: checked.result,
            variables: checked.variables,
            members: checked.members,
            patterns: Arc::new(checked.patterns),
        })
    }

    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether it may give a bool.
    pub fn gives_bool(&self) -> bool {
        matches!(self.result, Type::Bool | Type::Any)
    }

    /// Whether it may give a string.
    pub fn gives_string(&self) -> bool {
        matches!(self.result, Type::String | Type::Any)
    }

    pub fn result(&self) -> &Type {
        &self.result
    }

    /// Whether it names this variable.
    pub fn uses(&self, variable: &str) -> bool {
        self.variables.contains(variable)
    }

    /// Whether it reads this field of this variable by name.
    pub fn reads(&self, variable: &str, field: &str) -> bool {
        self.members.contains(&format!("{variable}.{field}"))
    }

    /// The most it may cost, about values that are at most so large; `u64::MAX` where there is no limit.
    pub fn estimate(&self, subject: &Extent) -> u64 {
        cost::estimate(&self.root, subject)
    }

    /// Evaluates; the cost goes to the meter, which ends what costs too much.
    pub fn evaluate(&self, variables: &dyn Variables, meter: &mut Meter) -> Result<Value, EvalError> {
        eval::evaluate(&self.root, &self.patterns, variables, meter)
    }
}
