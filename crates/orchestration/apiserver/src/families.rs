//! Address families of a Service: which ones it is to have, from what was asked for, what it had, and what the cluster
//! has. Pure; the addresses themselves are [`crate::allocate`]'s.

use std::net::IpAddr;

use dhow_api::meta;
use dhow_api::validation::FieldError;
use serde_json::{Value, json};

const HEADLESS: &str = "None";

/// The family of an address, as the API spells it.
pub fn family_of(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// The fields of one Service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Fields {
    policy: String,
    families: Vec<String>,
    /// With `clusterIP` as the first one.
    addresses: Vec<String>,
    selects: bool,
}

impl Fields {
    fn read(service: &Value) -> Self {
        let texts = |name| {
            let items = meta::items(service, &["spec", name]).iter();
            items.filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>()
        };
        Self {
            policy: meta::text(service, &["spec", "ipFamilyPolicy"]).to_owned(),
            families: texts("ipFamilies"),
            addresses: texts("clusterIPs"),
            selects: service["spec"]["selector"].as_object().is_some_and(|labels| !labels.is_empty()),
        }
    }

    fn headless(&self) -> bool {
        self.addresses.first().is_some_and(|address| address == HEADLESS)
    }
}

/// What a Service is to have: an address asked for, or none yet, for each family. Headless ones have no addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    pub headless: bool,
    pub addresses: Vec<(String, Option<String>)>,
}

/// Settles policy and families in the object; `configured` are the cluster's families, the default one first.
pub fn settle(old: Option<&Value>, object: &mut Value, configured: &[&str]) -> Result<Settled, FieldError> {
    let old = old.filter(|old| meta::text(old, &["spec", "type"]) != "ExternalName").map(Fields::read);
    let mut new = Fields::read(object);
    agree(&mut new, meta::text(object, &["spec", "clusterIP"]), old.as_ref())?;
    if let Some(old) = &old {
        trim(&mut new, old);
    }
    // One that prefers both is left with what it has, whatever the cluster has got or lost since.
    let kept = old.as_ref().is_some_and(|old| {
        let preferred = |fields: &Fields| fields.policy == "PreferDualStack";
        preferred(old) && preferred(&new) && old.families == new.families && old.addresses == new.addresses
    });
    if !kept {
        choose(&mut new, configured)?;
    }
    let spec = meta::child_mut(object, "spec");
    spec.insert("ipFamilies".into(), json!(new.families));
    spec.insert("ipFamilyPolicy".into(), json!(new.policy));
    let headless = new.headless();
    let mut wanted = new.addresses.into_iter().filter(|_| !headless);
    let addresses = new.families.into_iter().map(|family| (family, wanted.next())).collect();
    Ok(Settled { headless, addresses })
}

/// Makes `clusterIP` and `clusterIPs` say the same. Of one who changes the first alone, that is what is meant.
fn agree(new: &mut Fields, first: &str, old: Option<&Fields>) -> Result<(), FieldError> {
    let unchanged = old.is_some_and(|old| old.addresses == new.addresses);
    let differs = new.addresses.first().is_some_and(|address| address != first);
    if new.addresses.is_empty() || (differs && unchanged) {
        new.addresses = if first.is_empty() { Vec::new() } else { vec![first.to_owned()] };
        return Ok(());
    }
    let shown = new.addresses.join(",");
    if first.is_empty() {
        let why = "must be empty when `clusterIP` is not specified";
        return Err(FieldError::invalid("spec.clusterIPs", &shown, why));
    }
    if differs {
        return Err(FieldError::invalid("spec.clusterIPs[0]", &shown, "first value must match `clusterIP`"));
    }
    Ok(())
}

/// One who goes back to a single family and leaves the second ones alone does not mean to keep them.
fn trim(new: &mut Fields, old: &Fields) {
    if new.policy != "SingleStack" || old.policy == "SingleStack" {
        return;
    }
    if new.addresses.len() == 2 && new.addresses == old.addresses {
        new.addresses.truncate(1);
    }
    if new.families.len() == 2 && new.families == old.families {
        new.families.truncate(1);
    }
}

