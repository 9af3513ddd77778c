//! Addresses of repositories, understood and looked up.

use std::net::{IpAddr, SocketAddr};

use crate::error::{Error, Result};

/// An address of a repository, understood.
#[derive(Debug, PartialEq, Eq)]
pub struct Address<'a> {
    pub ssh: bool,
    pub host: &'a str,
    pub port: u16,
}

impl<'a> Address<'a> {
    /// `https://`, `http://`, `ssh://` or `user@host:path`.
    pub fn parse(url: &'a str) -> Option<Self> {
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
    pub async fn resolve(&self) -> Result<Vec<IpAddr>> {
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

    /// As ssh writes it in `known_hosts`.
    pub fn known_as(&self) -> String {
        if self.port == 22 { self.host.to_owned() } else { format!("[{}]:{}", self.host, self.port) }
    }
}

/// Where a submodule of the repository at `parent` is.
pub fn below(parent: &str, url: &str) -> Result<String> {
    if !url.starts_with("./") && !url.starts_with("../") {
        return Ok(url.to_owned());
    }
    let (mut base, mut rest) = (parent.trim_end_matches('/'), url);
    let outside = || Error::Invalid(format!("a submodule is at {url:?}, which {parent} has no room for"));
    let mut joint = "/";
    loop {
        if let Some(next) = rest.strip_prefix("./") {
            rest = next;
        } else if let Some(next) = rest.strip_prefix("../") {
            rest = next;
            let cut = base.rfind('/').filter(|at| !base[..*at].ends_with('/'));
            base = match (cut, base.rfind(':')) {
                (Some(cut), _) => &base[..cut],
                // The path of `user@host:path` has an end, too.
                (None, Some(colon)) if !base.contains("://") => {
                    joint = ":";
                    &base[..colon]
                }
                _ => return Err(outside()),
            };
        } else {
            break;
        }
    }
    let joined = format!("{base}{joint}{rest}");
    let same = match (Address::parse(parent), Address::parse(&joined)) {
        (Some(parent), found) => found == Some(parent),
        (None, _) => true,
    };
    if same { Ok(joined) } else { Err(outside()) }
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

    #[test]
    fn submodules_are_beside_their_parent() {
        for (parent, url, want) in [
            ("https://h/team/a.git", "../b.git", Some("https://h/team/b.git")),
            ("https://h/team/a.git/", "../../other/b", Some("https://h/other/b")),
            ("https://h/a.git", "./b", Some("https://h/a.git/b")),
            ("https://h/a.git", "../../x/b", None),
            ("git@h:team/a.git", "../b.git", Some("git@h:team/b.git")),
            ("git@h:a.git", "../b.git", Some("git@h:b.git")),
            ("git@h:a.git", "../../b.git", None),
            ("ssh://git@h:22/a", "../b", Some("ssh://git@h:22/b")),
            ("https://h/a.git", "https://other/b.git", Some("https://other/b.git")),
        ] {
            assert_eq!(below(parent, url).ok().as_deref(), want, "{parent} {url}");
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
