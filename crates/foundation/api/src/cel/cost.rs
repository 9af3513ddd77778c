//! How much an expression may cost at most, said before it is evaluated.
//!
//! The estimate follows upstream's, because it decides which rules a definition may have: the greatest cost over all
//! values that the schema allows, where what has no limit is as large as a request may be. Macros cost what their
//! expansion costs there.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::ast::{Expr, Fold, FoldKind, Node, Op};
use super::value::Value;

/// Cost of a list, map or message that is written down.
const LIST: u64 = 10;
const MAP: u64 = 30;
const MESSAGE: u64 = 40;
/// Cost of one question to the authorizer.
const CHECK: u64 = 350_000;

/// How large a value may be: characters, items or entries.
#[derive(Debug, Clone, Default)]
pub struct Extent {
    pub most: u64,
    pub kind: ExtentKind,
}

#[derive(Debug, Clone, Default)]
pub enum ExtentKind {
    /// Nothing is known of it.
    #[default]
    Unknown,
    /// A number, a bool, a time.
    Scalar,
    Text,
    List(Box<Extent>),
    Map(Box<Extent>),
    /// By the names that an expression uses.
    Object(BTreeMap<String, Extent>),
}

/// Least and greatest size.
type Size = (u64, u64);

const UNKNOWN: Size = (0, u64::MAX);

#[derive(Clone, Copy, PartialEq)]
enum Sort {
    Unknown,
    Scalar,
    Text,
    List,
    Map,
}

/// What is known of a node.
#[derive(Clone)]
struct Found<'a> {
    cost: u64,
    sort: Sort,
    size: Option<Size>,
    /// Size of the items of a list that is made here.
    items: Option<Size>,
    extent: Option<&'a Extent>,
}

impl<'a> Found<'a> {
    fn new(cost: u64, sort: Sort) -> Self {
        let size = (sort == Sort::Scalar).then_some((1, 1));
        Self { cost, sort, size, items: None, extent: None }
    }

    fn sized(cost: u64, sort: Sort, size: Size) -> Self {
        Self { size: Some(size), ..Self::new(cost, sort) }
    }

    fn of(extent: &'a Extent, cost: u64) -> Self {
        let sort = match extent.kind {
            ExtentKind::Unknown => Sort::Unknown,
            ExtentKind::Scalar => Sort::Scalar,
            ExtentKind::Text => Sort::Text,
            ExtentKind::List(_) => Sort::List,
            ExtentKind::Map(_) | ExtentKind::Object(_) => Sort::Map,
        };
        Self { cost, sort, size: Some((0, extent.most)), items: None, extent: Some(extent) }
    }

    fn size(&self) -> Size {
        self.size.unwrap_or(UNKNOWN)
    }

    fn most(&self) -> u64 {
        self.size().1
    }

    /// An item of a list, a value of a map.
    fn item(&self, cost: u64) -> Self {
        match self.extent.map(|extent| &extent.kind) {
            Some(ExtentKind::List(item) | ExtentKind::Map(item)) => Self::of(item, cost),
            _ => Self { size: self.items, ..Self::new(cost, Sort::Unknown) },
        }
    }

    fn with_cost(mut self, cost: u64) -> Self {
        self.cost = cost;
        self
    }
}

/// The greatest cost of an expression about values of this extent, whatever variable they are in.
pub(super) fn estimate(root: &Node, subject: &Extent) -> u64 {
    Estimator { subject, scope: Vec::new() }.node(root).cost
}

struct Estimator<'a> {
    subject: &'a Extent,
    scope: Vec<(Arc<str>, Found<'a>)>,
}

fn plus(costs: &[u64]) -> u64 {
    costs.iter().fold(0, |sum, cost| sum.saturating_add(*cost))
}

/// Reading text of this length.
fn reading(length: u64) -> u64 {
    length.div_ceil(10)
}

/// Matching text against a pattern, whose length stands for what is in it.
fn matching(text: u64, pattern: u64) -> u64 {
    reading(text.saturating_add(1)).saturating_mul(pattern.div_ceil(4))
}

fn sum((least, most): Size, (other_least, other_most): Size) -> Size {
    (least.saturating_add(other_least), most.saturating_add(other_most))
}

fn either(one: Size, other: Size) -> Size {
    (one.0.min(other.0), one.1.max(other.1))
}

