//! From instructions to steps: variables put in, stages and sources found, the image's configuration worked out. Pure.

mod arguments;
mod mounts;
mod stage;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use dhow_image::Platform;

pub use mounts::{Mount, MountKind, Sharing, bytes as size};

use crate::config::ImageConfig;
use crate::dockerfile::{Dockerfile, Heredoc, Mistake, Stage};
use arguments::Globals;
pub use arguments::is_proxy;

/// What a build is asked for.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The stage to build, by name or number; the last one if not said.
    pub target: Option<String>,
    pub args: BTreeMap<String, String>,
    pub labels: BTreeMap<String, String>,
    /// What the image is to run on.
    pub platform: Platform,
    /// What builds it.
    pub builder: Platform,
    /// Names of contexts that stand in the place of stages and images.
    pub contexts: Vec<String>,
}

/// Where files come from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    Scratch,
    Stage(usize),
    Image {
        name: String,
        platform: String,
    },
    /// A named context, or the build's own with an empty name.
    Context(String),
}

/// A step that changes files.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    Run(Run),
    Copy(Copy),
    /// Makes a folder unless it is there.
    Folder {
        path: String,
        user: String,
    },
}

/// A program to run.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    pub args: Vec<String>,
    pub env: Vec<String>,
    pub cwd: String,
    pub user: String,
    pub mounts: Vec<Mount>,
    /// Where each mount takes its files from.
    pub origins: Vec<Option<Origin>>,
    pub network: String,
    pub insecure: bool,
    /// What the stage's programs are made for.
    pub platform: Platform,
    /// A here-document that is a program itself: where it is seen, and its text.
    pub script: Option<(String, String)>,
}

/// Files to copy.
#[derive(Clone, Debug, PartialEq)]
pub struct Copy {
    pub origin: Origin,
    pub sources: Vec<String>,
    pub inline: Vec<Heredoc>,
    /// Absolute; ends in a slash if it is a folder for sure.
    pub destination: String,
    pub chown: Option<String>,
    pub chmod: Option<String>,
    pub link: bool,
    pub parents: bool,
    pub exclude: Vec<String>,
    /// ADD, with what it does more than COPY.
    pub add: Option<Add>,
}

impl Copy {
    /// Of one thing, as it is.
    pub fn plain(origin: Origin, source: &str, destination: &str) -> Self {
        Copy {
            origin,
            sources: vec![source.to_owned()],
            inline: Vec::new(),
            destination: destination.to_owned(),
            chown: None,
            chmod: None,
            link: false,
            parents: false,
            exclude: Vec::new(),
            add: None,
        }
    }
}

/// What ADD does more.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Add {
    pub checksum: Option<String>,
    pub keep_git_dir: bool,
    pub unpack: Option<bool>,
}

/// One instruction: a line of the image's history, and maybe a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    pub lines: (usize, usize),
    /// As people see it.
    pub text: String,
    pub history: String,
    pub op: Option<Op>,
}

/// A stage, ready to be built.
#[derive(Clone, Debug)]
pub struct StagePlan {
    pub index: usize,
    /// `build`, or `stage-1`.
    pub name: String,
    pub origin: Origin,
    pub items: Vec<Item>,
    /// Of the finished image; layers and history are those of the base.
    pub config: ImageConfig,
}

impl StagePlan {
    /// What it needs before it can be built.
    pub fn origins(&self) -> Vec<&Origin> {
        let ops = self.items.iter().filter_map(|item| item.op.as_ref());
        let of = |op| match op {
            &Op::Copy(Copy { ref origin, .. }) => vec![origin],
            Op::Run(run) => run.origins.iter().flatten().collect(),
            Op::Folder { .. } => Vec::new(),
        };
        std::iter::once(&self.origin).chain(ops.flat_map(of)).collect()
    }
}

/// Plans the stages of one file, one after the other as they turn out to be needed.
pub struct Planner<'a> {
    file: &'a Dockerfile,
    wanted: &'a Wanted,
    globals: Globals,
}

