//! Where one cluster's API is served: several addresses, of which one is used until it fails.

use std::path::PathBuf;

use http::Uri;
use parking_lot::RwLock;

use crate::Error;

/// Addresses that are good for the same requests. Clients that share them move on together.
#[derive(Debug)]
pub struct Servers {
    known: RwLock<Known>,
    /// Where somebody else keeps them, one a line: looked at when the one in use fails.
    file: Option<PathBuf>,
}

#[derive(Debug)]
struct Known {
    all: Vec<Uri>,
    /// Never past the end.
    current: usize,
}

impl Servers {
    /// `https://host:port` each, the preferred one first.
    pub fn new<T: AsRef<str>>(all: impl IntoIterator<Item = T>) -> Result<Self, Error> {
        let all: Vec<Uri> = all.into_iter().map(|text| parse(text.as_ref())).collect::<Result<_, _>>()?;
        if all.is_empty() {
            return Err(Error::Configuration("no server is named".to_owned()));
        }
        Ok(Self { known: RwLock::new(Known { all, current: 0 }), file: None })
    }

    /// Looks into this file when a server fails, for what another process has learnt since.
    #[must_use]
    pub fn kept_in(mut self, file: PathBuf) -> Self {
        self.file = Some(file);
        self
    }

    /// The one that is used now.
    pub fn current(&self) -> Uri {
        let known = self.known.read();
        known.all[known.current].clone()
    }

    pub fn all(&self) -> Vec<Uri> {
        self.known.read().all.clone()
    }

    /// Learns the addresses as they are now. The one in use stays in use while it is among them; an empty list says
    /// nothing.
    pub fn learn<T: AsRef<str>>(&self, all: impl IntoIterator<Item = T>) -> Result<(), Error> {
        let all: Vec<Uri> = all.into_iter().map(|text| parse(text.as_ref())).collect::<Result<_, _>>()?;
        if all.is_empty() {
            return Ok(());
        }
        let mut known = self.known.write();
        let used = known.all[known.current].clone();
        let current = all.iter().position(|server| *server == used).unwrap_or(0);
        *known = Known { all, current };
        Ok(())
    }

    /// Says that `server` cannot be reached: the next one is used from now on, unless somebody was faster. Returns how many
    /// there are to try.
    pub(crate) fn failed(&self, server: &Uri) -> usize {
        if let Some(text) = self.file.as_ref().and_then(|path| std::fs::read_to_string(path).ok())
            && let Err(error) = self.learn(text.lines().map(str::trim).filter(|line| !line.is_empty()))
        {
            tracing::warn!(%error, "cannot use the list of servers");
        }
        let mut known = self.known.write();
        if known.all[known.current] == *server && known.all.len() > 1 {
            known.current = (known.current + 1) % known.all.len();
            tracing::warn!(from = %server, to = %known.all[known.current], "a server is away; going on with another");
        }
        known.all.len()
    }
}

fn parse(text: &str) -> Result<Uri, Error> {
    let server: Uri =
        text.parse().map_err(|error| Error::Configuration(format!("server address {text:?}: {error}")))?;
    if server.scheme_str() != Some("https") || server.authority().is_none() {
        return Err(Error::Configuration(format!("server address {text:?} is not https://host:port")));
    }
    Ok(server)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_next_one_is_used_once_one_fails() {
        let [a, b, c] = ["https://a:1/", "https://b:1/", "https://c:1/"].map(|text| parse(text).unwrap());
        let servers = Servers::new(["https://a:1", "https://b:1"]).unwrap();
        assert_eq!((servers.current(), servers.failed(&a)), (a.clone(), 2));
        assert_eq!(servers.current(), b);
        // A second request that failed at the same server moves nobody on.
        servers.failed(&a);
        assert_eq!(servers.current(), b);
        // What is in use stays so while it is there.
        servers.learn(["https://c:1", "https://b:1"]).unwrap();
        assert_eq!(servers.current(), b);
        servers.learn(["https://c:1"]).unwrap();
        servers.learn([""; 0]).unwrap();
        assert_eq!((servers.current(), servers.failed(&c)), (c.clone(), 1));
        assert_eq!(servers.current(), c);
        assert!(Servers::new([""; 0]).is_err() && Servers::new(["http://a:1"]).is_err());
        assert!(servers.learn(["ftp://x"]).is_err());
        assert_eq!(servers.all(), [c]);
    }

    #[test]
    fn what_another_process_learnt_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("servers");
        let servers = Servers::new(["https://a:1"]).unwrap().kept_in(file.clone());
        std::fs::write(&file, "https://a:1\nhttps://b:1\n").unwrap();
        assert_eq!(servers.failed(&servers.current()), 2);
        assert_eq!(servers.current(), parse("https://b:1").unwrap());
    }
}
