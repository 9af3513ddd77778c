//! What is in volumes made of API objects: config maps, secrets, the pod's own fields, tokens, certificates, trust
//! bundles.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::SystemTime;

use k8s_openapi::api::core::v1::{
    DownwardAPIVolumeFile, KeyToPath, Pod, ProjectedVolumeSource, ResourceFieldSelector, Volume,
};

use super::write::{File, Payload};
use super::{bad, fs_group, pod_certificate, token, trust_bundle};
use crate::shared::Shared;
use crate::{Error, containers, env};

/// Mode of a file when it is for one user or group only.
const CLOSED: u32 = 0o600;

fn mode(mode: Option<i32>) -> u32 {
    mode.map_or(0o644, i32::unsigned_abs)
}

/// The files of a volume and when to look at them again; `None` for a volume that is not made of objects.
pub async fn of(
    shared: &Shared,
    pod: &Pod,
    volume: &Volume,
    data: &Path,
) -> Result<Option<(Payload, Option<SystemTime>)>, Error> {
    let ns = pod.metadata.namespace.as_deref().unwrap_or_default();
    let mut out = Payload::new();
    if let Some(source) = &volume.config_map {
        let data = config_map(shared, ns, &source.name, source.optional).await?;
        pick(data, source.items.as_ref(), mode(source.default_mode), source.optional, &mut out)?;
    } else if let Some(source) = &volume.secret {
        let name = source.secret_name.as_deref().unwrap_or_default();
        let data = secret(shared, ns, name, source.optional).await?;
        pick(data, source.items.as_ref(), mode(source.default_mode), source.optional, &mut out)?;
    } else if let Some(source) = &volume.downward_api {
        let items = source.items.as_deref().unwrap_or_default();
        downward(shared, pod, items, mode(source.default_mode), &mut out)?;
    } else if let Some(source) = &volume.projected {
        let refresh = projected(shared, pod, (&volume.name, source), data, &mut out).await?;
        return Ok(Some((out, refresh)));
    } else {
        return Ok(None);
    }
    Ok(Some((out, None)))
}

async fn projected(
    shared: &Shared,
    pod: &Pod,
    (volume, projected): (&str, &ProjectedVolumeSource),
    data: &Path,
    out: &mut Payload,
) -> Result<Option<SystemTime>, Error> {
    let ns = pod.metadata.namespace.as_deref().unwrap_or_default();
    let mode = mode(projected.default_mode);
    let mut refresh = None;
    for (index, source) in projected.sources.iter().flatten().enumerate() {
        if let Some(source) = &source.config_map {
            let data = config_map(shared, ns, &source.name, source.optional).await?;
            pick(data, source.items.as_ref(), mode, source.optional, out)?;
        } else if let Some(source) = &source.secret {
            let data = secret(shared, ns, &source.name, source.optional).await?;
            pick(data, source.items.as_ref(), mode, source.optional, out)?;
        } else if let Some(source) = &source.downward_api {
            downward(shared, pod, source.items.as_deref().unwrap_or_default(), mode, out)?;
        } else if let Some(source) = &source.service_account_token {
            let (text, until) = token::of(&shared.config.client, pod, source, data, (shared.now)()).await?;
            refresh = [refresh, until].into_iter().flatten().min();
            out.insert(source.path.clone(), personal(pod, text, mode));
        } else if let Some(source) = &source.cluster_trust_bundle {
            let text = trust_bundle::of(source, &shared.objects.trust_bundles().await?)?;
            out.insert(source.path.clone(), personal(pod, text, mode));
        } else if let Some(projection) = &source.pod_certificate {
            let source = pod_certificate::Source { pod, volume, index, projection, data };
            let (files, next) = pod_certificate::of(shared, &source).await?;
            refresh = [refresh, next].into_iter().flatten().min();
            out.extend(files.into_iter().map(|(path, text)| (path, personal(pod, text, mode))));
        } else {
            return Err(bad("it projects a source this node does not support"));
        }
    }
    Ok(refresh)
}

