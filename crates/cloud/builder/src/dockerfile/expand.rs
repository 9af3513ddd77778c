//! Quotes, escapes and variables in the words of instructions, as BuildKit treats them: a small part of what a shell does.

use std::iter::Peekable;
use std::str::Chars;

/// Deepest `${a:-${b:-…}}`.
const MAX_DEPTH: usize = 50;

/// What a variable's name stands for, if anything.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Takes quotes and escapes away and puts variables in; the whole is one word.
pub fn word(text: &str, escape: char, lookup: Lookup<'_>) -> Result<String, String> {
    Ok(run(text, escape, lookup)?.text)
}

/// The same, but white space outside quotes, also in the value of a variable, separates words.
pub fn words(text: &str, escape: char, lookup: Lookup<'_>) -> Result<Vec<String>, String> {
    let mut out = run(text, escape, lookup)?;
    out.end();
    Ok(out.words)
}

fn run(text: &str, escape: char, lookup: Lookup<'_>) -> Result<Out, String> {
    let mut expander = Expander { chars: text.chars().peekable(), escape, lookup, depth: 0 };
    expander.until(None)
}

#[derive(Default)]
struct Out {
    text: String,
    words: Vec<String>,
    current: String,
    open: bool,
}

impl Out {
    /// A character that white space may end a word with.
    fn plain(&mut self, c: char) {
        self.text.push(c);
        if c.is_whitespace() {
            self.end();
        } else {
            self.current.push(c);
            self.open = true;
        }
    }

    fn quoted(&mut self, text: &str) {
        self.text.push_str(text);
        self.current.push_str(text);
        self.open = true;
    }

    fn end(&mut self) {
        if std::mem::take(&mut self.open) {
            self.words.push(std::mem::take(&mut self.current));
        }
    }
}

struct Expander<'a> {
    chars: Peekable<Chars<'a>>,
    escape: char,
    lookup: Lookup<'a>,
    depth: usize,
}

