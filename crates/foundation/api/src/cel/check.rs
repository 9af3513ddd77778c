//! What can be said of an expression before it is evaluated: names and functions there are, and types that fit.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use regex::Regex;

use super::ast::{Expr, Fold, FoldKind, Node, Op};
use super::functions::{self, strings_compile};
use super::types::Type;
use super::value::Value;
use super::{CompileError, Environment};

/// What the check found.
pub struct Checked {
    pub result: Type,
    pub variables: BTreeSet<Arc<str>>,
    pub members: BTreeSet<String>,
    pub patterns: HashMap<String, Regex>,
}

/// Patterns that an expression may hold: each takes memory as long as the expression does.
const MOST_PATTERNS: usize = 64;

pub fn check(source: &str, root: &Node, environment: &Environment) -> Result<Checked, CompileError> {
    let mut checker = Checker {
        source,
        environment,
        scope: Vec::new(),
        variables: BTreeSet::new(),
        members: BTreeSet::new(),
        patterns: HashMap::new(),
        problems: Vec::new(),
    };
    let result = checker.node(root);
    if checker.problems.is_empty() {
        let Checker { variables, members, patterns, .. } = checker;
        return Ok(Checked { result, variables, members, patterns });
    }
    Err(CompileError::new(checker.problems.join("\n")))
}

struct Checker<'a> {
    source: &'a str,
    environment: &'a Environment,
    scope: Vec<(Arc<str>, Type)>,
    variables: BTreeSet<Arc<str>>,
    members: BTreeSet<String>,
    patterns: HashMap<String, Regex>,
    problems: Vec<String>,
}

