//! What the API server's tests share: a server, kubectl with credentials, raw requests.
#![allow(clippy::unwrap_used, dead_code)]

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use bytes::Bytes;
use dhow_apiserver::{AccessConfig, ApiServer, Config, ServiceRange, UserInfo};
use dhow_base::pki::{ClusterCa, SaKey};
use dhow_base::tls;
use dhow_store::{Kv, MemoryKv};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

/// The oldest and the newest kubectl of this machine: those beside the one on the path, else that one.
pub fn kubectls() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap();
    let found = std::env::split_paths(&path).map(|folder| folder.join("kubectl")).find(|file| file.exists()).unwrap();
    let folder = found.canonicalize().unwrap().parent().unwrap().to_owned();
    let mut versions: Vec<(u32, PathBuf)> = std::fs::read_dir(folder)
        .unwrap()
        .filter_map(|entry| {
            let file = entry.unwrap().path();
            let minor = file.file_name()?.to_str()?.strip_prefix("kubectl.1.")?.parse().ok()?;
            Some((minor, file))
        })
        .collect();
    versions.sort();
    match versions.len() {
        0 => vec![found],
        count => vec![versions[0].1.clone(), versions[count - 1].1.clone()],
    }
}

/// An API server on a port of its own, with a memory store.
pub struct Cluster {
    pub folder: tempfile::TempDir,
    pub server: Arc<ApiServer>,
    pub shutdown: CancellationToken,
    pub ca: ClusterCa,
    pub url: String,
}

impl Cluster {
    pub async fn start() -> Self {
        Self::start_with(AccessConfig::default()).await
    }

    pub async fn start_with(access: AccessConfig) -> Self {
        Self::open(Arc::new(MemoryKv::new()), access).await
    }

    /// On a store that may have been used before.
    pub async fn start_on(kv: Arc<dyn Kv>) -> Self {
        Self::open(kv, AccessConfig::default()).await
    }

