//! Instructions: what each may look like, and what it says.

use std::time::Duration;

use dhow_base::duration::go_seconds;

use super::Argument;
use super::flags::Flags;
use super::mistake::{Mistake, suggestion};
use super::scan::{Heredoc, Line, announced, raw_words};

const KEYWORDS: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// A program with arguments, or a line for the shell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    Exec(Vec<String>),
    Shell(String),
}

/// Where COPY and ADD take something from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    Path(String),
    Inline(Heredoc),
}

/// COPY or ADD.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Copying {
    pub sources: Vec<Source>,
    pub destination: String,
    pub from: Option<String>,
    pub chown: Option<String>,
    pub chmod: Option<String>,
    pub link: bool,
    pub parents: bool,
    pub exclude: Vec<String>,
    /// ADD: of what is downloaded.
    pub checksum: Option<String>,
    pub keep_git_dir: bool,
    /// ADD: whether archives are unpacked; local ones are unless this says no.
    pub unpack: Option<bool>,
}

/// RUN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    pub command: Command,
    pub heredocs: Vec<Heredoc>,
    /// `type=…,…`, variables not yet put in.
    pub mounts: Vec<String>,
    pub network: Option<String>,
    pub security: Option<String>,
}

/// HEALTHCHECK.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// `None` turns a check of the base image off.
    pub command: Option<Command>,
    pub interval: Option<Duration>,
    pub timeout: Option<Duration>,
    pub start_period: Option<Duration>,
    pub start_interval: Option<Duration>,
    pub retries: Option<u32>,
}

/// An instruction within a stage; variables and quotes as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Instruction {
    Add(Copying),
    Arg(Vec<Argument>),
    Cmd(Command),
    Copy(Copying),
    Entrypoint(Command),
    Env(Vec<(String, String)>),
    Expose(String),
    Healthcheck(Health),
    Label(Vec<(String, String)>),
    Maintainer(String),
    Onbuild(String),
    Run(Running),
    Shell(Vec<String>),
    Stopsignal(String),
    User(String),
    Volume(Vec<String>),
    Workdir(String),
}

/// FROM opens a stage; everything else is in one.
pub enum Parsed {
    From { base: String, name: Option<String>, platform: Option<String> },
    Other(Instruction),
}

struct Reader<'a> {
    line: &'a Line,
    lines: (usize, usize),
    escape: char,
    keyword: String,
    /// Without keyword and flags.
    rest: &'a str,
    flags: Flags,
}

/// Reads one line.
pub fn parse(line: &Line, escape: char) -> Result<Parsed, Mistake> {
    let lines = (line.first, line.last);
    let (word, rest) = line.text.split_once(char::is_whitespace).unwrap_or((&line.text, ""));
    let keyword = word.to_ascii_uppercase();
    let known: &[&str] = match keyword.as_str() {
        "ADD" => &["keep-git-dir", "checksum", "chown", "chmod", "link", "exclude", "unpack"],
        "COPY" => &["from", "chown", "chmod", "link", "parents", "exclude"],
        "FROM" => &["platform"],
        "HEALTHCHECK" => &["interval", "timeout", "start-period", "start-interval", "retries"],
        "RUN" => &["mount", "network", "security"],
        _ if KEYWORDS.contains(&keyword.as_str()) => &[],
        _ => {
            let message = format!("unknown instruction: {word}{}", suggestion(word, &KEYWORDS));
            return Err(Mistake::new(lines, message).at(word));
        }
    };
    // A command may begin with dashes of its own.
    let own = matches!(keyword.as_str(), "CMD" | "ENTRYPOINT" | "SHELL" | "ENV" | "LABEL" | "MAINTAINER" | "ONBUILD");
    let (flags, rest) = match own {
        true => (Flags::take("", escape, lines, &[])?.0, rest),
        false => Flags::take(rest, escape, lines, known)?,
    };
    let reader = Reader { line, lines, escape, keyword, rest: rest.trim(), flags };
    if reader.rest.is_empty() {
        return Err(reader.wrong(format!("{} requires at least one argument", reader.keyword)));
    }
    reader.instruction()
}

