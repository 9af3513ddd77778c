//! The command line of the bundle runtime, the same as runc's, so that whoever drives runc can drive this.
// It prints: that is what a command line is for.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use oci_spec::runtime::{Capabilities, Capability, LinuxResources, Process, UserBuilder};

use crate::bundle::state::{Container, Status};
use crate::bundle::{Beside, Creation, Store, console, create, delete, exec, kill, start, update};
use crate::client::Program;
use crate::error::{Context, Error, Result};

/// Name of a link to the binary under which it takes this command line alone: engines call a runtime without a word before
/// its verbs.
pub const ALIAS: &str = "dhow-oci";
/// The word before the verbs, for people.
const WORD: &str = "oci";

/// Run containers from OCI bundles; the command line is runc's.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// Folder of the containers' state.
    #[arg(long, default_value = "/run/dhow-oci", value_name = "DIR")]
    root: PathBuf,
    /// File that errors are written to as well.
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    /// Taken and ignored: there is nothing more to tell.
    #[arg(long, hide = true)]
    debug: bool,
    /// Refused: control groups are made directly.
    #[arg(long, hide = true)]
    systemd_cgroup: bool,
    #[command(subcommand)]
    command: Command,
}

// No documentation, which would be its help: that is of the arguments.
#[derive(Debug, Parser)]
#[command(version, about = "Run containers from OCI bundles; the command line is runc's")]
struct Alone {
    #[command(flatten)]
    args: Args,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a container; its program waits for `start`.
    Create(Making),
    /// Run the program of a container that was made.
    Start { id: String },
    /// Make a container, run its program, and stay with it.
    Run {
        #[command(flatten)]
        making: Making,
        /// Return once the program runs.
        #[arg(long, short)]
        detach: bool,
        /// Keep the container's state after its end.
        #[arg(long)]
        keep: bool,
        /// Leave orphans to the machine's first process.
        #[arg(long)]
        no_subreaper: bool,
    },
    /// Print a container's state.
    State { id: String },
    /// Send a signal to a container's first process.
    Kill {
        /// To all its processes.
        #[arg(long, short)]
        all: bool,
        id: String,
        /// By name or number.
        #[arg(default_value = "SIGTERM")]
        signal: String,
    },
    /// Free what a container holds.
    Delete {
        /// Kill it first if it runs; one that does not exist is fine.
        #[arg(long, short)]
        force: bool,
        id: String,
    },
    /// Run a program in a running container.
    Exec(Box<Exec>),
    /// List containers.
    List {
        #[arg(long, short, value_enum, default_value_t = ListFormat::Table)]
        format: ListFormat,
        /// Ids only.
        #[arg(long, short)]
        quiet: bool,
    },
    /// List the processes of a container.
    Ps {
        #[arg(long, short, value_enum, default_value_t = ListFormat::Table)]
        format: ListFormat,
        id: String,
    },
    /// Change a container's resource limits.
    Update {
        /// JSON of the specification's `linux.resources`; `-` is standard input.
        #[arg(long, short, value_name = "FILE")]
        resources: PathBuf,
        id: String,
    },
}

#[derive(Debug, ClapArgs)]
struct Making {
    id: String,
    /// Folder of the bundle.
    #[arg(long, short, default_value = ".", value_name = "DIR")]
    bundle: PathBuf,
    /// Unix socket that gets the master of the container's terminal.
    #[arg(long, value_name = "SOCKET")]
    console_socket: Option<PathBuf>,
    /// File that gets the number of the first process.
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Move the root instead of changing it (for a machine that runs from its initramfs).
    #[arg(long)]
    no_pivot: bool,
    /// Leave the caller's session keyring to the container.
    #[arg(long)]
    no_new_keyring: bool,
    /// How many files from number 3 on the program gets.
    #[arg(long, default_value_t = 0, value_name = "N")]
    preserve_fds: u32,
}