    pub async fn open(kv: Arc<dyn Kv>, mut access: AccessConfig) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let ca = ClusterCa::load_or_create(&folder.path().join("pki")).unwrap();
        let sa_key = SaKey::load_or_create(&folder.path().join("sa.key")).unwrap();
        ca.cert_pem().clone_into(&mut access.root_ca_pem);
        let shutdown = CancellationToken::new();
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let config = Config {
            advertise: SocketAddr::from(([192, 0, 2, 1], 6443)),
            service_ranges: vec![ServiceRange { first: [10, 43, 0, 0].into(), prefix: 16 }],
            api_service_ip: [10, 43, 0, 1].into(),
            node_ports: 30000..=32767,
            sa_key,
            node_tls: tls::client_config(ca.cert_pem(), None).unwrap(),
            member_ttl: None,
            image_judge: None,
            backup: None,
            access,
        };
        let server = ApiServer::new(kv, config, shutdown.clone()).await.unwrap();
        let pair = ca.issue_server("apiserver", &["127.0.0.1".into()]).unwrap();
        let tls = tls::server_config(&pair, Some(ca.cert_pem())).unwrap();
        tokio::spawn(server.clone().serve(listener, tls, shutdown.clone()));
        let cluster = Self { folder, server, shutdown, ca, url: format!("https://{address}") };
        cluster.kubeconfig("admin", "system:admin", &["system:masters"]);
        cluster
    }

    pub fn kubeconfig(&self, file: &str, user: &str, groups: &[&str]) {
        let pair = self.ca.issue_client(user, groups).unwrap();
        let write = |name: String, text: &str| {
            let path = self.folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let ca = write("ca.pem".into(), self.ca.cert_pem());
        let cert = write(format!("{file}.pem"), &pair.cert_pem);
        let key = write(format!("{file}.key"), &pair.key_pem);
        let config = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{{name: c, cluster: {{server: '{}', \
             certificate-authority: {ca}}}}}]\nusers: [{{name: u, user: {{client-certificate: {cert}, client-key: \
             {key}}}}}]\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n",
            self.url
        );
        write(format!("{file}.kubeconfig"), &config);
    }

    /// A kubeconfig that shows a token.
    pub fn kubeconfig_with_token(&self, file: &str, token: &str) {
        let config = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{{name: c, cluster: {{server: '{}', \
             certificate-authority: {}}}}}]\nusers: [{{name: u, user: {{token: '{token}'}}}}]\ncontexts: [{{name: c, \
             context: {{cluster: c, user: u}}}}]\n",
            self.url,
            self.folder.path().join("ca.pem").display()
        );
        std::fs::write(self.folder.path().join(format!("{file}.kubeconfig")), config).unwrap();
    }

    pub async fn run(&self, user: &str, args: &[&str], input: &str) -> Result<String, String> {
        self.run_with(Path::new("kubectl"), user, args, input).await
    }

    /// Runs one kubectl of several.
    pub async fn run_with(&self, program: &Path, user: &str, args: &[&str], input: &str) -> Result<String, String> {
        let mut command = Command::new(program);
        command
            .arg("--kubeconfig")
            .arg(self.folder.path().join(format!("{user}.kubeconfig")))
            .arg("--cache-dir")
            .arg(self.folder.path().join("cache"))
            .args(args)
            .env("NO_PROXY", "*");
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), input).unwrap();
        command.stdin(std::fs::File::open(file.path()).unwrap());
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// Runs lines with one kubectl as the administrator, each with an input, and returns those that did not say the
    /// words they should. Words of a line are parted by spaces; `~` is a space within a word.
    pub async fn wrong(&self, program: &Path, lines: &[(&str, &str, &str)]) -> Vec<String> {
        let mut wrong = Vec::new();
        for (line, input, words) in lines {
            let args: Vec<String> = line.split(' ').map(|word| word.replace('~', " ")).collect();
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            match self.run_with(program, "admin", &args, input).await {
                Ok(said) if said.contains(words) => {}
                other => wrong.push(format!("{program:?} {line}: {other:?} instead of {words:?}")),
            }
        }
        wrong
    }

    /// The status of a GET by somebody who proves nothing.
    pub async fn curl(&self, path: &str, args: &[&str]) -> String {
        let mut command = Command::new("curl");
        command.args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "--noproxy", "*", "--cacert"]);
        command.arg(self.folder.path().join("ca.pem")).args(args).arg(format!("{}{path}", self.url));
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    /// What kubectl says on both outputs.
    pub async fn run_both(&self, user: &str, args: &[&str]) -> String {
        let mut command = Command::new("kubectl");
        command.arg("--kubeconfig").arg(self.folder.path().join(format!("{user}.kubeconfig"))).args(args);
        command.env("NO_PROXY", "*");
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
    }

    pub async fn kubectl(&self, args: &[&str]) -> String {
        self.run("admin", args, "").await.unwrap_or_else(|error| panic!("kubectl {args:?}: {error}"))
    }

    /// One request as a user, in process; the answer's status, headers and body.
    pub async fn send(&self, user: UserInfo, request: http::Request<Bytes>) -> (u16, http::HeaderMap, Bytes) {
        let response = self.server.client(user).request(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = http_body_util::BodyExt::collect(body).await.unwrap().to_bytes();
        (parts.status.as_u16(), parts.headers, body)
    }

    /// The answer to a request as a user, in process, its body still to come.
    pub async fn begin(&self, user: UserInfo, request: http::Request<Bytes>) -> http::Response<dhow_client::Body> {
        self.server.client(user).request(request).await.unwrap()
    }

    /// A request with a JSON body as the administrator, and the answer's tree.
    pub async fn json(&self, method: &str, path: &str, media_type: &str, body: &Value) -> (u16, Value) {
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", media_type)
            .header("user-agent", "tester/1.0")
            .body(Bytes::from(body.to_string()))
            .unwrap();
        let (code, _, body) = self.send(UserInfo::new("admin", &["system:masters"]), request).await;
        (code, serde_json::from_slice(&body).unwrap())
    }

    /// A stream's first bytes as they come, until `enough` says so.
    pub async fn stream(&self, path: &str, accept: &str, enough: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let request = http::Request::builder().uri(path).header("accept", accept).body(Bytes::new()).unwrap();
        let client = self.server.client(UserInfo::new("admin", &["system:masters"]));
        let mut body = client.request(request).await.unwrap().into_body();
        let mut seen = Vec::new();
        while !enough(&seen) {
            let next = http_body_util::BodyExt::frame(&mut body);
            let frame = tokio::time::timeout(std::time::Duration::from_secs(30), next).await.unwrap();
            seen.extend_from_slice(frame.unwrap().unwrap().data_ref().unwrap());
        }
        seen
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}
