//! Which claims are prepared for which pods, kept in a file: what was prepared is undone even if the agent, the claim or the
//! pod is gone meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Error;

const FILE: &str = "dra_manager_state";
const NEW: &str = "dra_manager_state.new";

/// A device as its driver prepared it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Prepared {
    /// The requests of the claim that it is for; none: all of them.
    pub requests: Vec<String>,
    pub pool: String,
    pub device: String,
    pub cdi: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Claim {
    pub uid: String,
    pub namespace: String,
    pub name: String,
    /// The pods that use it, by uid.
    pub pods: BTreeSet<String>,
    /// By driver.
    pub devices: BTreeMap<String, Vec<Prepared>>,
    /// All drivers have prepared it. Before that they may have, and are asked to undo it all the same.
    pub prepared: bool,
}

impl Claim {
    /// The CDI names of the devices of one request, or of all.
    pub fn cdi(&self, request: &str) -> impl Iterator<Item = &String> {
        let devices = self.devices.values().flatten();
        devices.filter(move |device| request.is_empty() || device.is_for(request)).flat_map(|device| &device.cdi)
    }
}

impl Prepared {
    /// A subrequest that was chosen stands for its request.
    fn is_for(&self, request: &str) -> bool {
        let base = |name: &str| name.split('/').next().unwrap_or_default().to_owned();
        self.requests.is_empty() || self.requests.iter().any(|own| own == request || base(own) == request)
    }
}

/// By namespace and name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Claims {
    pub claims: Vec<Claim>,
}

impl Claims {
    pub fn find(&self, namespace: &str, name: &str) -> Option<&Claim> {
        self.claims.iter().find(|claim| claim.namespace == namespace && claim.name == name)
    }

    pub fn find_mut(&mut self, namespace: &str, name: &str) -> Option<&mut Claim> {
        self.claims.iter_mut().find(|claim| claim.namespace == namespace && claim.name == name)
    }

    pub fn of_pod<'a>(&'a self, uid: &'a str) -> impl Iterator<Item = &'a Claim> {
        self.claims.iter().filter(move |claim| claim.pods.contains(uid))
    }

    /// # Errors
    /// A damaged file is not forgotten: devices would stay prepared for ever.
    pub fn read(folder: &Path) -> Result<Self, Error> {
        let path = folder.join(FILE);
        let bytes = match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            other => other.map_err(Error::io(format!("read {}", path.display())))?,
        };
        serde_json::from_slice(&bytes).map_err(|error| Error::io(format!("read {}", path.display()))(error.into()))
    }

    /// Whole or not at all, and there after a loss of power.
    pub fn write(&self, folder: &Path) -> Result<(), Error> {
        use std::io::Write;
        let failed = || format!("write {}", folder.join(FILE).display());
        std::fs::create_dir_all(folder).map_err(Error::io(failed()))?;
        let text = serde_json::to_vec(self).map_err(|error| Error::io(failed())(error.into()))?;
        let new = folder.join(NEW);
        let mut file = std::fs::File::create(&new).map_err(Error::io(failed()))?;
        file.write_all(&text).and_then(|()| file.sync_all()).map_err(Error::io(failed()))?;
        std::fs::rename(&new, folder.join(FILE)).map_err(Error::io(failed()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn claim() -> Claim {
        let device = |request: &str, cdi: &str| Prepared {
            requests: if request.is_empty() { Vec::new() } else { vec![request.into()] },
            cdi: vec![cdi.into()],
            ..Prepared::default()
        };
        let devices = vec![device("a", "v/c=1"), device("b/small", "v/c=2"), device("", "v/c=3")];
        Claim {
            uid: "u".into(),
            namespace: "default".into(),
            name: "c".into(),
            pods: ["p".to_owned()].into(),
            devices: [("x.io".to_owned(), devices)].into(),
            prepared: true,
        }
    }

    #[test]
    fn a_request_gets_its_devices_only() {
        let claim = claim();
        let cdi = |request: &str| claim.cdi(request).map(String::as_str).collect::<Vec<_>>().join(" ");
        assert_eq!(cdi(""), "v/c=1 v/c=2 v/c=3");
        assert_eq!(cdi("a"), "v/c=1 v/c=3");
        assert_eq!(cdi("b"), "v/c=2 v/c=3");
    }

    #[test]
    fn what_is_prepared_is_remembered() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Claims::read(folder.path()).unwrap(), Claims::default());
        let claims = Claims { claims: vec![claim()] };
        claims.write(folder.path()).unwrap();
        let again = Claims::read(folder.path()).unwrap();
        assert_eq!(again, claims);
        assert_eq!(again.of_pod("p").count(), 1);
        assert_eq!(again.of_pod("q").count(), 0);
        std::fs::write(folder.path().join(FILE), "{").unwrap();
        assert!(Claims::read(folder.path()).is_err());
    }
}
