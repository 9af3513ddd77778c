//! Small groups: scheduling, coordination, node, flowcontrol, events.

use serde_json::Value;

use super::Errors;
use super::common::{amount, lonely_wildcard};
use super::field::{Field, IMMUTABLE};
use crate::meta::{self, text};
use crate::names;

/// The highest priority that users may give.
const HIGHEST_USER_PRIORITY: i64 = 1_000_000_000;
const SYSTEM: [(&str, i64); 2] = [("system-node-critical", 2_000_001_000), ("system-cluster-critical", 2_000_000_000)];
const VERBS: &[&str] =
    &["apply", "create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch"];

pub fn priority_class(value: &Value, errors: &mut Errors) {
    let name = meta::name(value);
    let priority = Field::top(value, "value");
    let number = priority.int().unwrap_or(0);
    if name.starts_with("system-") {
        if !SYSTEM.contains(&(name, number)) {
            let place = Field::top(value, "metadata").at("name");
            errors.deny(&place, "priority class names with 'system-' prefix are reserved for system use only. error: only system-node-critical and system-cluster-critical with their own values are known");
        }
    } else if number > HIGHEST_USER_PRIORITY {
        let why = format!("maximum allowed value of a user defined priority is {HIGHEST_USER_PRIORITY}");
        errors.deny(&priority, &why);
    }
    errors.need_known(&Field::top(value, "preemptionPolicy"), &["PreemptLowerPriority", "Never"]);
}

pub fn priority_class_update(new: &Value, old: &Value, errors: &mut Errors) {
    if new["value"] != old["value"] {
        errors.deny(&Field::top(new, "value"), "may not be changed in an update.");
    }
    errors.same(&Field::top(new, "preemptionPolicy"), &Field::top(old, "preemptionPolicy"));
}

pub fn lease(value: &Value, errors: &mut Errors) {
    let spec = Field::spec(value);
    let (seconds, changes, holder) =
        (spec.at("leaseDurationSeconds"), spec.at("leaseTransitions"), spec.at("holderIdentity"));
    if seconds.int().is_some_and(|number| number <= 0) {
        errors.bad(&seconds, "must be greater than 0");
    }
    if changes.int().is_some_and(|number| number < 0) {
        errors.bad(&changes, "must be greater than or equal to 0");
    }
    if holder.value.as_str().is_some_and(str::is_empty) && spec.at("strategy").present() {
        errors.bad(&holder, "must not be empty");
    }
}

pub fn runtime_class(value: &Value, errors: &mut Errors) {
    let handler = Field::top(value, "handler");
    errors.complaints(&handler.path, handler.text(), names::dns1123_label(handler.text()));
    let overhead = Field::top(value, "overhead").at("podFixed");
    for name in overhead.value.as_object().into_iter().flatten().map(|(name, _)| name) {
        amount(&overhead.key(name), errors);
    }
    let scheduling = Field::top(value, "scheduling");
    let selector = scheduling.at("nodeSelector");
    super::metadata::labels(Some(selector.value), &selector.path, errors);
    super::pod_parts::tolerations(&scheduling.at("tolerations"), errors);
}

pub fn runtime_class_update(new: &Value, old: &Value, errors: &mut Errors) {
    errors.same(&Field::top(new, "handler"), &Field::top(old, "handler"));
}

/// An event is in the namespace of what it is about, or in `default` when that has none.
pub fn event(value: &Value, errors: &mut Errors) {
    let involved = Field::top(value, "involvedObject").at("namespace");
    placed(value, &involved, errors);
}

fn placed(value: &Value, involved: &Field, errors: &mut Errors) {
    let own = meta::namespace(value);
    let fits = match involved.text() {
        "" => own.is_empty() || own == "default",
        other => own == other,
    };
    if !fits {
        errors.bad(involved, "does not match event.namespace");
    }
}

pub fn new_event(value: &Value, errors: &mut Errors) {
    placed(value, &Field::top(value, "regarding").at("namespace"), errors);
    let time = Field::top(value, "eventTime");
    if !time.present() {
        errors.missing(&time, "");
    }
    let controller = Field::top(value, "reportingController");
    // Deprecated events, which the other group made, name their source otherwise.
    if errors.need(&controller) {
        errors.name(&controller, names::qualified_name);
    }
    for (name, limit) in [("reportingInstance", 128), ("action", 128), ("reason", 128)] {
        let field = Field::top(value, name);
        if errors.need(&field) && field.text().len() > limit {
            errors.bad(&field, &format!("can have at most {limit} characters"));
        }
    }
    let note = Field::top(value, "note");
    if note.text().len() > 1024 {
        errors.bad(&note, "can have at most 1024 characters");
    }
    errors.need_known(&Field::top(value, "type"), &["Normal", "Warning"]);
}

