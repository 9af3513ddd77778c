//! The `registries` section of the configuration, and from it, containerd's `certs.d` and the credential sources, how
//! each registry is reached.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dhow_base::connect::{self, TlsOptions, is_loopback};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use parking_lot::{Mutex, RwLock};
use regex::Regex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::client::HttpClient;
use super::cluster::ClusterRegistry;
use super::hosts::{self, HostsFile};
use super::nodes::{NodeAccess, NodePeers, Nodes};
use super::traffic::{Counters, Traffic};
use crate::credentials::Auth;
use crate::credentials::docker::DockerConfig;
use crate::credentials::provider::Providers;
use crate::{Error, Reference, Result};

/// `registries:` in the configuration. Unknown keys are errors.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RegistriesConfig {
    /// By `host[:port]` as it stands in image names, `*.domain`, or `*` for all others; the most specific key counts.
    pub hosts: BTreeMap<String, HostConfig>,
    /// Folders in containerd's layout: `HOST/hosts.toml`, or docker's: `HOST/*.crt`. The first that knows a host counts.
    pub certs_dirs: Vec<PathBuf>,
    /// A docker `config.json` with credentials and the names of credential helpers.
    pub docker_config: Option<PathBuf>,
    /// A kubelet CredentialProviderConfig, and the folder its programs are in.
    pub credential_provider_config: Option<PathBuf>,
    pub credential_provider_bin_dir: Option<PathBuf>,
    /// Seconds without a byte after which a transfer is given up and tried again.
    pub stall_timeout_seconds: u64,
    /// Layers of one image fetched at a time.
    pub parallel_downloads: usize,
    /// Whether layers are fetched from other nodes that have them, and given to other nodes.
    pub peers: bool,
}

impl Default for RegistriesConfig {
    fn default() -> Self {
        RegistriesConfig {
            hosts: BTreeMap::new(),
            certs_dirs: vec!["/etc/containerd/certs.d".into(), "/etc/docker/certs.d".into()],
            docker_config: None,
            credential_provider_config: None,
            credential_provider_bin_dir: None,
            stall_timeout_seconds: 30,
            parallel_downloads: 4,
            peers: true,
        }
    }
}

#[derive(Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct HostConfig {
    /// Asked first, in this order, for pulls.
    pub mirrors: Vec<Mirror>,
    /// `false`: only the mirrors are asked, never the registry itself.
    pub fallback: Option<bool>,
    /// Another address for this registry, such as `https://10.0.0.5:5000`.
    pub endpoint: Option<String>,
    /// Without TLS.
    pub plain_http: bool,
    /// With TLS, but whatever its certificate says.
    pub skip_verify: bool,
    /// PEM files of authorities, besides the system's.
    pub ca: Vec<PathBuf>,
    pub client_cert: Option<PathBuf>,
    pub client_key: Option<PathBuf>,
    pub username: Option<String>,
    pub password: Option<String>,
    /// File whose first line is the password.
    pub password_file: Option<PathBuf>,
    /// OAuth2 refresh token.
    pub identity_token: Option<String>,
    /// `http://[user:password@]host:port` [default: `HTTPS_PROXY`, `HTTP_PROXY`, `NO_PROXY`].
    pub proxy: Option<String>,
}

impl std::fmt::Debug for HostConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostConfig")
            .field("mirrors", &self.mirrors)
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mirror {
    /// `host[:port]` or URL; its own entry in `hosts` says how it is reached.
    pub endpoint: String,
    /// Regular expressions over the repository, and what they become; `$1` is the first group.
    #[serde(default)]
    pub rewrite: BTreeMap<String, String>,
}

/// One address under which a repository may be asked for.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    /// `scheme://authority/…/v2`.
    pub base: String,
    /// `host[:port]` of it.
    pub host: String,
    /// The name credentials are looked up by: a registry's, whatever its address, or a mirror's host.
    pub registry: String,
    pub repository: String,
    /// The registry a mirror stands for, told to it as `ns`.
    pub namespace: Option<String>,
    /// The scheme is a guess: on this machine, plain HTTP may be meant.
    pub guessed: bool,
    pub tls: TlsOptions,
    pub proxy: Option<String>,
    pub headers: Vec<(String, String)>,
    pub pull: bool,
    pub resolve: bool,
    pub push: bool,
}

