//! The Dockerfile language: text to instructions. Pure; what variables stand for is the plan's business.

mod expand;
mod flags;
mod instruction;
mod mistake;
mod scan;
#[cfg(test)]
mod tests;

pub use expand::{Lookup, word, words};
pub use instruction::{Command, Copying, Health, Instruction, Running, Source};
pub use mistake::{Mistake, suggestion};
pub use scan::Heredoc;

use scan::Line;

/// A name of an ARG, and its default.
pub type Argument = (String, Option<String>);

/// Something with its place in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed<T> {
    /// First and last line.
    pub lines: (usize, usize),
    /// The instruction as it was written, continuations joined.
    pub text: String,
    pub value: T,
}

/// What comes between a FROM and the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// Of the FROM, as written.
    pub lines: (usize, usize),
    pub text: String,
    /// Image, earlier stage or context, variables not yet put in.
    pub base: String,
    pub name: Option<String>,
    pub platform: Option<String>,
    pub instructions: Vec<Placed<Instruction>>,
}

/// A Dockerfile, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dockerfile {
    pub escape: char,
    /// The frontend that the file asks for; read, and not used.
    pub syntax: Option<String>,
    /// ARGs before the first FROM.
    pub globals: Vec<Placed<Vec<Argument>>>,
    pub stages: Vec<Stage>,
    pub warnings: Vec<String>,
}

impl Dockerfile {
    /// Reads a whole file.
    pub fn parse(text: &str) -> Result<Self, Mistake> {
        let scanned = scan::scan(text)?;
        let mut file = Dockerfile {
            escape: scanned.escape,
            syntax: scanned.syntax,
            globals: Vec::new(),
            stages: Vec::new(),
            warnings: scanned.warnings,
        };
        for line in scanned.lines {
            let lines = (line.first, line.last);
            match instruction::parse(&line, file.escape)? {
                instruction::Parsed::From { base, name, platform } => {
                    let mut known = file.stages.iter().filter_map(|stage| stage.name.as_ref());
                    if let Some(name) = &name
                        && known.any(|known| known == name)
                    {
                        file.warnings.push(format!("line {}: stage name {name} is used twice", line.first));
                    }
                    let instructions = Vec::new();
                    file.stages.push(Stage { lines, text: line.text, base, name, platform, instructions });
                }
                instruction::Parsed::Other(value) => match (file.stages.last_mut(), value) {
                    (Some(stage), value) => stage.instructions.push(Placed { lines, text: line.text, value }),
                    (None, Instruction::Arg(args)) => {
                        file.globals.push(Placed { lines, text: line.text, value: args });
                    }
                    (None, _) => {
                        let word = line.text.split_whitespace().next().unwrap_or_default();
                        return Err(Mistake::new(lines, "no build stage in current context").at(word));
                    }
                },
            }
        }
        if file.stages.is_empty() {
            let end = text.lines().count().max(1);
            return Err(Mistake::new((end, end), "dockerfile contains no stages to build: it has no FROM"));
        }
        Ok(file)
    }

    /// One instruction by itself, as ONBUILD keeps it in an image.
    pub fn trigger(text: &str) -> Result<Placed<Instruction>, Mistake> {
        let scanned = scan::scan(text)?;
        let [line] = scanned.lines.as_slice() else {
            return Err(Mistake::new((1, 1), format!("{text:?} is not one instruction")));
        };
        one(line, scanned.escape)
    }
}

/// An instruction that stands within a stage.
fn one(line: &Line, escape: char) -> Result<Placed<Instruction>, Mistake> {
    let lines = (line.first, line.last);
    match instruction::parse(line, escape)? {
        instruction::Parsed::Other(value) => Ok(Placed { lines, text: line.text.clone(), value }),
        instruction::Parsed::From { .. } => Err(Mistake::new(lines, "FROM isn't allowed as an ONBUILD trigger")),
    }
}