pub fn flow_schema(value: &Value, errors: &mut Errors) {
    let (spec, name) = (Field::spec(value), meta::name(value));
    let precedence = spec.at("matchingPrecedence");
    match precedence.int().unwrap_or(0) {
        number if number <= 0 => errors.bad(&precedence, "must be a positive value"),
        number if number > 10_000 => errors.bad(&precedence, "must not be greater than 10000"),
        1 if name != "exempt" => {
            errors.bad(&precedence, "only the schema named 'exempt' may have matchingPrecedence 1");
        }
        _ => {}
    }
    if spec.at("distinguisherMethod").present() {
        errors.need_known(&spec.at("distinguisherMethod").at("type"), &["ByNamespace", "ByUser"]);
    }
    let level = spec.at("priorityLevelConfiguration").at("name");
    match level.text() {
        "" => errors.missing(&level, "must reference a priority level"),
        _ => errors.name(&level, names::dns1123_subdomain),
    }
    for rule in spec.at("rules").items() {
        let subjects = rule.at("subjects");
        if subjects.len() == 0 {
            errors.missing(&subjects, "subjects must contain at least one value");
        }
        subjects.items().for_each(|subject| flow_subject(&subject, errors));
        if rule.at("resourceRules").len() + rule.at("nonResourceRules").len() == 0 {
            errors.missing(&rule, "at least one of resourceRules and nonResourceRules has to be non-empty");
        }
        rule.at("resourceRules").items().for_each(|rule| flow_resources(&rule, errors));
        for rule in rule.at("nonResourceRules").items() {
            flow_verbs(&rule, errors);
            let urls = rule.at("nonResourceURLs");
            if urls.len() == 0 {
                errors.missing(&urls, "nonResourceURLs must contain at least one value");
            }
            lonely_wildcard(&urls, errors, "non-resource URLs");
        }
    }
}

fn flow_subject(subject: &Field, errors: &mut Errors) {
    const KINDS: [(&str, &str); 3] = [("Group", "group"), ("ServiceAccount", "serviceAccount"), ("User", "user")];
    let kind = subject.at("kind").text();
    if !KINDS.iter().any(|(name, _)| *name == kind) {
        return errors.known(&subject.at("kind"), &["Group", "ServiceAccount", "User"]);
    }
    for (name, field) in KINDS {
        let one = subject.at(field);
        match (name == kind, one.present()) {
            (true, false) => errors.missing(&one, &format!("{field} is required when subject kind is '{name}'")),
            (true, true) => {
                errors.need(&one.at("name"));
                if name == "ServiceAccount" && one.at("namespace").text().is_empty() {
                    errors.missing(&one.at("namespace"), "must specify namespace for service account");
                }
            }
            (false, true) => errors.deny(&one, &format!("{field} is forbidden when subject kind is not '{name}'")),
            (false, false) => {}
        }
    }
}

fn flow_verbs(rule: &Field, errors: &mut Errors) {
    let verbs = rule.at("verbs");
    if verbs.len() == 0 {
        errors.missing(&verbs, "verbs must contain at least one value");
    }
    lonely_wildcard(&verbs, errors, "verbs");
    if !verbs.contains("*") && verbs.items().any(|verb| !VERBS.contains(&verb.text())) {
        errors.known(&verbs, VERBS);
    }
}

fn flow_resources(rule: &Field, errors: &mut Errors) {
    flow_verbs(rule, errors);
    let (groups, resources, namespaces) = (rule.at("apiGroups"), rule.at("resources"), rule.at("namespaces"));
    if groups.len() == 0 {
        errors.missing(&groups, "resource rules must supply at least one api group");
    }
    lonely_wildcard(&groups, errors, "api groups");
    if resources.len() == 0 {
        errors.missing(&resources, "resource rules must supply at least one resource");
    }
    lonely_wildcard(&resources, errors, "resources");
    if namespaces.len() == 0 && !rule.at("clusterScope").is_true() {
        let why = "resource rules that are not cluster scoped must supply at least one namespace";
        errors.missing(&namespaces, why);
    }
    lonely_wildcard(&namespaces, errors, "namespaces");
    for namespace in namespaces.items().filter(|namespace| !namespace.is("*")) {
        for problem in names::dns1123_label(namespace.text()) {
            errors.bad(&namespace, &format!("each member of this list must be '*' or a DNS-1123 label; {problem}"));
        }
    }
}