#[derive(Debug, ClapArgs)]
struct Exec {
    #[arg(long, value_name = "SOCKET")]
    console_socket: Option<PathBuf>,
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Return once the program runs.
    #[arg(long, short)]
    detach: bool,
    /// Give it a terminal.
    #[arg(long, short)]
    tty: bool,
    #[arg(long, value_name = "DIR")]
    cwd: Option<PathBuf>,
    #[arg(long, short, value_name = "NAME=VALUE")]
    env: Vec<String>,
    #[arg(long, short, value_name = "UID[:GID]")]
    user: Option<String>,
    #[arg(long, short = 'g', value_name = "GID")]
    additional_gids: Vec<u32>,
    /// JSON of the specification's `process`.
    #[arg(long, short, value_name = "FILE")]
    process: Option<PathBuf>,
    #[arg(long)]
    no_new_privs: bool,
    /// A capability more.
    #[arg(long, short, value_name = "NAME")]
    cap: Vec<String>,
    #[arg(long, default_value_t = 0, value_name = "N")]
    preserve_fds: u32,
    id: String,
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ListFormat {
    Table,
    Json,
}

/// The arguments, if this is what the binary was started for. Engines run it for every step of a container's life: reading
/// this part of the command line alone is a fraction of the work.
pub fn asked_for() -> Option<Args> {
    let mut given = std::env::args_os();
    let name = given.next()?;
    let alone = Path::new(&name).file_name().is_some_and(|name| name == ALIAS);
    if !alone && given.next()? != WORD {
        return None;
    }
    let name = if alone { ALIAS.to_owned() } else { format!("dhow {WORD}") };
    Some(Alone::parse_from(std::iter::once(name.into()).chain(given)).args)
}

/// Does what is asked. Must be called before any thread exists.
pub fn main(args: Args) -> ExitCode {
    let (log, format) = (args.log.clone(), args.log_format);
    match protect(&args).and_then(|()| run(args)) {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)),
        Err(error) => {
            complain(log.as_deref(), format, "error", &error);
            ExitCode::FAILURE
        }
    }
}

/// Engines read what went wrong from the log file; people read standard error.
fn complain(log: Option<&Path>, format: LogFormat, level: &str, error: &Error) {
    eprintln!("{ALIAS}: {error}");
    let Some(path) = log else { return };
    let time = jiff::Timestamp::now().to_string();
    let line = match format {
        LogFormat::Json => serde_json::json!({"level": level, "msg": error.to_string(), "time": time}).to_string(),
        LogFormat::Text => format!("time={time:?} level={level} msg={:?}", error.to_string()),
    };
    // The error itself is told already.
    let file = OpenOptions::new().create(true).append(true).open(path);
    let _ = file.and_then(|mut file| writeln!(file, "{line}"));
}

/// What enters a container must not be looked into from there, and its program must not be written to: a container that
/// finds a way to this process finds a file on a mount that nobody can write to.
fn protect(args: &Args) -> Result<()> {
    if !matches!(args.command, Command::Create(_) | Command::Run { .. } | Command::Exec(_)) {
        return Ok(());
    }
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .step("hide from inspection")?;
    let own = rustix::fs::statvfs("/proc/self/exe").step("look at the binary")?;
    if own.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY) {
        return Ok(());
    }
    let error = Program::own()?.replace_this_process();
    Err(Error::Io { step: "run the protected binary".into(), source: error })
}

fn run(args: Args) -> Result<i32> {
    if args.systemd_cgroup {
        return Err(Error::Invalid("--systemd-cgroup is not supported: control groups are made directly".into()));
    }
    let store = Store::new(&args.root);
    let warn = |warnings: Vec<Error>| {
        warnings.iter().for_each(|warning| complain(args.log.as_deref(), args.log_format, "warning", warning));
    };
    match args.command {
        Command::Create(making) => {
            made(&store, &making)?;
        }
        Command::Start { id } => warn(start(&store.open(&id)?)?),
        Command::Run { making, detach, keep, no_subreaper } => {
            if !detach && !no_subreaper {
                rustix::process::set_child_subreaper(Some(rustix::process::getpid())).step("adopt orphans")?;
            }
            let signals = if detach { None } else { Some(console::listen_for_signals()?) };
            let (container, terminal) = made(&store, &making)?;
            match start(&container) {
                Ok(warnings) => warn(warnings),
                Err(error) => {
                    delete(&container, true)?;
                    return Err(error);
                }
            }
            if let Some(signals) = signals {
                let code = console::foreground(container.pid, terminal, &signals)?;
                if !keep {
                    warn(delete(&container, true)?);
                }
                return Ok(code);
            }
        }
        Command::State { id } => {
            let container = store.open(&id)?;
            print_json(&container.state(container.status(), container.pid))?;
        }
        Command::Kill { all, id, signal } => kill(&store.open(&id)?, signal_number(&signal)?, all)?,
        Command::Delete { force, id } => match store.open(&id) {
            Ok(container) => warn(delete(&container, force)?),
            Err(Error::NotFound(_)) if force => drop(store.discard(&id)?),
            Err(error) => return Err(error),
        },
        Command::Exec(exec) => return beside(&store, *exec),
        Command::List { format, quiet } => list(&store.list()?, format, quiet)?,
        Command::Ps { format, id } => ps(&store.open(&id)?, format)?,
        Command::Update { resources, id } => {
            let mut text = Vec::new();
            if resources == Path::new("-") {
                std::io::stdin().read_to_end(&mut text).step("read the resources")?;
            } else {
                text = fs::read(&resources).step(format!("read {}", resources.display()))?;
            }
            let resources: LinuxResources =
                serde_json::from_slice(&text).map_err(|error| Error::Invalid(format!("resources: {error}")))?;
            update(store.open(&id)?, resources)?;
        }
    }
    Ok(0)
}

