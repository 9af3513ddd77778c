//! What a repository's host is shown of whoever asks.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::address::Address;

/// What one host is shown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Login {
    /// Of the header of that name.
    pub authorization: String,
    /// For ssh: a private key, and lines of `known_hosts`.
    pub key: String,
    pub known_hosts: String,
    /// Authorities in PEM that are believed as well.
    pub authorities: String,
}

impl Login {
    /// The header for a name and a password, or a token in its place.
    pub fn basic(username: &str, password: &str) -> String {
        let username = if username.is_empty() { "git" } else { username };
        format!("Basic {}", STANDARD.encode(format!("{username}:{password}")))
    }
}

/// What each host is shown.
#[derive(Clone, Debug, Default)]
pub struct Logins {
    /// Of one place, and no other.
    own: Option<(String, Login)>,
    secrets: BTreeMap<String, String>,
}

impl Logins {
    /// Those among a build's secrets, by BuildKit's names: `GIT_AUTH_HEADER` and `GIT_AUTH_TOKEN`, and with the host after a dot for one
    /// host; by ours in the same way `GIT_SSH_KEY` and `GIT_KNOWN_HOSTS`.
    pub fn of_secrets<'a>(secrets: impl Iterator<Item = (&'a String, &'a Vec<u8>)>) -> Self {
        let ours = secrets.filter(|(id, _)| id.starts_with("GIT_"));
        let text = ours.map(|(id, bytes)| (id.clone(), String::from_utf8_lossy(bytes).into_owned()));
        Self { own: None, secrets: text.collect() }
    }

    /// The same, with one for the place of `url`.
    pub fn with(self, url: &str, login: Login) -> Self {
        Self { own: place(url).map(|place| (place, login)), ..self }
    }

    /// For a repository that was asked for.
    pub fn of(&self, url: &str) -> Login {
        self.look_up(url, true)
    }

    /// For one that the repository at `parent` speaks of: what is meant for no host in particular goes to none that somebody
    /// else chose.
    pub fn of_submodule(&self, url: &str, parent: &str) -> Login {
        self.look_up(url, place(url) == place(parent))
    }

    fn look_up(&self, url: &str, any: bool) -> Login {
        let (Some(place), Some(address)) = (place(url), Address::parse(url)) else { return Login::default() };
        if let Some((own, login)) = &self.own
            && *own == place
            && *login != Login::default()
        {
            return login.clone();
        }
        let with_port = format!("{}:{}", address.host, address.port);
        let secret = |name: &str| {
            let names = [format!("{name}.{with_port}"), format!("{name}.{}", address.host), name.to_owned()];
            let names = if any { &names[..] } else { &names[..2] };
            names.iter().find_map(|name| self.secrets.get(name)).map(|text| text.trim_end().to_owned())
        };
        let header = secret("GIT_AUTH_HEADER");
        let token = || secret("GIT_AUTH_TOKEN").map(|token| Login::basic("x-access-token", &token));
        Login {
            authorization: header.or_else(token).unwrap_or_default(),
            key: secret("GIT_SSH_KEY").unwrap_or_default(),
            known_hosts: secret("GIT_KNOWN_HOSTS").unwrap_or_default(),
            authorities: String::new(),
        }
    }
}

/// Who is spoken to, and whether anybody listens.
fn place(url: &str) -> Option<String> {
    let address = Address::parse(url)?;
    let scheme = if address.ssh { "ssh" } else { url.split_once("://")?.0 };
    Some(format!("{scheme}://{}:{}", address.host.to_ascii_lowercase(), address.port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_shown_what_is_theirs() {
        let secrets: BTreeMap<String, Vec<u8>> = [
            ("GIT_AUTH_TOKEN", "all\n"),
            ("GIT_AUTH_HEADER.one.example", "Bearer one"),
            ("GIT_AUTH_TOKEN.two.example:8443", "two"),
            ("other", "x"),
        ]
        .into_iter()
        .map(|(id, text)| (id.to_owned(), text.as_bytes().to_vec()))
        .collect();
        let own = Login { authorization: Login::basic("", "p"), ..Login::default() };
        let logins = Logins::of_secrets(secrets.iter()).with("https://own.example/a.git", own.clone());
        assert_eq!(logins.of("https://OWN.example:443/b"), own);
        // Nothing that was meant for it goes in the clear, or to another door of the host.
        assert_ne!(logins.of("http://own.example:443/b"), own);
        assert_ne!(logins.of("https://own.example:444/b"), own);
        assert_eq!(logins.of("https://one.example/a").authorization, "Bearer one");
        assert_eq!(logins.of("https://two.example:8443/a").authorization, Login::basic("x-access-token", "two"));
        assert_eq!(logins.of("https://three.example/a").authorization, Login::basic("x-access-token", "all"));
        assert_eq!(logins.of("git://h/a"), Login::default());
        let of_submodule = |url| logins.of_submodule(url, "https://three.example/a").authorization;
        assert_eq!(of_submodule("https://one.example/x"), "Bearer one");
        assert_eq!(of_submodule("https://three.example/x"), Login::basic("x-access-token", "all"));
        assert_eq!(of_submodule("https://evil.example/x"), "");
    }
}
