//! Files of variables: `.env` and `env_file`.
//!
//! `KEY=value` with `export`, comments, quotes over several lines, escapes in double quotes and variables outside of single
//! ones; `raw` takes each line as it is.

use crate::error::{Error, Result};
use crate::interpolate::{Variables, expand};

/// The variables in a file, in its order. Those without `=` come from `outer`, if it has them.
pub fn parse(file: &str, text: &str, outer: &Variables) -> Result<Vec<(String, String)>> {
    let text = text.trim_start_matches('\u{feff}').replace("\r\n", "\n");
    let mut reader = Reader { file, text: &text, at: 0, known: outer.clone(), found: Vec::new() };
    while reader.statement()? {}
    Ok(reader.found)
}

/// Each line is `KEY=value`, and the value is what stands there.
pub fn parse_raw(file: &str, text: &str, outer: &Variables) -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for (index, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match line.split_once('=') {
            Some(("", _)) => {
                return Err(Error::Variables {
                    file: file.to_owned(),
                    line: index + 1,
                    problem: "no name before `=`".into(),
                });
            }
            Some((name, value)) => found.push((name.trim().to_owned(), value.to_owned())),
            None => found.extend(outer.get(line.trim()).map(|value| (line.trim().to_owned(), value.clone()))),
        }
    }
    Ok(found)
}

struct Reader<'a> {
    file: &'a str,
    text: &'a str,
    at: usize,
    known: Variables,
    found: Vec<(String, String)>,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn fail<T>(&self, at: usize, problem: impl Into<String>) -> Result<T> {
        let line = self.text[..at].matches('\n').count() + 1;
        Err(Error::Variables { file: self.file.to_owned(), line, problem: problem.into() })
    }

    fn skip_blanks(&mut self) {
        self.at += self.rest().len() - self.rest().trim_start_matches([' ', '\t']).len();
    }

    fn take_line(&mut self) -> &'a str {
        let line = self.rest().split('\n').next().unwrap_or_default();
        self.at = (self.at + line.len() + 1).min(self.text.len());
        line
    }

    fn statement(&mut self) -> Result<bool> {
        self.at += self.rest().len() - self.rest().trim_start().len();
        if self.rest().is_empty() {
            return Ok(false);
        }
        if self.rest().starts_with('#') {
            self.take_line();
            return Ok(true);
        }
        if let Some(after) = self.rest().strip_prefix("export").filter(|after| after.starts_with([' ', '\t'])) {
            self.at = self.text.len() - after.len();
            self.skip_blanks();
        }
        let begin = self.at;
        let allowed = |c: char| c.is_alphanumeric() || matches!(c, '_' | '.' | '-' | '[' | ']');
        let end = self.rest().find(|c| !allowed(c)).unwrap_or(self.rest().len());
        let name = self.rest()[..end].to_owned();
        self.at += end;
        self.skip_blanks();
        let next = self.rest().chars().next();
        match next {
            _ if name.is_empty() => self.fail(begin, format!("{:?} is no name of a variable", next.unwrap_or(' '))),
            Some('=' | ':') => {
                self.at += 1;
                self.skip_blanks();
                let value = self.value()?;
                self.known.insert(name.clone(), value.clone());
                self.found.push((name, value));
                Ok(true)
            }
            None | Some('\n') => {
                if let Some(value) = self.known.get(&name) {
                    self.found.push((name, value.clone()));
                }
                Ok(true)
            }
            Some('#') => {
                self.take_line();
                Ok(true)
            }
            Some(other) => self.fail(begin, format!("unexpected {other:?} after the name {name}")),
        }
    }

    fn value(&mut self) -> Result<String> {
        let begin = self.at;
        let quote = match self.rest().chars().next() {
            Some(quote @ ('"' | '\'')) => quote,
            _ => {
                let line = self.take_line();
                let value = if line.starts_with('#') { "" } else { line.split(" #").next().unwrap_or_default() };
                return self.expand(begin, value.trim_end());
            }
        };
        self.at += 1;
        let mut inner = String::new();
        let mut chars = self.rest().char_indices();
        while let Some((at, c)) = chars.next() {
            if c == quote {
                self.at += at + 1;
                let value = if quote == '"' { self.expand(begin, &inner)? } else { inner };
                let after = self.take_line().trim();
                if !after.is_empty() && !after.starts_with('#') {
                    return self.fail(begin, format!("unexpected {after:?} after the closing quote"));
                }
                return Ok(value);
            }
            match (c, quote) {
                ('\\', '"') => match chars.next().map(|(_, next)| next) {
                    Some('n') => inner.push('\n'),
                    Some('r') => inner.push('\r'),
                    Some('t') => inner.push('\t'),
                    Some('$') => inner.push_str("$$"),
                    Some(same @ ('"' | '\\')) => inner.push(same),
                    Some(other) => inner.extend(['\\', other]),
                    None => break,
                },
                ('\\', '\'') if self.text[self.at + at + 1..].starts_with('\'') => {
                    chars.next();
                    inner.push('\'');
                }
                _ => inner.push(c),
            }
        }
        self.fail(begin, "a quote is not closed")
    }

    fn expand(&self, at: usize, text: &str) -> Result<String> {
        expand(text, &self.known, &mut Vec::new()).or_else(|problem| self.fail(at, problem))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Vec<(String, String)> {
        parse("e", text, &[("OUT".to_owned(), "outer".to_owned())].into()).unwrap()
    }

    #[test]
    fn every_form() {
        let text = "\u{feff}# comment\nexport A=1 # one\nB = two words \nC='$A \\'x\\''\nD=\"${A}\\n\\$A\"\nOUT\nNONE\n\
                    E=\"two\nlines\"\nF: yaml\nG=\nH=a#b\nI=${N:-d}\nJ=#c\n";
        let expected = [
            ("A", "1"),
            ("B", "two words"),
            ("C", "$A 'x'"),
            ("D", "1\n$A"),
            ("OUT", "outer"),
            ("E", "two\nlines"),
            ("F", "yaml"),
            ("G", ""),
            ("H", "a#b"),
            ("I", "d"),
            ("J", ""),
        ];
        let expected: Vec<_> = expected.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        assert_eq!(read(text), expected);
    }

    #[test]
    fn mistakes_have_a_line() {
        let error = parse("e.env", "A=1\nB='x\n", &Variables::new()).unwrap_err();
        assert_eq!(error.to_string(), "e.env:2: a quote is not closed");
        assert!(
            parse("e.env", "A B=1\n", &Variables::new()).unwrap_err().to_string().starts_with("e.env:1: unexpected")
        );
    }

    #[test]
    fn raw_takes_lines_as_they_are() {
        let found = parse_raw("e", "A=\"x\" # y\n#c\n", &Variables::new()).unwrap();
        assert_eq!(found, [("A".to_owned(), "\"x\" # y".to_owned())]);
    }

    proptest! {
        #[test]
        fn no_text_is_too_strange(text in "[A='\"\\\\$#{}\\n é:-]{0,40}") {
            let _ = parse("e", &text, &Variables::new());
        }
    }
}
