//! Following a shim: its containers' states come as they change, and its own end.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Child;
use std::sync::Arc;

use dhow_oci::protocol::{Reply, Request};
use dhow_oci::spec::{State, Status};
use dhow_oci::wire;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::record::Sandbox;
use super::{Inner, blocking, logs, record};
use crate::Error;
use crate::runtime::{RuntimeEventKind, SandboxState};

/// Begins to follow; on return the records are as the shim has them. `child` is the shim if we started it.
pub async fn follow(inner: &Arc<Inner>, sandbox: &Sandbox, child: Option<Child>) -> Result<(), Error> {
    let shim = sandbox.shim.clone();
    let (connection, states) = blocking(move || {
        // Subscribed before asking, so that no change falls between.
        let connection = shim.begin(&Request::Watch, &[])?.connection;
        match shim.ask(&Request::States)? {
            Reply::States(states) => Ok((connection, states)),
            other => Err(Error::internal("ask for states", format!("unexpected answer {other:?}"))),
        }
    })
    .await?;
    let id = sandbox.meta.id.clone();
    for state in states {
        note(inner, &id, state);
    }
    let inner = Arc::clone(inner);
    let connection = nonblocking(connection)?;
    tokio::spawn(async move {
        while let Ok(Some((reply, _))) = receive::<Reply>(&connection).await {
            match reply {
                Reply::State(state) => note(&inner, &id, *state),
                Reply::Rotated { path } => drop(tokio::task::spawn_blocking(move || logs::compress(&path))),
                _ => break,
            }
        }
        gone(&inner, &id);
        if let Some(mut child) = child {
            let _ = tokio::task::spawn_blocking(move || child.wait()).await;
        }
    });
    Ok(())
}

/// For use with [`receive`].
pub fn nonblocking(connection: OwnedFd) -> Result<AsyncFd<OwnedFd>, Error> {
    rustix::io::ioctl_fionbio(&connection, true).map_err(|error| Error::internal("prepare a connection", error))?;
    // Deprecated for types that close their file early, which an `OwnedFd` does not.
    #[allow(deprecated)]
    AsyncFd::with_interest(connection, Interest::READABLE).map_err(|error| Error::internal("watch a connection", error))
}

/// The next packet on a connection.
pub async fn receive<T: serde::de::DeserializeOwned>(
    connection: &AsyncFd<OwnedFd>,
) -> Result<Option<(T, Vec<OwnedFd>)>, Error> {
    loop {
        let mut guard = connection.readable().await.map_err(|error| Error::internal("wait for the shim", error))?;
        let received = guard.try_io(|fd| match wire::receive(fd.as_fd()) {
            Err(dhow_oci::Error::System { source: rustix::io::Errno::AGAIN, .. }) => {
                Err(io::ErrorKind::WouldBlock.into())
            }
            other => Ok(other),
        });
        match received {
            Ok(Ok(result)) => return Ok(result?),
            Ok(Err(error)) => return Err(Error::internal("hear the shim", error)),
            Err(_would_block) => {}
        }
    }
}

/// Takes over a container's state and tells about it.
fn note(inner: &Inner, sandbox: &str, state: State) {
    let kind = match state.status {
        Status::Created => None,
        Status::Running => Some(RuntimeEventKind::Started),
        Status::Stopped => Some(RuntimeEventKind::Exited),
    };
    let id = state.id.clone();
    {
        let mut containers = inner.containers.lock();
        let Some(container) = containers.get_mut(&id) else { return };
        if container.state == state {
            return;
        }
        container.state = state;
    }
    if let (Some(kind), Ok(sandbox)) = (kind, inner.sandbox(sandbox)) {
        inner.announce(&sandbox, &id, kind);
    }
}

/// Writes down that a sandbox's shim has ended, and its containers with it.
pub fn gone(inner: &Inner, id: &str) {
    let sandbox = {
        let mut sandboxes = inner.sandboxes.lock();
        let Some(sandbox) = sandboxes.get_mut(id) else { return };
        sandbox.state = SandboxState::NotReady;
        sandbox.clone()
    };
    let mut ended = Vec::new();
    {
        let mut containers = inner.containers.lock();
        for container in
            containers.values_mut().filter(|c| c.meta.sandbox_id == id && c.state.status != Status::Stopped)
        {
            let dir = inner.config.container_dir(id, &container.meta.id);
            // The shim wrote the end down if it saw it.
            if let Some(state) = record::read::<State>(&dir.join("state.json")) {
                container.state = state;
            }
            container.lost();
            // Nothing of it may go on without a shim.
            let cgroup = dhow_oci::cgroup::Cgroup::new(&container.meta.cgroup);
            cgroup.kill();
            if let Err(error) = record::write(&dir.join("state.json"), &container.state) {
                tracing::warn!(container = container.meta.id, %error, "cannot record a container's end");
            }
            ended.push(container.meta.id.clone());
        }
    }
    for container in &ended {
        inner.announce(&sandbox, container, RuntimeEventKind::Exited);
    }
    inner.announce(&sandbox, "", RuntimeEventKind::Exited);
}
