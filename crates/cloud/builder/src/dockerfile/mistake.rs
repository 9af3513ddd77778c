//! What is wrong with a Dockerfile, and where.

use std::fmt::Write as _;

/// A mistake with its place. Lines count from one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {message}")]
pub struct Mistake {
    pub line: usize,
    /// Last line of the instruction.
    pub end: usize,
    pub message: String,
    /// The word that is wrong, as it stands in the file.
    pub word: Option<String>,
}

/// Lines shown around a mistake.
const AROUND: usize = 2;

impl Mistake {
    /// A mistake in the instruction on these lines.
    pub fn new((line, end): (usize, usize), message: impl Into<String>) -> Self {
        Mistake { line, end, message: message.into(), word: None }
    }

    /// Points at this word.
    #[must_use]
    pub fn at(mut self, word: &str) -> Self {
        self.word = Some(word.to_owned()).filter(|word| !word.is_empty());
        self
    }

    /// File, place, the lines around it and a caret, for a person.
    pub fn show(&self, file: &str, text: &str) -> String {
        let lines: Vec<&str> = text.lines().collect();
        let (first, last) = (self.line.max(1), self.end.min(lines.len()).max(self.line));
        let found = self.word.as_deref().and_then(|word| {
            let numbered = lines.iter().enumerate().take(last).skip(first - 1);
            numbered.map(|(at, line)| (at + 1, line.find(word), word)).find_map(|(at, place, word)| {
                let width = word.lines().next().unwrap_or_default().chars().count().max(1);
                Some((at, place?, width))
            })
        });
        let (line, column) = found.map_or((self.line, None), |(line, column, _)| (line, Some(column)));
        let place = column.map_or(String::new(), |column| {
            let before = lines.get(line - 1).and_then(|text| text.get(..column)).unwrap_or_default();
            format!(":{}", before.chars().count() + 1)
        });
        let mut shown = format!("{file}:{line}{place}: {}\n", self.message);
        let digits = (last + AROUND).to_string().len();
        for at in first.saturating_sub(AROUND).max(1)..=(last + AROUND).min(lines.len()) {
            let mark = if (first..=last).contains(&at) { '>' } else { ' ' };
            let text = lines.get(at - 1).copied().unwrap_or_default();
            let _ = writeln!(shown, "{mark} {at:digits$} | {text}");
            if let Some((found, column, width)) = found
                && found == at
            {
                // Tabs stay tabs, so that the caret stands below the word.
                let before = text.get(..column).unwrap_or_default();
                let space: String = before.chars().map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
                let _ = writeln!(shown, "  {:digits$} | {space}{}", "", "^".repeat(width));
            }
        }
        shown
    }
}

/// ` (did you mean X?)` for a word that is nearly one of the known ones.
pub fn suggestion(word: &str, known: &[&str]) -> String {
    let lower = word.to_ascii_lowercase();
    let near = known.iter().map(|known| (distance(&lower, &known.to_ascii_lowercase()), known));
    match near.min_by_key(|(distance, _)| *distance) {
        Some((distance, known)) if distance <= 2 && distance < known.len() => format!(" (did you mean {known}?)"),
        _ => String::new(),
    }
}

/// How many letters have to be changed, added or removed.
fn distance(a: &str, b: &str) -> usize {
    // Nothing that long is a misspelt keyword.
    if a.len() > 64 {
        return usize::MAX;
    }
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let changed = corner + usize::from(x != *y);
            corner = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(corner + 1);
        }
    }
    row[b.len()]
}
