//! Repositories behind git's own program for web servers.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Child;

use anyhow::Result;

/// A server's process; ends with the test.
pub struct Served(pub Child);

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Makes `folder` ready for a web server in its `web`: what is in `folder/repositories` is there below `/cgi-bin/git`.
pub fn publish(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder.join("web/cgi-bin"))?;
    fs::create_dir_all(folder.join("repositories"))?;
    let script = format!(
        "#!/bin/sh\nGIT_PROJECT_ROOT={} GIT_HTTP_EXPORT_ALL=1 exec \"$(git --exec-path)/git-http-backend\"\n",
        folder.join("repositories").display()
    );
    let path = folder.join("web/cgi-bin/git");
    fs::write(&path, script)?;
    Ok(fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?)
}