impl Checker<'_> {
    /// Notes a problem; what is wrong may be anything from there on.
    fn problem(&mut self, at: usize, why: &str) -> Type {
        if self.problems.len() < 10 {
            self.problems.push(CompileError::at(self.source, at, why).to_string());
        }
        Type::Any
    }

    fn undeclared(&mut self, at: usize, name: &str) -> Type {
        self.problem(at, &format!("undeclared reference to '{name}' (in container '')"))
    }

    fn no_overload(&mut self, at: usize, name: &str, target: Option<&Type>, args: &[Type]) -> Type {
        let args: Vec<String> = args.iter().map(Type::to_string).collect();
        let target = target.map(|target| format!("{target}.")).unwrap_or_default();
        let why = format!("found no matching overload for '{name}' applied to '{target}({})'", args.join(", "));
        self.problem(at, &why)
    }

    fn node(&mut self, node: &Node) -> Type {
        let at = node.at;
        match &node.expr {
            Expr::Literal(value) => type_of(value),
            Expr::Ident(name) => self.ident(at, name),
            Expr::Select { of, field, optional, test } => {
                if let Expr::Ident(variable) = &of.expr {
                    self.members.insert(format!("{variable}.{field}"));
                }
                let of = self.node(of);
                self.select(at, &of, field, *optional, *test)
            }
            Expr::Index { of, index, optional } => {
                let (of, index) = (self.node(of), self.node(index));
                let (of, optional) = unwrapped(of, *optional);
                let found = match (&of, &index) {
                    (Type::Any | Type::Object(_), _) => Type::Any,
                    (Type::List(item), index) if index.is_number() || index.is_any() => (**item).clone(),
                    (Type::Map(value), _) => (**value).clone(),
                    _ => return self.no_overload(at, "_[_]", None, &[of, index]),
                };
                if optional { Type::Optional(found.into()) } else { found }
            }
            Expr::Call { target, name, args } => self.call(at, target.as_deref(), name, args),
            Expr::Not(inner) => {
                let inner = self.node(inner);
                if inner.fits(&Type::Bool) { Type::Bool } else { self.no_overload(at, "!_", None, &[inner]) }
            }
            Expr::Negate(inner) => match self.node(inner) {
                inner @ (Type::Any | Type::Int | Type::Double) => inner,
                inner => self.no_overload(at, "-_", None, &[inner]),
            },
            Expr::Binary(op, left, right) => {
                let (left, right) = (self.node(left), self.node(right));
                binary(*op, &left, &right).unwrap_or_else(|| self.no_overload(at, op.name(), None, &[left, right]))
            }
            Expr::And(all) | Expr::Or(all) => {
                let name = if matches!(node.expr, Expr::And(_)) { "_&&_" } else { "_||_" };
                let types: Vec<Type> = all.iter().map(|node| self.node(node)).collect();
                if types.iter().any(|of| !of.fits(&Type::Bool)) {
                    self.no_overload(at, name, None, &types);
                }
                Type::Bool
            }
            Expr::If(test, yes, no) => {
                let (test, yes, no) = (self.node(test), self.node(yes), self.node(no));
                if !test.fits(&Type::Bool) || !yes.fits(&no) {
                    return self.no_overload(at, "_?_:_", None, &[test, yes, no]);
                }
                yes.join(&no)
            }
            Expr::List(entries) => {
                let types: Vec<Type> = entries.iter().map(|entry| self.node(&entry.value)).collect();
                let optional = entries.iter().any(|entry| entry.optional);
                Type::List(if optional { Type::Any } else { joined(&types) }.into())
            }
            Expr::Map(entries) => {
                let mut types = Vec::new();
                for entry in entries {
                    self.node(&entry.value.0);
                    types.push(self.node(&entry.value.1));
                }
                let optional = entries.iter().any(|entry| entry.optional);
                Type::Map(if optional { Type::Any } else { joined(&types) }.into())
            }
            Expr::Struct { name, fields } => {
                for entry in fields {
                    self.node(&entry.value.1);
                }
                let known = &**name == "JSONPatch" || &**name == "Object" || name.starts_with("Object.");
                if self.environment.mutation && known { Type::Any } else { self.undeclared(at, name) }
            }
            Expr::Fold(fold) => self.fold(at, fold),
            Expr::Bind { name, value, body } => {
                let value = self.node(value);
                self.with(vec![(name.clone(), value)], body)
            }
        }
    }

    fn with(&mut self, variables: Vec<(Arc<str>, Type)>, body: &Node) -> Type {
        let outer = self.scope.len();
        self.scope.extend(variables);
        let result = self.node(body);
        self.scope.truncate(outer);
        result
    }

    fn ident(&mut self, at: usize, name: &Arc<str>) -> Type {
        if let Some((_, of)) = self.scope.iter().rev().find(|(known, _)| known == name) {
            return of.clone();
        }
        if let Some((_, of)) = self.environment.variables.iter().find(|(known, _)| known == name) {
            self.variables.insert(name.clone());
            return of.clone();
        }
        if functions::type_named(name).is_some() { Type::Any } else { self.undeclared(at, name) }
    }

    fn select(&mut self, at: usize, of: &Type, field: &str, optional: bool, test: bool) -> Type {
        let (of, optional) = unwrapped(of.clone(), optional);
        let found = match &of {
            Type::Any => Type::Any,
            Type::Map(value) => (**value).clone(),
            Type::Object(object) => match object.fields.get(field) {
                Some(found) => found.clone(),
                None => return self.problem(at, &format!("undefined field '{field}'")),
            },
            other => return self.problem(at, &format!("type '{other}' does not support field selection")),
        };
        match (test, optional) {
            (true, _) => Type::Bool,
            (_, true) => Type::Optional(found.into()),
            _ => found,
        }
    }

    fn call(&mut self, at: usize, target: Option<&Node>, name: &str, args: &[Node]) -> Type {
        let target = target.map(|target| self.node(target));
        let types: Vec<Type> = args.iter().map(|arg| self.node(arg)).collect();
        let mut rows = functions::signatures(name, target.is_some()).peekable();
        if rows.peek().is_none() {
            return self.undeclared(at, name);
        }
        let Some(row) = rows.find(|row| (row.least..=row.most).contains(&types.len())) else {
            return self.no_overload(at, name, target.as_ref(), &types);
        };
        if !receives(target.as_ref(), name, &types) {
            return self.no_overload(at, name, target.as_ref(), &types);
        }
        if matches!(name, "matches" | "find" | "findAll") {
            let pattern = if target.is_some() { args.first() } else { args.get(1) };
            if let Some(Expr::Literal(Value::String(pattern))) = pattern.map(|node| &node.expr)
                && self.patterns.len() < MOST_PATTERNS
            {
                match strings_compile(pattern) {
                    Ok(compiled) => drop(self.patterns.insert(pattern.to_string(), compiled)),
                    Err(why) => return self.problem(at, &why),
                }
            }
        }
        if let (Some(Type::Optional(inner)), "orValue" | "value") = (&target, name) {
            return (**inner).clone();
        }
        if let (Some(of @ Type::Optional(_)), "or") = (&target, name) {
            return of.clone();
        }
        row.gives.of(target.as_ref())
    }

    fn fold(&mut self, at: usize, fold: &Fold) -> Type {
        let over = self.node(&fold.over);
        let optional = matches!(fold.kind, FoldKind::OptMap | FoldKind::OptFlatMap);
        let (key, item) = match &over {
            Type::Any | Type::Object(_) => (Type::Any, Type::Any),
            Type::List(item) if !optional => (Type::Int, (**item).clone()),
            Type::Map(value) if !optional => (Type::String, (**value).clone()),
            Type::Optional(value) if optional => (Type::Any, (**value).clone()),
            other => {
                let why = format!(
                    "expression of type '{other}' cannot be range of a comprehension (must be list, map, or dynamic)"
                );
                return self.problem(fold.over.at, &why);
            }
        };
        let variables = match &fold.second {
            Some(second) => vec![(fold.first.clone(), key.clone()), (second.clone(), item.clone())],
            None if matches!(over, Type::Map(_)) => vec![(fold.first.clone(), key.clone())],
            None => vec![(fold.first.clone(), item.clone())],
        };
        let mut wants_bool = fold.filter.iter().map(|filter| self.with(variables.clone(), filter)).collect::<Vec<_>>();
        let body = self.with(variables, &fold.body);
        let tests = matches!(fold.kind, FoldKind::All | FoldKind::Exists | FoldKind::ExistsOne | FoldKind::Filter);
        if tests {
            wants_bool.push(body.clone());
        }
        if let Some(other) = wants_bool.iter().find(|of| !of.fits(&Type::Bool)) {
            return self.problem(at, &format!("expected type 'bool' but found '{other}'"));
        }
        match fold.kind {
            FoldKind::All | FoldKind::Exists | FoldKind::ExistsOne => Type::Bool,
            FoldKind::Filter if matches!(over, Type::Map(_)) => Type::List(key.into()),
            FoldKind::Filter | FoldKind::SortBy => Type::List(item.into()),
            FoldKind::Map => Type::List(body.into()),
            FoldKind::TransformMap | FoldKind::TransformMapEntry => Type::Any,
            FoldKind::OptMap => Type::Optional(body.into()),
            FoldKind::OptFlatMap => body,
        }
    }
}

