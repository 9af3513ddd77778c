//! Tokens to a tree, by precedence (CEL specification, "Syntax"). Recursion is bounded.

use std::sync::Arc;

use super::ast::{DEEPEST, Entry, Expr, Fold, FoldKind, NESTED, Node, Op};
use super::lexer::{Token, tokens};
use super::value::Value;
use super::{CompileError, functions};

/// Longest expression, in bytes.
const LONGEST: usize = 100_000;

/// Words that name nothing.
pub(super) const RESERVED: [&str; 17] = [
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

pub fn parse(source: &str) -> Result<Node, CompileError> {
    if source.len() > LONGEST {
        let why = format!("expression code point size exceeds limit: size: {}, limit {LONGEST}", source.len());
        return Err(CompileError::at("", 0, &why));
    }
    let tokens = tokens(source)?;
    let mut parser = Parser { source, tokens, next: 0, depth: 0 };
    let node = parser.expression()?;
    match parser.peek() {
        Token::End => Ok(node),
        _ => Err(parser.unexpected()),
    }
}

struct Parser<'a> {
    source: &'a str,
    tokens: Vec<(Token, usize)>,
    next: usize,
    depth: u16,
}

type Parsed = Result<Node, CompileError>;

impl Parser<'_> {
    fn peek(&self) -> &Token {
        self.tokens.get(self.next).map_or(&Token::End, |(token, _)| token)
    }

    fn peek_at(&self, ahead: usize) -> &Token {
        self.tokens.get(self.next + ahead).map_or(&Token::End, |(token, _)| token)
    }

    fn at(&self) -> usize {
        self.tokens.get(self.next).map_or(0, |(_, at)| *at)
    }

    fn error(&self, at: usize, why: &str) -> CompileError {
        CompileError::at(self.source, at, why)
    }

    fn unexpected(&self) -> CompileError {
        let why = match self.peek() {
            Token::End => "Syntax error: mismatched input '<EOF>' expecting {'[', '{', '(', '.', '-', '!', 'true', \
                           'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}"
                .to_owned(),
            token => format!("Syntax error: extraneous input '{}' expecting <EOF>", token.shown()),
        };
        self.error(self.at(), &why)
    }

    fn sign(&mut self, sign: &str) -> bool {
        let found = matches!(self.peek(), Token::Sign(found) if *found == sign);
        self.next += usize::from(found);
        found
    }

    fn expect(&mut self, sign: &str) -> Result<(), CompileError> {
        if self.sign(sign) {
            return Ok(());
        }
        let why = format!("Syntax error: mismatched input '{}' expecting '{sign}'", self.peek().shown());
        Err(self.error(self.at(), &why))
    }

    fn node(&self, at: usize, expr: Expr) -> Parsed {
        let mut node = Node { expr, at, depth: 0 };
        let mut deepest = 0;
        node.each_child(|child| deepest = deepest.max(child.depth));
        node.depth = deepest + 1;
        if node.depth > DEEPEST {
            return Err(self.too_deep(at));
        }
        Ok(node)
    }

    fn too_deep(&self, at: usize) -> CompileError {
        self.error(at, &format!("expression recursion limit exceeded: {DEEPEST}"))
    }

    /// `a ? b : c`
    fn expression(&mut self) -> Parsed {
        if self.depth >= NESTED {
            return Err(self.too_deep(self.at()));
        }
        self.depth += 1;
        let result = self.conditional();
        self.depth -= 1;
        result
    }

    fn conditional(&mut self) -> Parsed {
        let at = self.at();
        let test = self.junction(true)?;
        if !self.sign("?") {
            return Ok(test);
        }
        let yes = self.junction(true)?;
        self.expect(":")?;
        let no = self.expression()?;
        self.node(at, Expr::If(Box::new(test), Box::new(yes), Box::new(no)))
    }

    /// `||` binds weaker than `&&`.
    fn junction(&mut self, or: bool) -> Parsed {
        let at = self.at();
        let part = |parser: &mut Self| if or { parser.junction(false) } else { parser.relation() };
        let first = part(self)?;
        let mut all = vec![first];
        while self.sign(if or { "||" } else { "&&" }) {
            all.push(part(self)?);
        }
        match all.len() {
            1 => all.pop().ok_or_else(|| self.unexpected()),
            _ => self.node(at, if or { Expr::Or(all) } else { Expr::And(all) }),
        }
    }

    fn relation(&mut self) -> Parsed {
        let at = self.at();
        let mut left = self.sum(false)?;
        loop {
            let op = match self.peek() {
                Token::Sign("==") => Op::Eq,
                Token::Sign("!=") => Op::Ne,
                Token::Sign("<") => Op::Lt,
                Token::Sign("<=") => Op::Le,
                Token::Sign(">") => Op::Gt,
                Token::Sign(">=") => Op::Ge,
                Token::Ident(word) if word == "in" => Op::In,
                _ => return Ok(left),
            };
            self.next += 1;
            let right = self.sum(false)?;
            left = self.node(at, Expr::Binary(op, Box::new(left), Box::new(right)))?;
        }
    }

    /// Sums, and with `product` what binds stronger.
    fn sum(&mut self, product: bool) -> Parsed {
        let at = self.at();
        let part = |parser: &mut Self| if product { parser.unary() } else { parser.sum(true) };
        let mut left = part(self)?;
        loop {
            let op = match (product, self.peek()) {
                (false, Token::Sign("+")) => Op::Add,
                (false, Token::Sign("-")) => Op::Sub,
                (true, Token::Sign("*")) => Op::Mul,
                (true, Token::Sign("/")) => Op::Div,
                (true, Token::Sign("%")) => Op::Rem,
                _ => return Ok(left),
            };
            self.next += 1;
            let right = part(self)?;
            left = self.node(at, Expr::Binary(op, Box::new(left), Box::new(right)))?;
        }
    }

    fn unary(&mut self) -> Parsed {
        let at = self.at();
        let (mut nots, mut minuses) = (0u32, 0u32);
        while self.sign("!") {
            nots += 1;
        }
        while nots == 0 && self.sign("-") {
            minuses += 1;
        }
        if minuses == 0 {
            let inner = self.member()?;
            return if nots % 2 == 1 { self.node(at, Expr::Not(Box::new(inner))) } else { Ok(inner) };
        }
        let literal = match self.peek() {
            Token::Int(number) => Some(Value::Int(-number)),
            Token::Huge => Some(Value::Int(i64::MIN)),
            Token::Double(number) => Some(Value::Double(-number)),
            _ => None,
        };
        let inner = match literal {
            Some(value) if !matches!(self.peek_at(1), Token::Sign("." | "[")) => {
                self.next += 1;
                minuses -= 1;
                self.node(at, Expr::Literal(value))?
            }
            _ => self.member()?,
        };
        if minuses % 2 == 1 { self.node(at, Expr::Negate(Box::new(inner))) } else { Ok(inner) }
    }

    /// A primary with everything that hangs on it.
    fn member(&mut self) -> Parsed {
        let mut node = self.primary()?;
        loop {
            let at = self.at();
            if self.sign(".") {
                let optional = self.sign("?");
                let (name, quoted) = match self.peek().clone() {
                    Token::Ident(name) if !is_literal(&name) => (name, false),
                    Token::Quoted(name) => (name, true),
                    other => {
                        let why = format!("Syntax error: no viable alternative at input '.{}'", other.shown());
                        return Err(self.error(self.at(), &why));
                    }
                };
                self.next += 1;
                if !optional && !quoted && self.sign("(") {
                    let args = self.arguments(")")?;
                    node = self.call(at, Some(node), name, args)?;
                } else if let Some(name) = self.type_name(&node, &name) {
                    node = self.structure(at, name)?;
                } else {
                    let field = name.into();
                    node = self.node(at, Expr::Select { of: Box::new(node), field, optional, test: false })?;
                }
            } else if self.sign("[") {
                let optional = self.sign("?");
                let index = self.expression()?;
                self.expect("]")?;
                node = self.node(at, Expr::Index { of: Box::new(node), index: Box::new(index), optional })?;
            } else {
                return Ok(node);
            }
        }
    }

    /// The dotted name of a message, when a `{` follows.
    fn type_name(&self, of: &Node, field: &str) -> Option<String> {
        if !matches!(self.peek(), Token::Sign("{")) {
            return None;
        }
        let mut names = vec![field.to_owned()];
        let mut node = of;
        loop {
            match &node.expr {
                Expr::Ident(name) => {
                    names.push(name.to_string());
                    names.reverse();
                    return Some(names.join("."));
                }
                Expr::Select { of, field, optional: false, test: false } => {
                    names.push(field.to_string());
                    node = of;
                }
                _ => return None,
            }
        }
    }

    fn structure(&mut self, at: usize, name: String) -> Parsed {
        self.expect("{")?;
        let mut fields = Vec::new();
        while !self.sign("}") {
            let optional = self.sign("?");
            let field = match self.peek().clone() {
                Token::Ident(name) | Token::Quoted(name) => name,
                _ => return Err(self.unexpected()),
            };
            self.next += 1;
            self.expect(":")?;
            let value = self.expression()?;
            fields.push(Entry { optional, value: (field.into(), value) });
            if !self.sign(",") {
                self.expect("}")?;
                break;
            }
        }
        self.node(at, Expr::Struct { name: name.into(), fields })
    }

    fn arguments(&mut self, end: &str) -> Result<Vec<Node>, CompileError> {
        let mut args = Vec::new();
        if self.sign(end) {
            return Ok(args);
        }
        loop {
            args.push(self.expression()?);
            if !self.sign(",") {
                self.expect(end)?;
                return Ok(args);
            }
        }
    }

    fn primary(&mut self) -> Parsed {
        let at = self.at();
        let token = self.peek().clone();
        self.next += 1;
        let literal = match token {
            Token::Int(number) => Value::Int(number),
            Token::Uint(number) => Value::Uint(number),
            Token::Double(number) => Value::Double(number),
            Token::Text(text) => Value::text(&text),
            Token::Bytes(bytes) => Value::Bytes(bytes.into()),
            Token::Sign("(") => {
                let inner = self.expression()?;
                self.expect(")")?;
                return Ok(inner);
            }
            Token::Sign("[") => return self.list(at),
            Token::Sign("{") => return self.map(at),
            // A leading dot names the root: the same here, where there are no containers.
            Token::Sign(".") if matches!(self.peek(), Token::Ident(_)) => return self.primary(),
            Token::Ident(name) => match name.as_str() {
                "true" => Value::Bool(true),
                "false" => Value::Bool(false),
                "null" => Value::Null,
                name if RESERVED.contains(&name) || name == "in" => {
                    return Err(self.error(at, &format!("Syntax error: reserved identifier: {name}")));
                }
                _ if self.sign("(") => {
                    let args = self.arguments(")")?;
                    return self.call(at, None, name, args);
                }
                _ if matches!(self.peek(), Token::Sign("{")) => return self.structure(at, name),
                _ => return self.node(at, Expr::Ident(name.into())),
            },
            Token::Huge => return Err(self.error(at, "Syntax error: invalid int literal")),
            _ => {
                self.next -= 1;
                return Err(match self.peek() {
                    Token::End => self.unexpected(),
                    token => {
                        let shown = token.shown();
                        self.error(at, &format!("Syntax error: no viable alternative at input '{shown}'"))
                    }
                });
            }
        };
        self.node(at, Expr::Literal(literal))
    }

    fn list(&mut self, at: usize) -> Parsed {
        let mut entries = Vec::new();
        while !self.sign("]") {
            let optional = self.sign("?");
            entries.push(Entry { optional, value: self.expression()? });
            if !self.sign(",") {
                self.expect("]")?;
                break;
            }
        }
        self.node(at, Expr::List(entries))
    }

    fn map(&mut self, at: usize) -> Parsed {
        let mut entries = Vec::new();
        while !self.sign("}") {
            let optional = self.sign("?");
            let key = self.expression()?;
            self.expect(":")?;
            let value = self.expression()?;
            entries.push(Entry { optional, value: (key, value) });
            if !self.sign(",") {
                self.expect("}")?;
                break;
            }
        }
        self.node(at, Expr::Map(entries))
    }

    /// A call, or the macro of that name.
    fn call(&mut self, at: usize, target: Option<Node>, name: String, mut args: Vec<Node>) -> Parsed {
        match (&target, name.as_str(), args.len()) {
            (None, "has", 1) => {
                return match args.pop().map(|arg| arg.expr) {
                    Some(Expr::Select { of, field, optional: false, test: false }) => {
                        self.node(at, Expr::Select { of, field, optional: false, test: true })
                    }
                    _ => Err(self.error(at, "invalid argument to has() macro")),
                };
            }
            (Some(Node { expr: Expr::Ident(space), .. }), "bind", 3) if &**space == "cel" => {
                let (Some(body), Some(value), Some(variable)) = (args.pop(), args.pop(), args.pop()) else {
                    return Err(self.unexpected());
                };
                let name = self.variable(&variable)?;
                return self.node(at, Expr::Bind { name, value: Box::new(value), body: Box::new(body) });
            }
            (Some(Node { expr: Expr::Ident(space), .. }), ..) if functions::is_qualified(space, &name) => {
                // `ip.isCanonical(x)` is one function, not a call on a variable.
                let name = format!("{space}.{name}").into();
                return self.node(at, Expr::Call { target: None, name, args });
            }
            _ => {}
        }
        let Some(target) = target else {
            return self.node(at, Expr::Call { target: None, name: name.into(), args });
        };
        let Some(kind) = fold_kind(&name, args.len()) else {
            return self.node(at, Expr::Call { target: Some(Box::new(target)), name: name.into(), args });
        };
        let filtered = kind == FoldKind::Map && (name == "map" && args.len() == 3 || args.len() == 4)
            || matches!(kind, FoldKind::TransformMap | FoldKind::TransformMapEntry) && args.len() == 4;
        let Some(body) = args.pop() else { return Err(self.unexpected()) };
        let filter = if filtered { args.pop() } else { None };
        let mut names = Vec::new();
        for variable in &args {
            names.push(self.variable(variable)?);
        }
        let mut names = names.into_iter();
        let Some(first) = names.next() else { return Err(self.unexpected()) };
        let fold = Fold { kind, over: target, first, second: names.next(), filter, body };
        self.node(at, Expr::Fold(Box::new(fold)))
    }

    fn variable(&self, node: &Node) -> Result<Arc<str>, CompileError> {
        match &node.expr {
            Expr::Ident(name) => Ok(name.clone()),
            _ => Err(self.error(node.at, "argument must be a simple name")),
        }
    }
}

fn is_literal(name: &str) -> bool {
    matches!(name, "true" | "false" | "null" | "in")
}

fn fold_kind(name: &str, args: usize) -> Option<FoldKind> {
    Some(match (name, args) {
        ("all", 2 | 3) => FoldKind::All,
        ("exists", 2 | 3) => FoldKind::Exists,
        ("exists_one" | "existsOne", 2 | 3) => FoldKind::ExistsOne,
        ("filter", 2) => FoldKind::Filter,
        ("map", 2 | 3) | ("transformList", 3 | 4) => FoldKind::Map,
        ("transformMap", 3 | 4) => FoldKind::TransformMap,
        ("transformMapEntry", 3 | 4) => FoldKind::TransformMapEntry,
        ("sortBy", 2) => FoldKind::SortBy,
        ("optMap", 2) => FoldKind::OptMap,
        ("optFlatMap", 2) => FoldKind::OptFlatMap,
        _ => return None,
    })
}
