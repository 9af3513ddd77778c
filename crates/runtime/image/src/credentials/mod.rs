//! Which credentials a registry gets: from the configuration, from exec plugins as kubelet runs them, or from a docker
//! `config.json` and the helper programs it names.

pub mod docker;
pub mod provider;

use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;

use crate::{Error, Result};

/// Credentials for one registry. Not shown by `Debug`.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum Auth {
    #[default]
    Anonymous,
    Basic {
        username: String,
        password: String,
    },
    /// A bearer token the registry accepts as it is.
    Bearer(String),
    /// An OAuth2 refresh token (docker's `identitytoken`), to be exchanged at the token service.
    Refresh(String),
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Auth::Anonymous => "Anonymous",
            Auth::Basic { .. } => "Basic(…)",
            Auth::Bearer(_) => "Bearer(…)",
            Auth::Refresh(_) => "Refresh(…)",
        })
    }
}

/// How much of `image` (`host[:port]/path`, normalised) a key matches: its host exactly or by `*` within each label, the
/// port as written, and whole parts of its path. Larger is more specific; `None` is no match.
pub(crate) fn match_key(key: &str, image: &str) -> Option<usize> {
    let key = key.trim_start_matches("https://").trim_start_matches("http://");
    let (key_host, key_path) = key.split_once('/').unwrap_or((key, ""));
    // What docker login writes for its hub.
    let (key_host, key_path) = match (key_host, key_path.trim_end_matches('/')) {
        ("index.docker.io" | "registry-1.docker.io", "" | "v1" | "v2") => ("docker.io", ""),
        (host, "v1" | "v2") => (host, ""),
        pair => pair,
    };
    let (host, path) = image.split_once('/').unwrap_or((image, ""));
    let (have, want): (Vec<&str>, Vec<&str>) = (host.split('.').collect(), key_host.split('.').collect());
    if have.len() != want.len() || !want.iter().zip(&have).all(|(pattern, text)| glob(pattern, text)) {
        return None;
    }
    let rest = path.strip_prefix(key_path)?;
    let whole = key_path.is_empty() || rest.is_empty() || rest.starts_with(['/', ':', '@']);
    whole.then_some(key_host.len() + key_path.len())
}

/// `*` stands for any run of characters.
fn glob(pattern: &str, text: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(first) else { return false };
    let parts: Vec<&str> = rest.split('*').collect();
    let (last, middle) = parts.split_last().map_or(("", &[][..]), |(last, middle)| (*last, middle));
    for part in middle {
        match text.find(part) {
            Some(at) => text = &text[at + part.len()..],
            None => return false,
        }
    }
    text.ends_with(last)
}

const PROGRAM_TIMEOUT: Duration = Duration::from_secs(30);
const MAX_OUTPUT: usize = 1 << 20;

/// Runs a credential program: `input` on its standard input, its standard output back. It is killed when it takes longer
/// than half a minute.
async fn run(mut command: tokio::process::Command, name: &str, input: &[u8]) -> Result<(bool, Vec<u8>, String)> {
    let failed = |what: &str, e: std::io::Error| Error::Credentials(format!("{what} {name}: {e}"));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(|e| failed("run", e))?;
    let stdin = child.stdin.take();
    let talk = async {
        if let Some(mut stdin) = stdin {
            // A program that does not read its input may still answer.
            let _ = stdin.write_all(input).await;
        }
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(PROGRAM_TIMEOUT, talk)
        .await
        .map_err(|_| Error::Credentials(format!("{name} did not end within {} s", PROGRAM_TIMEOUT.as_secs())))?
        .map_err(|e| failed("wait for", e))?;
    if output.stdout.len() > MAX_OUTPUT {
        return Err(Error::Credentials(format!("{name} wrote more than {MAX_OUTPUT} bytes")));
    }
    let complaint = String::from_utf8_lossy(&output.stderr[..output.stderr.len().min(500)]).trim().to_owned();
    Ok((output.status.success(), output.stdout, complaint))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_match_as_kubelet_has_it() {
        for (key, image, expected) in [
            ("docker.io", "docker.io/library/nginx", true),
            ("https://index.docker.io/v1/", "docker.io/library/nginx", true),
            ("registry.io:8080/path", "registry.io:8080/path/app", true),
            ("registry.io:8080/path", "registry.io:8080/pathological/app", false),
            ("registry.io/path", "registry.io:8080/path/app", false),
            ("*.registry.io", "a.registry.io/app", true),
            ("*.registry.io", "a.b.registry.io/app", false),
            ("*.dkr.ecr.*.amazonaws.com", "123.dkr.ecr.eu-west-1.amazonaws.com/app", true),
            ("reg*.io", "registry.io/app", true),
            ("registry.io", "evil-registry.io/app", false),
        ] {
            assert_eq!(match_key(key, image).is_some(), expected, "{key} {image}");
        }
        assert!(match_key("a.io/team", "a.io/team/app") > match_key("a.io", "a.io/team/app"));
    }
}
