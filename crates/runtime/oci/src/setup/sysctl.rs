//! Kernel settings of the namespaces a process is in.

use std::path::Path;

use crate::error::{Context, Error, Result};

/// Sets `net.ipv4.ip_forward` and its like.
pub fn set(name: &str, value: &str) -> Result<()> {
    let parts = name.replace('.', "/");
    if !parts.split('/').all(|part| !part.is_empty() && part != "..") {
        return Err(Error::Invalid(format!("invalid sysctl {name:?}")));
    }
    std::fs::write(Path::new("/proc/sys").join(parts), value).step(format!("set sysctl {name} to {value}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_below_proc_sys() {
        for name in ["", "net..x", "net/../../x", "/etc/passwd"] {
            assert!(matches!(set(name, "1"), Err(Error::Invalid(_))), "{name}");
        }
    }
}
