//! A container's environment, and `$(VAR)` in its command line.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, Service};

use crate::objects::Objects;
use crate::resources::List;
use crate::{Error, containers};

/// Expands `$(NAME)`; `$$` is a dollar, and unknown names stay as written.
pub fn expand(text: &str, vars: &BTreeMap<String, String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|r| r.split_once(')')) {
            match vars.get(name) {
                Some(value) => out.push_str(value),
                None => out.push_str(&format!("$({name})")),
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out + rest
}

/// The value of a downward-API field path; `None` for paths that are not supported.
pub fn field(pod: &Pod, path: &str) -> Option<String> {
    let meta = &pod.metadata;
    let spec = pod.spec.as_ref()?;
    let status = pod.status.as_ref();
    let map = |map: &Option<BTreeMap<String, String>>| {
        map.iter().flatten().map(|(k, v)| format!("{k}={v:?}")).collect::<Vec<_>>().join("\n")
    };
    let keyed = |prefix: &str| path.strip_prefix(prefix).and_then(|p| p.strip_suffix("']"));
    if let Some(key) = keyed("metadata.labels['") {
        return Some(meta.labels.as_ref().and_then(|m| m.get(key)).cloned().unwrap_or_default());
    }
    if let Some(key) = keyed("metadata.annotations['") {
        return Some(meta.annotations.as_ref().and_then(|m| m.get(key)).cloned().unwrap_or_default());
    }
    Some(match path {
        "metadata.name" => meta.name.clone().unwrap_or_default(),
        "metadata.namespace" => meta.namespace.clone().unwrap_or_default(),
        "metadata.uid" => meta.uid.clone().unwrap_or_default(),
        "metadata.labels" => map(&meta.labels),
        "metadata.annotations" => map(&meta.annotations),
        "spec.nodeName" => spec.node_name.clone().unwrap_or_default(),
        "spec.serviceAccountName" => spec.service_account_name.clone().unwrap_or_default(),
        "status.hostIP" => status.and_then(|s| s.host_ip.clone()).unwrap_or_default(),
        "status.hostIPs" => {
            let ips = status.and_then(|s| s.host_ips.as_ref()).into_iter().flatten();
            ips.map(|ip| ip.ip.as_str()).collect::<Vec<_>>().join(",")
        }
        "status.podIP" => status.and_then(|s| s.pod_ip.clone()).unwrap_or_default(),
        "status.podIPs" => {
            let ips = status.and_then(|s| s.pod_ips.as_ref()).into_iter().flatten();
            ips.map(|ip| ip.ip.as_str()).collect::<Vec<_>>().join(",")
        }
        _ => return None,
    })
}

fn service_vars(services: &[std::sync::Arc<Service>], pod: &Pod, out: &mut BTreeMap<String, String>) {
    let links = pod.spec.as_ref().and_then(|s| s.enable_service_links).unwrap_or(true);
    let namespace = pod.metadata.namespace.as_deref();
    for service in services {
        let meta = &service.metadata;
        let name = meta.name.as_deref().unwrap_or_default();
        let master = meta.namespace.as_deref() == Some("default") && name == "kubernetes";
        if !(master || (links && meta.namespace.as_deref() == namespace)) {
            continue;
        }
        let Some(spec) = &service.spec else { continue };
        let Some(ip) = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "None") else { continue };
        let base = name.to_uppercase().replace('-', "_");
        out.insert(format!("{base}_SERVICE_HOST"), ip.into());
        for (index, port) in spec.ports.iter().flatten().enumerate() {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let url = format!("{}://{ip}:{}", protocol.to_lowercase(), port.port);
            if index == 0 {
                out.insert(format!("{base}_SERVICE_PORT"), port.port.to_string());
                out.insert(format!("{base}_PORT"), url.clone());
            }
            if let Some(name) = &port.name {
                let suffix = name.to_uppercase().replace('-', "_");
                out.insert(format!("{base}_SERVICE_PORT_{suffix}"), port.port.to_string());
            }
            let prefix = format!("{base}_PORT_{}_{protocol}", port.port);
            out.insert(format!("{prefix}_ADDR"), ip.into());
            out.insert(format!("{prefix}_PORT"), port.port.to_string());
            out.insert(format!("{prefix}_PROTO"), protocol.to_lowercase());
            out.insert(prefix, url);
        }
    }
}

