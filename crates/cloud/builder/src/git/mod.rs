//! Repositories, fetched by git(1) of the machine.
//!
//! Of people who do not run the machine nothing decides what git runs or reads here: no configuration but ours, no protocols but https, http and ssh, no
//! redirects; and an address is looked up once, so that it cannot be another one by the time git connects. That holds for submodules as well, which
//! are therefore fetched one by one.

mod address;
mod login;
mod submodules;

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde::{Deserialize, Serialize};
use tokio::process::Command;

use self::address::Address;
pub use self::address::check_registry;
pub use self::login::{Login, Logins};
use crate::copy::At;
use crate::error::{Error, Result, blocking};
use crate::event::Step;
use crate::plan::Add;

/// Largest file that git may write, in blocks of 512 bytes, and its seconds of processor time.
const LIMITS: &str = "ulimit -f 8388608 -t 900 2>/dev/null; exec git \"$@\"";

/// Where files are, and as of when.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Repository {
    pub url: String,
    /// A branch, a tag or a commit; the remote's own branch if empty.
    pub reference: String,
    pub login: Login,
    /// What it says of other repositories stays unfetched.
    pub without_submodules: bool,
}

/// What was checked out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Commit {
    pub id: String,
    pub author: String,
    /// First line of its message.
    pub subject: String,
}

/// For whom a repository is fetched.
#[derive(Clone, Copy)]
pub enum Who<'a> {
    Tenant,
    /// Whoever runs it, with their agent for ssh.
    Machine(Option<&'a PathBuf>),
}

/// How git is run for one repository: a folder with what it may know, and variables that say where that is.
struct Git<'a> {
    url: String,
    folder: PathBuf,
    variables: Vec<(String, String)>,
    /// Whether it is bounded, and fetches what is asked for and no tags beside it.
    guarded: bool,
    step: &'a Step,
}

impl<'a> Git<'a> {
    /// `home` is for what git is told, and for nobody else.
    async fn new(url: &str, login: &Login, who: Who<'_>, folder: &Path, home: &Path, step: &'a Step) -> Result<Self> {
        let address = Address::parse(url);
        let guarded = matches!(who, Who::Tenant);
        let open = match (&address, who) {
            (Some(address), Who::Tenant) => address.resolve().await?,
            (None, Who::Tenant) => {
                let why = format!("{url:?} is no https://, http:// or ssh address of a repository");
                return Err(Error::Invalid(why));
            }
            // It is not to be taken for an option.
            (None, Who::Machine(_)) if url.starts_with('-') => {
                return Err(Error::Invalid(format!("malformed git address {url:?}")));
            }
            (_, Who::Machine(_)) => Vec::new(),
        };
        let (mut ssh, mut config) = (vec!["ssh -oBatchMode=yes".to_owned()], Vec::new());
        let mut set = |key: &str, value: &str| config.push((key.to_owned(), value.to_owned()));
        set("core.hooksPath", "/dev/null");
        set("submodule.recurse", "false");
        set("fetch.recurseSubmodules", "false");
        let mut variables = variables(if guarded { "http:https:ssh" } else { "http:https:git:ssh" }, home);
        match who {
            Who::Tenant => {
                set("http.followRedirects", "false");
                variables.push(("GIT_LFS_SKIP_SMUDGE".to_owned(), "1".to_owned()));
            }
            Who::Machine(agent) => {
                variables.extend(agent.map(|socket| ("SSH_AUTH_SOCK".to_owned(), socket.display().to_string())));
            }
        }
        match &address {
            Some(address) if address.ssh => ssh.extend(ssh_options(address, open.first(), login, guarded, home)?),
            Some(address) => config.extend(http_settings(url, address, &open, login, home)?),
            None => {}
        }
        variables.extend([
            ("GIT_SSH_COMMAND".to_owned(), ssh.join(" ")),
            // By variables: arguments are seen by everyone on the machine.
            ("GIT_CONFIG_COUNT".to_owned(), config.len().to_string()),
        ]);
        for (number, (key, value)) in config.into_iter().enumerate() {
            variables.push((format!("GIT_CONFIG_KEY_{number}"), key));
            variables.push((format!("GIT_CONFIG_VALUE_{number}"), value));
        }
        Ok(Git { url: url.to_owned(), folder: folder.to_owned(), variables, guarded, step })
    }

    async fn run(&self, args: &[&str]) -> Result<String> {
        let mut command = match self.guarded {
            true => Command::new("sh"),
            false => Command::new("git"),
        };
        if self.guarded {
            command.args(["-c", LIMITS, "git"]);
        }
        let done = command
            .args(args)
            .current_dir(&self.folder)
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .at("run git, which repositories take")?;
        if !self.guarded {
            self.step.output(true, &done.stderr);
        }
        if done.status.success() {
            return Ok(String::from_utf8_lossy(&done.stdout).trim().to_owned());
        }
        let said = String::from_utf8_lossy(&done.stderr).trim().to_owned();
        let failed = format!("git {}: {said}", args.first().unwrap_or(&""));
        Err(if is_away(&said) { Error::Unreachable(failed) } else { Error::Invalid(failed) })
    }

