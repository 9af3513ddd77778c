//! Repositories, fetched by git(1) of the machine.
//!
//! Of people who do not run the machine nothing decides what git runs or reads here: no configuration but ours, no protocols but https, http and ssh, no
//! redirects, no submodules; and an address is looked up once, so that it cannot be another one by the time git connects.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde::{Deserialize, Serialize};
use tokio::process::Command;

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
    pub username: String,
    pub password: String,
    /// For ssh: a private key, and lines of `known_hosts`.
    pub key: String,
    pub known_hosts: String,
    /// Authorities in PEM that are believed as well.
    pub authorities: String,
}

/// What was checked out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Commit {
    pub id: String,
    pub author: String,
    /// First line of its message.
    pub subject: String,
}

/// An address of a repository, understood.
#[derive(Debug, PartialEq, Eq)]
struct Address<'a> {
    ssh: bool,
    host: &'a str,
    port: u16,
}

impl<'a> Address<'a> {
    /// `https://`, `http://`, `ssh://` or `user@host:path`.
    fn parse(url: &'a str) -> Option<Self> {
        if url.starts_with('-') || url.contains(|c: char| c.is_control() || c == ' ') {
            return None;
        }
        let (ssh, usual, rest) = match url.split_once("://") {
            Some(("https", rest)) => (false, 443, rest),
            Some(("http", rest)) => (false, 80, rest),
            Some(("ssh", rest)) => (true, 22, rest),
            Some(_) => return None,
            // What scp takes; no port there.
            None => {
                let (host, _) = url.split_once(':')?;
                let (user, host) = host.split_once('@')?;
                return (!user.is_empty() && is_host(host)).then_some(Self { ssh: true, host, port: 22 });
            }
        };
        let authority = rest.split('/').next().unwrap_or_default();
        let place = authority.rsplit('@').next().unwrap_or_default();
        let (host, port) = match place.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, "")) => (host, usual),
            Some((host, port)) => (host, port.strip_prefix(':')?.parse().ok()?),
            None => match place.split_once(':') {
                Some((host, port)) => (host, port.parse().ok()?),
                None => (place, usual),
            },
        };
        is_host(host).then_some(Self { ssh, host, port })
    }

    /// The addresses that it may be reached at.
    async fn resolve(&self) -> Result<Vec<IpAddr>> {
        let failed = |error: std::io::Error| Error::Unreachable(format!("look up {}: {error}", self.host));
        let found: Vec<SocketAddr> = tokio::net::lookup_host((self.host, self.port)).await.map_err(failed)?.collect();
        let open: Vec<IpAddr> =
            found.iter().map(SocketAddr::ip).filter(|ip| dhow_base::connect::is_open(*ip)).collect();
        match (open.is_empty(), found.first()) {
            (true, Some(one)) => {
                let ip = one.ip();
                Err(Error::Invalid(format!("{} is {ip}, an address of the machine itself or of its link", self.host)))
            }
            (true, None) => Err(Error::Unreachable(format!("{} has no address", self.host))),
            _ => Ok(open),
        }
    }
}

/// Refuses registries of the machine itself. One that cannot be looked up may have a mirror, and is missed later if not.
pub async fn check_registry(registry: &str) -> Result<()> {
    let url = format!("https://{registry}/");
    let address = Address::parse(&url).ok_or_else(|| Error::Invalid(format!("{registry:?} is no registry")))?;
    match address.resolve().await {
        Err(error @ Error::Invalid(_)) => Err(error),
        _ => Ok(()),
    }
}

fn is_host(host: &str) -> bool {
    !host.is_empty() && !host.starts_with('-') && host.chars().all(|c| c.is_ascii_alphanumeric() || "-._:".contains(c))
}

/// How git is run for one repository: a folder with what it may know, and variables that say where that is.
struct Git<'a> {
    folder: &'a Path,
    variables: Vec<(String, String)>,
    /// Whether it is bounded, and fetches what is asked for and no tags beside it.
    guarded: bool,
    step: &'a Step,
}

impl<'a> Git<'a> {
    /// For people who run the machine, with their agent for ssh.
    fn of_machine(folder: &'a Path, home: &Path, agent: Option<&PathBuf>, step: &'a Step) -> Self {
        let mut variables = variables("http:https:git:ssh", home);
        // Nobody is there to be asked about a host that was never seen.
        let ssh = "ssh -o BatchMode=yes -o StrictHostKeyChecking=accept-new".to_owned();
        variables.push(("GIT_SSH_COMMAND".to_owned(), ssh));
        variables.extend(agent.map(|socket| ("SSH_AUTH_SOCK".to_owned(), socket.display().to_string())));
        Git { folder, variables, guarded: false, step }
    }

