//! How a bundle's container comes to life: made up to the point of running its program, then told to run it.

use std::convert::Infallible;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use oci_spec::runtime::{Linux, LinuxNamespaceType, LinuxResources, Spec};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, connect, listen, socket_with};

use super::filesystem::{Building, Trees, prepare};
use super::hooks::{self, Point};
use super::namespaces::Namespaces;
use super::state::{Container, Status, Store, clear_group, start_time};
use super::{config, process, resources};
use crate::birth::{self, Line, Question, adjust_oom};
use crate::cgroup::{self, Cgroup, Doors};
use crate::error::{Context, Error, Result};
use crate::protocol::Reply;
use crate::setup::{program, seccomp, sysctl, terminal};
use crate::spec::Process;
use crate::{sys, wire};

/// What `create` is told beside the bundle's own configuration.
#[derive(Debug, Clone)]
pub struct Creation {
    pub id: String,
    pub bundle: PathBuf,
    /// Files from number 3 on that the program gets.
    pub preserve_fds: u32,
    /// False moves the root instead, for machines whose root cannot be changed.
    pub pivot: bool,
    pub new_keyring: bool,
}

/// Makes a container; its program waits for `start`. Returns the terminal's master if it has one.
/// The caller has one thread. On error nothing is left behind.
pub fn create(store: &Store, creation: &Creation) -> Result<(Container, Option<OwnedFd>)> {
    let bundle = creation.bundle.canonicalize().step(format!("open bundle {}", creation.bundle.display()))?;
    let spec = config::load(&bundle)?;
    let rootfs = config::rootfs(&bundle, &spec)?;
    let folder = store.claim(&creation.id)?;
    let path = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().clone());
    let path = path.filter(|path| !path.as_os_str().is_empty());
    let container = Container {
        id: creation.id.clone(),
        folder,
        pid: 0,
        start_time: 0,
        bundle,
        rootfs,
        cgroup: path.map_or_else(|| creation.id.clone(), |path| path.to_string_lossy().trim_matches('/').to_owned()),
        created: jiff::Timestamp::now().to_string(),
        config: Box::new(spec),
    };
    let made = make(container.clone(), creation);
    if made.is_err() {
        // What went wrong is worth more than what goes wrong while it is cleared away.
        let _ = clear_group(&container.cgroup(), Instant::now() + Duration::from_secs(2));
        let _ = fs::remove_dir_all(&container.folder);
    }
    made
}

fn make(mut container: Container, creation: &Creation) -> Result<(Container, Option<OwnedFd>)> {
    let spec = container.config.clone();
    let no_section = Linux::default();
    let linux = spec.linux().as_ref().unwrap_or(&no_section);
    let Some(given) = spec.process() else { return Err(Error::Invalid("config.json: process is missing".into())) };
    let mut wanted = process::resolve(given, linux, true)?;
    wanted.preserve_fds = creation.preserve_fds;
    sys::close_at_exec(3 + creation.preserve_fds).step("close files")?;
    let namespaces = Namespaces::open(linux)?;
    let trees = prepare(&spec, &container.bundle)?;
    let group = container.cgroup();
    make_group(&group, linux)?;
    let doors = group.doors()?;
    let init = Init {
        container: &container,
        creation,
        spec: &spec,
        linux,
        wanted: &wanted,
        filter: seccomp::compile(&wanted.seccomp, &wanted.capabilities)?,
        namespaces: &namespaces,
        trees: &trees,
        group: &group,
        listener: listener(&container.folder)?,
    };
    let mut answer = |question, pid| match question {
        Question::MapIds => namespaces.ids().map_or(Ok(()), |ids| ids.write(pid)),
        Question::Hooks => {
            let state = container.state_text(Status::Creating, pid);
            hooks::run(&spec, Point::Prestart, &state)?;
            hooks::run(&spec, Point::CreateRuntime, &state)
        }
    };
    let born_into = doors.born_into.as_ref().map(AsFd::as_fd);
    let enter = |line: &Line| init.enter(line, &doors);
    let made = birth::sibling(namespaces.at_fork(), born_into, &mut answer, enter, |line| init.live(line))?;
    container.pid = made.pid;
    container.start_time = start_time(made.pid)?;
    if let Err(error) = container.record() {
        sys::kill(made.pid, libc::SIGKILL);
        return Err(error);
    }
    Ok((container, made.terminal))
}

fn make_group(group: &Cgroup, linux: &Linux) -> Result<()> {
    let given = linux.resources().as_ref();
    group.create(&given.map(resources::limits).unwrap_or_default())?;
    if let Some(given) = given {
        group.write(&resources::settings(given, cgroup::is_unified())?)?;
    }
    match resources::devices(given)? {
        Some(rules) => group.filter_devices(&rules),
        None => Ok(()),
    }
}

/// A socket in the container's folder, however long that folder's path is.
fn listener(folder: &Path) -> Result<OwnedFd> {
    let socket = new_socket()?;
    let folder = fs::File::open(folder).step(format!("open {}", folder.display()))?;
    rustix::net::bind(&socket, &address(&folder)?).step("open the container's socket")?;
    listen(&socket, 1).step("listen")?;
    Ok(socket)
}

fn new_socket() -> Result<OwnedFd> {
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).step("make a socket")
}

fn address(folder: &fs::File) -> Result<SocketAddrUnix> {
    SocketAddrUnix::new(format!("/proc/self/fd/{}/start", folder.as_raw_fd())).step("name the container's socket")
}

