//! The tree an expression is read into. Macros are nodes of their own, so that evaluation need not undo an expansion.

use std::sync::Arc;

use super::value::Value;

/// Deepest nesting of an expression: deeper ones are refused, so that recursion over a tree always ends well.
pub(super) const DEEPEST: u16 = 80;
/// Most brackets, calls and conditionals within each other: reading them takes more of the stack.
pub(super) const NESTED: u16 = 40;

#[derive(Debug, Clone)]
pub struct Node {
    pub expr: Expr,
    /// Where it begins, in characters.
    pub at: usize,
    pub depth: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    Add,
    Sub,
    Mul,
    Div,
    Rem,
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    In,
}

impl Op {
    /// The name in error messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Add => "_+_",
            Self::Sub => "_-_",
            Self::Mul => "_*_",
            Self::Div => "_/_",
            Self::Rem => "_%_",
            Self::Eq => "_==_",
            Self::Ne => "_!=_",
            Self::Lt => "_<_",
            Self::Le => "_<=_",
            Self::Gt => "_>_",
            Self::Ge => "_>=_",
            Self::In => "@in",
        }
    }
}

#[derive(Debug, Clone)]
pub enum Expr {
    Literal(Value),
    Ident(Arc<str>),
    /// `of.field`, `of.?field`, or with `test` the question `has(of.field)`.
    Select {
        of: Box<Node>,
        field: Arc<str>,
        optional: bool,
        test: bool,
    },
    Index {
        of: Box<Node>,
        index: Box<Node>,
        optional: bool,
    },
    /// A function; `name` is qualified (`math.abs`) where the target is a namespace of functions.
    Call {
        target: Option<Box<Node>>,
        name: Arc<str>,
        args: Vec<Node>,
    },
    Not(Box<Node>),
    Negate(Box<Node>),
    Binary(Op, Box<Node>, Box<Node>),
    And(Vec<Node>),
    Or(Vec<Node>),
    If(Box<Node>, Box<Node>, Box<Node>),
    List(Vec<Entry<Node>>),
    Map(Vec<Entry<(Node, Node)>>),
    Struct {
        name: Arc<str>,
        fields: Vec<Entry<(Arc<str>, Node)>>,
    },
    Fold(Box<Fold>),
    Bind {
        name: Arc<str>,
        value: Box<Node>,
        body: Box<Node>,
    },
}

/// An entry of a literal; an optional one (`?x`) is left out when it has no value.
#[derive(Debug, Clone)]
pub struct Entry<T> {
    pub optional: bool,
    pub value: T,
}

/// A macro that visits the elements of a list or map.
#[derive(Debug, Clone)]
pub struct Fold {
    pub kind: FoldKind,
    pub over: Node,
    pub first: Arc<str>,
    pub second: Option<Arc<str>>,
    pub filter: Option<Node>,
    pub body: Node,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FoldKind {
    All,
    Exists,
    ExistsOne,
    Filter,
    /// `map` and `transformList`.
    Map,
    /// `transformMap`: the keys stay.
    TransformMap,
    /// `transformMapEntry`: each element gives a map of its own.
    TransformMapEntry,
    SortBy,
    /// `optMap` and `optFlatMap`: over an optional.
    OptMap,
    OptFlatMap,
}

impl Node {
    /// Calls for each node below.
    pub fn each_child<'a>(&'a self, mut visit: impl FnMut(&'a Node)) {
        match &self.expr {
            Expr::Literal(_) | Expr::Ident(_) => {}
            Expr::Select { of, .. } | Expr::Not(of) | Expr::Negate(of) => visit(of),
            Expr::Index { of: left, index: right, .. }
            | Expr::Binary(_, left, right)
            | Expr::Bind { value: left, body: right, .. } => {
                visit(left);
                visit(right);
            }
            Expr::Call { target, args, .. } => {
                target.iter().for_each(|target| visit(target));
                args.iter().for_each(visit);
            }
            Expr::And(all) | Expr::Or(all) => all.iter().for_each(visit),
            Expr::If(test, yes, no) => [test, yes, no].into_iter().for_each(|node| visit(node)),
            Expr::List(entries) => entries.iter().for_each(|entry| visit(&entry.value)),
            Expr::Map(entries) => entries.iter().for_each(|entry| {
                visit(&entry.value.0);
                visit(&entry.value.1);
            }),
            Expr::Struct { fields, .. } => fields.iter().for_each(|entry| visit(&entry.value.1)),
            Expr::Fold(fold) => {
                visit(&fold.over);
                fold.filter.iter().for_each(&mut visit);
                visit(&fold.body);
            }
        }
    }
}
