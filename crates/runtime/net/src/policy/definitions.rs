//! The definitions that the API serves cluster-wide policies by: `policy.networking.k8s.io`, with upstream's fields of the
//! standard channel, and of the experimental one `nodes` and named ports.

use serde_json::{Value, json};

const GROUP: &str = "policy.networking.k8s.io";
/// Groups below `k8s.io` need to say where they were approved.
const APPROVED: &str = "https://github.com/kubernetes-sigs/network-policy-api/pull/30";
const APPROVED_CLUSTER: &str = "https://github.com/kubernetes-sigs/network-policy-api/pull/347";

/// What the versions of the API call things, and how much they take.
struct Dialect {
    actions: &'static [&'static str],
    /// Rules of a direction, and peers and ports of a rule.
    rules: u32,
    items: u32,
    /// What of a selection of pods must be said.
    pods: &'static [&'static str],
    /// The field of ports, how one of them looks, and the test for named ones.
    ports: (&'static str, Value, &'static str),
}

/// Custom resource definitions of all three kinds.
pub fn definitions() -> Vec<Value> {
    let admin = spec(&v1alpha1(&["Allow", "Deny", "Pass"]), &[("priority", priority())]);
    let baseline = spec(&v1alpha1(&["Allow", "Deny"]), &[]);
    let cluster = spec(
        &v1alpha2(),
        &[("tier", json!({"type": "string", "enum": ["Admin", "Baseline"]})), ("priority", priority())],
    );
    let column = |name: &str, kind: &str, path: &str| json!({"name": name, "type": kind, "jsonPath": path});
    let age = column("Age", "date", ".metadata.creationTimestamp");
    let ranked = column("Priority", "string", ".spec.priority");
    let tier = column("Tier", "string", ".spec.tier");
    let one_name = json!([{
        "rule": "self.metadata.name == 'default'",
        "message": "Only one baseline admin network policy with metadata.name=\"default\" can be created in the cluster",
    }]);
    let mut all = [
        definition(
            "AdminNetworkPolicy",
            "adminnetworkpolicies",
            "anp",
            "v1alpha1",
            &[ranked.clone(), age.clone()],
            &admin,
        ),
        definition(
            "BaselineAdminNetworkPolicy",
            "baselineadminnetworkpolicies",
            "banp",
            "v1alpha1",
            std::slice::from_ref(&age),
            &baseline,
        ),
        definition("ClusterNetworkPolicy", "clusternetworkpolicies", "cnp", "v1alpha2", &[tier, ranked, age], &cluster),
    ];
    all[1]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["x-kubernetes-validations"] = one_name;
    all[2]["metadata"]["annotations"]["api-approved.kubernetes.io"] = json!(APPROVED_CLUSTER);
    all.into()
}

fn definition(kind: &str, plural: &str, short: &str, version: &str, columns: &[Value], spec: &Value) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{GROUP}"), "annotations": {"api-approved.kubernetes.io": APPROVED}},
        "spec": {
            "group": GROUP,
            "scope": "Cluster",
            "names": {
                "plural": plural, "singular": kind.to_ascii_lowercase(), "kind": kind, "listKind": format!("{kind}List"),
                "shortNames": [short],
            },
            "versions": [{
                "name": version, "served": true, "storage": true,
                "subresources": {"status": {}},
                "additionalPrinterColumns": columns,
                "schema": {"openAPIV3Schema": {
                    "type": "object",
                    "required": ["metadata", "spec"],
                    "properties": {
                        "apiVersion": {"type": "string"},
                        "kind": {"type": "string"},
                        "metadata": {"type": "object"},
                        "spec": spec,
                        "status": status(),
                    },
                }},
            }],
        },
    })
}

fn v1alpha1(actions: &'static [&'static str]) -> Dialect {
    let number = json!({"type": "object", "required": ["port", "protocol"], "properties": {"port": port(), "protocol": protocol()}});
    let range = json!({
        "type": "object", "required": ["end", "start"], "properties": {"start": port(), "end": port(), "protocol": protocol()},
    });
    let ports = one_of(&[("portNumber", number), ("portRange", range), ("namedPort", json!({"type": "string"}))]);
    let is_named = "has(self.ports) && self.ports.exists(port, has(port.namedPort))";
    let pods = &["namespaceSelector", "podSelector"];
    Dialect { actions, rules: 100, items: 100, pods, ports: ("ports", ports, is_named) }
}

fn v1alpha2() -> Dialect {
    let range = json!({
        "type": "object", "required": ["end", "start"], "properties": {"start": port(), "end": port()},
        "x-kubernetes-validations": [{"rule": "self.start < self.end", "message": "Start port must be less than End port"}],
    });
    let transport = || {
        let destination = one_of(&[("number", port()), ("range", range.clone())]);
        json!({"type": "object", "minProperties": 1, "properties": {"destinationPort": destination}})
    };
    let named = json!({"type": "string"});
    let ports =
        one_of(&[("tcp", transport()), ("udp", transport()), ("sctp", transport()), ("destinationNamedPort", named)]);
    let is_named = "has(self.protocols) && self.protocols.exists(protocol, has(protocol.destinationNamedPort))";
    let (actions, pods) = (&["Accept", "Deny", "Pass"], &["podSelector"]);
    Dialect { actions, rules: 25, items: 25, pods, ports: ("protocols", ports, is_named) }
}

