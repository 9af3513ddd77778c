//! What is remembered of a pod that plugins connected: enough to undo it, whoever does so and whenever.
//!
//! ```text
//! <dir>/<sandbox>.json          written before the plugins are asked, again with their result
//! <netns_dir>/<sandbox>         the pod's network namespace, mounted: plugins need it to the end, the pod's processes are gone then
//! ```

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_bind, mount_change, unmount};
use serde_json::{Map, Value};

use crate::{Error, Result};

#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Attachment {
    /// The list by which it was made; a later one does not change how it is undone.
    pub list: Value,
    pub interface: String,
    pub args: String,
    pub capabilities: Map<String, Value>,
    /// The last plugin's; `None` while they are asked.
    pub result: Option<Value>,
}

impl Attachment {
    /// The addresses of the pod's own interface. Those that say no interface are taken for its own.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let Some(result) = &self.result else { return Vec::new() };
        let own = |index: u64| {
            let interface = usize::try_from(index).ok().and_then(|index| result["interfaces"].get(index));
            interface.is_none_or(|interface| {
                interface["name"] == self.interface.as_str()
                    && interface["sandbox"].as_str().is_some_and(|s| !s.is_empty())
            })
        };
        let ips = result["ips"].as_array().into_iter().flatten();
        let ips = ips.filter(|ip| ip["interface"].as_u64().is_none_or(own));
        ips.filter_map(|ip| ip["address"].as_str()?.split('/').next()?.parse().ok()).collect()
    }
}

/// The folder of records, and that of namespaces.
#[derive(Debug)]
pub(crate) struct Attachments {
    dir: PathBuf,
    netns_dir: PathBuf,
}

fn failed(context: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { context, path, source }
}

impl Attachments {
    pub fn open(dir: PathBuf, netns_dir: PathBuf) -> Result<Self> {
        for folder in [&dir, &netns_dir] {
            std::fs::create_dir_all(folder).map_err(failed("create", folder))?;
        }
        // Sandboxes take copies of all mounts: with them it must be undone everywhere what is undone here.
        if mount_change(&netns_dir, MountPropagationFlags::SHARED).is_err() {
            mount_bind(&netns_dir, &netns_dir)
                .and_then(|()| mount_change(&netns_dir, MountPropagationFlags::SHARED))
                .map_err(|errno| failed("mount", &netns_dir)(errno.into()))?;
        }
        Ok(Self { dir, netns_dir })
    }

    /// All that are remembered; what cannot be read is dropped.
    pub fn all(&self) -> Result<BTreeMap<String, Attachment>> {
        let mut all = BTreeMap::new();
        for entry in std::fs::read_dir(&self.dir).map_err(failed("list", &self.dir))? {
            let path = entry.map_err(failed("list", &self.dir))?.path();
            let sandbox = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_suffix(".json"));
            let read = std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
            match (sandbox, read) {
                (Some(sandbox), Some(attachment)) => drop(all.insert(sandbox.to_owned(), attachment)),
                _ => {
                    tracing::warn!(path = %path.display(), "dropping an unreadable record of a pod's network");
                    std::fs::remove_file(&path).map_err(failed("remove", &path))?;
                }
            }
        }
        Ok(all)
    }

    pub fn get(&self, sandbox: &str) -> Result<Option<Attachment>> {
        let path = self.path(sandbox)?;
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| failed("read", &path)(error.into())).map(Some),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("read", &path)(error)),
        }
    }

    /// Replaced as a whole; it must outlive the daemon, not the machine.
    pub fn put(&self, sandbox: &str, attachment: &Attachment) -> Result<()> {
        let path = self.path(sandbox)?;
        let temporary = self.dir.join(format!(".{sandbox}.new"));
        let bytes = serde_json::to_vec(attachment).map_err(std::io::Error::from);
        bytes
            .and_then(|bytes| std::fs::write(&temporary, bytes))
            .and_then(|()| std::fs::rename(&temporary, &path))
            .map_err(failed("write", &path))
    }

    /// Where the namespace is from now on.
    pub fn pin(&self, sandbox: &str, netns: BorrowedFd<'_>) -> Result<PathBuf> {
        self.path(sandbox)?;
        let path = self.netns_dir.join(sandbox);
        self.unpin(sandbox)?;
        std::fs::File::create(&path).map_err(failed("create", &path))?;
        let source = format!("/proc/self/fd/{}", netns.as_raw_fd());
        mount_bind(source, &path)
            .map_err(|errno| failed("mount the pod's network namespace at", &path)(errno.into()))?;
        Ok(path)
    }

    /// The namespace of a sandbox, if it is there yet: not after a restart of the machine.
    pub fn netns(&self, sandbox: &str) -> Option<PathBuf> {
        let path = self.netns_dir.join(sandbox);
        let mounted = std::fs::File::open(&path).ok().and_then(|file| rustix::fs::fstatfs(&file).ok());
        mounted.is_some_and(|on| on.f_type == NSFS).then_some(path)
    }

    /// Lets the namespace go and forgets the sandbox.
    pub fn remove(&self, sandbox: &str) -> Result<()> {
        self.unpin(sandbox)?;
        remove_file(&self.path(sandbox)?)
    }

    /// Sandboxes whose namespaces are here.
    pub fn pinned(&self) -> Result<Vec<String>> {
        let entries = std::fs::read_dir(&self.netns_dir).map_err(failed("list", &self.netns_dir))?;
        Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
    }

    pub fn unpin(&self, sandbox: &str) -> Result<()> {
        let path = self.netns_dir.join(sandbox);
        if !path.exists() {
            return Ok(());
        }
        // Nothing may be mounted there yet.
        while unmount(&path, UnmountFlags::DETACH).is_ok() {}
        remove_file(&path)
    }

    fn path(&self, sandbox: &str) -> Result<PathBuf> {
        if sandbox.is_empty() || sandbox.len() > 200 || sandbox.contains(['/', '\0']) || sandbox.starts_with('.') {
            return Err(Error::InvalidSandboxId(sandbox.to_owned()));
        }
        Ok(self.dir.join(format!("{sandbox}.json")))
    }
}

/// `NSFS_MAGIC`
const NSFS: rustix::fs::FsWord = 0x6e73_6673;

fn remove_file(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn with(result: Value) -> Attachment {
        Attachment {
            list: Value::Null,
            interface: "eth0".into(),
            args: String::new(),
            capabilities: Map::new(),
            result: Some(result),
        }
    }

    #[test]
    fn addresses_of_the_pod_alone() {
        let result = json!({
            "interfaces": [{"name": "cni0"}, {"name": "veth1"}, {"name": "eth0", "sandbox": "/n"}, {"name": "eth0"}],
            "ips": [
                {"address": "10.1.0.1/24", "interface": 0}, {"address": "10.1.0.5/24", "interface": 2},
                {"address": "10.1.0.9/24", "interface": 3}, {"address": "fd00::5/64"}, {"address": "what"}, {"interface": 2},
            ],
        });
        let addresses: Vec<String> = with(result).addresses().iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["10.1.0.5", "fd00::5"]);
        assert!(with(json!({})).addresses().is_empty());
    }
}