/// Everything the container's first process needs for its set-up.
struct Init<'a> {
    container: &'a Container,
    creation: &'a Creation,
    spec: &'a Spec,
    linux: &'a Linux,
    wanted: &'a Process,
    filter: Option<Arc<seccomp::Filter>>,
    namespaces: &'a Namespaces,
    trees: &'a Trees,
    group: &'a Cgroup,
    listener: OwnedFd,
}

impl Init<'_> {
    /// What the helper does before it makes the first process.
    fn enter(&self, line: &Line, doors: &Doors) -> Result<()> {
        doors.enter()?;
        adjust_oom(self.wanted.oom_score_adj);
        self.namespaces.enter(line)
    }

    /// The first process: sets itself up, waits to be started, runs the program.
    fn live(&self, line: &Line) -> Result<Infallible> {
        rustix::process::setsid().step("begin a session")?;
        if self.creation.new_keyring {
            program::leave_keys(&self.container.id);
        }
        self.name_host()?;
        // By the caller's `/proc`: the container's own may be closed to writers soon.
        self.linux.sysctl().iter().flatten().try_for_each(|(name, value)| sysctl::set(name, value))?;
        let terminal = if self.namespaces.makes(LinuxNamespaceType::Mount) {
            self.build(line)?;
            self.terminal(line)?
        } else {
            // The file system of the mount namespace that was joined is the container's, too.
            line.ask(Question::Hooks)?;
            rustix::process::chdir("/").step("enter the root")?;
            self.terminal(line)?
        };
        if let Some(slave) = terminal.as_ref().filter(|_| self.namespaces.makes(LinuxNamespaceType::Mount)) {
            terminal::become_console(slave)?;
        }
        program::set_umask(self.wanted);
        let prepared = program::prepare(self.wanted, self.filter.clone())?;
        program::own_streams(&prepared, None);
        program::enter_folder(&self.wanted.cwd)?;
        line.ready()?;
        let starter = rustix::io::retry_on_intr(|| accept_with(&self.listener, SocketFlags::CLOEXEC))
            .step("wait to be started")?;
        let failed = self.run(&prepared);
        let _ = wire::send(starter.as_fd(), &Reply::from(failed), &[]);
        sys::exit(1)
    }

    fn name_host(&self) -> Result<()> {
        if let Some(name) = self.spec.hostname() {
            rustix::system::sethostname(name.as_bytes()).step(format!("set host name {name:?}"))?;
        }
        if let Some(name) = self.spec.domainname() {
            rustix::system::setdomainname(name.as_bytes()).step(format!("set domain name {name:?}"))?;
        }
        Ok(())
    }

    fn build(&self, line: &Line) -> Result<()> {
        let building = Building {
            spec: self.spec,
            linux: self.linux,
            bundle: &self.container.bundle,
            rootfs: &self.container.rootfs,
            trees: self.trees,
            cgroup: self.group,
            own_cgroups: self.namespaces.makes(LinuxNamespaceType::Cgroup),
            own_users: self.namespaces.has_user(),
        };
        building.mount()?;
        line.ask(Question::Hooks)?;
        hooks::run(self.spec, Point::CreateContainer, &self.own_state(Status::Creating))?;
        building.enter(self.creation.pivot)
    }

    /// The state as this process sees it.
    fn own_state(&self, status: Status) -> Vec<u8> {
        self.container.state_text(status, rustix::process::getpid().as_raw_nonzero().get())
    }

    fn terminal(&self, line: &Line) -> Result<Option<OwnedFd>> {
        if !self.wanted.tty {
            return Ok(None);
        }
        let size = self.spec.process().as_ref().and_then(|process| process.console_size());
        let slave = super::console::make(line, size)?;
        Ok(Some(slave))
    }

    /// Returns only if the program cannot be run.
    fn run(&self, prepared: &program::Prepared) -> Error {
        let run = hooks::run(self.spec, Point::StartContainer, &self.own_state(Status::Created))
            .and_then(|()| program::run(self.wanted, prepared));
        match run {
            Err(error) => error,
            Ok(never) => match never {},
        }
    }
}

/// Tells a container to run its program. Returns what hooks after that complained about.
pub fn start(container: &Container) -> Result<Vec<Error>> {
    let status = container.status();
    if status != Status::Created {
        let id = &container.id;
        return Err(Error::Invalid(format!("cannot start container {id}: it is {status}, not created")));
    }
    let folder = fs::File::open(&container.folder).step("open the container's folder")?;
    let socket = new_socket()?;
    connect(&socket, &address(&folder)?).step("reach the container's first process")?;
    fs::remove_file(container.socket()).step("note that the container was started")?;
    match wire::receive::<Reply>(socket.as_fd())? {
        None => {}
        Some((Reply::Failed { kind, message }, _)) => return Err(kind.into_error(message)),
        Some(_) => return Err(Error::Shim("the container's process spoke out of turn".into())),
    }
    let state = container.state_text(Status::Running, container.pid);
    Ok(hooks::run_all(&container.config, Point::Poststart, &state))
}

/// Changes the limits of a container; devices stay as they are.
pub fn update(mut container: Container, given: LinuxResources) -> Result<()> {
    let group = container.cgroup();
    let limits = resources::limits(&given);
    let settings = resources::settings(&given, cgroup::is_unified())?;
    // Memory must never exceed memory with swap: which of the two goes first depends on where they go.
    if group.apply(&limits).is_err() {
        group.write(&settings)?;
        group.apply(&limits)?;
    }
    group.write(&settings)?;
    if let Some(linux) = container.config.linux_mut() {
        linux.set_resources(Some(given));
    }
    container.record()
}
