//! Processors, memory and devices, from `deploy.resources` and the older keys.

use serde_json::{Map, Value, json};

use super::project::Service;
use super::put;
use crate::error::Result;
use crate::units;
use crate::view::View;

/// What a share of the processor is of a whole one.
const SHARES: f64 = 1024.0;

pub fn translate(service: &Service<'_>, container: &mut Map<String, Value>) -> Result<()> {
    let (mut limits, mut requests) = (Map::new(), Map::new());
    older(service, &mut limits, &mut requests)?;
    if let Some(resources) = service.deploy("resources") {
        for (key, map) in [("limits", &mut limits), ("reservations", &mut requests)] {
            let Some(part) = resources.get(key) else { continue };
            if let Some(view) = part.get("cpus") {
                map.insert("cpu".into(), json!(cpus(&view, view.float()?)?));
            }
            if let Some(view) = part.get("memory") {
                map.insert("memory".into(), json!(units::memory(view.bytes()?)));
            }
            if let Some(view) = part.get("pids") {
                view.warn("the number of processes is limited for all pods of a node, by its configuration");
            }
        }
        if let Some(reservations) = resources.get("reservations") {
            if let Some(devices) = reservations.get("devices") {
                devices.items().try_for_each(|device| accelerator(&device, &mut limits))?;
            }
            for item in reservations.get("generic_resources").iter().flat_map(View::items) {
                generic(&item, &mut limits)?;
            }
        }
    }
    if let Some(gpus) = service.get("gpus") {
        if gpus.is_list() {
            gpus.items().try_for_each(|device| accelerator(&device, &mut limits))?;
        } else {
            limits.insert("nvidia.com/gpu".into(), json!("1"));
            gpus.warn("Kubernetes counts devices: one is asked for; name `count` for more");
        }
    }
    // More than the limit cannot be asked for.
    for (name, limit) in &limits {
        let Some(request) = requests.get(name) else { continue };
        let quantity = |value: &Value| value.as_str()?.parse::<dhow_api::quantity::Quantity>().ok();
        if let (Some(asked), Some(limit_value)) = (quantity(request), quantity(limit))
            && asked > limit_value
        {
            return Err(service.view.invalid(format!("reserves more {name} ({request}) than its limit ({limit})")));
        }
    }
    let mut resources = Map::new();
    put(&mut resources, "limits", Value::Object(limits));
    put(&mut resources, "requests", Value::Object(requests));
    put(container, "resources", Value::Object(resources));
    Ok(())
}

fn cpus(view: &View<'_>, count: f64) -> Result<String> {
    units::cpus(count).ok_or_else(|| view.invalid("is no number of processors"))
}

/// The keys beside `deploy`, which win where both are given less than they do there: they are read first.
fn older(service: &Service<'_>, limits: &mut Map<String, Value>, requests: &mut Map<String, Value>) -> Result<()> {
    for (key, map) in [("mem_limit", &mut *limits), ("mem_reservation", &mut *requests)] {
        if let Some(view) = service.get(key)
            && view.bytes()? > 0
        {
            map.insert("memory".into(), json!(units::memory(view.bytes()?)));
        }
    }
    if let Some(view) = service.get("cpu_count") {
        limits.insert("cpu".into(), json!(cpus(&view, view.float()?)?));
    }
    match (service.get("cpu_quota"), service.get("cpu_period")) {
        (Some(quota), period) => {
            let period = period.map(|view| view.float()).transpose()?.filter(|value| *value > 0.0).unwrap_or(100_000.0);
            if quota.float()? > 0.0 {
                limits.insert("cpu".into(), json!(cpus(&quota, quota.float()? / period)?));
            }
        }
        (None, Some(period)) => period.warn("counts only together with `cpu_quota`"),
        (None, None) => {}
    }
    if let Some(view) = service.get("cpus")
        && view.float()? > 0.0
    {
        limits.insert("cpu".into(), json!(cpus(&view, view.float()?)?));
    }
    if let Some(view) = service.get("cpu_shares") {
        requests.insert("cpu".into(), json!(cpus(&view, view.float()? / SHARES)?));
    }
    Ok(())
}

fn accelerator(device: &View<'_>, limits: &mut Map<String, Value>) -> Result<()> {
    let driver = device.get("driver").map(|view| view.text()).transpose()?;
    let capabilities = device.get("capabilities").map(|view| view.strings()).transpose()?.unwrap_or_default();
    let name = match driver {
        Some("nvidia") => "nvidia.com/gpu".to_owned(),
        Some("amd" | "amdgpu" | "amd.com") => "amd.com/gpu".to_owned(),
        Some("intel" | "intel.com") => "gpu.intel.com/i915".to_owned(),
        Some(resource) if resource.contains('/') => resource.to_owned(),
        Some(other) => {
            device.warn(format!("no resource of the cluster is known for the driver {other:?}: write its name as the driver, such as example.com/device"));
            return Ok(());
        }
        None if capabilities
            .iter()
            .any(|(name, _)| matches!(name.as_str(), "gpu" | "nvidia" | "compute" | "utility")) =>
        {
            "nvidia.com/gpu".to_owned()
        }
        None => {
            device.warn("names neither a driver nor a capability that stands for a resource of the cluster");
            return Ok(());
        }
    };
    for (capability, at) in &capabilities {
        if !matches!(capability.as_str(), "gpu" | "nvidia") {
            at.warn("what of the device is used is left to its plugin");
        }
    }
    let ids = device.get("device_ids").map(|view| view.strings().map(|ids| (view, ids.len()))).transpose()?;
    let count = match (device.get("count"), &ids) {
        (Some(count), _) => match count.text()? {
            "all" | "-1" => {
                count.warn("Kubernetes counts devices: one is asked for");
                1
            }
            _ => count.int()?,
        },
        (None, Some((_, ids))) => i64::try_from(*ids).unwrap_or(1),
        (None, None) => 1,
    };
    if let Some((view, _)) = ids {
        view.warn("which devices are given is left to their plugin; so many are asked for");
    }
    if let Some(view) = device.get("options") {
        view.warn("a device takes options by a resource claim only");
    }
    limits.insert(name, json!(count.to_string()));
    Ok(())
}

fn generic(item: &View<'_>, limits: &mut Map<String, Value>) -> Result<()> {
    let Some(spec) = item.get("discrete_resource_spec") else { return Ok(()) };
    let (Some(kind), Some(value)) = (spec.get("kind"), spec.get("value")) else {
        return Err(spec.invalid("needs `kind` and `value`"));
    };
    if kind.text()?.contains('/') {
        limits.insert(kind.text()?.to_owned(), json!(value.int()?.to_string()));
    } else {
        spec.warn("resources of a cluster have names such as example.com/gpu: left out");
    }
    Ok(())
}
