//! A builder behind HTTP, as a node has it, and what it answers.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::BorrowedFd;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use bytes::Bytes;
use dhow_builder::{Builder, Config, Network, Sandboxes};
use dhow_image::{Entry, EntryKind, ImageStore, LayerWriter, Registries, RegistriesConfig};
use dhow_oci::cgroup::Cgroup;
use dhow_oci::client::Program;
use dhow_oci::spec::Limits;
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};

/// No step of these tests asks for a network of its own.
struct Nothing;

#[async_trait::async_trait]
impl Network for Nothing {
    async fn attach(&self, _: BorrowedFd<'_>, _: &str) -> Result<(), String> {
        Err("no network here".to_owned())
    }

    async fn detach(&self, _: &str) -> Result<(), String> {
        Ok(())
    }
}

/// Ends with the test.
pub struct Served(Child);

impl Served {
    pub fn start(command: &mut Command) -> Self {
        // `git daemon` is a child of `git`.
        let command = command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Served(command.spawn().unwrap())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = rustix::process::kill_process_group(
            rustix::process::Pid::from_child(&self.0),
            rustix::process::Signal::KILL,
        );
        let _ = self.0.wait();
    }
}

/// A program to its end; returns what it wrote.
pub fn sh(folder: &Path, script: &str) -> String {
    let done = Command::new("sh").args(["-euc", script]).current_dir(folder).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap().trim().to_owned()
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Tries until it works, for what takes a moment to start.
pub async fn eventually(mut attempt: impl FnMut() -> bool) {
    for _ in 0..200 {
        if attempt() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("it never worked");
}

pub struct Bench {
    pub folder: tempfile::TempDir,
    pub store: ImageStore,
    builder: Builder,
    cgroup: String,
}

impl Drop for Bench {
    fn drop(&mut self) {
        Cgroup::everywhere(&self.cgroup).remove_all();
    }
}

/// What came back.
#[derive(Default)]
pub struct Said {
    pub events: Vec<Value>,
    pub archive: Vec<u8>,
    pub cache: Vec<u8>,
}

impl Said {
    pub fn error(&self) -> Option<&str> {
        self.events.iter().find(|event| event["event"] == "error").and_then(|event| event["message"].as_str())
    }

    pub fn cached(&self) -> usize {
        self.events.iter().filter(|event| event["event"] == "cached").count()
    }

    pub fn text(&self) -> String {
        self.events.iter().map(|event| format!("{event}\n")).collect()
    }

    /// Regular files of the archive.
    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        members(&self.archive)
    }
}

pub fn members(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(archive).entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().to_string_lossy().trim_start_matches("./").to_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        if entry.header().entry_type().is_file() {
            files.insert(path, bytes);
        }
    }
    files
}

/// `cargo xtask images` makes them.
fn image(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../../target/images/{name}.tar"))
}

impl Bench {
    /// With these images.
    pub async fn new(images: &[&str]) -> Self {
        let folder = tempfile::Builder::new().prefix("dhow-builds").tempdir_in("/var/tmp").unwrap();
        let store = ImageStore::open(&folder.path().join("images")).unwrap();
        for name in images {
            store.import(tokio::fs::File::open(image(name)).await.unwrap()).await.unwrap();
        }
        let own = folder.path().file_name().unwrap();
        let cgroup = format!("dhow-test-builds-{}-{}", std::process::id(), own.display());
        let sandboxes = Sandboxes {
            root: folder.path().join("sandboxes"),
            run_dir: folder.path().join("run"),
            cgroup: cgroup.clone(),
            program: Program::own().unwrap(),
            network: Arc::new(Nothing),
            resolv_conf: String::new(),
            limits: Limits { pids: Some(1000), ..Limits::default() },
            together: Limits { memory: Some(1 << 30), cpu_shares: Some(512), ..Limits::default() },
        };
        let mut registries = RegistriesConfig::default();
        registries.certs_dirs.clear();
        let config = Config {
            store: store.clone(),
            registries: Registries::new(registries).unwrap(),
            root: folder.path().join("builds"),
            sandboxes: sandboxes.open().await.unwrap(),
            keep_bytes: 1 << 30,
            parallel: 2,
        };
        Bench { store, builder: Builder::open(config).unwrap(), folder, cgroup }
    }

