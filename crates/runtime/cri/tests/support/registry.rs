//! A docker-registry on loopback that wants a password, with one image.

use std::fs;
use std::io::{Error, Result};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use dhow_cri::runtime::ImageAuth;
use dhow_cri::suite::PrivateImage;

const USER: &str = "tester";
const PASSWORD: &str = "secret";
/// bcrypt of the password, as the registry wants it.
const HTPASSWD: &str = "tester:$2b$04$SXBHnMms7QXHbcGrwsvnruG.F7FvD2S3msMIGvC890X84VYqNrl/i\n";

pub struct Registry {
    child: Child,
    reference: String,
}

impl Registry {
    /// The registry for the case that needs one, with this docker-archive in it.
    pub fn start_for(case: &str, folder: &Path, archive: &[u8]) -> Result<Option<Self>> {
        if case != "pulls_with_credentials" {
            return Ok(None);
        }
        let folder = folder.join("registry");
        fs::create_dir_all(&folder)?;
        let at = |name: &str| folder.join(name).display().to_string();
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        fs::write(at("htpasswd"), HTPASSWD)?;
        fs::write(at("image.tar"), archive)?;
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {data}}}}}\n\
             http: {{addr: \"{address}\"}}\nauth: {{htpasswd: {{realm: test, path: {htpasswd}}}}}\n",
            data = at("data"),
            htpasswd = at("htpasswd"),
        );
        fs::write(at("config.yml"), config)?;
        let mut command = Command::new("docker-registry");
        command.args(["serve", &at("config.yml")]).stdout(Stdio::null()).stderr(Stdio::null());
        let registry = Self { child: command.spawn()?, reference: format!("{address}/private/busybox:test") };
        let begin = Instant::now();
        while TcpStream::connect(address).is_err() {
            if begin.elapsed() > Duration::from_secs(20) {
                return Err(Error::other("the registry did not start"));
            }
            std::thread::park_timeout(Duration::from_millis(20));
        }
        let pushed = Command::new("skopeo")
            .args(["copy", "--quiet", "--dest-tls-verify=false", "--dest-creds", &format!("{USER}:{PASSWORD}")])
            .arg(format!("docker-archive:{}", at("image.tar")))
            .arg(format!("docker://{}", registry.reference))
            .output()?;
        if !pushed.status.success() {
            return Err(Error::other(String::from_utf8_lossy(&pushed.stderr).into_owned()));
        }
        Ok(Some(registry))
    }

    pub fn image(&self) -> PrivateImage {
        let auth = ImageAuth { username: USER.into(), password: PASSWORD.into(), ..ImageAuth::default() };
        PrivateImage { reference: self.reference.clone(), auth }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