/// Everything the container sees, by name.
pub async fn build(
    objects: &Objects,
    services: &[std::sync::Arc<Service>],
    pod: &Pod,
    container: &Container,
    allocatable: &List,
) -> Result<BTreeMap<String, String>, Error> {
    let ns = pod.metadata.namespace.as_deref().unwrap_or_default();
    let mut vars = BTreeMap::new();
    service_vars(services, pod, &mut vars);
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        if let Some(source) = &from.config_map_ref
            && let Some(found) = objects.config_map(ns, &source.name, source.optional == Some(true)).await?
        {
            vars.extend(found.data.iter().flatten().map(|(k, v)| (format!("{prefix}{k}"), v.clone())));
        }
        if let Some(source) = &from.secret_ref
            && let Some(found) = objects.secret(ns, &source.name, source.optional == Some(true)).await?
        {
            let text = |v: &[u8]| String::from_utf8_lossy(v).into_owned();
            vars.extend(found.data.iter().flatten().map(|(k, v)| (format!("{prefix}{k}"), text(&v.0))));
        }
    }
    for env in container.env.iter().flatten() {
        let Some(from) = &env.value_from else {
            let value = expand(env.value.as_deref().unwrap_or_default(), &vars);
            vars.insert(env.name.clone(), value);
            continue;
        };
        let value = if let Some(source) = &from.field_ref {
            let value = field(pod, &source.field_path);
            Some(value.ok_or_else(|| Error::config(format!("unsupported fieldPath: {}", source.field_path)))?)
        } else if let Some(source) = &from.resource_field_ref {
            Some(resource(
                pod,
                container,
                &source.resource,
                source.container_name.as_deref(),
                source.divisor.as_ref().map(|d| d.0.as_str()),
                allocatable,
            )?)
        } else if let Some(source) = &from.config_map_key_ref {
            let optional = source.optional == Some(true);
            let found = objects.config_map(ns, &source.name, optional).await?;
            let value = found.and_then(|m| m.data.as_ref()?.get(&source.key).cloned());
            missing(value, optional, &source.key, "ConfigMap", ns, &source.name)?
        } else if let Some(source) = &from.secret_key_ref {
            let optional = source.optional == Some(true);
            let found = objects.secret(ns, &source.name, optional).await?;
            let value = found.and_then(|m| m.data.as_ref()?.get(&source.key).cloned());
            let value = value.map(|v| String::from_utf8_lossy(&v.0).into_owned());
            missing(value, optional, &source.key, "Secret", ns, &source.name)?
        } else {
            return Err(Error::config(format!("environment variable {} has an unsupported source", env.name)));
        };
        if let Some(value) = value {
            vars.insert(env.name.clone(), value);
        }
    }
    Ok(vars)
}

fn missing(
    value: Option<String>,
    optional: bool,
    key: &str,
    kind: &str,
    ns: &str,
    name: &str,
) -> Result<Option<String>, Error> {
    if value.is_none() && !optional {
        return Err(Error::config(format!("couldn't find key {key} in {kind} {ns}/{name}")));
    }
    Ok(value)
}

/// `limits.cpu` and the like, divided and rounded up as the API asks. A limit that is not set is what the node has.
pub fn resource(
    pod: &Pod,
    container: &Container,
    path: &str,
    other: Option<&str>,
    divisor: Option<&str>,
    allocatable: &List,
) -> Result<String, Error> {
    let other = other.filter(|name| !name.is_empty()).and_then(|name| containers::find(pod.spec.as_ref()?, name));
    let target = other.as_deref().unwrap_or(container);
    let resources = target.resources.as_ref();
    let of = |list: Option<&List>, name: &str| crate::resources::amount(list, name);
    let value = match path.split_once('.') {
        Some(("limits", name)) => {
            of(resources.and_then(|r| r.limits.as_ref()), name).or_else(|| of(Some(allocatable), name))
        }
        Some(("requests", name)) => crate::resources::request(target, name),
        _ => return Err(Error::config(format!("unsupported container resource : {path}"))),
    };
    let divisor = divisor.and_then(crate::resources::milli).filter(|d| *d > 0).unwrap_or(1000);
    Ok(((value.unwrap_or(0) + divisor - 1) / divisor).to_string())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn resources_are_divided_and_rounded_up() {
        let container: Container = serde_json::from_value(serde_json::json!({"name": "a",
            "resources": {"limits": {"memory": "100Mi"}, "requests": {"cpu": "250m"}}}))
        .unwrap();
        let node: List = serde_json::from_value(serde_json::json!({"cpu": "4"})).unwrap();
        let of = |path, divisor| resource(&Pod::default(), &container, path, None, divisor, &node).unwrap();
        assert_eq!((of("requests.cpu", None), of("requests.cpu", Some("1m"))), ("1".into(), "250".into()));
        assert_eq!((of("limits.memory", Some("1Mi")), of("limits.cpu", None)), ("100".into(), "4".into()));
        assert!(resource(&Pod::default(), &container, "cpu", None, None, &node).is_err());
    }

    #[test]
    fn references_expand_once_and_unknown_ones_stay() {
        let vars = BTreeMap::from([("A".to_owned(), "1".to_owned())]);
        assert_eq!(expand("$(A) $$(A) $(B) $x $", &vars), "1 $(A) $(B) $x $");
    }
}