pub fn priority_level(value: &Value, errors: &mut Errors) {
    let (spec, name) = (Field::spec(value), meta::name(value));
    let kind = spec.at("type");
    if (name == "exempt") != kind.is("Exempt") {
        errors.bad(&kind, "type must be 'Exempt' if and only if name is 'exempt'");
    }
    let (limited, exempt) = (spec.at("limited"), spec.at("exempt"));
    match kind.text() {
        "Exempt" if limited.present() => errors.deny(&limited, "must be nil if the type is not Limited"),
        "Limited" if exempt.present() => errors.deny(&exempt, "must be nil if the type is Limited"),
        "Limited" if !limited.present() => errors.missing(&limited, "must not be empty when type is Limited"),
        "Limited" => limited_level(&limited, errors),
        _ => errors.known(&kind, &["Exempt", "Limited"]),
    }
    for level in [limited, exempt] {
        let share = level.at("lendablePercent");
        if share.int().is_some_and(|percent| !(0..=100).contains(&percent)) {
            errors.bad(&share, "must be between 0 and 100, inclusive");
        }
    }
}

fn limited_level(limited: &Field, errors: &mut Errors) {
    let shares = limited.at("nominalConcurrencyShares");
    if shares.int().is_some_and(|number| number < 0) {
        errors.bad(&shares, "must be a non-negative integer");
    }
    let borrowing = limited.at("borrowingLimitPercent");
    if borrowing.int().is_some_and(|number| number < 0) {
        errors.bad(&borrowing, "if specified, must be a non-negative integer");
    }
    let response = limited.at("limitResponse");
    let queuing = response.at("queuing");
    match response.at("type").text() {
        "Reject" if queuing.present() => {
            errors.deny(&queuing, "must be nil if limited.limitResponse.type is not Limited");
        }
        "Queue" if !queuing.present() => {
            errors.missing(&queuing, "must not be empty if limited.limitResponse.type is Limited");
        }
        "Queue" => {
            let (queues, hand) = (queuing.at("queues"), queuing.at("handSize"));
            for field in [&queues, &hand, &queuing.at("queueLengthLimit")] {
                if field.int().unwrap_or(0) <= 0 {
                    errors.bad(field, "must be positive");
                }
            }
            if queues.int().is_some_and(|number| number > 10_000_000) {
                errors.bad(&queues, "must not be greater than 10000000");
            }
            if hand.int() > queues.int() {
                errors.bad(&hand, &format!("should not be greater than queues ({})", queues.int().unwrap_or(0)));
            }
        }
        _ => errors.need_known(&response.at("type"), &["Queue", "Reject"]),
    }
}

pub fn endpoint_slice(value: &Value, errors: &mut Errors) {
    let kind = Field::top(value, "addressType");
    errors.need_known(&kind, &["FQDN", "IPv4", "IPv6"]);
    let (endpoints, ports) = (Field::top(value, "endpoints"), Field::top(value, "ports"));
    errors.at_most(&endpoints, 1000);
    for endpoint in endpoints.items() {
        let addresses = endpoint.at("addresses");
        if addresses.len() == 0 {
            errors.missing(&addresses, "must contain at least 1 address");
        }
        errors.at_most(&addresses, 100);
        for address in addresses.items() {
            match kind.text() {
                "IPv4" if address.text().parse::<std::net::Ipv4Addr>().is_err() => {
                    errors.bad(&address, "must be an IPv4 address");
                }
                "IPv6" if address.text().parse::<std::net::Ipv6Addr>().is_err() => {
                    errors.bad(&address, "must be an IPv6 address");
                }
                "FQDN" => errors.name(&address, names::dns1123_subdomain),
                _ => {}
            }
        }
        errors.name(&endpoint.at("hostname"), names::dns1123_label);
        errors.name(&endpoint.at("nodeName"), names::dns1123_subdomain);
    }
    errors.at_most(&ports, 20_000);
    let mut seen = Vec::new();
    for port in ports.items() {
        let name = port.at("name");
        if !name.text().is_empty() {
            errors.name(&name, names::dns1123_label);
        }
        if seen.contains(&name.text()) {
            errors.twice(&name);
        }
        seen.push(name.text());
        errors.need_known(&port.at("protocol"), &["SCTP", "TCP", "UDP"]);
        if let Some(number) = port.at("port").int() {
            for problem in names::port_number(number) {
                errors.bad(&port.at("port"), &problem);
            }
        }
    }
}

pub fn endpoint_slice_update(new: &Value, old: &Value, errors: &mut Errors) {
    if text(new, &["addressType"]) != text(old, &["addressType"]) {
        errors.bad(&Field::top(new, "addressType"), IMMUTABLE);
    }
}

pub fn storage_migration(value: &Value, errors: &mut Errors) {
    let resource = Field::spec(value).at("resource").at("resource");
    if resource.text().is_empty() {
        errors.missing(&resource, "resource is required");
    }
}

pub fn storage_migration_update(new: &Value, old: &Value, errors: &mut Errors) {
    errors.fixed(new, old, &["resource"]);
}