impl<'a> Estimator<'a> {
    fn node(&mut self, node: &Node) -> Found<'a> {
        match &node.expr {
            Expr::Literal(value) => literal(value),
            Expr::Ident(name) => match self.scope.iter().rev().find(|(known, _)| known == name) {
                Some((_, found)) => found.clone().with_cost(1),
                None => Found::of(self.subject, 1),
            },
            Expr::Select { of, field, test, .. } => self.select(of, field, *test),
            Expr::Index { of, index, .. } => {
                let (of, index) = (self.node(of), self.node(index));
                of.item(plus(&[1, of.cost, index.cost]))
            }
            Expr::Not(of) | Expr::Negate(of) => {
                let cost = self.node(of).cost;
                Found::new(plus(&[1, cost]), Sort::Scalar)
            }
            Expr::Binary(op, left, right) => {
                let (left, right) = (self.node(left), self.node(right));
                binary(*op, &left, &right)
            }
            Expr::And(all) | Expr::Or(all) => {
                let costs: Vec<u64> = all.iter().map(|node| self.node(node).cost).collect();
                Found::new(plus(&costs), Sort::Scalar)
            }
            Expr::If(test, yes, no) => {
                let (test, yes, no) = (self.node(test), self.node(yes), self.node(no));
                let size = either(yes.size(), no.size());
                let sort = if yes.sort == no.sort { yes.sort } else { Sort::Unknown };
                Found { items: yes.items, ..Found::sized(plus(&[test.cost, yes.cost.max(no.cost)]), sort, size) }
            }
            Expr::List(entries) => {
                let items: Vec<Found<'_>> = entries.iter().map(|entry| self.node(&entry.value)).collect();
                let costs = items.iter().map(|item| item.cost).fold(LIST, u64::saturating_add);
                let count = entries.len() as u64;
                let of_items = items.iter().map(Found::size).reduce(either).unwrap_or((0, 0));
                Found { items: Some(of_items), ..Found::sized(costs, Sort::List, (count, count)) }
            }
            Expr::Map(entries) => {
                let mut cost = MAP;
                for entry in entries {
                    cost = plus(&[cost, self.node(&entry.value.0).cost, self.node(&entry.value.1).cost]);
                }
                let count = entries.len() as u64;
                Found::sized(cost, Sort::Map, (count, count))
            }
            Expr::Struct { fields, .. } => {
                let costs = fields.iter().map(|entry| self.node(&entry.value.1).cost);
                Found::new(costs.fold(MESSAGE, u64::saturating_add), Sort::Map)
            }
            Expr::Bind { name, value, body } => {
                let value = self.node(value);
                let cost = value.cost;
                let body = self.with(vec![(name.clone(), value)], body);
                let cost = plus(&[LIST, cost, body.cost]);
                body.with_cost(cost)
            }
            Expr::Call { target, name, args } => {
                let target = target.as_ref().map(|target| self.node(target));
                let args: Vec<Found<'_>> = args.iter().map(|arg| self.node(arg)).collect();
                call(target.as_ref(), name, &args)
            }
            Expr::Fold(fold) => self.fold(fold),
        }
    }

    fn with(&mut self, variables: Vec<(Arc<str>, Found<'a>)>, body: &Node) -> Found<'a> {
        let outer = self.scope.len();
        self.scope.extend(variables);
        let found = self.node(body);
        self.scope.truncate(outer);
        found
    }

    fn select(&mut self, of: &Node, field: &str, test: bool) -> Found<'a> {
        let of = self.node(of);
        if test {
            return Found::new(of.cost, Sort::Scalar);
        }
        let cost = plus(&[of.cost, u64::from(of.sort == Sort::Map)]);
        match of.extent.map(|extent| &extent.kind) {
            Some(ExtentKind::Object(fields)) => match fields.get(field) {
                Some(field) => Found::of(field, cost),
                None => Found::new(cost, Sort::Unknown),
            },
            _ => of.item(cost),
        }
    }

    fn fold(&mut self, fold: &Fold) -> Found<'a> {
        let over = self.node(&fold.over);
        let key = match over.sort {
            Sort::List => Found::new(1, Sort::Scalar),
            // As upstream has it: names of entries count as nothing.
            _ => Found::sized(1, Sort::Text, (0, 0)),
        };
        let item = match (&fold.kind, over.sort) {
            (FoldKind::OptMap | FoldKind::OptFlatMap, _) => over.clone(),
            (_, Sort::Map) if fold.second.is_none() => key.clone(),
            _ => over.item(1),
        };
        let variables = match &fold.second {
            Some(second) => vec![(fold.first.clone(), key), (second.clone(), item)],
            None => vec![(fold.first.clone(), item)],
        };
        let filter = fold.filter.as_ref().map_or(0, |filter| self.with(variables.clone(), filter).cost);
        let body = self.with(variables, &fold.body);
        let each = plus(&[filter, body.cost]);
        let count = over.size();
        // Before the elements, for each, and what comes out.
        let (before, step, result) = match fold.kind {
            FoldKind::All => (0, plus(&[3, each]), Found::new(1, Sort::Scalar)),
            FoldKind::Exists => (0, plus(&[4, each]), Found::new(1, Sort::Scalar)),
            FoldKind::ExistsOne => (0, plus(&[2, each]), Found::new(2, Sort::Scalar)),
            FoldKind::Filter => {
                let kept =
                    Found { extent: over.extent, items: over.items, ..Found::sized(1, Sort::List, (0, count.1)) };
                (LIST, plus(&[13, each]), kept)
            }
            FoldKind::Map | FoldKind::SortBy => {
                let made = Found { items: body.size, ..Found::sized(1, Sort::List, count) };
                (LIST, plus(&[12, each]), made)
            }
            FoldKind::TransformMap => (MAP, plus(&[3, each]), Found::sized(1, Sort::Map, count)),
            FoldKind::TransformMapEntry => (MAP, plus(&[2, each]), Found::sized(1, Sort::Map, count)),
            FoldKind::OptMap | FoldKind::OptFlatMap => {
                let cost = plus(&[over.cost, over.cost, LIST, each, 3]);
                return body.with_cost(cost);
            }
        };
        let cost = plus(&[over.cost, before, result.cost, count.1.saturating_mul(step)]);
        result.with_cost(cost)
    }
}

