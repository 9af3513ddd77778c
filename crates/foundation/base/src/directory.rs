//! Hearing of changes in a directory from the kernel.

use std::path::Path;

use rustix::fs::inotify;
use tokio::net::unix::pipe;

/// Wakes when something changes in a directory. Registering a bare descriptor with tokio is unsafe, so the inotify
/// descriptor, read like a pipe, is handed over as one.
pub struct DirectoryWatch(pipe::Receiver);

impl DirectoryWatch {
    /// # Errors
    /// Where the directory is not, or the kernel has no watch left.
    pub fn new(path: &Path) -> std::io::Result<Self> {
        use inotify::WatchFlags as On;
        let fd = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
        let flags = On::MODIFY | On::CREATE | On::DELETE | On::MOVED_TO | On::MOVED_FROM;
        inotify::add_watch(&fd, path, flags)?;
        Ok(Self(pipe::Receiver::from_owned_fd_unchecked(fd)?))
    }

    /// What changed is not looked at: the reader looks at the file.
    ///
    /// # Errors
    /// When the kernel tells no more.
    pub async fn changed(&self) -> std::io::Result<()> {
        let mut events = [0; 4096];
        loop {
            self.0.readable().await?;
            let mut seen = false;
            loop {
                match self.0.try_read(&mut events) {
                    Ok(_) => seen = true,
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                }
            }
            if seen {
                return Ok(());
            }
        }
    }
}