/// Everything known about registries; one for all pulls and pushes.
pub struct Registries {
    config: RegistriesConfig,
    rewrites: BTreeMap<String, Regex>,
    providers: Option<Providers>,
    /// Connections are kept for the next pull.
    clients: Mutex<HashMap<(TlsOptions, Option<String>), HttpClient>>,
    cluster: RwLock<Option<ClusterRegistry>>,
    nodes: RwLock<Option<NodeAccess>>,
    pub(crate) counters: Counters,
}

impl Default for Registries {
    fn default() -> Self {
        let config = RegistriesConfig::default();
        Registries {
            config,
            rewrites: BTreeMap::new(),
            providers: None,
            clients: Mutex::default(),
            cluster: RwLock::default(),
            nodes: RwLock::default(),
            counters: Counters::default(),
        }
    }
}

impl std::fmt::Debug for Registries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registries").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Registries {
    /// Checks the whole section, so that a mistake shows at start and not at a pull.
    pub fn new(config: RegistriesConfig) -> Result<Arc<Self>> {
        let bad = |host: &str, message: String| Error::Config(format!("registries.hosts.{host:?}: {message}"));
        let mut rewrites = BTreeMap::new();
        for (name, host) in &config.hosts {
            for mirror in &host.mirrors {
                split_url(&mirror.endpoint).map_err(|message| bad(name, message))?;
                for pattern in mirror.rewrite.keys() {
                    let compiled = Regex::new(pattern).map_err(|e| bad(name, format!("rewrite: {e}")))?;
                    rewrites.insert(pattern.clone(), compiled);
                }
            }
            if let Some(endpoint) = &host.endpoint {
                split_url(endpoint).map_err(|message| bad(name, message))?;
            }
            if host.client_cert.is_some() != host.client_key.is_some() {
                return Err(bad(name, "clientCert and clientKey go together".to_owned()));
            }
            if host.password.is_some() && host.password_file.is_some() {
                return Err(bad(name, "password and passwordFile exclude each other".to_owned()));
            }
            if host.username.is_some() != (host.password.is_some() || host.password_file.is_some()) {
                return Err(bad(name, "username and a password go together".to_owned()));
            }
            if host.fallback == Some(false) && host.mirrors.is_empty() {
                return Err(bad(name, "without fallback there must be mirrors".to_owned()));
            }
            connect::tls_config(&host.tls()).map_err(|e| bad(name, dhow_base::chain(&e)))?;
        }
        if config.stall_timeout_seconds == 0 || config.parallel_downloads == 0 {
            return Err(Error::Config("stallTimeoutSeconds and parallelDownloads are at least 1".to_owned()));
        }
        let providers = match (&config.credential_provider_config, &config.credential_provider_bin_dir) {
            (Some(file), Some(folder)) => Some(Providers::read(file, folder)?),
            (None, None) => None,
            _ => {
                let message = "credentialProviderConfig and credentialProviderBinDir go together";
                return Err(Error::Config(message.to_owned()));
            }
        };
        Ok(Arc::new(Registries { config, rewrites, providers, ..Registries::default() }))
    }

    /// Sends a request to some other service by the same means: authorities, client certificates and proxies of its host.
    pub async fn send(&self, request: Request<Bytes>) -> Result<Response<Incoming>> {
        let host = self.host(request.uri().authority().map_or("", |authority| authority.as_str()));
        let tls = host.map(HostConfig::tls).unwrap_or_default();
        let client = self.client(&tls, host.and_then(|host| host.proxy.as_deref()))?;
        let url = request.uri().to_string();
        let request = request.map(|body| Full::new(body).map_err(|never| match never {}).boxed_unsync());
        client.request(request).await.map_err(|error| Error::Transport { url, source: error.into() })
    }

    /// What is known of the cluster's registry from now on.
    pub fn set_cluster(&self, cluster: Option<ClusterRegistry>) {
        *self.cluster.write() = cluster;
    }

    /// Whether references to this host mean the cluster's registry.
    pub fn is_clusters(&self, host: &str) -> bool {
        self.cluster.read().as_ref().is_some_and(|cluster| cluster.hosts.contains(host))
    }

    /// Lets pulls have layers from other nodes, unless the settings say otherwise. `tls` is who this node is to them.
    pub fn set_nodes(&self, finder: Arc<dyn NodePeers>, tls: &rustls::ClientConfig) {
        if self.config.peers {
            *self.nodes.write() = Some(NodeAccess::new(finder, tls));
        }
    }

    /// Other nodes to have a repository's layers from.
    pub(super) fn nodes(&self, reference: &Reference) -> Option<Nodes> {
        self.nodes.read().clone().map(|access| Nodes::new(access, reference.name()))
    }

    /// Whether other nodes may have layers from here.
    pub(crate) fn gives(&self) -> bool {
        self.config.peers
    }

    /// What went through so far.
    pub fn traffic(&self) -> Traffic {
        self.counters.now()
    }

    pub(crate) fn silence(&self) -> Duration {
        Duration::from_secs(self.config.stall_timeout_seconds)
    }

    pub(crate) fn parallel(&self) -> usize {
        self.config.parallel_downloads
    }

    /// Where to ask for a repository, in order.
    pub(crate) fn endpoints(&self, reference: &Reference) -> Result<Vec<Endpoint>> {
        // Who wrote down how to reach just that host knows better.
        if !self.config.hosts.contains_key(&reference.registry)
            && let Some(cluster) = self.cluster.read().as_ref()
            && let Some(endpoint) = cluster.endpoint(reference)?
        {
            return Ok(vec![endpoint]);
        }
        let own = self.host(&reference.registry);
        let mut found = Vec::new();
        for mirror in own.map(|host| host.mirrors.as_slice()).unwrap_or_default() {
            let repository = self.rewrite(&reference.repository, mirror);
            let mut endpoint = self.endpoint(&mirror.endpoint, repository)?;
            endpoint.namespace = Some(reference.registry.clone());
            endpoint.push = false;
            found.push(endpoint);
        }
        let file = match own {
            Some(host) if !host.mirrors.is_empty() => None,
            _ => self.hosts_file(&reference.registry)?,
        };
        if let Some(file) = file {
            hosts::endpoints(&file, reference, &mut found)?;
            for endpoint in &mut found {
                endpoint.proxy = own.and_then(|host| host.proxy.clone());
            }
            return Ok(found);
        }
        if own.is_none_or(|host| host.fallback != Some(false)) {
            let address = match (own.and_then(|host| host.endpoint.as_deref()), reference.registry.as_str()) {
                (Some(address), _) => address,
                (None, "docker.io") => "registry-1.docker.io",
                (None, host) => host,
            };
            let mut endpoint = self.endpoint(address, reference.repository.clone())?;
            endpoint.registry.clone_from(&reference.registry);
            if let Some(host) = own {
                endpoint.apply(host);
            }
            found.push(endpoint);
        }
        Ok(found)
    }

    fn endpoint(&self, address: &str, repository: String) -> Result<Endpoint> {
        let mut endpoint = Endpoint::at(address, false, repository)?;
        if let Some(host) = self.host(&endpoint.host) {
            endpoint.apply(host);
        }
        Ok(endpoint)
    }

    /// The most specific entry for a `host[:port]`.
    fn host(&self, name: &str) -> Option<&HostConfig> {
        let hosts = &self.config.hosts;
        let wildcard = || {
            hosts
                .iter()
                .filter(|(key, _)| {
                    key.strip_prefix('*').is_some_and(|rest| rest.starts_with('.') && name.ends_with(rest))
                })
                .max_by_key(|(key, _)| key.len())
                .map(|(_, host)| host)
        };
        hosts.get(name).or_else(wildcard).or_else(|| hosts.get("*"))
    }

    fn hosts_file(&self, registry: &str) -> Result<Option<HostsFile>> {
        for folder in &self.config.certs_dirs {
            if let Some(file) = hosts::read(folder, registry)? {
                return Ok(Some(file));
            }
        }
        Ok(None)
    }

    fn rewrite(&self, repository: &str, mirror: &Mirror) -> String {
        let matching = mirror.rewrite.iter().find_map(|(pattern, to)| {
            let regex = self.rewrites.get(pattern)?;
            regex.is_match(repository).then(|| regex.replace(repository, to.as_str()).into_owned())
        });
        matching.unwrap_or_else(|| repository.to_owned())
    }

    /// The credentials for a repository: configured, from a plugin, from docker's file; in this order.
    pub(crate) async fn credentials(&self, registry: &str, repository: &str) -> Result<Auth> {
        if let Some(auth) = self.host(registry).map(HostConfig::auth).transpose()?.flatten() {
            return Ok(auth);
        }
        let image = format!("{registry}/{repository}");
        if let Some(providers) = &self.providers
            && let Some(auth) = providers.find(&image).await?
        {
            return Ok(auth);
        }
        if let Some(path) = &self.config.docker_config
            && let Some(auth) = DockerConfig::read(path)?.find(&image).await?
        {
            return Ok(auth);
        }
        Ok(Auth::Anonymous)
    }

    pub(crate) fn client(&self, tls: &TlsOptions, proxy: Option<&str>) -> Result<HttpClient> {
        let key = (tls.clone(), proxy.map(str::to_owned));
        if let Some(client) = self.clients.lock().get(&key) {
            return Ok(client.clone());
        }
        let client = super::client::http(connect::tls_config(tls)?, proxy);
        self.clients.lock().insert(key, client.clone());
        Ok(client)
    }
}