impl Expander<'_> {
    fn until(&mut self, stop: Option<char>) -> Result<Out, String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err("variables are nested too deep".to_owned());
        }
        let mut out = Out::default();
        loop {
            let Some(c) = self.chars.next() else {
                if let Some(stop) = stop {
                    return Err(format!("unexpected end of statement while looking for matching {stop}"));
                }
                break;
            };
            match c {
                c if Some(c) == stop => break,
                '\'' => {
                    let text = self.single_quoted()?;
                    out.quoted(&text);
                }
                '"' => {
                    let text = self.double_quoted()?;
                    out.quoted(&text);
                }
                '$' => self.dollar()?.chars().for_each(|c| out.plain(c)),
                c if c == self.escape => {
                    if let Some(next) = self.chars.next() {
                        out.quoted(next.encode_utf8(&mut [0; 4]));
                    }
                }
                c => out.plain(c),
            }
        }
        self.depth -= 1;
        Ok(out)
    }

    fn single_quoted(&mut self) -> Result<String, String> {
        let mut text = String::new();
        for c in self.chars.by_ref() {
            if c == '\'' {
                return Ok(text);
            }
            text.push(c);
        }
        Err("unexpected end of statement while looking for matching single-quote".to_owned())
    }

    fn double_quoted(&mut self) -> Result<String, String> {
        let mut text = String::new();
        while let Some(c) = self.chars.next() {
            match c {
                '"' => return Ok(text),
                '$' => text.push_str(&self.dollar()?),
                c if c == self.escape => match self.chars.peek() {
                    Some(&next) if next == '"' || next == '$' || next == self.escape => {
                        text.push(next);
                        self.chars.next();
                    }
                    Some(_) => text.push(c),
                    None => {}
                },
                c => text.push(c),
            }
        }
        Err("unexpected end of statement while looking for matching double-quote".to_owned())
    }

    fn name(&mut self) -> String {
        let mut name = String::new();
        let Some(&first) = self.chars.peek() else { return name };
        if "@*#?-$!".contains(first) {
            name.push(first);
            self.chars.next();
            return name;
        }
        let digits = first.is_ascii_digit();
        while let Some(&c) = self.chars.peek() {
            let fits = if digits { c.is_ascii_digit() } else { c.is_ascii_alphanumeric() || c == '_' };
            if !fits {
                break;
            }
            name.push(c);
            self.chars.next();
        }
        name
    }

    /// What follows a dollar sign.
    fn dollar(&mut self) -> Result<String, String> {
        if self.chars.peek() != Some(&'{') {
            let name = self.name();
            if name.is_empty() {
                return Ok("$".to_owned());
            }
            return Ok((self.lookup)(&name).unwrap_or_default());
        }
        self.chars.next();
        match self.chars.peek() {
            None => return Err("syntax error: missing '}'".to_owned()),
            Some('{' | '}' | ':') => return Err("syntax error: bad substitution".to_owned()),
            Some(_) => {}
        }
        let name = self.name();
        let value = (self.lookup)(&name);
        match self.chars.next() {
            Some('}') => Ok(value.unwrap_or_default()),
            Some(':') => {
                let kind = self.chars.next();
                let word = |this: &mut Self| this.until(Some('}')).map(|out| out.text);
                let full = value.filter(|value| !value.is_empty());
                match kind {
                    Some('-') => word(self).map(|word| full.unwrap_or(word)),
                    Some('+') => word(self).map(|word| full.map_or(String::new(), |_| word)),
                    Some('?') => {
                        let why = word(self)?;
                        full.ok_or_else(|| required(&name, &why, "is not allowed to be empty"))
                    }
                    other => Err(unsupported(&name, &format!(":{}", other.map(String::from).unwrap_or_default()))),
                }
            }
            Some('-') => {
                let word = self.until(Some('}'))?.text;
                Ok(value.unwrap_or(word))
            }
            Some('+') => {
                let word = self.until(Some('}'))?.text;
                Ok(value.map_or(String::new(), |_| word))
            }
            Some('?') => {
                let why = self.until(Some('}'))?.text;
                value.ok_or_else(|| required(&name, &why, "is not allowed to be unset"))
            }
            Some(end @ ('#' | '%')) => {
                let greedy = self.chars.next_if_eq(&end).is_some();
                let pattern: Vec<char> = self.pattern('}')?;
                Ok(trim(&value.unwrap_or_default(), &pattern, end == '#', greedy))
            }
            Some('/') => {
                let all = self.chars.next_if_eq(&'/').is_some();
                let pattern = self.pattern('/')?;
                let with = self.until(Some('}'))?.text;
                Ok(replace(&value.unwrap_or_default(), &pattern, &with, all))
            }
            Some(other) => Err(unsupported(&name, &other.to_string())),
            None => Err("syntax error: missing '}'".to_owned()),
        }
    }

    /// Up to `stop`; escapes stay, for the pattern's own use.
    fn pattern(&mut self, stop: char) -> Result<Vec<char>, String> {
        let mut pattern = Vec::new();
        while let Some(c) = self.chars.next() {
            match c {
                c if c == stop => return Ok(pattern),
                '$' => pattern.extend(self.dollar()?.chars()),
                '\'' => pattern.extend(self.single_quoted()?.chars().flat_map(|c| ['\\', c])),
                '"' => pattern.extend(self.double_quoted()?.chars().flat_map(|c| ['\\', c])),
                c if c == self.escape => {
                    if let Some(next) = self.chars.next() {
                        pattern.extend(['\\', next]);
                    }
                }
                c => pattern.push(c),
            }
        }
        Err(format!("unexpected end of statement while looking for matching {stop}"))
    }
}

fn required(name: &str, why: &str, otherwise: &str) -> String {
    if why.is_empty() { format!("{name}: {otherwise}") } else { format!("{name}: {why}") }
}

fn unsupported(name: &str, modifier: &str) -> String {
    format!("unsupported modifier ({modifier}) in substitution of {name:?}")
}