/// Makes a container and hands its terminal and number to whoever wants them.
fn made(store: &Store, making: &Making) -> Result<(Container, Option<OwnedFd>)> {
    let creation = Creation {
        id: making.id.clone(),
        bundle: making.bundle.clone(),
        preserve_fds: making.preserve_fds,
        pivot: !making.no_pivot,
        new_keyring: !making.no_new_keyring,
    };
    let (container, terminal) = create(store, &creation)?;
    let told = hand_over(making.console_socket.as_deref(), making.pid_file.as_deref(), container.pid, terminal);
    if told.is_err() {
        delete(&container, true)?;
    }
    told.map(|terminal| (container, terminal))
}

fn hand_over(
    socket: Option<&Path>,
    pid_file: Option<&Path>,
    pid: i32,
    terminal: Option<OwnedFd>,
) -> Result<Option<OwnedFd>> {
    if let (Some(socket), Some(terminal)) = (socket, &terminal) {
        console::send(socket, terminal.as_fd())?;
    }
    if let Some(path) = pid_file {
        let fresh = path.with_extension("new");
        fs::write(&fresh, pid.to_string())
            .and_then(|()| fs::rename(&fresh, path))
            .step(format!("write {}", path.display()))?;
    }
    Ok(terminal.filter(|_| socket.is_none()))
}

fn beside(store: &Store, args: Exec) -> Result<i32> {
    let container = store.open(&args.id)?;
    let process = wanted(&container, &args)?;
    if args.detach && process.terminal().unwrap_or(false) && args.console_socket.is_none() {
        return Err(Error::Invalid("a terminal in the background needs --console-socket".into()));
    }
    let signals = if args.detach { None } else { Some(console::listen_for_signals()?) };
    let (pid, terminal) = exec(&container, &Beside { process, preserve_fds: args.preserve_fds })?;
    let terminal = hand_over(args.console_socket.as_deref(), args.pid_file.as_deref(), pid, terminal)?;
    signals.map_or(Ok(0), |signals| console::foreground(pid, terminal, &signals))
}

/// The process of a file, or the container's own with changes.
fn wanted(container: &Container, args: &Exec) -> Result<Process> {
    if let Some(path) = &args.process {
        let text = fs::read(path).step(format!("read {}", path.display()))?;
        return serde_json::from_slice(&text).map_err(|error| Error::Invalid(format!("{}: {error}", path.display())));
    }
    if args.command.is_empty() {
        return Err(Error::Invalid("no command specified".into()));
    }
    let mut process = container.config.process().clone().unwrap_or_default();
    process.set_args(Some(args.command.clone())).set_terminal(Some(args.tty));
    if let Some(cwd) = &args.cwd {
        process.set_cwd(cwd.clone());
    }
    let mut env = process.env().clone().unwrap_or_default();
    env.extend(args.env.iter().cloned());
    process.set_env(Some(env));
    if args.no_new_privs {
        process.set_no_new_privileges(Some(true));
    }
    if args.user.is_some() || !args.additional_gids.is_empty() {
        let (uid, gid) = match &args.user {
            Some(text) => parse_user(text)?,
            None => (process.user().uid(), process.user().gid()),
        };
        let user = UserBuilder::default().uid(uid).gid(gid).additional_gids(args.additional_gids.clone()).build();
        process.set_user(user.map_err(|error| Error::Invalid(format!("user: {error}")))?);
    }
    if !args.cap.is_empty() {
        let more = args.cap.iter().map(|name| {
            let name = name.trim_start_matches("CAP_");
            name.parse::<Capability>().map_err(|_| Error::Invalid(format!("unknown capability {name:?}")))
        });
        let more: Capabilities = more.collect::<Result<_>>()?;
        let with = |set: &Option<Capabilities>| Some(set.iter().flatten().chain(&more).copied().collect());
        let mut sets = process.capabilities().clone().unwrap_or_default();
        let (bounding, effective, permitted) = (with(sets.bounding()), with(sets.effective()), with(sets.permitted()));
        sets.set_bounding(bounding).set_effective(effective).set_permitted(permitted);
        process.set_capabilities(Some(sets));
    }
    Ok(process)
}