impl HostConfig {
    fn tls(&self) -> TlsOptions {
        TlsOptions {
            ca_files: self.ca.clone(),
            ca_pem: Vec::new(),
            client: self.client_cert.clone().zip(self.client_key.clone()),
            skip_verify: self.skip_verify,
        }
    }

    fn auth(&self) -> Result<Option<Auth>> {
        if let Some(token) = &self.identity_token {
            return Ok(Some(Auth::Refresh(token.clone())));
        }
        let Some(username) = &self.username else { return Ok(None) };
        let password = match (&self.password, &self.password_file) {
            (Some(password), _) => password.clone(),
            (None, Some(file)) => {
                let text = std::fs::read_to_string(file)
                    .map_err(|e| Error::Credentials(format!("read {}: {e}", file.display())))?;
                text.lines().next().unwrap_or_default().to_owned()
            }
            (None, None) => return Ok(None),
        };
        Ok(Some(Auth::Basic { username: username.clone(), password }))
    }
}

impl Endpoint {
    /// `as_is`: the address's path is the API's root already.
    pub fn at(address: &str, as_is: bool, repository: String) -> Result<Self> {
        let (scheme, authority, path) = split_url(address).map_err(Error::Config)?;
        let guessed = scheme.is_none() && is_loopback(super::bare_host(&authority));
        let root = if as_is || path.ends_with("/v2") { path } else { format!("{path}/v2") };
        Ok(Endpoint {
            base: format!("{}://{authority}{root}", scheme.unwrap_or("https")),
            registry: authority.clone(),
            host: authority,
            repository,
            namespace: None,
            guessed,
            tls: TlsOptions::default(),
            proxy: None,
            headers: Vec::new(),
            pull: true,
            resolve: true,
            push: true,
        })
    }

