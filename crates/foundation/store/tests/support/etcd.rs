//! Real etcd servers on loopback, with certificates made for the occasion; gone when dropped.

use std::fs::File;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use dhow_base::pki::{CertPair, CertSpec, ClusterCa};
use dhow_store::{EtcdConfig, EtcdKv};

pub struct Etcd {
    members: Vec<Member>,
    dir: tempfile::TempDir,
    ca_pem: String,
    client: CertPair,
}

struct Member {
    name: String,
    client_port: u16,
    peer_port: u16,
    process: Option<Child>,
}

/// The system gives each a free one; all are held until all are known, so none comes twice.
fn free_ports(count: usize) -> Vec<u16> {
    let held: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    held.iter().map(|l| l.local_addr().unwrap().port()).collect()
}

impl Etcd {
    /// Starts a cluster and waits until it answers.
    pub async fn start(members: usize) -> (Self, EtcdKv) {
        for _ in 0..3 {
            let etcd = Self::try_start(members);
            match EtcdKv::connect(etcd.config()).await {
                Ok(kv) => return (etcd, kv),
                // Someone else may have taken a port in between.
                Err(error) => eprintln!("etcd did not come up: {error}; {}", etcd.logs()),
            }
        }
        panic!("etcd does not start; is the package etcd-server installed?");
    }

    fn try_start(count: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = ClusterCa::load_or_create(&dir.path().join("ca")).unwrap();
        let ports = free_ports(count * 2);
        let mut etcd = Self {
            members: Vec::new(),
            ca_pem: ca.cert_pem().to_owned(),
            client: ca.issue_client("dhow", &[]).unwrap(),
            dir,
        };
        for i in 0..count {
            let name = format!("m{i}");
            let sans = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
            let spec = CertSpec::Peer { user: name.clone(), groups: vec![], sans };
            let pair = ca.issue(&spec).unwrap();
            std::fs::write(etcd.dir.path().join(format!("{name}.crt")), pair.cert_pem).unwrap();
            std::fs::write(etcd.dir.path().join(format!("{name}.key")), pair.key_pem).unwrap();
            etcd.members.push(Member { name, client_port: ports[i], peer_port: ports[count + i], process: None });
        }
        (0..count).for_each(|i| etcd.run(i));
        etcd
    }

    /// Starts a member that is not running; it goes on with the data it has.
    pub fn run(&mut self, index: usize) {
        let cluster: Vec<_> =
            self.members.iter().map(|m| format!("{}=https://127.0.0.1:{}", m.name, m.peer_port)).collect();
        let Member { name, client_port, peer_port, .. } = &self.members[index];
        let path = |file: String| self.dir.path().join(file).display().to_string();
        let (cert, key, ca) = (path(format!("{name}.crt")), path(format!("{name}.key")), path("ca/ca.crt".to_owned()));
        let (client, peer) = (format!("https://127.0.0.1:{client_port}"), format!("https://127.0.0.1:{peer_port}"));
        let log = File::options().create(true).append(true).open(self.dir.path().join(format!("{name}.log"))).unwrap();
        let process = Command::new("setpriv")
            // A test that is killed takes its servers along.
            .args(["--pdeathsig", "KILL", "etcd", "--name", name, "--data-dir", &path(format!("{name}.data"))])
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &cluster.join(","), "--initial-cluster-state", "new"])
            .args(["--cert-file", &cert, "--key-file", &key, "--trusted-ca-file", &ca, "--client-cert-auth"])
            .args(["--peer-cert-file", &cert, "--peer-key-file", &key, "--peer-trusted-ca-file", &ca])
            .args(["--peer-client-cert-auth", "--logger", "zap", "--log-level", "error"])
            .args(["--experimental-watch-progress-notify-interval", "1s"])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.members[index].process = Some(process);
    }

    /// As a power cut would.
    pub fn kill(&mut self, index: usize) {
        if let Some(mut process) = self.members[index].process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    pub fn pid(&self, index: usize) -> Option<u32> {
        self.members[index].process.as_ref().map(Child::id)
    }

    pub fn config(&self) -> EtcdConfig {
        EtcdConfig {
            ca_pem: Some(self.ca_pem.clone()),
            client_pem: Some((self.client.cert_pem.clone(), self.client.key_pem.clone())),
            request_timeout: Duration::from_secs(5),
            ..EtcdConfig::new(self.members.iter().map(|m| format!("https://127.0.0.1:{}", m.client_port)))
        }
    }

    fn logs(&self) -> String {
        let logs = self.members.iter().map(|m| self.dir.path().join(format!("{}.log", m.name)));
        logs.map(|l| std::fs::read_to_string(l).unwrap_or_default()).collect()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        (0..self.members.len()).for_each(|i| self.kill(i));
    }
}
