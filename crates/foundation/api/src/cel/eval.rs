//! Trees to values. Every step is charged, so that evaluation ends soon whatever the expression.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;

use regex::Regex;

use super::ast::{Entry, Expr, Fold, FoldKind, Node, Op};
use super::functions::{self, time};
use super::value::{Key, Value};

/// Why an evaluation gave nothing, in upstream's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct EvalError {
    text: String,
    /// It cost too much: nothing can absorb that.
    spent: bool,
}

impl EvalError {
    pub fn new(text: &str) -> Self {
        Self { text: text.to_owned(), spent: false }
    }

    pub(super) fn no_overload() -> Self {
        Self::new("no such overload")
    }

    pub(super) fn no_key(key: &str) -> Self {
        Self::new(&format!("no such key: {key}"))
    }

    /// Whether the expression was stopped for its cost.
    pub fn is_spent(&self) -> bool {
        self.spent
    }

    pub fn is_no_overload(&self) -> bool {
        self.text.starts_with("no such overload")
    }
}

/// Counts cost: one unit is about one small step.
#[derive(Debug)]
pub struct Meter {
    /// For all evaluations to come.
    left: u64,
    /// For the evaluation that runs.
    call: u64,
    /// Until it is too much for a thread that others wait for.
    pace: Option<Pace>,
}

/// How much may be evaluated on a thread that others wait for: shared by all meters of one piece of work. When it is
/// used up, evaluation stops, and has to be begun anew where it may take its time.
#[derive(Debug, Clone)]
pub struct Pace(Rc<Cell<u64>>);

impl Pace {
    pub fn new(cost: u64) -> Self {
        Self(Rc::new(Cell::new(cost)))
    }

    /// Whether something was stopped for it: then no result counts.
    pub fn is_over(&self) -> bool {
        self.0.get() == 0
    }
}

impl Meter {
    pub fn new(budget: u64) -> Self {
        Self { left: budget, call: super::CALL_LIMIT.min(budget), pace: None }
    }

    /// Stops also when this is used up.
    #[must_use]
    pub fn at(mut self, pace: Option<&Pace>) -> Self {
        self.pace = pace.cloned();
        self
    }

    /// Begins another evaluation; false when nothing is left for it.
    pub fn begin(&mut self) -> bool {
        self.call = super::CALL_LIMIT.min(self.left);
        self.left > 0
    }

    pub fn is_empty(&self) -> bool {
        self.left == 0
    }

    /// Takes `cost` units.
    pub fn charge(&mut self, cost: usize) -> Result<(), EvalError> {
        if let Some(Pace(left)) = &self.pace {
            left.set(left.get().saturating_sub(cost as u64));
            if left.get() == 0 {
                return Err(EvalError { text: "operation interrupted".into(), spent: true });
            }
        }
        self.charge_only(cost)
    }

    /// Takes `cost` units for what costs a budget much and takes no time.
    pub fn charge_only(&mut self, cost: usize) -> Result<(), EvalError> {
        let cost = cost as u64;
        self.left = self.left.saturating_sub(cost);
        match self.call.checked_sub(cost) {
            Some(left) => {
                self.call = left;
                Ok(())
            }
            None => {
                self.call = 0;
                Err(EvalError { text: "operation cancelled: actual cost limit exceeded".into(), spent: true })
            }
        }
    }

    /// For reading or making this many bytes of text.
    pub fn text(&mut self, bytes: usize) -> Result<(), EvalError> {
        self.charge(bytes.div_ceil(10))
    }
}

/// Where variables get their values.
pub trait Variables {
    fn get(&self, name: &str) -> Option<Value>;

    /// A field of a variable that is computed when it is first asked for; `None` when the variable is an ordinary one.
    fn member(&self, _variable: &str, _field: &str, _meter: &mut Meter) -> Option<Result<Value, EvalError>> {
        None
    }
}

/// For expressions that stand alone.
pub struct NoVariables;

impl Variables for NoVariables {
    fn get(&self, _name: &str) -> Option<Value> {
        None
    }
}

impl Variables for HashMap<&str, Value> {
    fn get(&self, name: &str) -> Option<Value> {
        HashMap::get(self, name).cloned()
    }
}

type Result1 = Result<Value, EvalError>;

pub(super) fn evaluate(
    root: &Node,
    patterns: &HashMap<String, Regex>,
    variables: &dyn Variables,
    meter: &mut Meter,
) -> Result1 {
    Evaluation { patterns, variables, meter, scope: Vec::new() }.node(root)
}

