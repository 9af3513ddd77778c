//! Image references, normalised the way Docker does: `nginx` is `docker.io/library/nginx:latest`.

use std::fmt;

use crate::{Digest, Error, Result};

/// A fully qualified reference: a registry, a repository, and a tag or a digest or both.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    pub registry: String,
    pub repository: String,
    pub tag: Option<String>,
    pub digest: Option<Digest>,
}

impl Reference {
    pub fn parse(input: &str) -> Result<Self> {
        let bad = |reason| Error::InvalidReference { reference: input.to_owned(), reason };
        let (rest, digest) = match input.split_once('@') {
            Some((rest, digest)) => (rest, Some(Digest::parse(digest).map_err(|_| bad("malformed digest"))?)),
            None => (input, None),
        };
        let slash = rest.rfind('/').map_or(0, |i| i + 1);
        let (name, tag) = match rest[slash..].find(':') {
            Some(colon) => (&rest[..slash + colon], Some(&rest[slash + colon + 1..])),
            None => (rest, None),
        };
        if let Some(tag) = tag
            && !valid_tag(tag)
        {
            return Err(bad("a tag is up to 128 letters, digits, '_', '.' and '-', not starting with '.' or '-'"));
        }
        let (registry, repository) = split_registry(name);
        if !valid_registry(&registry) {
            return Err(bad("malformed registry host"));
        }
        if repository.is_empty() {
            return Err(bad("empty repository name"));
        }
        if repository.len() + registry.len() > 255 {
            return Err(bad("repository name is longer than 255 characters"));
        }
        if !Self::is_repository(&repository) {
            return Err(bad("a repository is lower-case letters, digits and single separators '.', '_', '__', '-'"));
        }
        if digest.is_none() && tag.is_none() && name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(bad("64 hex digits is an image id, not a name"));
        }
        let tag = match (tag, &digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, Some(_)) => None,
            (None, None) => Some("latest".to_owned()),
        };
        Ok(Reference { registry, repository, tag, digest })
    }

    /// Whether a repository may be called so: components of lower-case letters and digits, joined by single separators.
    pub fn is_repository(name: &str) -> bool {
        name.len() <= 255 && name.split('/').all(valid_component)
    }

    pub fn is_tag(tag: &str) -> bool {
        valid_tag(tag)
    }

    /// `registry/repository`, without tag and digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// Whether a normalised name with a tag or digest is one in this repository, `registry/repository`.
    pub fn is_in(name: &str, repository: &str) -> bool {
        name.strip_prefix(repository).is_some_and(|rest| rest.starts_with([':', '@']) && !rest.contains('/'))
    }

    /// What the manifest endpoint of a registry is asked for; a digest wins over a tag.
    pub fn target(&self) -> &str {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.as_str(),
            (None, Some(tag)) => tag,
            (None, None) => "latest",
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// The first component is a registry if it looks like a host: a dot, a port, or `localhost`.
fn split_registry(name: &str) -> (String, String) {
    let (registry, repository) = match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':']) || first == "localhost" || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (first, rest)
        }
        _ => ("docker.io", name),
    };
    let registry = if registry == "index.docker.io" { "docker.io" } else { registry };
    let repository = if registry == "docker.io" && !repository.contains('/') && !repository.is_empty() {
        format!("library/{repository}")
    } else {
        repository.to_owned()
    };
    (registry.to_owned(), repository)
}

fn valid_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    (1..=128).contains(&tag.len())
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

fn valid_registry(host: &str) -> bool {
    let (name, port) = match host.rfind(':') {
        Some(i) if !host.ends_with(']') => (&host[..i], Some(&host[i + 1..])),
        _ => (host, None),
    };
    let name_ok = match name.strip_prefix('[').and_then(|n| n.strip_suffix(']')) {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => name.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        }),
    };
    name_ok && port.is_none_or(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()))
}

/// Runs of `[a-z0-9]` joined by one of `.`, `_`, `__` or any number of `-`.
fn valid_component(component: &str) -> bool {
    let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    if !bytes.first().is_some_and(|b| alnum(*b)) || !bytes.last().is_some_and(|b| alnum(*b)) {
        return false;
    }
    bytes
        .split(|b| alnum(*b))
        .filter(|separator| !separator.is_empty())
        .all(|s| s == b"." || s == b"_" || s == b"__" || s.iter().all(|b| *b == b'-'))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn normalises_like_docker() {
        let digest = format!("sha256:{}", "0".repeat(64));
        let cases = [
            ("nginx", "docker.io/library/nginx:latest".to_owned()),
            ("nginx:1.27", "docker.io/library/nginx:1.27".to_owned()),
            ("dhow/demo-app:v1", "docker.io/dhow/demo-app:v1".to_owned()),
            ("index.docker.io/nginx", "docker.io/library/nginx:latest".to_owned()),
            ("localhost/app", "localhost/app:latest".to_owned()),
            ("localhost:5000/app", "localhost:5000/app:latest".to_owned()),
            ("[::1]:5000/a/b:x", "[::1]:5000/a/b:x".to_owned()),
            ("ghcr.io/a/b__c/d-e.f:1", "ghcr.io/a/b__c/d-e.f:1".to_owned()),
            (&format!("nginx@{digest}"), format!("docker.io/library/nginx@{digest}")),
            (&format!("nginx:1@{digest}"), format!("docker.io/library/nginx:1@{digest}")),
        ];
        for (input, want) in cases {
            let parsed = Reference::parse(input).unwrap();
            assert_eq!(parsed.to_string(), want);
            assert_eq!(Reference::parse(&want).unwrap(), parsed, "normal form must be stable");
        }
    }

    #[test]
    fn refuses_malformed_references() {
        let id = "0".repeat(64);
        let bad = [
            "",
            "/",
            "a//b",
            "Nginx",
            "nginx:",
            "nginx:.x",
            "nginx@sha256:1",
            "a..b/c",
            "-a",
            "a-",
            "a___b",
            "../../etc",
            "a b",
            "host:port/x",
            "docker.io/",
            &id,
        ];
        for input in bad {
            assert!(Reference::parse(input).is_err(), "{input:?} was accepted");
        }
    }
}