fn parse_user(text: &str) -> Result<(u32, u32)> {
    let number = |text: &str| {
        text.parse().map_err(|_| Error::Invalid(format!("user {text:?} is no number; it is written UID[:GID]")))
    };
    match text.split_once(':') {
        Some((uid, gid)) => Ok((number(uid)?, number(gid)?)),
        None => Ok((number(text)?, 0)),
    }
}

/// `SIGTERM`, `TERM` or `15`.
fn signal_number(text: &str) -> Result<i32> {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM",
        "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF",
        "WINCH", "IO", "PWR", "SYS",
    ];
    let wrong = || Error::Invalid(format!("unknown signal {text:?}"));
    if let Ok(number) = text.parse::<i32>() {
        return if (0..=64).contains(&number) { Ok(number) } else { Err(wrong()) };
    }
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    // Where the C library's real-time signals begin.
    if let Some(offset) = name.strip_prefix("RTMIN+").and_then(|offset| offset.parse::<i32>().ok()) {
        return if (0..=30).contains(&offset) { Ok(34 + offset) } else { Err(wrong()) };
    }
    (1..).zip(NAMES).find(|(_, known)| *known == name).map(|(number, _)| number).ok_or_else(wrong)
}

fn list(containers: &[Container], format: ListFormat, quiet: bool) -> Result<()> {
    if quiet {
        containers.iter().for_each(|container| println!("{}", container.id));
        return Ok(());
    }
    let states: Vec<_> = containers.iter().map(|c| c.state(c.status(), c.pid)).collect();
    if format == ListFormat::Json {
        return print_json(&states);
    }
    let width = containers.iter().map(|c| c.id.len()).max().unwrap_or(0).max(2);
    println!("{:width$}  {:8}  {:8}  {:30}  BUNDLE", "ID", "PID", "STATUS", "CREATED");
    for state in states {
        let (id, status) = (state.id, state.status.to_string());
        println!("{id:width$}  {:<8}  {status:8}  {:30}  {}", state.pid, state.created, state.bundle.display());
    }
    Ok(())
}

fn ps(container: &Container, format: ListFormat) -> Result<()> {
    if container.status() == Status::Stopped {
        return Err(Error::Invalid("container not running".into()));
    }
    let pids = container.cgroup().all_processes();
    if format == ListFormat::Json {
        return print_json(&pids);
    }
    println!("{:8}  CMD", "PID");
    for pid in pids {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        println!("{pid:<8}  {}", String::from_utf8_lossy(&command).replace('\0', " ").trim_end());
    }
    Ok(())
}

fn print_json(value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Error::Shim(format!("encode: {error}")))?;
    println!("{text}");
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn signals() {
        for (text, number) in [("SIGKILL", 9), ("term", 15), ("0", 0), ("SIGSYS", 31), ("RTMIN+3", 37)] {
            assert_eq!(signal_number(text).unwrap(), number);
        }
        for text in ["", "SIG", "65", "-1", "NONE"] {
            assert!(signal_number(text).is_err(), "{text}");
        }
    }

    #[test]
    fn users() {
        assert_eq!((parse_user("5").unwrap(), parse_user("5:6").unwrap()), ((5, 0), (5, 6)));
        assert!(parse_user("web").is_err());
    }
}
