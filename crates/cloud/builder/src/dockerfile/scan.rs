//! From the text to logical lines: directives, comments, continuations and here-documents.

use super::Mistake;
use super::expand;

/// A here-document of an instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heredoc {
    pub name: String,
    /// As it stands in the instruction: `<<EOF`, `<<-"EOF"`.
    pub word: String,
    /// Whether variables are put in (by the builder for files, by the shell for commands).
    pub expand: bool,
    /// Leading tabs are taken away (`<<-`).
    pub chomp: bool,
    pub content: String,
}

/// An instruction's line, continuations joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub first: usize,
    pub last: usize,
    pub text: String,
    pub heredocs: Vec<Heredoc>,
}

/// The file as lines, with what its directives say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scanned {
    pub escape: char,
    pub syntax: Option<String>,
    pub lines: Vec<Line>,
    pub warnings: Vec<String>,
}

/// Reads the whole file.
pub fn scan(text: &str) -> Result<Scanned, Mistake> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let lines: Vec<&str> = text.lines().collect();
    let (mut scanned, mut at) = directives(&lines)?;
    let mut joined: Option<Line> = None;
    let mut gap = None;
    while let Some(line) = lines.get(at) {
        at += 1;
        if line.trim_start().starts_with('#') {
            continue;
        }
        let piece = if joined.is_none() { line.trim_start() } else { line };
        if piece.trim().is_empty() {
            if joined.is_some() {
                gap.get_or_insert(at);
            }
            continue;
        }
        let open =
            joined.get_or_insert_with(|| Line { first: at, last: at, text: String::new(), heredocs: Vec::new() });
        open.last = at;
        if let Some(piece) = continued(piece, scanned.escape) {
            open.text.push_str(piece);
            continue;
        }
        open.text.push_str(piece.trim_end());
        if let Some(done) = joined.take() {
            scanned.lines.push(with_heredocs(done, &lines, &mut at, scanned.escape)?);
        }
    }
    if let Some(open) = joined {
        scanned.lines.push(with_heredocs(open, &lines, &mut at, scanned.escape)?);
    }
    if let Some(line) = gap {
        scanned.warnings.push(format!("line {line}: empty line in a continued instruction"));
    }
    for line in &mut scanned.lines {
        line.text.truncate(line.text.trim_end().len());
    }
    scanned.lines.retain(|line| !line.text.is_empty());
    Ok(scanned)
}

/// The line without the escape at its end, if there is one that is not escaped itself.
fn continued(line: &str, escape: char) -> Option<&str> {
    let trimmed = line.trim_end_matches([' ', '\t', '\r']);
    let piece = trimmed.strip_suffix(escape)?;
    (!piece.ends_with(escape)).then_some(piece)
}

/// `# name=value` lines before anything else.
fn directives(lines: &[&str]) -> Result<(Scanned, usize), Mistake> {
    let mut scanned = Scanned { escape: '\\', syntax: None, lines: Vec::new(), warnings: Vec::new() };
    let mut seen: Vec<String> = Vec::new();
    let mut at = usize::from(lines.first().is_some_and(|line| line.starts_with("#!")));
    while let Some(line) = lines.get(at) {
        let Some((name, value)) = line.trim().strip_prefix('#').and_then(|rest| rest.split_once('=')) else { break };
        let (name, value) = (name.trim().to_ascii_lowercase(), value.trim());
        if !["syntax", "escape", "check"].contains(&name.as_str()) || value.is_empty() {
            break;
        }
        at += 1;
        let mistake = |message: String| Mistake::new((at, at), message).at(value);
        if seen.contains(&name) {
            return Err(mistake(format!("only one {name} parser directive can be used")));
        }
        match name.as_str() {
            "syntax" => scanned.syntax = Some(value.to_owned()),
            "escape" => match value {
                "\\" => scanned.escape = '\\',
                "`" => scanned.escape = '`',
                other => return Err(mistake(format!("invalid escape token {other:?} does not match ` or \\"))),
            },
            _ => {}
        }
        seen.push(name);
    }
    Ok((scanned, at))
}

/// Reads the here-documents that the line announces.
fn with_heredocs(mut line: Line, lines: &[&str], at: &mut usize, escape: char) -> Result<Line, Mistake> {
    let mut words = line.text.split_whitespace();
    let is = |word: Option<&str>, name: &str| word.is_some_and(|word| word.eq_ignore_ascii_case(name));
    let mut first = words.next();
    if is(first, "ONBUILD") {
        first = words.next();
    }
    if !["ADD", "COPY", "RUN"].iter().any(|name| is(first, name)) {
        return Ok(line);
    }
    for word in raw_words(&line.text, escape) {
        let Some(mut heredoc) = announced(&word, escape) else { continue };
        let mut ended = false;
        while let Some(text) = lines.get(*at) {
            *at += 1;
            let text = if heredoc.chomp { text.trim_start_matches('\t') } else { text };
            if text == heredoc.name {
                ended = true;
                break;
            }
            heredoc.content.push_str(text);
            heredoc.content.push('\n');
        }
        line.last = *at;
        if !ended {
            return Err(Mistake::new((line.first, line.first), "unterminated heredoc").at(&heredoc.word));
        }
        line.heredocs.push(heredoc);
    }
    Ok(line)
}

/// `<<EOF`, `<<-EOF`, `<<"EOF"`, also with a file descriptor before it.
pub fn announced(word: &str, escape: char) -> Option<Heredoc> {
    let rest = word.trim_start_matches(|c: char| c.is_ascii_digit()).strip_prefix("<<")?;
    let (chomp, rest) = match rest.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    if rest.is_empty() || rest.contains('<') {
        return None;
    }
    // A name is what it says: no variables in it.
    let named = expand::words(rest, escape, &|name| Some(format!("${name}"))).ok()?;
    let [name] = named.as_slice() else { return None };
    let expand = name == rest;
    let heredoc = Heredoc { name: name.clone(), word: word.to_owned(), expand, chomp, content: String::new() };
    (!name.is_empty()).then_some(heredoc)
}

/// Words with their quotes and escapes.
pub fn raw_words(text: &str, escape: char) -> Vec<String> {
    let (mut words, mut word) = (Vec::new(), String::new());
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if quote.is_none() && c.is_whitespace() {
            if !word.is_empty() {
                words.push(std::mem::take(&mut word));
            }
            continue;
        }
        word.push(c);
        match quote {
            None if c == '"' || c == '\'' => quote = Some(c),
            Some(open) if open == c => quote = None,
            _ if c == escape && quote != Some('\'') => word.extend(chars.next()),
            _ => {}
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}