    /// Checks out a branch, a tag or a commit of the repository into its empty folder.
    async fn fetch(&self, wanted: &str) -> Result<()> {
        if wanted.starts_with('-') || wanted.contains(|c: char| c.is_control() || " ~^:?*[\\".contains(c)) {
            return Err(Error::Invalid(format!("{wanted:?} is no branch, tag or commit")));
        }
        self.run(&["init", "--quiet"]).await?;
        self.run(&["remote", "add", "origin", &self.url]).await?;
        let quiet: &[&str] = if self.guarded { &["fetch", "--quiet", "--no-tags"] } else { &["fetch", "--quiet"] };
        // Not every server gives a part of the history, nor a commit by its number.
        let fetched = self.run(&[quiet, &["--depth=1", "origin", wanted]].concat()).await.is_ok()
            || self.run(&[quiet, &["origin", wanted]].concat()).await.is_ok();
        if fetched {
            self.run(&["checkout", "--quiet", "--detach", "FETCH_HEAD"]).await?;
        } else {
            self.run(&["fetch", "--quiet", "--tags", "origin", "+refs/heads/*:refs/remotes/origin/*"]).await?;
            self.run(&["checkout", "--quiet", "--detach", wanted]).await?;
        }
        Ok(())
    }
}

/// Writes what git is told by a file that nobody else reads.
fn tell(home: &Path, name: &str, text: &str) -> Result<String> {
    let path = home.join(name);
    dhow_base::files::write_private(&path, text.as_bytes())
        .map_err(|error| Error::Invalid(format!("write {name} for git: {error}")))?;
    Ok(path.display().to_string())
}

/// Options of ssh for one host, which is at `ip` if that is known. They go through a shell.
fn ssh_options(
    address: &Address<'_>,
    ip: Option<&IpAddr>,
    login: &Login,
    guarded: bool,
    home: &Path,
) -> Result<Vec<String>> {
    let mut options = Vec::new();
    if guarded {
        // Neither keys nor agents of whoever runs the machine, nor hosts that only they know.
        options.push("-F/dev/null -oGlobalKnownHostsFile=/dev/null".to_owned());
        options.push(format!("-oPubkeyAuthentication={}", if login.key.is_empty() { "no" } else { "yes" }));
    }
    if let Some(ip) = ip {
        options.extend([format!("'-oHostKeyAlias={}'", address.known_as()), format!("-oHostName={ip}")]);
    }
    if guarded || !login.known_hosts.is_empty() {
        options.push(format!("-oUserKnownHostsFile={}", tell(home, "known_hosts", &login.known_hosts)?));
    }
    // Whoever gives no keys of hosts believes the first one, as there is nothing to compare it with.
    let checked = match (login.known_hosts.is_empty(), guarded) {
        (false, _) => "yes",
        (true, true) => "no",
        (true, false) => "accept-new",
    };
    options.push(format!("-oStrictHostKeyChecking={checked}"));
    if !login.key.is_empty() {
        let key = tell(home, "key", &format!("{}\n", login.key.trim_end()))?;
        options.push(format!("-oIdentitiesOnly=yes -oIdentityAgent=none -i {key}"));
    }
    Ok(options)
}

/// Settings of git for one host, which is at `open` if that is known.
fn http_settings(
    url: &str,
    address: &Address<'_>,
    open: &[IpAddr],
    login: &Login,
    home: &Path,
) -> Result<Vec<(String, String)>> {
    let mut settings = Vec::new();
    let brackets = |ip: &IpAddr| if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() };
    let all: Vec<String> = open.iter().map(brackets).collect();
    if !all.is_empty() {
        let known = format!("{}:{}:{}", address.host, address.port, all.join(","));
        settings.push(("http.curloptResolve".to_owned(), known));
    }
    if !login.authorization.is_empty() {
        let scheme = url.split("://").next().unwrap_or_default();
        let host = if address.host.contains(':') { format!("[{}]", address.host) } else { address.host.to_owned() };
        // For this place alone.
        let key = format!("http.{scheme}://{host}:{}/.extraHeader", address.port);
        settings.push((key, format!("Authorization: {}", login.authorization.trim())));
    }
    if !login.authorities.is_empty() {
        settings.push(("http.sslCAInfo".to_owned(), tell(home, "authorities.pem", &login.authorities)?));
    }
    Ok(settings)
}

