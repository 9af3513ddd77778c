//! One stage: each instruction in turn, as a change of the configuration or a step.

use serde_json::{Value, json};

use super::arguments::{bounded, is_proxy};
use super::{Add, Copy, Item, Op, Origin, Planner, Run, StagePlan, mounts};
use crate::config::{DEFAULT_PATH, Healthcheck, ImageConfig};
use crate::dockerfile::{
    self, Argument, Command, Copying, Dockerfile, Health, Heredoc, Instruction, Mistake, Placed, Running, Source,
};

struct Planning<'a> {
    planner: &'a Planner<'a>,
    index: usize,
    config: ImageConfig,
    /// ARGs of this stage so far; `None` is declared without a value.
    args: Vec<Argument>,
    /// CMD or ENTRYPOINT came in this stage.
    own_cmd: bool,
    items: Vec<Item>,
}

pub fn plan(planner: &Planner<'_>, index: usize, base: &ImageConfig) -> Result<StagePlan, Mistake> {
    let stage = &planner.file.stages[index];
    let origin = planner.base(index)?;
    let mut config = base.clone();
    let triggers = std::mem::take(&mut config.config.on_build);
    if config.config.env("PATH").is_none() {
        config.config.set_env("PATH", DEFAULT_PATH);
    }
    let mut planning = Planning { planner, index, config, args: Vec::new(), own_cmd: false, items: Vec::new() };
    // A context in the place of the stage is all there is to it.
    let replaced = matches!(&origin, Origin::Context(name) if stage.name.as_ref() == Some(name));
    if let Origin::Context(name) = &origin {
        planning.items.push(Item {
            lines: stage.lines,
            text: format!("FROM {name}"),
            history: format!("COPY . / # from context {name}"),
            op: Some(Op::Copy(Copy::plain(origin.clone(), "/", "/"))),
        });
    }
    if !replaced {
        for trigger in &triggers {
            let mut placed = Dockerfile::trigger(trigger).map_err(|mistake| {
                Mistake::new(stage.lines, format!("ONBUILD {trigger} of the base image: {}", mistake.message))
            })?;
            placed.lines = stage.lines;
            planning.instruction(&placed)?;
        }
        for instruction in &stage.instructions {
            planning.instruction(instruction)?;
        }
    }
    let labels = &mut planning.config.config.labels;
    if Ok(index) == planner.target() {
        labels.extend(planner.wanted.labels.iter().map(|(name, value)| (name.clone(), json!(value))));
    }
    let name = stage.name.clone().unwrap_or_else(|| format!("stage-{index}"));
    Ok(StagePlan { index, name, origin, items: planning.items, config: planning.config })
}