    /// A build of this Dockerfile, with more of a request and files of the context; `contexts/1/…` are those of others.
    pub async fn ask(&self, dockerfile: &str, more: Value, files: &[(&str, &[u8])]) -> Said {
        let mut request = json!({
            "dockerfile": dockerfile, "file": "Dockerfile", "contexts": {"": {"folder": 0}}, "network": "none",
        });
        for (key, value) in more.as_object().unwrap() {
            match (request.get_mut(key).and_then(Value::as_object_mut), value) {
                (Some(known), Value::Object(new)) => known.extend(new.clone()),
                _ => drop(request.as_object_mut().unwrap().insert(key.clone(), value.clone())),
            }
        }
        let mut archive = LayerWriter::new(Vec::new());
        let text = request.to_string();
        let file = |path: &str, bytes: &[u8]| Entry {
            path: path.as_bytes().to_vec(),
            kind: EntryKind::File(bytes.len() as u64),
            mode: 0o644,
            ..Entry::default()
        };
        archive.append(&file("build.json", text.as_bytes()), text.as_bytes()).unwrap();
        for folder in ["contexts", "contexts/0", "contexts/1", "contexts/1/blobs", "contexts/1/blobs/sha256"] {
            let entry = Entry { path: folder.as_bytes().to_vec(), mode: 0o755, ..Entry::default() };
            archive.append(&entry, std::io::empty()).unwrap();
        }
        for (path, bytes) in files {
            let path = if path.starts_with("contexts/") { (*path).to_owned() } else { format!("contexts/0/{path}") };
            archive.append(&file(&path, bytes), *bytes).unwrap();
        }
        self.send(archive.finish().unwrap()).await
    }

    async fn send(&self, request: Vec<u8>) -> Said {
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        let builder = self.builder.clone();
        let service = service_fn(move |request| {
            let builder = builder.clone();
            async move { Ok::<_, std::convert::Infallible>(builder.serve(request).await) }
        });
        let serving = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(theirs), service);
        tokio::spawn(serving);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(ours)).await.unwrap();
        tokio::spawn(connection);
        let request =
            hyper::Request::post("/images/build").header("host", "node").body(Full::new(Bytes::from(request)));
        let answer = sender.send_request(request.unwrap()).await.unwrap();
        assert!(answer.status().is_success(), "{answer:?}");
        let bytes = answer.into_body().collect().await.unwrap().to_bytes();
        let mut said = Said::default();
        let mut rest = &bytes[..];
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let event: Value = serde_json::from_slice(&rest[..end]).unwrap();
            rest = &rest[end + 1..];
            match event["event"].as_str() {
                Some("cache") => {
                    let size = usize::try_from(event["bytes"].as_u64().unwrap()).unwrap();
                    said.cache = rest[..size].to_vec();
                    rest = &rest[size..];
                }
                Some("archive") => {
                    said.archive = rest.to_vec();
                    rest = &[];
                }
                _ => {}
            }
            said.events.push(event);
        }
        said
    }

    /// One that goes well, with the files that came of it.
    pub async fn build(
        &self,
        dockerfile: &str,
        more: Value,
        files: &[(&str, &[u8])],
    ) -> (Said, BTreeMap<String, String>) {
        let mut wanted = json!({"output": "tar"});
        wanted.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let said = self.ask(dockerfile, wanted, files).await;
        assert_eq!(said.error(), None, "{}", said.text());
        let text = |(path, bytes): (String, Vec<u8>)| (path, String::from_utf8_lossy(&bytes).into_owned());
        let files = said.files().into_iter().map(text).collect();
        (said, files)
    }

    /// Why it does not go well.
    pub async fn refused(&self, dockerfile: &str, more: Value, files: &[(&str, &[u8])]) -> String {
        let said = self.ask(dockerfile, more, files).await;
        said.error().unwrap_or_else(|| panic!("{}", said.text())).to_owned()
    }
}