/// Whether git says that nobody was there, which may be otherwise in a while.
fn is_away(said: &str) -> bool {
    let words = [
        "Failed to connect to",
        "Connection refused",
        "Connection reset by",
        "Connection timed out",
        "No route to host",
        "The requested URL returned error: 5",
        "early EOF",
    ];
    words.iter().any(|word| said.contains(word))
}

/// What git is told whoever it is run for: to ask nobody, and to read no configuration of the machine's.
fn variables(protocols: &str, home: &Path) -> Vec<(String, String)> {
    vec![
        ("GIT_TERMINAL_PROMPT".to_owned(), "0".to_owned()),
        // Its words are read.
        ("LC_ALL".to_owned(), "C".to_owned()),
        ("GIT_CONFIG_NOSYSTEM".to_owned(), "1".to_owned()),
        ("GIT_ALLOW_PROTOCOL".to_owned(), protocols.to_owned()),
        ("HOME".to_owned(), home.display().to_string()),
    ]
}

/// Fetches a repository into an empty folder; `home` is another one, for what git is told.
pub async fn checkout(
    from: &Repository,
    logins: &Logins,
    who: Who<'_>,
    into: &Path,
    home: &Path,
    step: &Step,
) -> Result<Commit> {
    let git = Git::new(&from.url, &logins.of(&from.url), who, into, home, step).await?;
    git.fetch(if from.reference.is_empty() { "HEAD" } else { &from.reference }).await?;
    let said = git.run(&["log", "-1", "--format=%H%n%an%n%s"]).await?;
    let mut lines = said.lines().map(str::to_owned);
    let mut next = || lines.next().unwrap_or_default();
    let commit = Commit { id: next(), author: next(), subject: next() };
    git.step.output(false, format!("{} {} ({})\n", commit.id, commit.subject, commit.author).as_bytes());
    if !from.without_submodules {
        submodules::fetch(git, logins, who, home, step).await?;
    }
    Ok(commit)
}

/// The repository, and the folder of it, that `address#reference:folder` names.
pub fn parse(source: &str) -> (Repository, String) {
    let (address, rest) = source.split_once('#').unwrap_or((source, ""));
    let (reference, folder) = rest.split_once(':').unwrap_or((rest, ""));
    let from = Repository { url: address.to_owned(), reference: reference.to_owned(), ..Repository::default() };
    (from, folder.to_owned())
}

/// The files of `address#reference:folder`; returns the commit.
pub async fn add(source: &str, add: &Add, into: &Path, logins: &Logins, who: Who<'_>, step: &Step) -> Result<String> {
    let (from, folder) = parse(source);
    let (clone, home) = (into.join(".clone"), into.join(".home"));
    for made in [&clone, &home] {
        fs::create_dir_all(made).at("make a folder")?;
        fs::set_permissions(made, fs::Permissions::from_mode(0o755)).at("open a folder")?;
    }
    let commit = checkout(&from, logins, who, &clone, &home, step).await?.id;
    fs::remove_dir_all(&home).at("remove what git was told")?;
    if let Some(checksum) = &add.checksum
        && (checksum.len() < 7 || !commit.starts_with(checksum.as_str()))
    {
        return Err(Error::Invalid(format!("expected checksum to match {checksum}, got {commit}")));
    }
    let (into, keep) = (into.to_owned(), add.keep_git_dir);
    blocking(move || {
        if !keep {
            forget(&clone)?;
        }
        let from = crate::source::below(&clone, &folder).map_err(|error| match error {
            Error::Invalid(_) => {
                Error::Invalid(format!("the repository has no folder {:?}", dhow_image::clean(&folder)))
            }
            error => error,
        })?;
        for entry in fs::read_dir(&from).at("list the repository")? {
            let entry = entry.at("list the repository")?;
            fs::rename(entry.path(), into.join(entry.file_name())).at("take a file of the repository")?;
        }
        fs::remove_dir_all(&clone).at("remove the clone")
    })
    .await?;
    Ok(commit)
}

/// Removes what git keeps of a repository and of those in it. Its files cannot be called so.
pub fn forget(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).at("list the repository")? {
        let entry = entry.at("list the repository")?;
        match (entry.file_type().at("look at a file of the repository")?.is_dir(), entry.file_name() == ".git") {
            (true, true) => fs::remove_dir_all(entry.path()).at("remove git's folder")?,
            (true, false) => forget(&entry.path())?,
            (false, _) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_away_may_come_back() {
        let refused = "fatal: unable to access 'http://h/a.git/': Failed to connect to h port 80 after 0 ms: Couldn't connect to server";
        let ssh = "ssh: connect to host h port 22: Connection refused\nfatal: Could not read from remote repository.";
        assert!(is_away(refused) && is_away(ssh));
        for settled in
            ["fatal: could not read Username for 'https://h'", "Permission denied (publickey).", "error: 404"]
        {
            assert!(!is_away(settled), "{settled}");
        }
    }
}