/// A file for the pod's user or group alone, if it has one.
fn personal(pod: &Pod, text: String, mode: u32) -> File {
    let owner = only_user(pod);
    let mode = if owner.is_some() || fs_group(pod).is_some() { CLOSED } else { mode };
    File { bytes: text.into_bytes(), mode, owner }
}

/// The user that all of a pod's containers run as, where its spec says so.
fn only_user(pod: &Pod) -> Option<u32> {
    let spec = pod.spec.as_ref()?;
    let usual = spec.security_context.as_ref().and_then(|s| s.run_as_user);
    let users = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let mut users = users.map(|c| c.security_context.as_ref().and_then(|s| s.run_as_user).or(usual));
    let first = users.next()??;
    users.all(|user| user == Some(first)).then(|| u32::try_from(first).ok()).flatten()
}

fn pick(
    data: BTreeMap<String, Vec<u8>>,
    items: Option<&Vec<KeyToPath>>,
    mode: u32,
    optional: Option<bool>,
    out: &mut Payload,
) -> Result<(), Error> {
    let file = |bytes, mode| File { bytes, mode, owner: None };
    let Some(items) = items else {
        out.extend(data.into_iter().map(|(k, v)| (k, file(v, mode))));
        return Ok(());
    };
    for item in items {
        match data.get(&item.key) {
            Some(value) => {
                let mode = item.mode.map_or(mode, i32::unsigned_abs);
                out.insert(item.path.clone(), file(value.clone(), mode));
            }
            None if optional == Some(true) => {}
            None => return Err(bad(format!("references non-existent config key: {}", item.key))),
        }
    }
    Ok(())
}

async fn config_map(
    shared: &Shared,
    ns: &str,
    name: &str,
    optional: Option<bool>,
) -> Result<BTreeMap<String, Vec<u8>>, Error> {
    let Some(found) = shared.objects.config_map(ns, name, optional == Some(true)).await? else {
        return Ok(BTreeMap::new());
    };
    let text = found.data.iter().flatten().map(|(k, v)| (k.clone(), v.clone().into_bytes()));
    Ok(text.chain(found.binary_data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone()))).collect())
}

async fn secret(
    shared: &Shared,
    ns: &str,
    name: &str,
    optional: Option<bool>,
) -> Result<BTreeMap<String, Vec<u8>>, Error> {
    let found = shared.objects.secret(ns, name, optional == Some(true)).await?;
    let data = found.iter().flat_map(|secret| secret.data.iter().flatten());
    Ok(data.map(|(k, v)| (k.clone(), v.0.clone())).collect())
}

fn downward(
    shared: &Shared,
    pod: &Pod,
    files: &[DownwardAPIVolumeFile],
    mode: u32,
    out: &mut Payload,
) -> Result<(), Error> {
    for file in files {
        let value = if let Some(source) = &file.field_ref {
            env::field(pod, &source.field_path)
        } else if let Some(source) = &file.resource_field_ref {
            Some(of_container(shared, pod, source)?)
        } else {
            None
        };
        let value = value.ok_or_else(|| bad(format!("downward API file {:?} has an unsupported source", file.path)))?;
        let mode = file.mode.map_or(mode, i32::unsigned_abs);
        out.insert(file.path.clone(), File { bytes: value.into_bytes(), mode, owner: None });
    }
    Ok(())
}

fn of_container(shared: &Shared, pod: &Pod, source: &ResourceFieldSelector) -> Result<String, Error> {
    let name = source.container_name.as_deref().unwrap_or_default();
    let found = pod.spec.as_ref().and_then(|spec| containers::find(spec, name));
    let found = found.ok_or_else(|| bad(format!("container {name:?} of a downward API file not found")))?;
    let divisor = source.divisor.as_ref().map(|d| d.0.as_str());
    env::resource(pod, &found, &source.resource, None, divisor, &shared.allocatable())
}