fn choose(new: &mut Fields, configured: &[&str]) -> Result<(), FieldError> {
    let without_backends = new.headless() && !new.selects;
    if new.policy.is_empty() {
        new.policy = if without_backends { "RequireDualStack" } else { "SingleStack" }.to_owned();
    }
    infer_families(new, configured)?;
    let dual = new.policy != "SingleStack";
    let default = configured.first().copied().unwrap_or("IPv4");
    if without_backends {
        // Its endpoints are somebody else's: they may be of families that this cluster does not have.
        if new.families.is_empty() {
            new.families.push(default.to_owned());
        }
        if dual && new.families.len() == 1 {
            new.families.push(other(&new.families[0]).to_owned());
        }
        return Ok(());
    }
    if new.policy == "RequireDualStack" && configured.len() < 2 {
        let why = "this cluster is not configured for dual-stack services";
        return Err(FieldError::invalid("spec.ipFamilyPolicy", &new.policy, why));
    }
    for (index, family) in new.families.iter().enumerate() {
        if !configured.contains(&family.as_str()) {
            let field = format!("spec.ipFamilies[{index}]");
            return Err(FieldError::invalid(&field, family, "not configured on this cluster"));
        }
    }
    if !dual && (new.families.len() > 1 || new.addresses.len() > 1) {
        let what = if new.addresses.len() > 1 { "clusterIPs" } else { "ipFamilies" };
        let why = format!("must be RequireDualStack or PreferDualStack when multiple '{what}' are specified");
        return Err(FieldError::invalid("spec.ipFamilyPolicy", &new.policy, &why));
    }
    if new.families.is_empty() {
        new.families.push(default.to_owned());
    }
    let second = other(&new.families[0]);
    if dual && new.families.len() == 1 && configured.contains(&second) {
        new.families.push(second.to_owned());
    }
    Ok(())
}

/// Addresses say what families are meant.
fn infer_families(new: &mut Fields, configured: &[&str]) -> Result<(), FieldError> {
    for (index, text) in new.addresses.iter().enumerate().filter(|(_, text)| *text != HEADLESS) {
        let field = format!("spec.clusterIPs[{index}]");
        let address: IpAddr = text.parse().map_err(|_| {
            FieldError::invalid(&field, text, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)")
        })?;
        let family = family_of(address);
        match new.families.get(index) {
            Some(asked) if asked != family => {
                let why = format!("expected an {asked} value as indicated by `ipFamilies[{index}]`");
                return Err(FieldError::invalid(&field, text, &why));
            }
            Some(_) => {}
            None if configured.contains(&family) => new.families.push(family.to_owned()),
            None => {
                let why = format!("may not use {family} on a cluster which is not configured for it");
                return Err(FieldError::invalid(&field, text, &why));
            }
        }
    }
    Ok(())
}