impl<'a> Planner<'a> {
    /// Works out what holds for all stages.
    pub fn new(file: &'a Dockerfile, wanted: &'a Wanted) -> Result<Self, Mistake> {
        Ok(Planner { file, wanted, globals: Globals::new(file, wanted)? })
    }

    /// The stage that is asked for.
    pub fn target(&self) -> Result<usize, Mistake> {
        let stages = &self.file.stages;
        let Some(target) = &self.wanted.target else { return Ok(stages.len() - 1) };
        self.named(target, stages.len()).ok_or_else(|| {
            let names: Vec<&str> = stages.iter().filter_map(|stage| stage.name.as_deref()).collect();
            let hint = crate::dockerfile::suggestion(target, &names);
            Mistake::new((1, 1), format!("target stage {target:?} could not be found{hint}"))
        })
    }

    /// What a stage begins with.
    pub fn base(&self, index: usize) -> Result<Origin, Mistake> {
        let stage = &self.file.stages[index];
        let wrong = |message: String| Mistake::new(stage.lines, message).at(&stage.base);
        if let Some(name) = &stage.name
            && self.wanted.contexts.contains(name)
        {
            return Ok(Origin::Context(name.clone()));
        }
        let name = self.globals.word(&stage.base, self.file.escape).map_err(wrong)?;
        if name.is_empty() {
            return Err(wrong(format!("base name ({}) should not be blank", stage.base)));
        }
        let platform = self.platform(stage)?;
        // A number is an image's name here, as in BuildKit.
        let number = name.parse::<usize>().is_ok();
        Ok(self.origin(&name, if number { 0 } else { index }, &platform))
    }

    fn platform(&self, stage: &Stage) -> Result<Platform, Mistake> {
        let Some(text) = &stage.platform else { return Ok(self.wanted.platform.clone()) };
        let wrong = |message: String| Mistake::new(stage.lines, message).at(text);
        let platform = self.globals.word(text, self.file.escape).map_err(wrong)?;
        Platform::parse(&platform)
            .ok_or_else(|| wrong(format!("failed to parse platform {platform:?}: write os/arch[/variant]")))
    }

    /// By name; stages before `until` count.
    fn origin(&self, name: &str, until: usize, platform: &Platform) -> Origin {
        if self.wanted.contexts.iter().any(|context| context == name) {
            return Origin::Context(name.to_owned());
        }
        match self.named(name, until) {
            Some(stage) => Origin::Stage(stage),
            None if name == "scratch" => Origin::Scratch,
            None => Origin::Image { name: name.to_owned(), platform: platform.to_string() },
        }
    }

    fn named(&self, name: &str, until: usize) -> Option<usize> {
        let stages = &self.file.stages[..until];
        let found =
            stages.iter().rposition(|stage| stage.name.as_deref().is_some_and(|own| own.eq_ignore_ascii_case(name)));
        found.or_else(|| name.parse::<usize>().ok().filter(|number| *number < until))
    }

    /// Build arguments that nothing asked for.
    pub fn unused_args(&self) -> Vec<&str> {
        let declared = |name: &str| {
            let args = self.file.stages.iter().flat_map(|stage| &stage.instructions);
            let args = args.filter_map(|instruction| match &instruction.value {
                crate::dockerfile::Instruction::Arg(args) => Some(args),
                _ => None,
            });
            args.chain(self.file.globals.iter().map(|global| &global.value)).flatten().any(|(known, _)| known == name)
        };
        let names = self.wanted.args.keys().map(String::as_str);
        names.filter(|name| !declared(name) && !arguments::is_predefined(name)).collect()
    }

    /// Plans a stage over what it begins with.
    pub fn stage(&self, index: usize, base: &ImageConfig) -> Result<StagePlan, Mistake> {
        stage::plan(self, index, base)
    }
}
