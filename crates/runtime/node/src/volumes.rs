//! A pod's volumes: made before its containers, refreshed while it runs, removed after it.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use base64::Engine;
use dhow_client::Client;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, Secret, ServiceAccount, Volume};

use crate::Error;

/// File path below the volume → contents and mode.
type Payload = BTreeMap<String, (Vec<u8>, u32)>;

fn bad(message: impl Into<String>) -> Error {
    Error::Spec { reason: "ContainerCreating", message: message.into() }
}

/// Whether a relative path stays below where it starts.
pub fn is_inside(path: &str) -> bool {
    Path::new(path).components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir))
}

/// Makes or refreshes every volume; returns the host path of each by name.
pub async fn prepare(client: &Client, pod: &Pod, dir: &Path) -> Result<BTreeMap<String, PathBuf>, Error> {
    let mut paths = BTreeMap::new();
    for volume in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
        if !is_inside(&volume.name) {
            return Err(bad(format!("volume name {:?} is not valid", volume.name)));
        }
        let target = dir.join(&volume.name);
        let path = one(client, pod, volume, target).await?;
        paths.insert(volume.name.clone(), path);
    }
    Ok(paths)
}

async fn one(client: &Client, pod: &Pod, volume: &Volume, target: PathBuf) -> Result<PathBuf, Error> {
    if let Some(host) = &volume.host_path {
        return host_path(&host.path, host.type_.as_deref().unwrap_or_default());
    }
    let group = pod.spec.as_ref().and_then(|s| s.security_context.as_ref()).and_then(|s| s.fs_group);
    if let Some(empty) = &volume.empty_dir {
        if !target.exists() {
            make_dir(&target, 0o777, group)?;
            if empty.medium.as_deref() == Some("Memory") {
                let size = empty.size_limit.as_ref().and_then(|q| crate::resources::milli(&q.0)).map(|m| m / 1000);
                mount_tmpfs(&target, size)?;
            }
        }
        return Ok(target);
    }
    let payload = payload(client, pod, volume, &target)
        .await?
        .ok_or_else(|| bad(format!("volume {:?} is of a type this node does not support", volume.name)))?;
    if !target.exists() {
        make_dir(&target, 0o755, None)?;
        if volume.secret.is_some() || volume.projected.is_some() {
            mount_tmpfs(&target, None)?;
        }
    }
    write_atomically(&target, &payload, group)?;
    Ok(target)
}

fn make_dir(path: &Path, mode: u32, group: Option<i64>) -> Result<(), Error> {
    let failed = || format!("create volume directory {}", path.display());
    std::fs::create_dir_all(path).map_err(Error::io(failed()))?;
    let mode = if group.is_some() { mode | 0o2000 } else { mode };
    std::os::unix::fs::chown(path, None, group.and_then(|g| u32::try_from(g).ok())).map_err(Error::io(failed()))?;
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).map_err(Error::io(failed()))
}

fn mount_tmpfs(path: &Path, size: Option<i128>) -> Result<(), Error> {
    let options = size.map_or_else(|| "mode=0777".to_owned(), |size| format!("mode=0777,size={size}"));
    let options = std::ffi::CString::new(options).map_err(|e| bad(e.to_string()))?;
    rustix::mount::mount("tmpfs", path, "tmpfs", rustix::mount::MountFlags::empty(), Some(options.as_c_str()))
        .map_err(|errno| Error::io(format!("mount tmpfs on {}", path.display()))(errno.into()))
}

fn host_path(path: &str, type_: &str) -> Result<PathBuf, Error> {
    use std::os::unix::fs::FileTypeExt;
    let target = PathBuf::from(path);
    match type_ {
        "DirectoryOrCreate" => std::fs::create_dir_all(&target).map_err(Error::io(format!("create {path}")))?,
        "FileOrCreate" => {
            std::fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(&target)
                .map_err(Error::io(format!("create {path}")))?;
        }
        _ => {}
    }
    let kind = std::fs::metadata(&target).map(|m| m.file_type());
    let fits = match (&kind, type_) {
        (_, "") => true,
        (Ok(k), "Directory" | "DirectoryOrCreate") => k.is_dir(),
        (Ok(k), "File" | "FileOrCreate") => k.is_file(),
        (Ok(k), "Socket") => k.is_socket(),
        (Ok(k), "CharDevice") => k.is_char_device(),
        (Ok(k), "BlockDevice") => k.is_block_device(),
        _ => false,
    };
    if !fits {
        return Err(bad(format!("hostPath type check failed: {path} is not a {type_}")));
    }
    Ok(target)
}

fn pick(
    data: BTreeMap<String, Vec<u8>>,
    items: Option<&Vec<KeyToPath>>,
    mode: u32,
    optional: bool,
    out: &mut Payload,
) -> Result<(), Error> {
    let Some(items) = items else {
        out.extend(data.into_iter().map(|(k, v)| (k, (v, mode))));
        return Ok(());
    };
    for item in items {
        match data.get(&item.key) {
            Some(value) => {
                let mode = item.mode.map_or(mode, |m| m.unsigned_abs());
                out.insert(item.path.clone(), (value.clone(), mode));
            }
            None if optional => {}
            None => return Err(bad(format!("references non-existent config key: {}", item.key))),
        }
    }
    Ok(())
}