fn other(family: &str) -> &'static str {
    if family == "IPv4" { "IPv6" } else { "IPv4" }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const DUAL: [&str; 2] = ["IPv4", "IPv6"];

    fn service(spec: &Value) -> Value {
        let mut object = json!({"spec": {"type": "ClusterIP", "selector": {"app": "web"}}});
        for (key, value) in spec.as_object().unwrap() {
            object["spec"][key] = value.clone();
        }
        object
    }

    /// Policy, families, and the addresses that are asked for.
    fn settled(old: Option<&Value>, spec: Value, configured: &[&str]) -> Result<Value, String> {
        let mut object = service(&spec);
        let settled = settle(old, &mut object, configured).map_err(|error| format!("{error:?}"))?;
        let addresses: Vec<_> = settled.addresses.into_iter().map(|(_, address)| address).collect();
        Ok(json!([object["spec"]["ipFamilyPolicy"], object["spec"]["ipFamilies"], addresses]))
    }

    #[test]
    fn families_of_new_services() {
        for (spec, configured, expected) in [
            (json!({}), &DUAL[..], json!(["SingleStack", ["IPv4"], [null]])),
            (json!({}), &["IPv6"], json!(["SingleStack", ["IPv6"], [null]])),
            (json!({"ipFamilies": ["IPv6"]}), &DUAL, json!(["SingleStack", ["IPv6"], [null]])),
            (json!({"clusterIP": "fd43::9"}), &DUAL, json!(["SingleStack", ["IPv6"], ["fd43::9"]])),
            (json!({"ipFamilyPolicy": "PreferDualStack"}), &["IPv4"], json!(["PreferDualStack", ["IPv4"], [null]])),
            (
                json!({"ipFamilyPolicy": "PreferDualStack"}),
                &DUAL,
                json!(["PreferDualStack", ["IPv4", "IPv6"], [null, null]]),
            ),
            (
                json!({"ipFamilyPolicy": "RequireDualStack", "clusterIP": "fd43::9"}),
                &DUAL,
                json!(["RequireDualStack", ["IPv6", "IPv4"], ["fd43::9", null]]),
            ),
            // Without pods, a headless service speaks of endpoints elsewhere.
            (
                json!({"clusterIP": "None", "selector": {}}),
                &["IPv4"],
                json!(["RequireDualStack", ["IPv4", "IPv6"], [null, null]]),
            ),
            (json!({"clusterIP": "None"}), &DUAL, json!(["SingleStack", ["IPv4"], [null]])),
        ] {
            assert_eq!(settled(None, spec.clone(), configured).unwrap(), expected, "{spec}");
        }
    }

    #[test]
    fn what_cannot_be_had_is_refused() {
        for (spec, configured, why) in [
            (json!({"ipFamilyPolicy": "RequireDualStack"}), &["IPv4"][..], "not configured for dual-stack services"),
            (json!({"ipFamilies": ["IPv6"]}), &["IPv4"], "not configured on this cluster"),
            (json!({"clusterIP": "fd43::9"}), &["IPv4"], "may not use IPv6"),
            (json!({"clusterIP": "10.43.0.9", "ipFamilies": ["IPv6"]}), &DUAL, "expected an IPv6 value"),
            (json!({"ipFamilies": ["IPv6", "IPv4"]}), &DUAL, "must be RequireDualStack or PreferDualStack"),
            (json!({"clusterIPs": ["10.43.0.9"]}), &DUAL, "must be empty"),
            (json!({"clusterIP": "10.43.0.9", "clusterIPs": ["10.43.0.8"]}), &DUAL, "must match"),
            (json!({"clusterIP": "web"}), &DUAL, "must be a valid IP address"),
        ] {
            let error = settled(None, spec.clone(), configured).unwrap_err();
            assert!(error.contains(why), "{spec}: {error}");
        }
    }

    #[test]
    fn services_gain_and_lose_their_second_family() {
        let single = service(&json!({
            "ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4"], "clusterIP": "10.43.0.9", "clusterIPs": ["10.43.0.9"],
        }));
        let mut more = single["spec"].clone();
        more["ipFamilyPolicy"] = json!("PreferDualStack");
        let upgraded = json!(["PreferDualStack", ["IPv4", "IPv6"], ["10.43.0.9", null]]);
        assert_eq!(settled(Some(&single), more, &DUAL).unwrap(), upgraded);
        let dual = service(&json!({
            "ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv4", "IPv6"],
            "clusterIP": "10.43.0.9", "clusterIPs": ["10.43.0.9", "fd43::9"],
        }));
        let mut less = dual["spec"].clone();
        less["ipFamilyPolicy"] = json!("SingleStack");
        let downgraded = json!(["SingleStack", ["IPv4"], ["10.43.0.9"]]);
        assert_eq!(settled(Some(&dual), less, &DUAL).unwrap(), downgraded);
        // The cluster lost a family: nobody asked for a change of this service.
        let unchanged = json!(["PreferDualStack", ["IPv4", "IPv6"], ["10.43.0.9", "fd43::9"]]);
        assert_eq!(settled(Some(&dual), dual["spec"].clone(), &["IPv4"]).unwrap(), unchanged);
    }
}
