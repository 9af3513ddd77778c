//! New pods and network policies: a pod's network is ready once what the policies say of the pod is in force.
//!
//! The node knows a pod's address before the API does. Until the pod's status had it, the pod would be open.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use dhow_cri::NetworkRequest;
use tokio::sync::watch;

use crate::{Error, Result};

/// A pod whose policies cannot be put in force for so long is not started; its node tries again.
const PATIENCE: Duration = Duration::from_secs(10);

/// A pod of this node, as its network knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StartingPod {
    pub namespace: String,
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub addresses: Vec<IpAddr>,
}

/// The pods at one moment.
#[derive(Debug)]
pub(crate) struct Starting {
    pub pods: Vec<StartingPod>,
    pub version: u64,
}

#[derive(Debug, Default)]
struct Known {
    by_sandbox: BTreeMap<String, StartingPod>,
    version: u64,
}

/// What is enforced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Enforced {
    /// Nobody enforces policies, or there are none.
    Everything,
    /// What there was at this version.
    Until(u64),
}

#[derive(Debug)]
pub(crate) struct Gate {
    known: watch::Sender<Known>,
    enforced: watch::Sender<Enforced>,
}

impl Default for Gate {
    fn default() -> Self {
        Self { known: watch::Sender::default(), enforced: watch::Sender::new(Enforced::Everything) }
    }
}

impl Gate {
    /// From now on pods wait until they are enforced.
    pub fn close(&self) {
        self.enforced.send_if_modified(|enforced| {
            let open = *enforced == Enforced::Everything;
            if open {
                *enforced = Enforced::Until(0);
            }
            open
        });
    }

    /// Nobody waits any more.
    pub fn open(&self) {
        self.enforced.send_replace(Enforced::Everything);
    }

    /// What was known at `version` is in force.
    pub fn enforced(&self, version: u64) {
        self.enforced.send_if_modified(|enforced| {
            let closed = matches!(enforced, Enforced::Until(_));
            if closed {
                *enforced = Enforced::Until(version);
            }
            closed
        });
    }

    pub fn starting(&self) -> Starting {
        let known = self.known.borrow();
        Starting { pods: known.by_sandbox.values().cloned().collect(), version: known.version }
    }

    /// Tells when a pod comes; what was known before the call is seen.
    pub fn watch(&self) -> Watch {
        let mut known = self.known.subscribe();
        known.mark_unchanged();
        Watch(known)
    }

    /// Makes the pod known, and returns once its policies are in force.
    pub async fn pass(&self, request: &NetworkRequest, addresses: &[IpAddr]) -> Result<()> {
        let pod = StartingPod {
            namespace: request.pod.namespace.clone(),
            name: request.pod.name.clone(),
            labels: request.labels.clone(),
            addresses: addresses.to_owned(),
        };
        let mut version = 0;
        self.known.send_modify(|known| {
            known.version += 1;
            version = known.version;
            known.by_sandbox.insert(request.sandbox_id.clone(), pod);
        });
        let mut enforced = self.enforced.subscribe();
        let passed = enforced.wait_for(|enforced| match enforced {
            Enforced::Everything => true,
            Enforced::Until(until) => *until >= version,
        });
        match tokio::time::timeout(PATIENCE, passed).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::PoliciesNotEnforced),
        }
    }

    pub fn forget(&self, sandbox_id: &str) {
        // Nobody has to hurry for a pod that is gone.
        self.known.send_if_modified(|known| {
            known.by_sandbox.remove(sandbox_id);
            false
        });
    }
}

/// Wakes when a pod comes.
pub(crate) struct Watch(watch::Receiver<Known>);

impl Watch {
    pub async fn changed(&mut self) -> Result<(), watch::error::RecvError> {
        self.0.changed().await
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use dhow_cri::runtime::PodIdentity;

    use super::*;

    fn request(sandbox: &str) -> NetworkRequest {
        let pod = PodIdentity { namespace: "a".into(), name: sandbox.into(), uid: sandbox.into(), attempt: 0 };
        NetworkRequest { sandbox_id: sandbox.into(), pod, ..NetworkRequest::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn pods_wait_while_somebody_enforces_policies() {
        let gate = Gate::default();
        gate.pass(&request("free"), &[]).await.unwrap();
        gate.close();
        assert!(matches!(gate.pass(&request("late"), &[]).await, Err(Error::PoliciesNotEnforced)));
        let mut watch = gate.watch();
        let held = request("held");
        let (passed, ()) = tokio::join!(gate.pass(&held, &[]), async {
            watch.changed().await.unwrap();
            let starting = gate.starting();
            assert_eq!(starting.pods.len(), 3);
            gate.enforced(starting.version);
        });
        passed.unwrap();
        gate.forget("held");
        assert_eq!(gate.starting().pods.len(), 2);
        gate.open();
        gate.pass(&request("open"), &[]).await.unwrap();
    }
}
