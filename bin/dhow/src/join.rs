//! Which cluster this machine joined, and how it came in: the server is believed because of the authority that the token
//! names, then the token buys the node's first certificate. From then on the node knows the cluster's other servers, too.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use dhow_base::files;
use dhow_base::{pki, tls};
use dhow_client::{Auth, Client, HttpsConfig, Servers};

use crate::agent_keys::Wanted;
use crate::place::Place;

/// The cluster that this machine joined.
#[derive(Debug, Clone)]
pub struct Join {
    /// `https://host:port`, as it was given.
    pub server: String,
    /// That one and the others that the cluster has told of.
    pub servers: Arc<Servers>,
    pub ca_pem: String,
    /// Where its certificates are.
    pub folder: PathBuf,
}

impl Join {
    fn folder(place: &Place) -> PathBuf {
        place.data_dir.join("node-pki")
    }

    /// `None` if it joined none.
    pub fn read(place: &Place) -> Result<Option<Self>> {
        let folder = Self::folder(place);
        let server = files::read_optional(&folder.join("server"))?;
        let ca_pem = files::read_optional(&folder.join("ca.crt"))?;
        let (Some(server), Some(ca_pem)) = (server, ca_pem) else { return Ok(None) };
        let server = server.trim().to_owned();
        let others = files::read_optional(&servers_file(place))?.unwrap_or_default();
        let servers = Arc::new(Servers::new(with_others(&server, others.lines())).context("read the list of servers")?);
        Ok(Some(Self { server, servers, ca_pem, folder }))
    }

    /// Keeps what the cluster says of its servers, for this run and the next; told an empty list, the last one.
    pub fn learn(&self, place: &Place, others: &[String]) -> Result<()> {
        if others.is_empty() {
            return Ok(());
        }
        let all = with_others(&self.server, others.iter().map(String::as_str));
        files::write_private(&servers_file(place), (all.join("\n") + "\n").as_bytes())?;
        Ok(self.servers.learn(&all)?)
    }

    /// Comes in with a token and remembers the cluster. The certificate is kept before the cluster is, so that whatever is
    /// cut off is done again.
    pub async fn make(place: &Place, server: &str, token: &Token, authority: &Authority) -> Result<Self> {
        let (client, ca_pem) = authority.client(server, token).await?;
        let folder = Self::folder(place);
        files::create_private_dir(&folder)?;
        Wanted::node_client(place).ask(&client, &folder).await?;
        files::write_private(&folder.join("ca.crt"), ca_pem.as_bytes())?;
        files::write_private(&folder.join("server"), format!("{server}\n").as_bytes())?;
        let servers = Arc::new(Servers::new([server])?);
        Ok(Self { server: server.to_owned(), servers, ca_pem, folder })
    }

    /// Whether the node can go on without a token.
    pub fn is_in(&self, place: &Place) -> Result<bool> {
        Ok(Wanted::node_client(place).held(&self.folder)?.is_some())
    }
}

/// All servers that this machine knows, one a line.
pub fn servers_file(place: &Place) -> PathBuf {
    Join::folder(place).join("servers")
}

/// What was given comes first: it may be a name that leads to all of them.
fn with_others<'a>(server: &'a str, others: impl Iterator<Item = &'a str>) -> Vec<String> {
    let others = others.map(str::trim).filter(|other| !other.is_empty() && *other != server);
    std::iter::once(server).chain(others).map(str::to_owned).collect()
}

/// `https://host:port` of what people write.
pub fn server_url(text: &str) -> Result<String> {
    let full = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
    let uri: http::Uri = full.parse().with_context(|| format!("{text:?} is no address of a server"))?;
    if uri.scheme_str() != Some("https") || !matches!(uri.path(), "" | "/") {
        bail!("{text:?} is not like https://HOST:6443");
    }
    let authority = uri.authority().with_context(|| format!("{text:?} names no server"))?;
    let port = authority.port_u16().unwrap_or(6443);
    Ok(format!("https://{}:{port}", authority.host()))
}

/// `ID.SECRET`, alone or after `K10HASH::`, which names the cluster's authority.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    id: String,
    secret: String,
    hash: Option<String>,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Token {
    pub fn new(id: String, secret: String, hash: String) -> Self {
        Self { id, secret, hash: Some(hash) }
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    fn bearer(&self) -> String {
        format!("{}.{}", self.id, self.secret)
    }

    /// As it is handed to people.
    pub fn text(&self) -> String {
        let bearer = self.bearer();
        self.hash.as_ref().map_or_else(|| bearer.clone(), |hash| format!("K10{hash}::{bearer}"))
    }
}

impl FromStr for Token {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "a token is ID.SECRET or K10HASH::ID.SECRET, as `dhow token create` prints it".to_owned();
        let (hash, rest) = match text.trim().strip_prefix("K10") {
            Some(rest) => {
                let (hash, rest) = rest.split_once("::").ok_or_else(wrong)?;
                (Some(hex(hash).ok_or_else(wrong)?), rest)
            }
            None => (None, text.trim()),
        };
        let (id, secret) = rest.split_once('.').ok_or_else(wrong)?;
        let plain = |part: &str| part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        if id.len() != 6 || secret.len() != 16 || !plain(id) || !plain(secret) {
            return Err(wrong());
        }
        Ok(Self { id: id.to_owned(), secret: secret.to_owned(), hash })
    }
}