fn literal<'a>(value: &Value) -> Found<'a> {
    let fixed = |sort, length: usize| Found::sized(0, sort, (length as u64, length as u64));
    match value {
        Value::String(text) => fixed(Sort::Text, text.chars().count()),
        Value::Bytes(bytes) => fixed(Sort::Text, bytes.len()),
        _ => Found::new(0, Sort::Scalar),
    }
}

fn binary<'a>(op: Op, left: &Found<'_>, right: &Found<'_>) -> Found<'a> {
    let args = plus(&[left.cost, right.cost]);
    let compared = || reading(left.most().min(right.most()));
    let text = left.sort == Sort::Text || right.sort == Sort::Text;
    match op {
        Op::Eq | Op::Ne => Found::new(plus(&[args, compared()]), Sort::Scalar),
        Op::Lt | Op::Le | Op::Gt | Op::Ge if text => Found::new(plus(&[args, compared()]), Sort::Scalar),
        Op::In if right.sort == Sort::List => Found::new(plus(&[args, right.most()]), Sort::Scalar),
        Op::Lt | Op::Le | Op::Gt | Op::Ge | Op::In => Found::new(plus(&[args, 1]), Sort::Scalar),
        Op::Add if text => {
            let size = sum(left.size(), right.size());
            Found::sized(plus(&[args, reading(size.1)]), Sort::Text, size)
        }
        Op::Add if left.sort == Sort::List || right.sort == Sort::List => {
            let items = left.item(0).size.zip(right.item(0).size).map(|(one, other)| either(one, other));
            Found { items, ..Found::sized(plus(&[args, 1]), Sort::List, sum(left.size(), right.size())) }
        }
        _ => Found::new(plus(&[args, 1]), Sort::Scalar),
    }
}

