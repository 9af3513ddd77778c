//! Patterns of file names as Go's `filepath.Match` has them, with `**` where ignore files and `--parents` allow it.

/// A pattern, read. Matching takes time in proportion to pattern times name, whatever the pattern is.
#[derive(Clone, Debug)]
pub struct Glob {
    tokens: Vec<Token>,
}

#[derive(Clone, Debug)]
enum Token {
    One(char),
    /// `?`: anything but a slash.
    Any,
    /// `*`: any number of anything but slashes.
    Many,
    /// `**`: any number of anything.
    Deep,
    /// `**/`: nothing, or anything that ends in a slash.
    Folders,
    Class {
        not: bool,
        ranges: Vec<(char, char)>,
    },
}

impl Glob {
    /// `deep`: two stars cross folders.
    pub fn new(pattern: &str, deep: bool) -> Result<Self, String> {
        let bad = || format!("syntax error in pattern {pattern:?}");
        let mut tokens = Vec::new();
        let mut chars = pattern.chars().peekable();
        while let Some(c) = chars.next() {
            tokens.push(match c {
                '*' if deep && chars.next_if_eq(&'*').is_some() => {
                    while chars.next_if_eq(&'*').is_some() {}
                    if chars.next_if_eq(&'/').is_some() { Token::Folders } else { Token::Deep }
                }
                '*' => Token::Many,
                '?' => Token::Any,
                '\\' => Token::One(chars.next().ok_or_else(bad)?),
                '[' => {
                    let not = chars.next_if_eq(&'^').is_some();
                    let mut ranges = Vec::new();
                    loop {
                        let mut bound = || match chars.next() {
                            Some('\\') => chars.next(),
                            other => other,
                        };
                        let low = bound().ok_or_else(bad)?;
                        if low == ']' && !ranges.is_empty() {
                            break;
                        }
                        let high = match chars.next_if_eq(&'-') {
                            Some(_) => match chars.next() {
                                Some('\\') => chars.next().ok_or_else(bad)?,
                                Some(']') | None => return Err(bad()),
                                Some(high) => high,
                            },
                            None => low,
                        };
                        ranges.push((low, high));
                    }
                    Token::Class { not, ranges }
                }
                c => Token::One(c),
            });
        }
        Ok(Glob { tokens })
    }

    /// Whether the pattern covers the whole name.
    pub fn matches(&self, name: &str) -> bool {
        let text: Vec<char> = name.chars().collect();
        // Which lengths of the name the tokens so far can cover.
        let mut reached = vec![false; text.len() + 1];
        reached[0] = true;
        for token in &self.tokens {
            let mut next = vec![false; text.len() + 1];
            match token {
                Token::Many | Token::Deep => {
                    let mut open = false;
                    for at in 0..=text.len() {
                        open |= reached[at];
                        next[at] = open;
                        if at < text.len() && matches!(token, Token::Many) && text[at] == '/' {
                            open = false;
                        }
                    }
                }
                Token::Folders => {
                    let mut open = false;
                    for at in 0..=text.len() {
                        next[at] = reached[at] || open && at > 0 && text[at - 1] == '/';
                        open |= reached[at];
                    }
                }
                one => {
                    for at in (0..text.len()).filter(|at| reached[*at]) {
                        next[at + 1] = one.covers(text[at]);
                    }
                }
            }
            reached = next;
        }
        reached[text.len()]
    }
}

impl Token {
    fn covers(&self, c: char) -> bool {
        match self {
            Token::One(own) => *own == c,
            Token::Any => c != '/',
            Token::Class { not, ranges } => {
                c != '/' && ranges.iter().any(|(low, high)| (low..=high).contains(&&c)) != *not
            }
            Token::Many | Token::Deep | Token::Folders => false,
        }
    }
}

/// What a `.dockerignore` or `--exclude` leaves out: the last pattern that matches a name or a folder above it decides.
#[derive(Clone, Debug, Default)]
pub struct Ignore {
    rules: Vec<(bool, Glob)>,
}

impl Ignore {
    /// Reads a `.dockerignore`.
    pub fn read(text: &str) -> Result<Self, String> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        Self::new(text.lines().filter(|line| !line.starts_with('#')))
    }

    /// From patterns, in their order; `!` lets in again.
    pub fn new<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let mut rules = Vec::new();
        for pattern in patterns {
            let pattern = pattern.trim();
            let (again, pattern) = match pattern.strip_prefix('!') {
                Some(rest) => (true, rest.trim_start()),
                None => (false, pattern),
            };
            if pattern.is_empty() {
                if again {
                    return Err("illegal exclusion pattern: \"!\"".to_owned());
                }
                continue;
            }
            rules.push((again, Glob::new(&dhow_image::clean(pattern), true)?));
        }
        Ok(Ignore { rules })
    }

    /// Whether nothing is left out.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Whether something below an ignored folder may be let in again.
    pub fn has_exceptions(&self) -> bool {
        self.rules.iter().any(|(again, _)| *again)
    }

    /// Whether this path, relative to the root, is left out.
    pub fn ignores(&self, path: &str) -> bool {
        let above = path.char_indices().filter(|(_, c)| *c == '/').map(|(at, _)| &path[..at]);
        let names: Vec<&str> = above.chain([path]).collect();
        let mut ignored = false;
        for (again, glob) in &self.rules {
            if ignored == *again && names.iter().any(|name| glob.matches(name)) {
                ignored = !again;
            }
        }
        ignored
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_match_as_in_go() {
        for (pattern, name, want) in [
            ("*.go", "a.go", true),
            ("*.go", "d/a.go", false),
            ("a?c", "abc", true),
            ("[a-c]x", "bx", true),
            ("[^a-c]x", "bx", false),
            ("\\*", "*", true),
            ("**/*.go", "a.go", true),
            ("**/*.go", "x/y/a.go", true),
            ("a/**", "a/b/c", true),
            ("a/**/z", "a/z", true),
            ("a/**/z", "a/b/c/z", true),
            ("a/**/z", "abz", false),
            ("**", "x/y", true),
            ("a*b*c", "a1b2/c", false),
        ] {
            assert_eq!(Glob::new(pattern, true).unwrap().matches(name), want, "{pattern} {name}");
        }
        assert!(!Glob::new("**/x", false).unwrap().matches("a/b/x"));
        assert!(Glob::new("[a", true).is_err() && Glob::new("\\", true).is_err());
        let hostile = Glob::new(&"*a".repeat(500), true).unwrap();
        assert!(!hostile.matches(&"a".repeat(3000).replacen('a', "b", 2900)));
    }

    #[test]
    fn the_last_rule_that_matches_decides() {
        let ignore = Ignore::read("# note\n*\n!src\nsrc/*.tmp\n!src/keep.tmp\n/docs/../x\n").unwrap();
        for (path, want) in [
            ("a", true),
            ("src", false),
            ("src/main.rs", false),
            ("src/a.tmp", true),
            ("src/keep.tmp", false),
            ("x", true),
            ("d/src", true),
        ] {
            assert_eq!(ignore.ignores(path), want, "{path}");
        }
        assert!(ignore.has_exceptions());
        assert!(Ignore::read("!").is_err());
        assert!(!Ignore::read("node_modules\n").unwrap().ignores("d/node_modules"));
        assert!(Ignore::read("**/node_modules\n").unwrap().ignores("d/node_modules/x"));
    }
}
