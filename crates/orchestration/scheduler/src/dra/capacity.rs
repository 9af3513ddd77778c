//! What requests take of a device that several share, and of counters that devices share.

use std::collections::BTreeMap;
use std::str::FromStr;

use dhow_api::quantity::Quantity;
use k8s_openapi::api::resource::v1::{CapacityRequestPolicy, CapacityRequirements, Device};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;

/// Amounts by set and counter.
pub(crate) type Counters<'a> = BTreeMap<(&'a str, &'a str), Quantity>;

/// The API refuses malformed quantities; one that gets here is no amount.
pub(crate) fn amount(text: &Text) -> Option<Quantity> {
    Quantity::from_str(&text.0).ok()
}

/// What a device takes of its pool's counters.
pub(crate) fn counters_of(device: &Device) -> impl Iterator<Item = ((&str, &str), Quantity)> {
    let sets = device.consumes_counters.iter().flatten();
    sets.flat_map(|set| {
        let counters = set.counters.iter();
        counters
            .filter_map(|(name, counter)| Some(((set.counter_set.as_str(), name.as_str()), amount(&counter.value)?)))
    })
}

/// What a request takes of each capacity of a device; `None` if the device has not what it names, or gives no such part.
pub(crate) fn consumption(
    driver: &str,
    device: &Device,
    asked: Option<&CapacityRequirements>,
) -> Option<BTreeMap<String, Quantity>> {
    let mut wanted: BTreeMap<String, Quantity> = BTreeMap::new();
    for (name, value) in asked.iter().flat_map(|asked| asked.requests.iter().flatten()) {
        wanted.insert(resolve(driver, device, name)?, amount(value)?);
    }
    let mut taken = BTreeMap::new();
    for (name, capacity) in device.capacity.iter().flatten() {
        let total = amount(&capacity.value)?;
        let policy = capacity.request_policy.as_ref();
        let part = match (wanted.get(name), policy) {
            (Some(wanted), Some(policy)) => rounded(*wanted, policy)?,
            (Some(wanted), None) => *wanted,
            (None, policy) => match policy.and_then(|policy| policy.default.as_ref()) {
                Some(usual) => amount(usual)?,
                None => total,
            },
        };
        if part.is_negative() || part > total {
            return None;
        }
        taken.insert(name.clone(), part);
    }
    Some(taken)
}

/// The name that the device has for a capacity: a name without a domain is in the driver's.
fn resolve(driver: &str, device: &Device, name: &str) -> Option<String> {
    let has = |name: &str| device.capacity.as_ref().is_some_and(|all| all.contains_key(name));
    if has(name) {
        return Some(name.to_owned());
    }
    let other = match name.split_once('/') {
        Some((domain, id)) => (domain == driver).then(|| id.to_owned())?,
        None => format!("{driver}/{name}"),
    };
    has(&other).then_some(other)
}

/// The least part that may be had and is enough.
fn rounded(wanted: Quantity, policy: &CapacityRequestPolicy) -> Option<Quantity> {
    if let Some(range) = &policy.valid_range {
        let least = amount(&range.min)?;
        let mut part = wanted.max(least);
        if let Some(step) = range.step.as_ref().and_then(amount).filter(|step| *step > Quantity::ZERO) {
            let (over, step) = ((part - least).millis(), step.millis());
            let steps = over / step + i64::from(over % step != 0);
            part = least + Quantity::from_millis(steps.checked_mul(step)?);
        }
        let most = range.max.as_ref().and_then(amount);
        return most.is_none_or(|most| part <= most).then_some(part);
    }
    match &policy.valid_values {
        Some(values) if !values.is_empty() => values.iter().filter_map(amount).filter(|value| *value >= wanted).min(),
        _ => Some(wanted),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn take(policy: &Value, asked: Option<&str>) -> Option<String> {
        let device = json!({"name": "d", "capacity": {"memory": {"value": "40Gi", "requestPolicy": policy}}});
        let device: Device = serde_json::from_value(device).unwrap();
        let asked = asked.map(|amount| serde_json::from_value(json!({"requests": {"memory": amount}})).unwrap());
        Some(consumption("x", &device, asked.as_ref())?["memory"].to_string())
    }

    #[test]
    fn requests_are_rounded_up_to_what_may_be_had() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(take(&Value::Null, None), some("40Gi"));
        assert_eq!(take(&Value::Null, Some("3Gi")), some("3Gi"));
        assert_eq!(take(&Value::Null, Some("41Gi")), None);
        let steps = json!({"default": "1Gi", "validRange": {"min": "1Gi", "step": "2Gi", "max": "9Gi"}});
        assert_eq!(take(&steps, None), some("1Gi"));
        assert_eq!(take(&steps, Some("512Mi")), some("1Gi"));
        assert_eq!(take(&steps, Some("2Gi")), some("3Gi"));
        assert_eq!(take(&steps, Some("10Gi")), None);
        let values = json!({"default": "10Gi", "validValues": ["10Gi", "20Gi", "40Gi"]});
        assert_eq!(take(&values, None), some("10Gi"));
        assert_eq!(take(&values, Some("11Gi")), some("20Gi"));
        assert_eq!(take(&values, Some("41Gi")), None);
    }

    #[test]
    fn names_without_a_domain_are_the_driver_s() {
        let device = json!({"name": "d", "capacity": {"x.io/a": {"value": "4"}, "b": {"value": "4"}}});
        let device: Device = serde_json::from_value(device).unwrap();
        let asked = |name: &str| serde_json::from_value(json!({"requests": {name: "1"}})).unwrap();
        assert!(consumption("x.io", &device, Some(&asked("a"))).is_some());
        assert!(consumption("x.io", &device, Some(&asked("x.io/b"))).is_some());
        assert!(consumption("y.io", &device, Some(&asked("a"))).is_none());
        assert!(consumption("x.io", &device, Some(&asked("c"))).is_none());
    }
}