async fn config_map(client: &Client, ns: &str, name: &str, optional: bool) -> Result<BTreeMap<String, Vec<u8>>, Error> {
    match client.get::<ConfigMap>(Some(ns), name).await {
        Ok(found) => {
            let text = found.data.into_iter().flatten().map(|(k, v)| (k, v.into_bytes()));
            Ok(text.chain(found.binary_data.into_iter().flatten().map(|(k, v)| (k, v.0))).collect())
        }
        Err(error) if error.is_not_found() && optional => Ok(BTreeMap::new()),
        Err(error) => Err(Error::client("get config map")(error)),
    }
}

async fn secret(client: &Client, ns: &str, name: &str, optional: bool) -> Result<BTreeMap<String, Vec<u8>>, Error> {
    match client.get::<Secret>(Some(ns), name).await {
        Ok(found) => Ok(found.data.into_iter().flatten().map(|(k, v)| (k, v.0)).collect()),
        Err(error) if error.is_not_found() && optional => Ok(BTreeMap::new()),
        Err(error) => Err(Error::client("get secret")(error)),
    }
}

fn downward(pod: &Pod, files: &[DownwardAPIVolumeFile], mode: u32, out: &mut Payload) -> Result<(), Error> {
    for file in files {
        let value = if let Some(source) = &file.field_ref {
            crate::env::field(pod, &source.field_path)
        } else if let Some(source) = &file.resource_field_ref {
            let spec = pod.spec.as_ref();
            let owner =
                spec.and_then(|s| s.containers.iter().find(|c| Some(&c.name) == source.container_name.as_ref()));
            let divisor = source.divisor.as_ref().map(|d| d.0.as_str());
            owner.map(|c| crate::env::resource(pod, c, &source.resource, None, divisor)).transpose()?
        } else {
            None
        };
        let value = value.ok_or_else(|| bad(format!("downward API file {:?} has an unsupported source", file.path)))?;
        out.insert(file.path.clone(), (value.into_bytes(), file.mode.map_or(mode, |m| m.unsigned_abs())));
    }
    Ok(())
}

async fn payload(client: &Client, pod: &Pod, volume: &Volume, target: &Path) -> Result<Option<Payload>, Error> {
    let ns = pod.metadata.namespace.as_deref().unwrap_or_default();
    let mode = |m: Option<i32>| m.map_or(0o644, i32::unsigned_abs);
    let mut out = Payload::new();
    if let Some(source) = &volume.config_map {
        let optional = source.optional == Some(true);
        let data = config_map(client, ns, &source.name, optional).await?;
        pick(data, source.items.as_ref(), mode(source.default_mode), optional, &mut out)?;
    } else if let Some(source) = &volume.secret {
        let optional = source.optional == Some(true);
        let data = secret(client, ns, source.secret_name.as_deref().unwrap_or_default(), optional).await?;
        pick(data, source.items.as_ref(), mode(source.default_mode), optional, &mut out)?;
    } else if let Some(source) = &volume.downward_api {
        downward(pod, source.items.as_deref().unwrap_or_default(), mode(source.default_mode), &mut out)?;
    } else if let Some(projected) = &volume.projected {
        let mode = mode(projected.default_mode);
        for source in projected.sources.iter().flatten() {
            if let Some(source) = &source.config_map {
                let optional = source.optional == Some(true);
                let data = config_map(client, ns, &source.name, optional).await?;
                pick(data, source.items.as_ref(), mode, optional, &mut out)?;
            } else if let Some(source) = &source.secret {
                let optional = source.optional == Some(true);
                let data = secret(client, ns, &source.name, optional).await?;
                pick(data, source.items.as_ref(), mode, optional, &mut out)?;
            } else if let Some(source) = &source.downward_api {
                downward(pod, source.items.as_deref().unwrap_or_default(), mode, &mut out)?;
            } else if let Some(source) = &source.service_account_token {
                let now = jiff::Timestamp::now().as_second();
                let token = match kept_token(&target.join("..data"), &source.path, now) {
                    Some(token) => token,
                    None => token(client, pod, source.audience.clone(), source.expiration_seconds).await?,
                };
                out.insert(source.path.clone(), (token.into_bytes(), mode));
            } else {
                return Err(bad(format!("volume {:?} projects a source this node does not support", volume.name)));
            }
        }
    } else {
        return Ok(None);
    }
    Ok(Some(out))
}

#[derive(serde::Deserialize)]
struct Lifetime {
    iat: i64,
    exp: i64,
}

/// The token already in the volume, while less than 80% of its life, and less than a day, has passed.
fn kept_token(data: &Path, path: &str, now: i64) -> Option<String> {
    if !is_inside(path) {
        return None;
    }
    let token = std::fs::read_to_string(data.join(path)).ok()?;
    let claims = base64::prelude::BASE64_URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let Lifetime { iat, exp } = serde_json::from_slice(&claims).ok()?;
    let until = iat + ((exp - iat) / 5 * 4).min(86_400);
    (now < until).then_some(token)
}