/// `more` are fields that only some of the kinds have; all of them are required.
fn spec(dialect: &Dialect, more: &[(&str, Value)]) -> Value {
    let pods = || {
        let properties = json!({"namespaceSelector": selector(), "podSelector": selector()});
        json!({"type": "object", "required": dialect.pods, "properties": properties})
    };
    let inside = || vec![("namespaces", selector()), ("pods", pods())];
    let cidr = json!({
        "type": "string", "maxLength": 43,
        "x-kubernetes-validations": [{"rule": "isCIDR(self)", "message": "Invalid CIDR format provided"}],
    });
    let networks =
        json!({"type": "array", "minItems": 1, "maxItems": 25, "items": cidr, "x-kubernetes-list-type": "set"});
    let anywhere = inside().into_iter().chain([("nodes", selector()), ("networks", networks)]).collect::<Vec<_>>();
    let mut egress = rule(dialect, "to", &one_of(&anywhere));
    egress["x-kubernetes-validations"] = json!([{
        "rule": format!("!(self.to.exists(peer, has(peer.networks) || has(peer.nodes)) && {})", dialect.ports.2),
        "message": "networks/nodes peer cannot be set with namedPorts since there are no namedPorts for networks/nodes",
    }]);
    let list = |rule: Value| json!({"type": "array", "maxItems": dialect.rules, "items": rule});
    let mut spec = json!({
        "type": "object",
        "required": ["subject"],
        "properties": {
            "subject": one_of(&inside()),
            "ingress": list(rule(dialect, "from", &one_of(&inside()))),
            "egress": list(egress),
        },
    });
    for (name, schema) in more {
        spec["properties"][name] = schema.clone();
        if let Some(required) = spec["required"].as_array_mut() {
            required.push(json!(name));
        }
    }
    spec
}

fn rule(dialect: &Dialect, peers: &str, peer: &Value) -> Value {
    let list = |items: &Value| json!({"type": "array", "minItems": 1, "maxItems": dialect.items, "items": items});
    let (ports, port, _) = &dialect.ports;
    json!({
        "type": "object",
        "required": ["action", peers],
        "properties": {
            "name": {"type": "string", "maxLength": 100},
            "action": {"type": "string", "enum": dialect.actions},
            peers: list(peer),
            *ports: list(port),
        },
    })
}

/// An object with exactly one of these fields.
fn one_of(fields: &[(&str, Value)]) -> Value {
    let properties: serde_json::Map<String, Value> =
        fields.iter().map(|(name, schema)| ((*name).to_owned(), schema.clone())).collect();
    json!({"type": "object", "minProperties": 1, "maxProperties": 1, "properties": properties})
}

fn priority() -> Value {
    json!({"type": "integer", "format": "int32", "minimum": 0, "maximum": 1000,
        "description": "Policies with lower values are asked first; of equal ones, the first by name."})
}

fn port() -> Value {
    json!({"type": "integer", "format": "int32", "minimum": 1, "maximum": 65535})
}

fn protocol() -> Value {
    json!({"type": "string", "default": "TCP"})
}

fn selector() -> Value {
    let strings = || json!({"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "atomic"});
    let requirement = json!({
        "type": "object", "required": ["key", "operator"],
        "properties": {"key": {"type": "string"}, "operator": {"type": "string"}, "values": strings()},
    });
    json!({
        "type": "object",
        "x-kubernetes-map-type": "atomic",
        "properties": {
            "matchLabels": {"type": "object", "additionalProperties": {"type": "string"}},
            "matchExpressions": {"type": "array", "items": requirement, "x-kubernetes-list-type": "atomic"},
        },
    })
}

fn status() -> Value {
    json!({
        "type": "object",
        "required": ["conditions"],
        "properties": {"conditions": {
            "type": "array",
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["type"],
            "items": {
                "type": "object",
                "required": ["lastTransitionTime", "message", "reason", "status", "type"],
                "properties": {
                    "type": {"type": "string", "maxLength": 316},
                    "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
                    "reason": {"type": "string", "minLength": 1, "maxLength": 1024},
                    "message": {"type": "string", "maxLength": 32768},
                    "lastTransitionTime": {"type": "string", "format": "date-time"},
                    "observedGeneration": {"type": "integer", "format": "int64", "minimum": 0},
                },
            },
        }},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_defined_once() {
        let all = definitions();
        let names: Vec<&str> = all.iter().filter_map(|d| d["metadata"]["name"].as_str()).collect();
        assert_eq!(
            names,
            [
                "adminnetworkpolicies.policy.networking.k8s.io",
                "baselineadminnetworkpolicies.policy.networking.k8s.io",
                "clusternetworkpolicies.policy.networking.k8s.io",
            ]
        );
        let required = |index: usize| {
            all[index]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["required"].clone()
        };
        assert_eq!(required(0), json!(["subject", "priority"]));
        assert_eq!(required(1), json!(["subject"]));
        assert_eq!(required(2), json!(["subject", "tier", "priority"]));
    }
}