pub(super) struct Evaluation<'a> {
    pub patterns: &'a HashMap<String, Regex>,
    variables: &'a dyn Variables,
    pub meter: &'a mut Meter,
    /// Variables of macros, innermost last.
    scope: Vec<(Arc<str>, Value)>,
}

impl Evaluation<'_> {
    fn node(&mut self, node: &Node) -> Result1 {
        self.meter.charge(1)?;
        match &node.expr {
            Expr::Literal(value) => Ok(value.clone()),
            Expr::Ident(name) => self.ident(name),
            Expr::Select { of, field, optional, test } => self.select(of, field, *optional, *test),
            Expr::Index { of, index, optional } => self.index(of, index, *optional),
            Expr::Call { target, name, args } => self.call(target.as_deref(), name, args),
            Expr::Not(inner) => match self.node(inner)? {
                Value::Bool(value) => Ok(Value::Bool(!value)),
                _ => Err(EvalError::no_overload()),
            },
            Expr::Negate(inner) => match self.node(inner)? {
                Value::Int(value) => value.checked_neg().map(Value::Int).ok_or_else(overflow),
                Value::Double(value) => Ok(Value::Double(-value)),
                Value::Duration(value) => value.checked_neg().map(Value::Duration).ok_or_else(overflow),
                _ => Err(EvalError::no_overload()),
            },
            Expr::Binary(op, left, right) => {
                let left = self.node(left)?;
                let right = self.node(right)?;
                self.binary(*op, &left, &right)
            }
            Expr::And(all) => self.junction(all, false),
            Expr::Or(all) => self.junction(all, true),
            Expr::If(test, yes, no) => match self.node(test)? {
                Value::Bool(true) => self.node(yes),
                Value::Bool(false) => self.node(no),
                _ => Err(EvalError::no_overload()),
            },
            Expr::List(entries) => self.list(entries),
            Expr::Map(entries) => self.map(entries),
            Expr::Struct { name, fields } => self.structure(name, fields),
            Expr::Fold(fold) => self.fold(fold),
            Expr::Bind { name, value, body } => {
                let value = self.node(value)?;
                self.with(&[(name, value)], body)
            }
        }
    }

    fn with(&mut self, variables: &[(&Arc<str>, Value)], body: &Node) -> Result1 {
        let outer = self.scope.len();
        self.scope.extend(variables.iter().map(|(name, value)| ((*name).clone(), value.clone())));
        let result = self.node(body);
        self.scope.truncate(outer);
        result
    }

    fn local(&self, name: &str) -> Option<&Value> {
        self.scope.iter().rev().find(|(known, _)| &**known == name).map(|(_, value)| value)
    }

    fn ident(&self, name: &str) -> Result1 {
        self.local(name)
            .cloned()
            .or_else(|| self.variables.get(name))
            .or_else(|| functions::type_named(name))
            .ok_or_else(|| EvalError::new(&format!("no such attribute(s): {name}")))
    }

    fn select(&mut self, of: &Node, field: &Arc<str>, optional: bool, test: bool) -> Result1 {
        if let Expr::Ident(name) = &of.expr
            && self.local(name).is_none()
            && let Some(value) = self.variables.member(name, field, self.meter)
        {
            return if test { Ok(Value::Bool(true)) } else { value };
        }
        let of = self.node(of)?;
        let (of, optional) = match of {
            Value::Optional(None) if test => return Ok(Value::Bool(false)),
            Value::Optional(None) => return Ok(Value::Optional(None)),
            Value::Optional(Some(value)) => ((*value).clone(), true),
            other => (other, optional),
        };
        let Value::Map(map) = &of else {
            if optional && !test && matches!(of, Value::Null) {
                return Ok(Value::Optional(None));
            }
            return Err(match of {
                Value::Null => EvalError::no_key(field),
                other => EvalError::new(&format!("unsupported selection of field {field} on {}", other.type_name())),
            });
        };
        let found = map.entries.get(&Key::String(field.clone()));
        match (test, optional, found) {
            (true, _, found) => Ok(Value::Bool(found.is_some())),
            (_, true, Some(value)) => Value::some(value.clone()),
            (_, true, None) => Ok(Value::Optional(None)),
            (_, false, Some(value)) => Ok(value.clone()),
            (_, false, None) => Err(EvalError::no_key(field)),
        }
    }

    fn index(&mut self, of: &Node, index: &Node, optional: bool) -> Result1 {
        let of = self.node(of)?;
        let index = self.node(index)?;
        let (of, optional) = match of {
            Value::Optional(None) => return Ok(Value::Optional(None)),
            Value::Optional(Some(value)) => ((*value).clone(), true),
            other => (other, optional),
        };
        let found = match (&of, Key::of(&index)) {
            (Value::List(list), Some(Key::Int(_) | Key::Uint(_))) => {
                let at = match index {
                    Value::Int(at) => usize::try_from(at).ok(),
                    Value::Uint(at) => usize::try_from(at).ok(),
                    Value::Double(at) if at >= 0.0 => format!("{at}").parse().ok(),
                    _ => None,
                };
                let found = at.and_then(|at| list.items.get(at));
                found
                    .cloned()
                    .ok_or_else(|| EvalError::new(&format!("index out of bounds: {}", functions::shown(&index))))
            }
            (Value::Map(map), Some(key)) => {
                map.entries.get(&key).cloned().ok_or_else(|| EvalError::no_key(&functions::shown(&index)))
            }
            _ => return Err(EvalError::no_overload()),
        };
        match (optional, found) {
            (true, Ok(value)) => Value::some(value),
            (true, Err(_)) => Ok(Value::Optional(None)),
            (false, found) => found,
        }
    }

    fn call(&mut self, target: Option<&Node>, name: &str, args: &[Node]) -> Result1 {
        // An optional's alternative is evaluated only where it is needed.
        if let (Some(target), "or" | "orValue", [alternative]) = (target, name, args) {
            return match (self.node(target)?, name) {
                (Value::Optional(None), _) => self.node(alternative),
                (value @ Value::Optional(_), "or") => Ok(value),
                (Value::Optional(Some(value)), _) => Ok((*value).clone()),
                _ => Err(EvalError::no_overload()),
            };
        }
        let target = target.map(|target| self.node(target)).transpose()?;
        let mut values = Vec::with_capacity(args.len());
        for arg in args {
            values.push(self.node(arg)?);
        }
        functions::call(self, target.as_ref(), name, &values)
    }

    fn junction(&mut self, all: &[Node], or: bool) -> Result1 {
        let mut failed = None;
        for node in all {
            match self.node(node) {
                Ok(Value::Bool(value)) if value == or => return Ok(Value::Bool(or)),
                Ok(Value::Bool(_)) => {}
                Ok(_) => failed = failed.or_else(|| Some(EvalError::no_overload())),
                Err(error) if error.is_spent() => return Err(error),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(Value::Bool(!or)), Err)
    }

    fn list(&mut self, entries: &[Entry<Node>]) -> Result1 {
        self.meter.charge(10)?;
        let mut items = Vec::with_capacity(entries.len());
        for entry in entries {
            let value = self.node(&entry.value)?;
            items.extend(if entry.optional { present(value)? } else { Some(value) });
        }
        Value::list(items)
    }

    fn map(&mut self, entries: &[Entry<(Node, Node)>]) -> Result1 {
        self.meter.charge(30)?;
        let mut map = BTreeMap::new();
        for entry in entries {
            let (key, value) = &entry.value;
            let key = self.node(key)?;
            let key = match key {
                Value::Double(_) => None,
                key => Key::of(&key),
            };
            let key = key.ok_or_else(|| EvalError::new("unsupported key type"))?;
            let value = self.node(value)?;
            let Some(value) = (if entry.optional { present(value)? } else { Some(value) }) else { continue };
            if map.contains_key(&key) {
                return Err(EvalError::new(&format!("Failed with repeated key: {}", functions::shown(&key.value()))));
            }
            map.insert(key, value);
        }
        Value::map(map, None)
    }

    fn structure(&mut self, name: &Arc<str>, fields: &[Entry<(Arc<str>, Node)>]) -> Result1 {
        self.meter.charge(40)?;
        let mut map = BTreeMap::new();
        for entry in fields {
            let value = self.node(&entry.value.1)?;
            if let Some(value) = if entry.optional { present(value)? } else { Some(value) } {
                map.insert(Key::String(functions::unescaped(&entry.value.0).as_ref().into()), value);
            }
        }
        Value::map(map, Some(name.clone()))
    }

    fn binary(&mut self, op: Op, left: &Value, right: &Value) -> Result1 {
        use Value::{Bytes, Double, Duration, Int, List, String, Timestamp, Uint};
        let order = |test: fn(std::cmp::Ordering) -> bool| match left.order(right) {
            Some(order) => Ok(Value::Bool(test(order))),
            // Numbers without an order: one is no number.
            None if matches!((left, right), (Double(_), _) | (_, Double(_))) => Ok(Value::Bool(false)),
            None => Err(EvalError::no_overload()),
        };
        if let (String(one), String(two)) = (left, right)
            && !matches!(op, Op::Eq | Op::Ne)
        {
            self.meter.text(one.len().min(two.len()))?;
        }
        match op {
            Op::Eq => return left.equals(right, self.meter).map(Value::Bool),
            Op::Ne => return left.equals(right, self.meter).map(|same| Value::Bool(!same)),
            Op::Lt => return order(std::cmp::Ordering::is_lt),
            Op::Le => return order(std::cmp::Ordering::is_le),
            Op::Gt => return order(std::cmp::Ordering::is_gt),
            Op::Ge => return order(std::cmp::Ordering::is_ge),
            Op::In => return self.contains(left, right),
            _ => {}
        }
        if matches!(op, Op::Div | Op::Rem) && matches!(right, Int(0) | Uint(0)) {
            let whole = matches!(left, Int(_) | Uint(_));
            let why = if op == Op::Div { "division by zero" } else { "modulus by zero" };
            return Err(if whole { EvalError::new(why) } else { EvalError::no_overload() });
        }
        match (op, left, right) {
            (_, Int(one), Int(two)) => {
                let result = match op {
                    Op::Add => one.checked_add(*two),
                    Op::Sub => one.checked_sub(*two),
                    Op::Mul => one.checked_mul(*two),
                    Op::Div => one.checked_div(*two),
                    _ => one.checked_rem(*two),
                };
                result.map(Int).ok_or_else(overflow)
            }
            (_, Uint(one), Uint(two)) => {
                let result = match op {
                    Op::Add => one.checked_add(*two),
                    Op::Sub => one.checked_sub(*two),
                    Op::Mul => one.checked_mul(*two),
                    Op::Div => one.checked_div(*two),
                    _ => one.checked_rem(*two),
                };
                result.map(Uint).ok_or_else(|| EvalError::new("unsigned integer overflow"))
            }
            (Op::Add, Double(one), Double(two)) => Ok(Double(one + two)),
            (Op::Sub, Double(one), Double(two)) => Ok(Double(one - two)),
            (Op::Mul, Double(one), Double(two)) => Ok(Double(one * two)),
            (Op::Div, Double(one), Double(two)) => Ok(Double(one / two)),
            (Op::Add, String(one), String(two)) => {
                self.meter.text(one.len() + two.len())?;
                Ok(String(format!("{one}{two}").into()))
            }
            (Op::Add, Bytes(one), Bytes(two)) => {
                self.meter.text(one.len() + two.len())?;
                Ok(Bytes([&**one, &**two].concat().into()))
            }
            (Op::Add, List(one), List(two)) => {
                self.meter.charge(one.items.len() + two.items.len())?;
                Value::list(one.items.iter().chain(&two.items).cloned().collect())
            }
            (Op::Add, Timestamp(at), Duration(by)) | (Op::Add, Duration(by), Timestamp(at)) => time::moved(*at, *by),
            (Op::Sub, Timestamp(at), Duration(by)) => time::moved(*at, by.checked_neg().ok_or_else(overflow)?),
            (Op::Sub, Timestamp(one), Timestamp(two)) => time::between(*one, *two),
            (Op::Add, Duration(one), Duration(two)) => one.checked_add(*two).map(Duration).ok_or_else(overflow),
            (Op::Sub, Duration(one), Duration(two)) => one.checked_sub(*two).map(Duration).ok_or_else(overflow),
            _ => Err(EvalError::no_overload()),
        }
    }

    pub fn contains(&mut self, item: &Value, of: &Value) -> Result1 {
        match of {
            Value::List(list) => {
                for other in &list.items {
                    if item.equals(other, self.meter)? {
                        return Ok(Value::Bool(true));
                    }
                }
                Ok(Value::Bool(false))
            }
            Value::Map(map) => Ok(Value::Bool(Key::of(item).is_some_and(|key| map.entries.contains_key(&key)))),
            _ => Err(EvalError::no_overload()),
        }
    }

    fn fold(&mut self, fold: &Fold) -> Result1 {
        let over = self.node(&fold.over)?;
        if matches!(fold.kind, FoldKind::OptMap | FoldKind::OptFlatMap) {
            return match over {
                Value::Optional(None) => Ok(Value::Optional(None)),
                Value::Optional(Some(value)) => {
                    let result = self.with(&[(&fold.first, (*value).clone())], &fold.body)?;
                    if fold.kind == FoldKind::OptMap { Value::some(result) } else { Ok(result) }
                }
                _ => Err(EvalError::no_overload()),
            };
        }
        match &over {
            Value::List(list) => {
                let elements = list.items.iter().enumerate();
                // An index fits: lists have far fewer items.
                self.elements(fold, elements.map(|(at, item)| (Value::Int(at as i64), item.clone())), false)
            }
            Value::Map(map) => {
                self.elements(fold, map.entries.iter().map(|(key, value)| (key.value(), value.clone())), true)
            }
            _ => Err(EvalError::no_overload()),
        }
    }

    /// With one variable, it holds a list's items or a map's keys; with two, the index or key comes first.
    fn elements(&mut self, fold: &Fold, elements: impl Iterator<Item = (Value, Value)>, map: bool) -> Result1 {
        let mut out = Collected::default();
        for (key, item) in elements {
            self.meter.charge(2)?;
            let variables: &[(&Arc<str>, Value)] = match &fold.second {
                Some(second) => &[(&fold.first, key.clone()), (second, item.clone())],
                None => &[(&fold.first, if map { key.clone() } else { item.clone() })],
            };
            if let Some(filter) = &fold.filter
                && !truth(&self.with(variables, filter)?)?
            {
                continue;
            }
            let result = self.with(variables, &fold.body);
            match fold.kind {
                FoldKind::All | FoldKind::Exists => match result.and_then(|value| truth(&value)) {
                    Ok(value) if value == (fold.kind == FoldKind::Exists) => return Ok(Value::Bool(value)),
                    Ok(_) => {}
                    Err(error) if error.is_spent() => return Err(error),
                    Err(error) => out.failed = out.failed.or(Some(error)),
                },
                FoldKind::ExistsOne => out.count += usize::from(truth(&result?)?),
                FoldKind::Filter => {
                    if truth(&result?)? {
                        out.list.push(if map { key } else { item });
                    }
                }
                FoldKind::Map => out.list.push(result?),
                FoldKind::SortBy => {
                    out.keys.push(result?);
                    out.list.push(item);
                }
                FoldKind::TransformMap => {
                    let key = Key::of(&key).ok_or_else(EvalError::no_overload)?;
                    out.map.insert(key, result?);
                }
                FoldKind::TransformMapEntry => {
                    let Value::Map(entry) = result? else { return Err(EvalError::no_overload()) };
                    for (key, value) in &entry.entries {
                        self.meter.charge(1)?;
                        if out.map.insert(key.clone(), value.clone()).is_some() {
                            let shown = functions::shown(&key.value());
                            return Err(EvalError::new(&format!("insert failed: key '{shown}' already exists")));
                        }
                    }
                }
                FoldKind::OptMap | FoldKind::OptFlatMap => return Err(EvalError::no_overload()),
            }
        }
        match fold.kind {
            FoldKind::All | FoldKind::Exists => out.failed.map_or(Ok(Value::Bool(fold.kind == FoldKind::All)), Err),
            FoldKind::ExistsOne => Ok(Value::Bool(out.count == 1)),
            FoldKind::TransformMap | FoldKind::TransformMapEntry => Value::map(out.map, None),
            FoldKind::SortBy => functions::lists::sorted_by(self, out.keys, out.list),
            _ => Value::list(out.list),
        }
    }
}

/// What a fold has gathered so far.
#[derive(Default)]
struct Collected {
    list: Vec<Value>,
    keys: Vec<Value>,
    map: BTreeMap<Key, Value>,
    count: usize,
    failed: Option<EvalError>,
}

fn truth(value: &Value) -> Result<bool, EvalError> {
    match value {
        Value::Bool(value) => Ok(*value),
        _ => Err(EvalError::no_overload()),
    }
}

/// The value of an optional entry.
fn present(value: Value) -> Result<Option<Value>, EvalError> {
    match value {
        Value::Optional(inner) => Ok(inner.map(|value| (*value).clone())),
        _ => Err(EvalError::no_overload()),
    }
}

pub(super) fn overflow() -> EvalError {
    EvalError::new("integer overflow")
}