    async fn of_tenant(from: &Repository, folder: &'a Path, home: &Path, step: &'a Step) -> Result<Self> {
        let wrong = || Error::Invalid(format!("{:?} is no https://, http:// or ssh address of a repository", from.url));
        let address = Address::parse(&from.url).ok_or_else(wrong)?;
        let open = address.resolve().await?;
        let write = |name: &str, text: &str| -> Result<String> {
            let path = home.join(name);
            dhow_base::files::write_private(&path, text.as_bytes())
                .map_err(|error| Error::Invalid(format!("write {name} for git: {error}")))?;
            Ok(path.display().to_string())
        };
        let mut config = vec![("http.followRedirects", "false".to_owned()), ("core.hooksPath", "/dev/null".to_owned())];
        let mut ssh = vec!["ssh".to_owned(), "-oBatchMode=yes".to_owned(), "-F/dev/null".to_owned()];
        if address.ssh {
            ssh.extend([format!("-oHostKeyAlias={}", address.host), format!("-oHostName={}", open[0])]);
            let known = write("known_hosts", &from.known_hosts)?;
            ssh.push(format!("-oUserKnownHostsFile={known}"));
            // Whoever gives no keys of hosts believes the first one, as there is nothing to compare it with.
            ssh.push(format!("-oStrictHostKeyChecking={}", if from.known_hosts.is_empty() { "no" } else { "yes" }));
            if !from.key.is_empty() {
                ssh.push(format!("-oIdentitiesOnly=yes -i {}", write("key", &format!("{}\n", from.key.trim_end()))?));
            }
        } else {
            let brackets = |ip: &IpAddr| if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() };
            let all: Vec<String> = open.iter().map(brackets).collect();
            config.push(("http.curloptResolve", format!("{}:{}:{}", address.host, address.port, all.join(","))));
            if !from.username.is_empty() || !from.password.is_empty() {
                use base64::Engine as _;
                let user = if from.username.is_empty() { "git" } else { &from.username };
                let proof = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{}", from.password));
                config.push(("http.extraHeader", format!("Authorization: Basic {proof}")));
            }
            if !from.authorities.is_empty() {
                config.push(("http.sslCAInfo", write("authorities.pem", &from.authorities)?));
            }
        }
        let mut variables = variables("http:https:ssh", home);
        variables.extend([
            ("GIT_LFS_SKIP_SMUDGE".to_owned(), "1".to_owned()),
            ("GIT_SSH_COMMAND".to_owned(), ssh.join(" ")),
            // By variables: arguments are seen by everyone on the machine.
            ("GIT_CONFIG_COUNT".to_owned(), config.len().to_string()),
        ]);
        for (number, (key, value)) in config.into_iter().enumerate() {
            variables.push((format!("GIT_CONFIG_KEY_{number}"), key.to_owned()));
            variables.push((format!("GIT_CONFIG_VALUE_{number}"), value));
        }
        Ok(Git { folder, variables, guarded: true, step })
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
            .current_dir(self.folder)
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
        Err(Error::Invalid(format!("git {}: {said}", args.first().unwrap_or(&""))))
    }

    /// Checks out a branch, a tag or a commit of the repository at `url`, into its empty folder.
    async fn fetch(&self, url: &str, wanted: &str) -> Result<()> {
        self.run(&["init", "--quiet"]).await?;
        self.run(&["remote", "add", "origin", url]).await?;
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

/// What git is told whoever it is run for: to ask nobody, and to read no configuration of the machine's.
fn variables(protocols: &str, home: &Path) -> Vec<(String, String)> {
    vec![
        ("GIT_TERMINAL_PROMPT".to_owned(), "0".to_owned()),
        ("GIT_CONFIG_NOSYSTEM".to_owned(), "1".to_owned()),
        ("GIT_ALLOW_PROTOCOL".to_owned(), protocols.to_owned()),
        ("HOME".to_owned(), home.display().to_string()),
    ]
}

/// Fetches a repository for people who do not run the machine into an empty folder; `home` is another one, for what git is told.
pub async fn checkout(from: &Repository, into: &Path, home: &Path, step: &Step) -> Result<Commit> {
    let git = Git::of_tenant(from, into, home, step).await?;
    let wanted = if from.reference.is_empty() { "HEAD" } else { &from.reference };
    if wanted.starts_with('-') || wanted.contains(|c: char| c.is_control() || " ~^:?*[\\".contains(c)) {
        return Err(Error::Invalid(format!("{wanted:?} is no branch, tag or commit")));
    }
    git.fetch(&from.url, wanted).await?;
    let said = git.run(&["log", "-1", "--format=%H%n%an%n%s"]).await?;
    let mut lines = said.lines().map(str::to_owned);
    let mut next = || lines.next().unwrap_or_default();
    let commit = Commit { id: next(), author: next(), subject: next() };
    git.step.output(false, format!("{} {} ({})\n", commit.id, commit.subject, commit.author).as_bytes());
    Ok(commit)
}

/// For whom a repository is fetched.
#[derive(Clone, Copy)]
pub enum Who<'a> {
    Tenant,
    /// Whoever runs it, with their agent for ssh.
    Machine(Option<&'a PathBuf>),
}

/// The files of `address#reference:folder`; returns the commit.
pub async fn add(source: &str, add: &Add, into: &Path, who: Who<'_>, step: &Step) -> Result<String> {
    let (address, rest) = source.split_once('#').unwrap_or((source, ""));
    let (reference, folder) = rest.split_once(':').unwrap_or((rest, ""));
    let clone = into.join(".clone");
    fs::create_dir_all(&clone).at("make a folder")?;
    let is_wanted = |commit: &str| match &add.checksum {
        Some(checksum) if checksum.len() < 7 || !commit.starts_with(checksum.as_str()) => {
            Err(Error::Invalid(format!("expected checksum to match {checksum}, got {commit}")))
        }
        _ => Ok(()),
    };
    let commit = match who {
        Who::Tenant => {
            let home = into.join(".home");
            fs::create_dir_all(&home).at("make a folder")?;
            for made in [&clone, &home] {
                fs::set_permissions(made, fs::Permissions::from_mode(0o755)).at("open a folder")?;
            }
            let from = Repository { url: address.to_owned(), reference: reference.to_owned(), ..Repository::default() };
            let commit = checkout(&from, &clone, &home, step).await?.id;
            fs::remove_dir_all(&home).at("remove what git was told")?;
            is_wanted(&commit)?;
            commit
        }
        Who::Machine(agent) => {
            // Neither may be taken for an option.
            if address.starts_with('-') || reference.starts_with('-') {
                return Err(Error::Invalid(format!("malformed git address {source:?}")));
            }
            let git = Git::of_machine(&clone, into, agent, step);
            git.fetch(address, if reference.is_empty() { "HEAD" } else { reference }).await?;
            let commit = git.run(&["rev-parse", "HEAD"]).await?;
            is_wanted(&commit)?;
            git.run(&["submodule", "update", "--quiet", "--init", "--recursive", "--depth=1"]).await?;
            commit
        }
    };
    let (into, folder, keep) = (into.to_owned(), folder.to_owned(), add.keep_git_dir);
    blocking(move || {
        if !keep {
            fs::remove_dir_all(clone.join(".git")).at("remove git's folder")?;
        }
        let from = crate::origin::below(&clone, &folder).map_err(|error| match error {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_of_hosts() {
        let parsed = |url| Address::parse(url).map(|address| (address.ssh, address.host, address.port));
        for (url, want) in [
            ("https://example.org/a.git", Some((false, "example.org", 443))),
            ("http://u:p@example.org:8080/a", Some((false, "example.org", 8080))),
            ("https://[2001:db8::1]:444/a", Some((false, "2001:db8::1", 444))),
            ("ssh://git@example.org:2222/a", Some((true, "example.org", 2222))),
            ("git@example.org:team/a.git", Some((true, "example.org", 22))),
            ("file:///etc", None),
            ("ext::sh -c id", None),
            ("git://example.org/a", None),
            ("/srv/a.git", None),
            ("-oProxyCommand=id@h:a", Some((true, "h", 22)).filter(|_| false)),
            ("git@-oProxyCommand=id:a", None),
            ("https://a b/c", None),
        ] {
            assert_eq!(parsed(url), want, "{url}");
        }
    }

    #[tokio::test]
    async fn the_machine_itself_is_nobodys_remote() {
        for url in ["http://127.0.0.1:1/a", "http://[::ffff:127.0.0.1]/a", "http://169.254.169.254/a", "http://[::1]/a"]
        {
            let address = Address::parse(url);
            let refused = match address {
                Some(address) => address.resolve().await.is_err(),
                None => true,
            };
            assert!(refused, "{url}");
        }
        assert!(check_registry("127.0.0.1:5000").await.is_err() && check_registry("192.0.2.1:5000").await.is_ok());
    }
}
