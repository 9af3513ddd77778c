//! `--name=value` before an instruction's arguments.

use super::mistake::{Mistake, suggestion};

/// The flags of one instruction.
pub struct Flags {
    lines: (usize, usize),
    given: Vec<(String, Option<String>)>,
}

impl Flags {
    /// Takes the flags off the front of `rest`; only `known` ones are allowed.
    pub fn take<'a>(
        rest: &'a str,
        escape: char,
        lines: (usize, usize),
        known: &[&str],
    ) -> Result<(Self, &'a str), Mistake> {
        let mut given: Vec<(String, Option<String>)> = Vec::new();
        let mut rest = rest.trim_start();
        while rest.starts_with("--") {
            let (flag, after) = one(rest, escape);
            rest = after.trim_start();
            if flag == "--" {
                break;
            }
            let (name, value) = match flag.trim_start_matches("--").split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                None => (flag.trim_start_matches("--").to_owned(), None),
            };
            if !known.contains(&name.as_str()) {
                let message = format!("unknown flag: --{name}{}", suggestion(&name, known));
                return Err(Mistake::new(lines, message).at(&format!("--{name}")));
            }
            let repeats = ["mount", "exclude"].contains(&name.as_str());
            if !repeats && given.iter().any(|(known, _)| *known == name) {
                return Err(Mistake::new(lines, format!("duplicate flag specified: --{name}")).at(&format!("--{name}")));
            }
            given.push((name, value));
        }
        Ok((Flags { lines, given }, rest))
    }

    /// The value of a flag that takes one.
    pub fn value(&self, name: &str) -> Result<Option<String>, Mistake> {
        Ok(self.values(name)?.pop())
    }

    /// All values of a flag that may be given several times.
    pub fn values(&self, name: &str) -> Result<Vec<String>, Mistake> {
        let found = self.given.iter().filter(|(known, _)| known == name);
        found
            .map(|(_, value)| {
                let missing = || Mistake::new(self.lines, format!("missing a value on flag: --{name}"));
                value.clone().ok_or_else(|| missing().at(&format!("--{name}")))
            })
            .collect()
    }

    /// Whether the flag is there.
    pub fn given(&self, name: &str) -> bool {
        self.given.iter().any(|(known, _)| known == name)
    }

    /// A flag that is set by its name alone, or by `=true`.
    pub fn switch(&self, name: &str) -> Result<bool, Mistake> {
        let Some((_, value)) = self.given.iter().find(|(known, _)| known == name) else { return Ok(false) };
        match value.as_deref().map(str::to_ascii_lowercase).as_deref() {
            None | Some("true") => Ok(true),
            Some("false") => Ok(false),
            Some(other) => {
                let message = format!("expecting boolean value for flag --{name}, not: {other}");
                Err(Mistake::new(self.lines, message).at(&format!("--{name}")))
            }
        }
    }
}

/// One flag without its quotes and escapes, and what follows it.
fn one(text: &str, escape: char) -> (String, &str) {
    let mut flag = String::new();
    let mut quote = None;
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match quote {
            None if c.is_whitespace() => return (flag, &text[at..]),
            None if c == '"' || c == '\'' => quote = Some(c),
            Some(open) if c == open => quote = None,
            _ if c == escape => match chars.next() {
                // What may be expanded later keeps its escape.
                Some((_, next @ '$')) => flag.extend([escape, next]),
                Some((_, next)) => flag.push(next),
                None => {}
            },
            _ => flag.push(c),
        }
    }
    (flag, "")
}