/// A SHA-256 digest in hexadecimal.
fn hex(text: &str) -> Option<String> {
    let text = text.to_ascii_lowercase();
    (text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(text)
}

/// How the server's authority is known.
#[derive(Debug)]
pub enum Authority {
    /// By the digest of its public key.
    Hash(String),
    /// By its certificate.
    File(PathBuf),
}

impl Authority {
    /// By what was given; nobody is believed without anything.
    pub fn choose(token: &Token, hash: Option<&str>, file: Option<&Path>) -> Result<Self> {
        if let Some(file) = file {
            return Ok(Self::File(file.to_owned()));
        }
        let given = match hash {
            Some(text) => {
                let digest = text.strip_prefix("sha256:").unwrap_or(text);
                Some(hex(digest).with_context(|| format!("{text:?} is not sha256: and 64 hexadecimal digits"))?)
            }
            None => token.hash.clone(),
        };
        given.map(Self::Hash).context(
            "this token does not say which cluster it is of, so nobody could be believed: add \
             --discovery-token-ca-cert-hash sha256:HASH or --ca-file FILE, or use the whole of what `dhow token create` \
             prints",
        )
    }

    /// A client with the token's rights, and the authority of the server.
    pub async fn client(&self, server: &str, token: &Token) -> Result<(Client, String)> {
        let ca_pem = self.find(server).await?;
        let config =
            HttpsConfig { server: server.to_owned(), ca_pem: ca_pem.clone(), auth: Auth::Token(token.bearer()) };
        Ok((Client::https(config).context("prepare to reach the server")?, ca_pem))
    }

    async fn find(&self, server: &str) -> Result<String> {
        match self {
            Self::File(path) => std::fs::read_to_string(path).with_context(|| format!("read {}", path.display())),
            Self::Hash(hash) => {
                let wanted = format!("sha256:{hash}");
                let uri: http::Uri = server.parse().context("read the server's address")?;
                let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
                let port = uri.port_u16().unwrap_or(6443);
                let chain =
                    tls::presented(&host, port).await.with_context(|| format!("reach the server at {server}"))?;
                let found = chain.iter().find(|pem| pki::fingerprint(pem).is_ok_and(|seen| seen == wanted));
                let seen = || chain.last().and_then(|pem| pki::fingerprint(pem).ok()).unwrap_or_default();
                found.cloned().with_context(|| {
                    format!(
                        "the server at {server} is not of the cluster that the token is of: its authority is {}, not \
                         {wanted}",
                        seen()
                    )
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn tokens_with_and_without_an_authority() {
        let hash = "ab".repeat(32);
        let whole: Token = format!("K10{hash}::abcdef.0123456789abcdef\n").parse().unwrap();
        assert_eq!((whole.bearer().as_str(), whole.hash.as_deref()), ("abcdef.0123456789abcdef", Some(hash.as_str())));
        assert_eq!(whole.text().parse::<Token>().unwrap(), whole);
        assert!(!format!("{whole:?}").contains("0123456789abcdef"));
        let short: Token = "abcdef.0123456789abcdef".parse().unwrap();
        assert!(Authority::choose(&short, None, None).unwrap_err().to_string().contains("--ca-file"));
        assert!(matches!(Authority::choose(&whole, None, None).unwrap(), Authority::Hash(h) if h == hash));
        let kubeadm = format!("sha256:{}", hash.to_uppercase());
        assert!(matches!(Authority::choose(&short, Some(&kubeadm), None).unwrap(), Authority::Hash(h) if h == hash));
        assert!(Authority::choose(&short, Some("sha256:12"), None).is_err());
        for bad in ["", "abcdef", "abcdef.short", "ABCDEF.0123456789abcdef", "K10xx::abcdef.0123456789abcdef", "K10abc"]
        {
            assert!(bad.parse::<Token>().is_err(), "{bad}");
        }
    }

    #[test]
    fn servers_as_people_write_them() {
        assert_eq!(server_url("192.0.2.1").unwrap(), "https://192.0.2.1:6443");
        assert_eq!(server_url("https://api.example:443/").unwrap(), "https://api.example:443");
        assert_eq!(server_url("https://[2001:db8::1]:6443").unwrap(), "https://[2001:db8::1]:6443");
        for bad in ["http://192.0.2.1:6443", "https://a/b", "https://", ""] {
            assert!(server_url(bad).is_err(), "{bad}");
        }
    }
}
