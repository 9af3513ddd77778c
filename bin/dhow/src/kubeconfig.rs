//! Kubeconfig files: the administrator's own, and the invoking user's with a context `dhow` merged in.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// Name of cluster, user and context alike.
pub const NAME: &str = "dhow";

/// A whole kubeconfig for one client. Keys and certificates are PEM.
pub fn with_certificate(server: &str, ca_pem: &str, cert_pem: &str, key_pem: &str) -> Value {
    let data = |pem: &str| Value::String(base64(pem.as_bytes()));
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": NAME, "cluster": {"server": server, "certificate-authority-data": data(ca_pem)}}],
        "users": [{"name": NAME, "user": {"client-certificate-data": data(cert_pem), "client-key-data": data(key_pem)}}],
        "contexts": [{"name": NAME, "context": {"cluster": NAME, "user": NAME}}],
        "current-context": NAME,
    })
}

/// Writes a kubeconfig only its owner can read, by renaming a finished file into place.
pub fn write(path: &Path, config: &Value, owner: Option<(u32, u32)>) -> Result<()> {
    let folder = path.parent().context("kubeconfig path has no folder")?;
    if !folder.exists() {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        if let Some((uid, gid)) = owner {
            chown(folder, Some(uid), Some(gid)).with_context(|| format!("give {} to its user", folder.display()))?;
        }
    }
    let temporary = path.with_extension("dhow-new");
    let text = serde_saphyr::to_string(config).context("encode kubeconfig")?;
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .with_context(|| format!("write {}", temporary.display()))?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).context("write kubeconfig")?;
    if let Some((uid, gid)) = owner {
        chown(&temporary, Some(uid), Some(gid)).context("give the kubeconfig to its user")?;
    }
    fs::rename(&temporary, path).with_context(|| format!("write {}", path.display()))
}

/// Merges context `dhow` into the invoking user's kubeconfig, makes it current, and returns the file's path.
pub fn merge_for_user(administrator: &Value) -> Result<PathBuf> {
    let user = InvokingUser::find();
    let path = user.kubeconfig();
    let mut config = read(&path)?;
    for list in ["clusters", "users", "contexts"] {
        let mut entries: Vec<Value> = named(&config, list).filter(|entry| entry["name"] != NAME).cloned().collect();
        entries.extend(named(administrator, list).cloned());
        config[list] = Value::Array(entries);
    }
    config["current-context"] = json!(NAME);
    write(&path, &config, user.owner)?;
    Ok(path)
}

/// Takes context `dhow` out of the invoking user's kubeconfig. Returns whether it was there.
pub fn forget_for_user() -> Result<bool> {
    let user = InvokingUser::find();
    let path = user.kubeconfig();
    if !path.exists() {
        return Ok(false);
    }
    let mut config = read(&path)?;
    let mut found = false;
    for list in ["clusters", "users", "contexts"] {
        let entries: Vec<Value> = named(&config, list).filter(|entry| entry["name"] != NAME).cloned().collect();
        found |= entries.len() < named(&config, list).count();
        config[list] = Value::Array(entries);
    }
    if config["current-context"] == NAME {
        config["current-context"] = json!("");
    }
    if found {
        write(&path, &config, user.owner)?;
    }
    Ok(found)
}

/// The invoking user's kubeconfig.
pub fn of_user() -> PathBuf {
    InvokingUser::find().kubeconfig()
}

fn read(path: &Path) -> Result<Value> {
    match fs::read_to_string(path) {
        Ok(text) if !text.trim().is_empty() => {
            serde_saphyr::from_str(&text).with_context(|| format!("{} is not a kubeconfig", path.display()))
        }
        Ok(_) => Ok(json!({"apiVersion": "v1", "kind": "Config"})),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(json!({"apiVersion": "v1", "kind": "Config"})),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

fn named<'a>(config: &'a Value, list: &str) -> impl Iterator<Item = &'a Value> {
    config[list].as_array().into_iter().flatten()
}

/// Whoever typed the command, also behind sudo.
struct InvokingUser {
    home: PathBuf,
    owner: Option<(u32, u32)>,
}

impl InvokingUser {
    fn find() -> Self {
        let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
        if let (Some(uid), Some(gid)) = (number("SUDO_UID"), number("SUDO_GID"))
            && let Some(home) = home_of(uid)
        {
            return Self { home, owner: Some((uid, gid)) };
        }
        Self { home: std::env::var_os("HOME").map_or_else(|| PathBuf::from("/root"), PathBuf::from), owner: None }
    }

    fn kubeconfig(&self) -> PathBuf {
        // kubectl writes to the first file of the list.
        std::env::var_os("KUBECONFIG")
            .and_then(|list| std::env::split_paths(&list).next())
            .filter(|path| !path.as_os_str().is_empty())
            .unwrap_or_else(|| self.home.join(".kube/config"))
    }
}

fn home_of(uid: u32) -> Option<PathBuf> {
    let users = fs::read_to_string("/etc/passwd").ok()?;
    users.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        (fields.get(2)?.parse::<u32>().ok()? == uid).then(|| fields.get(5).map(PathBuf::from))?
    })
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn administrator_round_trips_through_yaml() {
        let config = with_certificate("https://10.0.0.1:6443", "ca", "cert", "key");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sub/config");
        write(&path, &config, None).unwrap();
        assert_eq!(read(&path).unwrap(), config);
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