async fn token(client: &Client, pod: &Pod, audience: Option<String>, seconds: Option<i64>) -> Result<String, Error> {
    let account = pod.spec.as_ref().and_then(|s| s.service_account_name.as_deref()).unwrap_or("default");
    let request = TokenRequest {
        spec: TokenRequestSpec {
            audiences: audience.into_iter().collect(),
            expiration_seconds: Some(seconds.unwrap_or(3600)),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Pod".into()),
                name: pod.metadata.name.clone(),
                uid: pod.metadata.uid.clone(),
            }),
        },
        ..Default::default()
    };
    let ns = pod.metadata.namespace.as_deref();
    let answer: TokenRequest = client
        .create_subresource::<ServiceAccount, _, _>(ns, account, "token", &request)
        .await
        .map_err(Error::client("request service account token"))?;
    Ok(answer.status.map(|s| s.token).unwrap_or_default())
}

/// Replaces all files at once: a fresh directory, then one rename of the `..data` link.
fn write_atomically(target: &Path, payload: &Payload, group: Option<i64>) -> Result<(), Error> {
    let failed = |what: &str| Error::io(format!("{what} volume {}", target.display()));
    if let Some(name) = payload.keys().find(|p| !is_inside(p) || p.starts_with("..")) {
        return Err(bad(format!("file path {name:?} leaves the volume")));
    }
    let link = target.join("..data");
    let old = std::fs::read_link(&link).ok();
    if old.is_some() && payload.iter().all(|(p, (v, _))| std::fs::read(link.join(p)).is_ok_and(|have| have == *v)) {
        return Ok(());
    }
    let stamp = jiff::Timestamp::now().as_nanosecond();
    let fresh = format!("..{stamp}");
    std::fs::create_dir(target.join(&fresh)).map_err(failed("write"))?;
    for (path, (value, mode)) in payload {
        let file = target.join(&fresh).join(path);
        if let Some(parent) = file.parent() {
            std::fs::create_dir_all(parent).map_err(failed("write"))?;
        }
        std::fs::write(&file, value).map_err(failed("write"))?;
        let group = group.and_then(|g| u32::try_from(g).ok());
        std::os::unix::fs::chown(&file, None, group).map_err(failed("own"))?;
        let mode = if group.is_some() { mode | 0o440 } else { *mode };
        std::fs::set_permissions(&file, PermissionsExt::from_mode(mode)).map_err(failed("write"))?;
    }
    let next = target.join("..data_tmp");
    let _ = std::fs::remove_file(&next);
    std::os::unix::fs::symlink(&fresh, &next).map_err(failed("link"))?;
    std::fs::rename(&next, &link).map_err(failed("link"))?;
    let tops: std::collections::BTreeSet<&str> = payload.keys().filter_map(|p| p.split('/').next()).collect();
    for entry in std::fs::read_dir(target).map_err(failed("read"))?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with("..") && !tops.contains(name.as_str()) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
    for top in tops {
        let user = target.join(top);
        if std::fs::symlink_metadata(&user).is_err() {
            std::os::unix::fs::symlink(Path::new("..data").join(top), user).map_err(failed("link"))?;
        }
    }
    if let Some(old) = old {
        let _ = std::fs::remove_dir_all(target.join(old));
    }
    Ok(())
}

/// Unmounts and removes a pod's directory.
pub fn remove(pod_dir: &Path) -> Result<(), Error> {
    for entry in std::fs::read_dir(pod_dir.join("volumes")).into_iter().flatten().flatten() {
        let _ = rustix::mount::unmount(entry.path(), rustix::mount::UnmountFlags::DETACH);
    }
    match std::fs::remove_dir_all(pod_dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io(format!("remove {}", pod_dir.display()))(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_kept_for_four_fifths_of_its_life() {
        let dir = tempfile::tempdir().unwrap();
        let claims = base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(r#"{"iat":1000,"exp":2000}"#);
        let token = format!("e30.{claims}.sig");
        std::fs::write(dir.path().join("token"), &token).unwrap();
        assert_eq!(kept_token(dir.path(), "token", 1799), Some(token));
        assert_eq!(kept_token(dir.path(), "token", 1800), None);
        assert_eq!(kept_token(dir.path(), "absent", 1000), None);
    }

    #[test]
    fn files_are_replaced_together_and_dropped_ones_disappear() {
        let dir = std::env::temp_dir().join(format!("dhow-volume-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let file = |text: &str| (text.as_bytes().to_vec(), 0o644);
        let first = Payload::from([("a".into(), file("1")), ("d/b".into(), file("2"))]);
        write_atomically(&dir, &first, None).unwrap();
        assert_eq!(std::fs::read_to_string(dir.join("d/b")).unwrap(), "2");
        write_atomically(&dir, &Payload::from([("a".into(), file("3"))]), None).unwrap();
        assert_eq!(std::fs::read_to_string(dir.join("a")).unwrap(), "3");
        assert!(std::fs::symlink_metadata(dir.join("d")).is_err());
        let out = write_atomically(&dir, &Payload::from([("../x".into(), file(""))]), None);
        assert!(out.is_err());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
