//! What expressions in policies and webhooks may name.

use std::sync::Arc;

use super::{Environment, ObjectType, Program, Type};

/// The names of an expression about a request.
#[derive(Debug, Clone, Default)]
pub struct Names {
    /// Whether the policy takes parameters.
    pub params: bool,
    /// Whether it may ask what a user may do.
    pub authorizer: bool,
    /// Whether it makes a change: `Object{…}`, `JSONPatch{…}`.
    pub mutation: bool,
    /// The policy's variables so far, and what each gives; `None` where there are none to speak of.
    pub variables: Option<Vec<(Arc<str>, Type)>>,
}

impl Names {
    pub fn environment(&self) -> Environment {
        let mut environment = Environment::of(&["object", "oldObject", "request", "namespaceObject"]);
        environment.mutation = self.mutation;
        if self.params {
            environment = environment.with("params", Type::Any);
        }
        if self.authorizer {
            environment = environment.with("authorizer", Type::Any);
        }
        if let Some(variables) = &self.variables {
            let fields = variables.iter().map(|(name, of)| (name.to_string(), of.clone())).collect();
            let object = ObjectType { name: "kubernetes.variables".into(), fields };
            environment = environment.with("variables", Type::Object(object.into()));
        }
        environment
    }

    /// Compiles an expression that is to give one of these types; says in upstream's words why not.
    pub fn compile(&self, source: &str, gives: &[Type]) -> Result<Program, String> {
        let program =
            Program::compile(source, &self.environment()).map_err(|error| format!("compilation failed: {error}"))?;
        if gives.is_empty() || gives.iter().any(|of| of.fits(program.result())) {
            return Ok(program);
        }
        let wanted: Vec<String> = gives.iter().map(Type::to_string).collect();
        Err(match wanted.as_slice() {
            [one] => format!("must evaluate to {one}"),
            many => format!("must evaluate to one of: {}", many.join(", ")),
        })
    }
}