/// A call; what no line speaks of costs one.
fn call<'a>(target: Option<&Found<'a>>, name: &str, args: &[Found<'a>]) -> Found<'a> {
    let before = args.iter().chain(target).map(|found| found.cost).fold(0, u64::saturating_add);
    let arg = |at: usize| args.get(at).map_or(UNKNOWN, Found::size);
    let size = target.map_or_else(|| arg(0), Found::size);
    let gives = |cost: u64, sort: Sort, size: Size| Found::sized(plus(&[before, cost]), sort, size);
    let tells = |cost: u64| Found::new(plus(&[before, cost]), Sort::Scalar);
    match name {
        "check" => Found::new(plus(&[before, CHECK]), Sort::Unknown),
        "dyn" => args.first().cloned().unwrap_or_else(|| tells(1)).with_cost(plus(&[before, 1])),
        "startsWith" | "endsWith" => tells(reading(arg(0).1)),
        "contains" => tells(reading(size.1).saturating_mul(reading(arg(0).1))),
        "matches" if target.is_none() => tells(matching(arg(0).1, arg(1).1)),
        "matches" => tells(matching(size.1, arg(0).1)),
        "find" => gives(matching(size.1, arg(0).1), Sort::Text, (0, size.1)),
        "findAll" => gives(matching(size.1, arg(0).1), Sort::List, (0, size.1)),
        "lowerAscii" | "upperAscii" | "trim" | "substring" => gives(reading(size.1), Sort::Text, size),
        "replace" => gives(reading(size.1.saturating_mul(2)), Sort::Text, replaced(size, arg(0), arg(1))),
        "split" => gives(reading(size.1.saturating_mul(2)), Sort::List, (0, size.1)),
        "join" => {
            let items = target.map_or(UNKNOWN, |target| target.item(0).size());
            let separators = size.1.saturating_sub(1).saturating_mul(if args.is_empty() { 0 } else { arg(0).1 });
            let most = size.1.saturating_mul(items.1).saturating_add(separators);
            gives(reading(most), Sort::Text, (0, most))
        }
        "format" => gives(reading(size.1), Sort::Text, sum(size, arg(0))),
        "strings.quote" => gives(reading(size.1), Sort::Text, (size.0, size.1.saturating_mul(2).saturating_add(2))),
        "string" | "bytes" if args.first().is_some_and(|arg| arg.sort == Sort::Text) => {
            gives(reading(size.1), Sort::Text, (size.0 / 4, size.1.saturating_mul(4)))
        }
        "isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" => {
            if target.is_some_and(|target| target.sort == Sort::Text) {
                return tells(reading(size.1));
            }
            let item = target.map(|target| target.item(0)).filter(|item| item.sort == Sort::Text);
            tells(size.1.saturating_mul(plus(&[1, item.map_or(0, |item| reading(item.most()))])))
        }
        "sets.contains" | "sets.intersects" => tells(plus(&[1, arg(0).1.saturating_mul(arg(1).1)])),
        "sets.equivalent" => tells(plus(&[1, arg(0).1.saturating_mul(arg(1).1).saturating_mul(2)])),
        "url" | "isURL" | "quantity" | "isQuantity" | "cidr" | "isCIDR" | "isIP" | "semver" | "isSemver" => {
            Found::new(plus(&[before, reading(arg(0).1)]), Sort::Scalar)
        }
        "ip" if target.is_none() => Found::new(plus(&[before, reading(arg(0).1)]), Sort::Scalar),
        "ip.isCanonical" => tells(reading(arg(0).1.saturating_mul(2))),
        "validate" => tells(reading(arg(0).1)),
        "or" | "orValue" => {
            let other = args.first().map_or(UNKNOWN, Found::size);
            let sort = target.map_or(Sort::Unknown, |target| target.sort);
            gives(1, sort, either(size, other))
        }
        "value" | "optional.of" => {
            let held = target.or(args.first()).cloned().unwrap_or_else(|| tells(1));
            held.with_cost(plus(&[before, 1]))
        }
        "reverse" | "sort" | "distinct" | "slice" => {
            let of = target.cloned().unwrap_or_else(|| tells(1));
            of.with_cost(plus(&[before, 1]))
        }
        _ => Found { size: None, ..Found::new(plus(&[before, 1]), Sort::Unknown) },
    }
}

/// The size of text in which the shortest thing found becomes the longest replacement, as often as it fits.
fn replaced(size: Size, what: Size, with: Size) -> Size {
    let most = match what.0 {
        0 => size.1.saturating_add(1).saturating_mul(with.1).saturating_add(size.1),
        least if with.1 <= least => size.1,
        least => size.1.div_ceil(least).saturating_mul(with.1),
    };
    (0, most)
}