impl Planning<'_> {
    fn lookup(&self, name: &str) -> Option<String> {
        let arg = || self.args.iter().rev().find(|(known, _)| known == name).and_then(|(_, value)| value.clone());
        self.config.config.env(name).map(str::to_owned).or_else(arg)
    }

    fn word(&self, text: &str, at: &Placed<Instruction>) -> Result<String, Mistake> {
        let put_in = dockerfile::word(text, self.planner.file.escape, &|name| self.lookup(name));
        put_in.and_then(bounded).map_err(|message| self.failed(at, text, message))
    }

    fn failed(&self, at: &Placed<Instruction>, word: &str, message: String) -> Mistake {
        Mistake::new(at.lines, format!("failed to process {word:?}: {message}")).at(word)
    }

    fn note(&mut self, at: &Placed<Instruction>, history: String) {
        self.push(at, history, None);
    }

    fn push(&mut self, at: &Placed<Instruction>, history: String, op: Option<Op>) {
        self.items.push(Item { lines: at.lines, text: at.text.clone(), history, op });
    }

    fn instruction(&mut self, at: &Placed<Instruction>) -> Result<(), Mistake> {
        match &at.value {
            Instruction::Arg(args) => self.arg(args, at)?,
            Instruction::Env(pairs) => {
                // All see what was before the instruction.
                let pairs = self.pairs(pairs, at)?;
                let shown: Vec<String> = pairs.iter().map(|(name, value)| format!("{name}={value}")).collect();
                for (name, value) in &pairs {
                    self.config.config.set_env(name, value);
                }
                self.note(at, format!("ENV {}", shown.join(" ")));
            }
            Instruction::Label(pairs) => {
                let pairs = self.pairs(pairs, at)?;
                let shown: Vec<String> = pairs.iter().map(|(name, value)| format!("{name}={value}")).collect();
                self.config.config.labels.extend(pairs.into_iter().map(|(name, value)| (name, Value::String(value))));
                self.note(at, format!("LABEL {}", shown.join(" ")));
            }
            Instruction::Cmd(command) => {
                let (args, escaped) = self.program(command);
                self.note(at, format!("CMD {}", json!(args)));
                self.config.config.cmd = Some(args);
                self.config.config.args_escaped = escaped;
                self.own_cmd = true;
            }
            Instruction::Entrypoint(command) => {
                let (args, _) = self.program(command);
                self.note(at, format!("ENTRYPOINT {}", json!(args)));
                self.config.config.entrypoint = Some(args);
                // The base's arguments were for the base's program.
                if !self.own_cmd {
                    self.config.config.cmd = None;
                }
            }
            Instruction::Expose(text) => self.expose(text, at)?,
            Instruction::Healthcheck(health) => {
                self.config.config.healthcheck = Some(healthcheck(health));
                self.note(at, at.text.clone());
            }
            Instruction::Maintainer(name) => {
                self.config.author = Some(name.clone());
                self.note(at, format!("MAINTAINER {name}"));
            }
            Instruction::Onbuild(text) => {
                self.config.config.on_build.push(text.clone());
                self.note(at, format!("ONBUILD {text}"));
            }
            Instruction::Shell(list) => {
                self.config.config.shell = Some(list.clone());
                self.note(at, format!("SHELL {}", json!(list)));
            }
            Instruction::Stopsignal(text) => {
                let signal = self.word(text, at)?;
                self.note(at, format!("STOPSIGNAL {signal}"));
                self.config.config.stop_signal = Some(signal);
            }
            Instruction::User(text) => {
                let user = self.word(text, at)?;
                self.note(at, format!("USER {user}"));
                self.config.config.user = user;
            }
            Instruction::Volume(list) => {
                for volume in list {
                    let volume = self.word(volume, at)?;
                    if volume.is_empty() {
                        return Err(Mistake::new(at.lines, "VOLUME specified can not be an empty string"));
                    }
                    self.config.config.volumes.insert(volume, json!({}));
                }
                self.note(at, format!("VOLUME {}", json!(list)));
            }
            Instruction::Workdir(text) => {
                let folder = self.word(text, at)?;
                let path = absolute(&self.config.config.working_dir, &folder);
                self.config.config.working_dir.clone_from(&path);
                let user = self.config.config.user.clone();
                self.push(at, format!("WORKDIR {path}"), Some(Op::Folder { path, user }));
            }
            Instruction::Add(copying) => self.copying(copying, true, at)?,
            Instruction::Copy(copying) => self.copying(copying, false, at)?,
            Instruction::Run(running) => self.running(running, at)?,
        }
        Ok(())
    }

    fn arg(&mut self, args: &[Argument], at: &Placed<Instruction>) -> Result<(), Mistake> {
        for (name, default) in args {
            let given = self.planner.wanted.args.get(name).cloned();
            let value = match (given, default) {
                (Some(given), _) => Some(given),
                (None, Some(default)) => Some(self.word(default, at)?),
                (None, None) => self.planner.globals.get(name),
            };
            self.args.retain(|(known, _)| known != name);
            self.args.push((name.clone(), value));
        }
        self.note(at, at.text.clone());
        Ok(())
    }

    fn pairs(&self, pairs: &[(String, String)], at: &Placed<Instruction>) -> Result<Vec<(String, String)>, Mistake> {
        pairs.iter().map(|(name, value)| Ok((self.word(name, at)?, self.word(value, at)?))).collect()
    }

    fn shell(&self) -> Vec<String> {
        let default = || vec!["/bin/sh".to_owned(), "-c".to_owned()];
        self.config.config.shell.clone().unwrap_or_else(default)
    }

    fn program(&self, command: &Command) -> (Vec<String>, bool) {
        match command {
            Command::Exec(args) => (args.clone(), false),
            Command::Shell(text) => {
                let mut args = self.shell();
                args.push(text.clone());
                (args, true)
            }
        }
    }

    fn expose(&mut self, text: &str, at: &Placed<Instruction>) -> Result<(), Mistake> {
        let put_in = dockerfile::words(text, self.planner.file.escape, &|name| self.lookup(name));
        for port in put_in.map_err(|message| self.failed(at, text, message))? {
            let wrong = || Mistake::new(at.lines, format!("invalid containerPort: {port}")).at(&port);
            let (numbers, protocol) = port.split_once('/').unwrap_or((&port, "tcp"));
            let protocol = protocol.to_ascii_lowercase();
            if !["tcp", "udp", "sctp"].contains(&protocol.as_str()) {
                return Err(Mistake::new(at.lines, format!("invalid protocol: {protocol}")).at(&port));
            }
            // An address and a port of the host may stand before it, as on `docker run`; they mean nothing here.
            let numbers = numbers.rsplit(':').next().unwrap_or(numbers);
            let (first, last) = numbers.split_once('-').unwrap_or((numbers, numbers));
            let first: u16 = first.parse().map_err(|_| wrong())?;
            let last: u16 = last.parse().map_err(|_| wrong())?;
            if first > last || first == 0 {
                return Err(wrong());
            }
            let ports = (first..=last).map(|number| (format!("{number}/{protocol}"), json!({})));
            self.config.config.exposed_ports.extend(ports);
        }
        self.note(at, format!("EXPOSE {}", Value::from(self.config.config.exposed_ports.clone())));
        Ok(())
    }

    fn copying(&mut self, copying: &Copying, add: bool, at: &Placed<Instruction>) -> Result<(), Mistake> {
        let from = copying.from.as_ref().map(|from| self.word(from, at)).transpose()?;
        let origin = match &from {
            Some(name) => self.source(name, at)?,
            None => Origin::Context(String::new()),
        };
        let (mut sources, mut inline) = (Vec::new(), Vec::new());
        for source in &copying.sources {
            match source {
                Source::Path(path) => sources.push(self.word(path, at)?),
                Source::Inline(heredoc) if heredoc.expand => {
                    // In a document quotes are letters.
                    let content = document(&heredoc.content, &|name| self.lookup(name));
                    let content =
                        content.and_then(bounded).map_err(|message| self.failed(at, &heredoc.word, message))?;
                    inline.push(Heredoc { content, ..heredoc.clone() });
                }
                Source::Inline(heredoc) => inline.push(heredoc.clone()),
            }
        }
        let destination = self.word(&copying.destination, at)?;
        let several = sources.len() + inline.len() > 1;
        let folder = destination.ends_with('/') || destination.ends_with("/.") || destination == ".";
        if several && !folder {
            let name = if add { "ADD" } else { "COPY" };
            let message = format!(
                "when using {name} with more than one source file, the destination must be a directory and end with a /"
            );
            return Err(Mistake::new(at.lines, message).at(&copying.destination));
        }
        let mut path = absolute(&self.config.config.working_dir, &destination);
        if folder && !path.ends_with('/') {
            path.push('/');
        }
        let optional = |text: &Option<String>| text.as_ref().map(|text| self.word(text, at)).transpose();
        let chmod = optional(&copying.chmod)?;
        if let Some(mode) = &chmod {
            crate::copy::Mode::parse(mode).map_err(|message| Mistake::new(at.lines, message).at(mode))?;
        }
        let exclude = copying.exclude.iter().map(|pattern| self.word(pattern, at)).collect::<Result<_, _>>()?;
        let op = Copy {
            origin,
            sources,
            inline,
            destination: path,
            chown: optional(&copying.chown)?.filter(|owner| !owner.is_empty()),
            chmod,
            link: copying.link,
            parents: copying.parents,
            exclude,
            add: match add {
                true => Some(Add {
                    checksum: optional(&copying.checksum)?,
                    keep_git_dir: copying.keep_git_dir,
                    unpack: copying.unpack,
                }),
                false => None,
            },
        };
        self.push(at, at.text.clone(), Some(Op::Copy(op)));
        Ok(())
    }

    /// A stage, image or context by its name in `--from`.
    fn source(&self, name: &str, at: &Placed<Instruction>) -> Result<Origin, Mistake> {
        let planner = self.planner;
        let own = planner.file.stages[self.index].name.as_deref();
        if own.is_some_and(|own| own.eq_ignore_ascii_case(name)) || name.parse() == Ok(self.index) {
            return Err(Mistake::new(at.lines, format!("circular dependency detected on stage: {name}")).at(name));
        }
        if name.parse::<usize>().is_ok_and(|number| number >= planner.file.stages.len()) {
            return Err(Mistake::new(at.lines, format!("invalid stage index {name}")).at(name));
        }
        Ok(planner.origin(name, planner.file.stages.len(), &planner.wanted.platform))
    }

    fn running(&mut self, running: &Running, at: &Placed<Instruction>) -> Result<(), Mistake> {
        let (mut all, mut origins) = (Vec::new(), Vec::new());
        let cwd = self.config.config.working_dir.clone();
        for text in &running.mounts {
            let expanded = self.word(text, at)?;
            let wrong = |message: String| {
                let first = text.split(',').next().unwrap_or(text);
                Mistake::new(at.lines, message).at(first)
            };
            let mut mount = mounts::parse(&expanded).map_err(wrong)?;
            if !mount.target.is_empty() {
                mount.target = absolute(&cwd, &mount.target);
            }
            let origin = match &mount.kind {
                mounts::MountKind::Bind { from: Some(from), .. }
                | mounts::MountKind::Cache { from: Some(from), .. } => Some(self.source(from, at)?),
                mounts::MountKind::Bind { from: None, .. } => Some(Origin::Context(String::new())),
                _ => None,
            };
            if mount.target == "/" {
                return Err(wrong("invalid mount target \"/\"".to_owned()));
            }
            all.push(mount);
            origins.push(origin);
        }
        let (args, script) = self.line(running);
        let mut env = self.config.config.env.clone();
        let mut shown = Vec::new();
        for (name, value) in &self.args {
            let Some(value) = value else { continue };
            if self.config.config.env(name).is_none() {
                env.push(format!("{name}={value}"));
                shown.push(format!("{name}={value}"));
            }
        }
        let given = &self.planner.wanted.args;
        let proxies = given.iter().filter(|(name, _)| is_proxy(name) && self.lookup(name).is_none());
        env.extend(proxies.map(|(name, value)| format!("{name}={value}")));
        let list = if shown.is_empty() { String::new() } else { format!("|{} {} ", shown.len(), shown.join(" ")) };
        let history = format!("RUN {list}{}", args.join(" "));
        let op = Run {
            args,
            env,
            cwd,
            user: self.config.config.user.clone(),
            mounts: all,
            origins,
            network: running.network.clone().unwrap_or_else(|| "default".to_owned()),
            platform: self.config.platform(),
            insecure: running.security.as_deref() == Some("insecure"),
            script,
        };
        self.push(at, history, Some(Op::Run(op)));
        Ok(())
    }

    /// What is run: a program, a line for the shell, or a here-document that is a script.
    fn line(&self, running: &Running) -> (Vec<String>, Option<(String, String)>) {
        let text = match &running.command {
            Command::Exec(args) => return (args.clone(), None),
            Command::Shell(text) => text,
        };
        let mut args = self.shell();
        match running.heredocs.as_slice() {
            [] => args.push(text.clone()),
            [only] if text.trim() == only.word => {
                if only.content.starts_with("#!") {
                    let path = format!("/dev/pipes/{}", only.name);
                    return (vec![path.clone()], Some((path, only.content.clone())));
                }
                args.push(only.content.clone());
            }
            heredocs => {
                let documents = heredocs.iter().map(|heredoc| format!("\n{}{}", heredoc.content, heredoc.name));
                args.push(format!("{text}{}", documents.collect::<String>()));
            }
        }
        (args, None)
    }
}

