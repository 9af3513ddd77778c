//! What claims ask for: per request the ways in which it may be fulfilled, the first of which is liked best.

use k8s_openapi::api::resource::v1::{
    CapacityRequirements, Device, DeviceClass, DeviceConstraint, DeviceRequest, DeviceSelector, DeviceTaint,
    DeviceToleration, ResourceClaim,
};

use super::known::Devices;

/// Devices that one claim may have.
pub(crate) const MOST_RESULTS: usize = 32;

/// One way of fulfilling a request.
pub(crate) struct Ask<'a> {
    /// The request's name, or `request/subrequest`.
    pub name: String,
    request: &'a str,
    pub class: &'a DeviceClass,
    pub selectors: &'a [DeviceSelector],
    /// All devices there are, or as many as `count`.
    pub all: bool,
    pub count: usize,
    /// To look after devices that others may have.
    pub admin: bool,
    pub tolerations: &'a [DeviceToleration],
    pub capacity: Option<&'a CapacityRequirements>,
}

/// A claim's requests, each with its ways.
pub(crate) struct Asked<'a> {
    pub claim: &'a ResourceClaim,
    pub requests: Vec<Vec<Ask<'a>>>,
}

pub(crate) fn requests(claim: &ResourceClaim) -> &[DeviceRequest] {
    let devices = claim.spec.devices.as_ref();
    devices.and_then(|devices| devices.requests.as_deref()).unwrap_or_default()
}

pub(crate) fn constraints(claim: &ResourceClaim) -> &[DeviceConstraint] {
    let devices = claim.spec.devices.as_ref();
    devices.and_then(|devices| devices.constraints.as_deref()).unwrap_or_default()
}

/// Or what is missing, whatever the node.
pub(crate) fn asked<'a>(known: &'a Devices, claim: &'a ResourceClaim) -> Result<Asked<'a>, String> {
    let mut all = Vec::new();
    for request in requests(claim) {
        all.push(ways(known, request)?);
    }
    Ok(Asked { claim, requests: all })
}

fn ways<'a>(known: &'a Devices, request: &'a DeviceRequest) -> Result<Vec<Ask<'a>>, String> {
    let name = request.name.as_str();
    if let Some(exactly) = &request.exactly {
        return Ok(vec![Ask {
            name: name.to_owned(),
            request: name,
            class: class(known, name, &exactly.device_class_name)?,
            selectors: exactly.selectors.as_deref().unwrap_or_default(),
            all: exactly.allocation_mode.as_deref() == Some("All"),
            count: count(exactly.count),
            admin: exactly.admin_access == Some(true),
            tolerations: exactly.tolerations.as_deref().unwrap_or_default(),
            capacity: exactly.capacity.as_ref(),
        }]);
    }
    let subrequests = request.first_available.iter().flatten();
    let ways = subrequests.map(|sub| {
        let full = format!("{name}/{}", sub.name);
        Ok(Ask {
            request: name,
            class: class(known, &full, &sub.device_class_name)?,
            name: full,
            selectors: sub.selectors.as_deref().unwrap_or_default(),
            all: sub.allocation_mode.as_deref() == Some("All"),
            count: count(sub.count),
            admin: false,
            tolerations: sub.tolerations.as_deref().unwrap_or_default(),
            capacity: sub.capacity.as_ref(),
        })
    });
    ways.collect()
}

fn count(given: Option<i64>) -> usize {
    // More than there can ever be, if it is more than can be counted.
    given.map_or(1, |count| usize::try_from(count).unwrap_or(usize::MAX))
}

fn class<'a>(known: &'a Devices, request: &str, name: &str) -> Result<&'a DeviceClass, String> {
    known.class(name).ok_or_else(|| format!("request {request}: device class {name} does not exist"))
}

impl Ask<'_> {
    /// Whether a constraint, or configuration, that lists `requests` is about this one.
    pub fn is_among(&self, requests: Option<&Vec<String>>) -> bool {
        requests.is_none_or(Vec::is_empty) || self.is_named(requests)
    }

    pub fn is_named(&self, requests: Option<&Vec<String>>) -> bool {
        requests.into_iter().flatten().any(|name| *name == self.name || name == self.request)
    }

    /// Whether the device is one that is asked for, wherever it is and whoever has it.
    pub fn selects(
        &self,
        known: &Devices,
        claim: &ResourceClaim,
        driver: &str,
        device: &Device,
    ) -> Result<bool, String> {
        let of_class = self.class.spec.selectors.as_deref().unwrap_or_default();
        for (selectors, own) in [(of_class, false), (self.selectors, true)] {
            for (index, selector) in selectors.iter().enumerate() {
                let Some(cel) = &selector.cel else { return Ok(false) };
                let selected = known.selects(&cel.expression, driver, device).map_err(|error| {
                    let text = |value: &Option<String>| value.clone().unwrap_or_default();
                    let (namespace, name) = (text(&claim.metadata.namespace), text(&claim.metadata.name));
                    match own {
                        true => format!("claim {namespace}/{name}: selector #{index}: {error}"),
                        false => format!("class {}: selector #{index}: {error}", text(&self.class.metadata.name)),
                    }
                });
                if !selected? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    pub fn tolerates(&self, taints: &[DeviceTaint]) -> bool {
        // Effects that nobody knows yet mean nothing.
        let mut taints = taints.iter().filter(|taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute"));
        taints.all(|taint| self.tolerations.iter().any(|toleration| tolerates(toleration, taint)))
    }
}

/// Whether a toleration of a request is about a taint of a device.
pub fn tolerates(toleration: &DeviceToleration, taint: &DeviceTaint) -> bool {
    let given = |value: &Option<String>| value.clone().filter(|value| !value.is_empty());
    let fits = |wanted: &Option<String>, value: &str| given(wanted).is_none_or(|wanted| wanted == value);
    fits(&toleration.effect, &taint.effect)
        && fits(&toleration.key, &taint.key)
        && match toleration.operator.as_deref() {
            Some("Exists") => true,
            _ => given(&toleration.value) == given(&taint.value),
        }
}
