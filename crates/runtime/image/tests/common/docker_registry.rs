//! Debian's docker-registry, the real thing, on a port of its choice.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Ends with the test.
pub struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[derive(Default)]
pub struct Setup {
    /// Certificate and key.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Authorities of the clients, which then need a certificate.
    pub client_ca: Option<PathBuf>,
    /// Lets in `user` with `pass` only.
    pub password: bool,
}

pub fn docker_registry(dir: &Path, setup: &Setup) -> (Killed, String) {
    let mut http = String::from("addr: '127.0.0.1:0'");
    if let Some((certificate, key)) = &setup.tls {
        http += &format!(", tls: {{certificate: {}, key: {}", certificate.display(), key.display());
        if let Some(ca) = &setup.client_ca {
            http += &format!(", clientcas: [{}]", ca.display());
        }
        http += "}";
    }
    let mut auth = String::new();
    if setup.password {
        let file = dir.join("htpasswd");
        // bcrypt of "pass"
        std::fs::write(&file, "user:$2b$05$abcdefghijklmnopqrstuuZFBUbfXoM8LFiPx8LYlO/sXZB/Cwk3K\n").unwrap();
        auth = format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", file.display());
    }
    let text = format!(
        "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{{http}}}\n{auth}",
        dir.join("storage").display()
    );
    let config = dir.join("config.yml");
    std::fs::write(&config, text).unwrap();
    let mut child = Command::new("docker-registry")
        .arg("serve")
        .arg(&config)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let address = lines
        .by_ref()
        .map_while(Result::ok)
        .find_map(|l| Some(l.split_once("listening on ")?.1.split(['"', ' ', ',']).next()?.to_owned()))
        .expect("the registry says where it listens");
    std::thread::spawn(move || lines.for_each(drop));
    (Killed(child), address)
}