impl Reader<'_> {
    fn wrong(&self, message: impl Into<String>) -> Mistake {
        let at = if self.rest.is_empty() { self.line.text.split_whitespace().next() } else { Some(self.rest) };
        // Continued lines are not in the file as they are here.
        let at = at.map(|text| text.split_whitespace().next().unwrap_or_default());
        Mistake::new(self.lines, message).at(at.unwrap_or_default())
    }

    fn instruction(&self) -> Result<Parsed, Mistake> {
        let one = || self.rest.to_owned();
        Ok(Parsed::Other(match self.keyword.as_str() {
            "FROM" => return self.from(),
            "ADD" => Instruction::Add(self.copying()?),
            "COPY" => Instruction::Copy(self.copying()?),
            "ARG" => Instruction::Arg(self.args()?),
            "CMD" => Instruction::Cmd(self.command(self.rest)?),
            "ENTRYPOINT" => Instruction::Entrypoint(self.command(self.rest)?),
            "ENV" => Instruction::Env(self.pairs()?),
            "LABEL" => Instruction::Label(self.pairs()?),
            "EXPOSE" => Instruction::Expose(one()),
            "HEALTHCHECK" => Instruction::Healthcheck(self.health()?),
            "MAINTAINER" => Instruction::Maintainer(one()),
            "ONBUILD" => Instruction::Onbuild(self.onbuild()?),
            "RUN" => Instruction::Run(self.running()?),
            "SHELL" => match self.list(self.rest)? {
                Some(list) if !list.is_empty() => Instruction::Shell(list),
                _ => return Err(self.wrong("SHELL requires the arguments to be in JSON form")),
            },
            "STOPSIGNAL" => Instruction::Stopsignal(one()),
            "USER" => Instruction::User(one()),
            "VOLUME" => {
                let list = self.list(self.rest)?;
                let list = list.unwrap_or_else(|| self.rest.split_whitespace().map(str::to_owned).collect());
                if list.iter().any(|volume| volume.trim().is_empty()) || list.is_empty() {
                    return Err(self.wrong("VOLUME specified can not be an empty string"));
                }
                Instruction::Volume(list)
            }
            _ => Instruction::Workdir(one()),
        }))
    }

    fn from(&self) -> Result<Parsed, Mistake> {
        let platform = self.flags.value("platform")?;
        let words: Vec<&str> = self.rest.split_whitespace().collect();
        let (base, name) = match words.as_slice() {
            [base] => (base, None),
            [base, word, name] if word.eq_ignore_ascii_case("as") => {
                let lower = name.to_ascii_lowercase();
                let fits = lower.starts_with(|c: char| c.is_ascii_lowercase())
                    && lower.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
                if !fits {
                    return Err(Mistake::new(
                        self.lines,
                        format!(
                            "invalid name for build stage: {name:?}, name can't start with a number or contain symbols"
                        ),
                    )
                    .at(name));
                }
                (base, Some(lower))
            }
            _ => return Err(self.wrong("FROM requires either one or three arguments")),
        };
        Ok(Parsed::From { base: (*base).to_owned(), name, platform })
    }

    /// A JSON array of strings; `None` for anything that is no JSON array.
    fn list(&self, text: &str) -> Result<Option<Vec<String>>, Mistake> {
        if !text.starts_with('[') {
            return Ok(None);
        }
        let mut values = serde_json::Deserializer::from_str(text).into_iter::<Vec<serde_json::Value>>();
        let Some(Ok(list)) = values.next() else { return Ok(None) };
        let strings = list.into_iter().map(|value| match value {
            serde_json::Value::String(text) => Ok(text),
            _ => Err(self.wrong("when using JSON array syntax, arrays must be comprised of strings only")),
        });
        strings.collect::<Result<_, _>>().map(Some)
    }

    fn command(&self, text: &str) -> Result<Command, Mistake> {
        Ok(match self.list(text)? {
            Some(list) => Command::Exec(list),
            None => Command::Shell(text.to_owned()),
        })
    }

    fn args(&self) -> Result<Vec<Argument>, Mistake> {
        let words = raw_words(self.rest, self.escape);
        let pair = |word: &String| {
            let (name, value) = match word.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (word.as_str(), None),
            };
            if name.is_empty() {
                return Err(Mistake::new(self.lines, "ARG names can not be blank").at(word));
            }
            Ok((name.to_owned(), value))
        };
        words.iter().map(pair).collect()
    }

    fn pairs(&self) -> Result<Vec<(String, String)>, Mistake> {
        let keyword = &self.keyword;
        let words = raw_words(self.rest, self.escape);
        if words.first().is_some_and(|first| !first.contains('=')) {
            let Some((name, value)) = self.rest.split_once(char::is_whitespace) else {
                return Err(self.wrong(format!("{keyword} must have two arguments")));
            };
            return Ok(vec![(name.to_owned(), value.trim_start().to_owned())]);
        }
        let pair = |word: &String| match word.split_once('=') {
            Some(("", _)) => Err(Mistake::new(self.lines, format!("{keyword} names can not be blank")).at(word)),
            Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
            None => {
                let message = format!("can't find = in {word:?}: must be of the form name=value");
                Err(Mistake::new(self.lines, message).at(word))
            }
        };
        words.iter().map(pair).collect()
    }

    fn copying(&self) -> Result<Copying, Mistake> {
        let keyword = &self.keyword;
        let mut words = match self.list(self.rest)? {
            Some(list) => list,
            None => self.rest.split_whitespace().map(str::to_owned).collect(),
        };
        if words.len() < 2 {
            return Err(self.wrong(format!(
                "{keyword} requires at least two arguments, but only one was provided; the destination could not be determined"
            )));
        }
        let destination = words.pop().unwrap_or_default();
        if announced(&destination, self.escape).is_some() {
            return Err(Mistake::new(self.lines, format!("{keyword} cannot accept a heredoc as a destination"))
                .at(&destination));
        }
        let mut heredocs = self.line.heredocs.iter();
        let sources = words.into_iter().map(|word| match announced(&word, self.escape).and_then(|_| heredocs.next()) {
            Some(heredoc) => Source::Inline(heredoc.clone()),
            None => Source::Path(word),
        });
        let flags = &self.flags;
        let unpack = if flags.given("unpack") { Some(flags.switch("unpack")?) } else { None };
        Ok(Copying {
            sources: sources.collect(),
            destination,
            from: flags.value("from")?,
            chown: flags.value("chown")?,
            chmod: flags.value("chmod")?,
            link: flags.switch("link")?,
            parents: flags.switch("parents")?,
            exclude: flags.values("exclude")?,
            checksum: flags.value("checksum")?,
            keep_git_dir: flags.switch("keep-git-dir")?,
            unpack,
        })
    }

    fn running(&self) -> Result<Running, Mistake> {
        let (network, security) = (self.flags.value("network")?, self.flags.value("security")?);
        if let Some(network) = network.as_deref().filter(|name| !["default", "none", "host"].contains(name)) {
            let message =
                format!("invalid network mode: {network:?}{}", suggestion(network, &["default", "none", "host"]));
            return Err(Mistake::new(self.lines, message).at(network));
        }
        if let Some(security) = security.as_deref().filter(|name| !["sandbox", "insecure"].contains(name)) {
            return Err(Mistake::new(self.lines, format!("security {security:?} is not valid")).at(security));
        }
        Ok(Running {
            command: self.command(self.rest)?,
            heredocs: self.line.heredocs.clone(),
            mounts: self.flags.values("mount")?,
            network,
            security,
        })
    }

    fn health(&self) -> Result<Health, Mistake> {
        let (kind, rest) = self.rest.split_once(char::is_whitespace).unwrap_or((self.rest, ""));
        let command = match kind.to_ascii_uppercase().as_str() {
            "NONE" if rest.trim().is_empty() => return Ok(Health::default()),
            "NONE" => return Err(self.wrong("HEALTHCHECK NONE takes no arguments")),
            "CMD" if !rest.trim().is_empty() => self.command(rest.trim())?,
            "CMD" => return Err(self.wrong("missing command after HEALTHCHECK CMD")),
            _ => return Err(self.wrong(format!("unknown type {kind:?} in HEALTHCHECK (try CMD)"))),
        };
        let time = |name: &str, least: Duration| match self.flags.value(name)? {
            None => Ok(None),
            Some(text) => {
                let wrong = |why: String| Mistake::new(self.lines, why).at(&text);
                let parsed = duration(&text).ok_or_else(|| wrong(format!("invalid duration {text:?} for --{name}")))?;
                if !parsed.is_zero() && parsed < least {
                    return Err(wrong(format!("interval {text:?} of --{name} cannot be less than {least:?}")));
                }
                Ok(Some(parsed).filter(|parsed| !parsed.is_zero()))
            }
        };
        let retries = match self.flags.value("retries")? {
            None => None,
            Some(text) => {
                let wrong = |_| Mistake::new(self.lines, format!("--retries must be a number, not {text:?}")).at(&text);
                Some(text.parse::<u32>().map_err(wrong)?).filter(|retries| *retries > 0)
            }
        };
        let millisecond = Duration::from_millis(1);
        Ok(Health {
            command: Some(command),
            interval: time("interval", millisecond)?,
            timeout: time("timeout", millisecond)?,
            start_period: time("start-period", millisecond)?,
            start_interval: time("start-interval", millisecond)?,
            retries,
        })
    }

    fn onbuild(&self) -> Result<String, Mistake> {
        let keyword = self.rest.split_whitespace().next().unwrap_or_default().to_ascii_uppercase();
        match keyword.as_str() {
            "ONBUILD" => return Err(self.wrong("chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")),
            "FROM" | "MAINTAINER" => return Err(self.wrong(format!("{keyword} isn't allowed as an ONBUILD trigger"))),
            _ => {}
        }
        let inner = Line { text: self.rest.to_owned(), ..self.line.clone() };
        super::one(&inner, self.escape)?;
        let mut text = self.rest.to_owned();
        for heredoc in &self.line.heredocs {
            text = format!("{text}\n{}{}", heredoc.content, heredoc.name);
        }
        Ok(text)
    }
}

/// As Go writes them: `1h30m`, `1.5s`, `100ms`.
pub fn duration(text: &str) -> Option<Duration> {
    let seconds = if text == "0" { 0.0 } else { go_seconds(text)? };
    Duration::try_from_secs_f64(seconds).ok()
}