/// What lies in an optional; looking into it gives an optional again.
fn unwrapped(of: Type, optional: bool) -> (Type, bool) {
    match of {
        Type::Optional(inner) => ((*inner).clone(), true),
        other => (other, optional),
    }
}

fn joined(types: &[Type]) -> Type {
    let Some((first, rest)) = types.split_first() else { return Type::Any };
    rest.iter().fold(first.clone(), |all, of| all.join(of))
}

/// What an operator gives; `None` when it takes no such operands.
fn binary(op: Op, left: &Type, right: &Type) -> Option<Type> {
    use Type::{Any, Bool, Bytes, Double, Duration, Int, List, Map, String, Timestamp, Uint};
    let ordered = |of: &Type| {
        let known = matches!(of, Bool | Int | Uint | Double | String | Bytes | Timestamp | Duration);
        known || of.is_any()
    };
    match op {
        Op::Eq | Op::Ne => left.fits(right).then_some(Bool),
        Op::Lt | Op::Le | Op::Gt | Op::Ge => {
            let numbers = left.is_number() && right.is_number();
            (ordered(left) && ordered(right) && (numbers || left.fits(right))).then_some(Bool)
        }
        Op::In => match right {
            Any | Type::Object(_) => Some(Bool),
            List(item) => left.fits(item).then_some(Bool),
            Map(_) => left.fits(&String).then_some(Bool),
            _ => None,
        },
        _ => match (op, left, right) {
            (_, Any, _) | (_, _, Any) => Some(Any),
            (_, Int, Int) => Some(Int),
            (_, Uint, Uint) => Some(Uint),
            (Op::Add | Op::Sub | Op::Mul | Op::Div, Double, Double) => Some(Double),
            (Op::Add, String, String) => Some(String),
            (Op::Add, Bytes, Bytes) => Some(Bytes),
            (Op::Add, List(one), List(two)) if one.fits(two) => Some(List(one.join(two).into())),
            (Op::Add | Op::Sub, Timestamp, Duration) | (Op::Add, Duration, Timestamp) => Some(Timestamp),
            (Op::Sub, Timestamp, Timestamp) | (Op::Add | Op::Sub, Duration, Duration) => Some(Duration),
            _ => None,
        },
    }
}

/// Whether a function of text has text: the mistake that is made most.
fn receives(target: Option<&Type>, name: &str, args: &[Type]) -> bool {
    let text = |of: Option<&Type>| of.is_none_or(|of| of.fits(&Type::String));
    match name {
        "contains" | "startsWith" | "endsWith" | "matches" | "find" => {
            text(target) && args.iter().all(|of| text(Some(of)))
        }
        "lowerAscii" | "upperAscii" | "trim" | "charAt" | "substring" | "replace" | "split" => text(target),
        "size" => {
            let of = target.or(args.first());
            !matches!(of, Some(Type::Bool | Type::Int | Type::Uint | Type::Double | Type::Null))
        }
        "quantity" | "ip" | "cidr" | "url" if target.is_none() => text(args.first()),
        _ => true,
    }
}

fn type_of(value: &Value) -> Type {
    match value {
        Value::Null => Type::Null,
        Value::Bool(_) => Type::Bool,
        Value::Int(_) => Type::Int,
        Value::Uint(_) => Type::Uint,
        Value::Double(_) => Type::Double,
        Value::String(_) => Type::String,
        Value::Bytes(_) => Type::Bytes,
        _ => Type::Any,
    }
}