    fn apply(&mut self, host: &HostConfig) {
        if host.plain_http {
            self.plain();
        }
        self.tls = host.tls();
        self.proxy = host.proxy.clone();
    }

    pub fn plain(&mut self) {
        if let Some(rest) = self.base.strip_prefix("https://") {
            self.base = format!("http://{rest}");
        }
        self.guessed = false;
    }
}

type SplitUrl = (Option<&'static str>, String, String);

/// Scheme if any, authority, and path without a trailing slash.
fn split_url(address: &str) -> std::result::Result<SplitUrl, String> {
    let (scheme, rest) = match address.split_once("://") {
        Some(("http", rest)) => (Some("http"), rest),
        Some(("https", rest)) => (Some("https"), rest),
        Some((other, _)) => return Err(format!("{address:?}: {other} is neither http nor https")),
        None => (None, address),
    };
    let (authority, path) = match rest.find('/') {
        Some(slash) => (&rest[..slash], rest[slash..].trim_end_matches('/')),
        None => (rest, ""),
    };
    let valid = authority.parse::<http::uri::Authority>().is_ok_and(|a| !a.host().is_empty());
    if !valid || authority.contains('@') {
        return Err(format!("{address:?} names no host"));
    }
    Ok((scheme, authority.to_owned(), path.to_owned()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn bases(config: serde_json::Value, image: &str) -> Vec<(String, String)> {
        let mut config: RegistriesConfig = serde_json::from_value(config).unwrap();
        config.certs_dirs.clear();
        let endpoints = Registries::new(config).unwrap().endpoints(&Reference::parse(image).unwrap()).unwrap();
        endpoints.into_iter().map(|e| (e.base, e.repository)).collect()
    }

    #[test]
    fn mirrors_come_first_rewritten_and_by_wildcard() {
        let config = json!({"hosts": {
            "docker.io": {"mirrors": [
                {"endpoint": "http://mirror:5000", "rewrite": {"^library/(.*)$": "hub/$1"}},
                {"endpoint": "other.io/proxy"},
            ]},
            "*.corp.io": {"mirrors": [{"endpoint": "cache.io"}], "fallback": false},
            "*": {"mirrors": [{"endpoint": "all.io"}]},
            "cache.io": {"plainHttp": true},
        }});
        let pair = |base: &str, repository: &str| (base.to_owned(), repository.to_owned());
        assert_eq!(
            bases(config.clone(), "nginx"),
            [
                pair("http://mirror:5000/v2", "hub/nginx"),
                pair("https://other.io/proxy/v2", "library/nginx"),
                pair("https://registry-1.docker.io/v2", "library/nginx"),
            ]
        );
        assert_eq!(bases(config.clone(), "a.corp.io/x"), [pair("http://cache.io/v2", "x")]);
        assert_eq!(bases(config, "b.io/x"), [pair("https://all.io/v2", "x"), pair("https://b.io/v2", "x")]);
    }

    #[test]
    fn the_clusters_registry_is_found_by_all_its_names() {
        let config = json!({"hosts": {"*": {"mirrors": [{"endpoint": "all.io"}]}, "set.up:5443": {"plainHttp": true}}});
        let registries = Registries::new(serde_json::from_value(config).unwrap()).unwrap();
        let hosts = ["192.0.2.1:5443", "192.0.2.2:5443", "registry.svc", "set.up:5443"];
        registries.set_cluster(Some(ClusterRegistry {
            hosts: hosts.iter().map(|&host| host.to_owned()).collect(),
            addresses: vec!["192.0.2.1:5443".to_owned(), "192.0.2.2:5443".to_owned()],
            ca_pem: "PEM".to_owned(),
        }));
        for (image, base) in
            [("192.0.2.2:5443/a/b", "https://192.0.2.2:5443/v2"), ("registry.svc/a/b", "https://192.0.2.1:5443/v2")]
        {
            let found = registries.endpoints(&Reference::parse(image).unwrap()).unwrap();
            assert_eq!((found.len(), found[0].base.as_str()), (1, base));
            assert_eq!(
                (found[0].tls.ca_pem.len(), &found[0].registry),
                (1, &image.split('/').next().unwrap().to_owned())
            );
        }
        let asked = registries.endpoints(&Reference::parse("set.up:5443/a/b").unwrap()).unwrap();
        assert_eq!(asked[0].base, "http://set.up:5443/v2");
        assert!(registries.is_clusters("registry.svc") && !registries.is_clusters("all.io"));
        registries.set_cluster(None);
        assert!(!registries.is_clusters("registry.svc"));
    }

    #[test]
    fn mistakes_show_at_start() {
        let fails = |config: serde_json::Value| match serde_json::from_value::<RegistriesConfig>(config) {
            Err(e) => e.to_string(),
            Ok(config) => Registries::new(config).unwrap_err().to_string(),
        };
        assert!(fails(json!({"host": {}})).contains("unknown field"));
        assert!(fails(json!({"hosts": {"a": {"skipVerfy": true}}})).contains("unknown field"));
        assert!(fails(json!({"hosts": {"a": {"mirrors": [{"endpoint": "ftp://x"}]}}})).contains("neither http"));
        assert!(fails(json!({"hosts": {"a": {"username": "x"}}})).contains("go together"));
        assert!(fails(json!({"hosts": {"a": {"ca": ["/nonexistent"]}}})).contains("/nonexistent"));
        assert!(
            fails(json!({"hosts": {"a": {"mirrors": [{"endpoint": "x", "rewrite": {"(": "y"}}]}}})).contains("rewrite")
        );
    }
}
