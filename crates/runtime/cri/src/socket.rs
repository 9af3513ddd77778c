//! Unix sockets: ours, which are for root only, and who is behind others.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::{fs, io};

use tokio::net::{UnixListener, UnixStream};

use crate::Error;

/// Listens at `path`. What an earlier process left there goes.
pub fn listen(path: &Path) -> Result<UnixListener, Error> {
    let failed = |error: io::Error| Error::internal(format!("listen at {}", path.display()), error);
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}

/// The process that listens at `path`.
pub async fn peer(path: &Path) -> Option<u32> {
    let stream = UnixStream::connect(path).await.ok()?;
    u32::try_from(stream.peer_cred().ok()?.pid()?).ok()
}