/// Whether the pattern, with `*` and `?`, covers exactly this text.
fn covers(pattern: &[char], text: &[char]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        let (literal, width) = match pattern.get(p) {
            Some('\\') if p + 1 < pattern.len() => (pattern.get(p + 1), 2),
            other => (other, 1),
        };
        match literal {
            Some('*') if width == 1 => {
                star = Some((p, t));
                p += 1;
            }
            Some(&c) if c == text[t] || (c == '?' && width == 1) => {
                p += width;
                t += 1;
            }
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    (p, t) = (at + 1, from + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

fn trim(value: &str, pattern: &[char], front: bool, greedy: bool) -> String {
    let text: Vec<char> = value.chars().collect();
    let mut lengths: Vec<usize> = (0..=text.len()).collect();
    if greedy {
        lengths.reverse();
    }
    for length in lengths {
        let (gone, left) = if front {
            text.split_at(length)
        } else {
            let (left, gone) = text.split_at(text.len() - length);
            (gone, left)
        };
        if covers(pattern, gone) {
            return left.iter().collect();
        }
    }
    value.to_owned()
}

fn replace(value: &str, pattern: &[char], with: &str, all: bool) -> String {
    let text: Vec<char> = value.chars().collect();
    let mut out = String::new();
    let mut at = 0;
    while at < text.len() {
        let end = (at + 1..=text.len()).rev().find(|end| covers(pattern, &text[at..*end]));
        match end {
            Some(end) => {
                out.push_str(with);
                at = end;
                if !all {
                    break;
                }
            }
            None => {
                out.push(text[at]);
                at += 1;
            }
        }
    }
    out.extend(&text[at..]);
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn lookup(name: &str) -> Option<String> {
        match name {
            "a" => Some("alpha".into()),
            "empty" => Some(String::new()),
            "two" => Some("one two".into()),
            "path" => Some("usr/lib/x.tar.gz".into()),
            _ => None,
        }
    }

    #[test]
    fn variables_are_put_in_as_buildkit_does() {
        for (text, want) in [
            ("$a", "alpha"),
            ("${a}b", "alphab"),
            ("\\$a", "$a"),
            ("'$a'", "$a"),
            ("\"$a\"", "alpha"),
            ("\"\\$a \\n\"", "$a \\n"),
            ("$", "$"),
            ("a$", "a$"),
            ("$none.", "."),
            ("${none:-x$a}", "xalpha"),
            ("${empty:-x}", "x"),
            ("${empty-x}", ""),
            ("${none-x}", "x"),
            ("${a:+x}", "x"),
            ("${empty:+x}", ""),
            ("${empty+x}", "x"),
            ("${path#*/}", "lib/x.tar.gz"),
            ("${path##*/}", "x.tar.gz"),
            ("${path%.*}", "usr/lib/x.tar"),
            ("${path%%.*}", "usr/lib/x"),
            ("${path/lib/LIB}", "usr/LIB/x.tar.gz"),
            ("${path//[/]/x}", "usr/lib/x.tar.gz"),
            ("${path//\\//-}", "usr-lib-x.tar.gz"),
            ("${path//a?/_}", "usr/lib/x.t_.gz"),
            ("${none:-${none:-deep}}", "deep"),
            ("${a:-'}'}", "alpha"),
            ("x\\", "x"),
        ] {
            assert_eq!(word(text, '\\', &lookup).unwrap(), want, "{text}");
        }
    }

    #[test]
    fn words_end_at_white_space_outside_quotes() {
        assert_eq!(words("a \"b c\" $two '' d\\ e", '\\', &lookup).unwrap(), ["a", "b c", "one", "two", "", "d e"]);
    }

    #[test]
    fn broken_words_say_why() {
        for (text, why) in [
            ("'a", "single-quote"),
            ("\"a", "double-quote"),
            ("${", "missing '}'"),
            ("${a", "missing '}'"),
            ("${}", "bad substitution"),
            ("${a:x}", "unsupported modifier (:x)"),
            ("${none?}", "not allowed to be unset"),
            ("${empty:?give one}", "empty: give one"),
            ("${a:-", "matching }"),
        ] {
            let error = word(text, '\\', &lookup).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
        let deep = "${a:-".repeat(5000);
        assert!(word(&deep, '\\', &|_| None).is_err());
    }
}