/// Variables put into a document, where quotes are letters and a backslash protects only what it would protect in a shell's.
fn document(text: &str, lookup: dockerfile::Lookup<'_>) -> Result<String, String> {
    let mut kept = String::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next_if(|next| matches!(next, '$' | '\\')) {
                Some(next) => kept.extend(['\\', next]),
                None => kept.push_str("\\\\"),
            },
            '"' | '\'' => kept.extend(['\\', c]),
            c => kept.push(c),
        }
    }
    dockerfile::word(&kept, '\\', lookup)
}

/// A path as seen from a folder, without dots.
pub fn absolute(folder: &str, path: &str) -> String {
    let joined = if path.starts_with('/') { path.to_owned() } else { format!("{folder}/{path}") };
    format!("/{}", dhow_image::clean(&joined))
}

fn healthcheck(health: &Health) -> Healthcheck {
    let nanos =
        |time: Option<std::time::Duration>| time.map_or(0, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    let test = match &health.command {
        None => vec!["NONE".to_owned()],
        Some(Command::Exec(args)) => std::iter::once("CMD".to_owned()).chain(args.iter().cloned()).collect(),
        // Whoever runs it takes the image's own shell.
        Some(Command::Shell(text)) => vec!["CMD-SHELL".to_owned(), text.clone()],
    };
    Healthcheck {
        test,
        interval: nanos(health.interval),
        timeout: nanos(health.timeout),
        start_period: nanos(health.start_period),
        start_interval: nanos(health.start_interval),
        retries: health.retries.map_or(0, u64::from),
    }
}
