//! Services and networks.

use super::check;

#[test]
fn networking() {
    check(
        "networking.k8s.io/v1/ingresses",
        r#"{"metadata": {"name": "i"}, "spec": {"rules": [{"host": "a.b", "http": {"paths": [{"path": "/", "pathType": "Prefix",
            "backend": {"service": {"name": "s", "port": {"number": 80}}}}]}}]}}"#,
        &[
            ("/spec/rules", "null", "spec: Invalid value: null: either `defaultBackend` or `rules` must be specified"),
            (
                "/spec/rules/0/host",
                "\"10.0.0.1\"",
                "spec.rules[0].host: Invalid value: \"10.0.0.1\": must be a DNS name, not an IP address",
            ),
            ("/spec/rules/0/host", "\"*.b\"", ""),
            (
                "/spec/rules/0/http/paths/0/pathType",
                "null",
                "spec.rules[0].http.paths[0].pathType: Required value: pathType must be specified",
            ),
            (
                "/spec/rules/0/http/paths/0/path",
                "\"x\"",
                "spec.rules[0].http.paths[0].path: Invalid value: \"x\": must be an absolute path",
            ),
            (
                "/spec/rules/0/http/paths/0/backend",
                "{}",
                "spec.rules[0].http.paths[0].backend: Invalid value: \"\": resource or service backend is required",
            ),
            (
                "/spec/rules/0/http/paths/0/backend/service/port",
                "{}",
                "spec.rules[0].http.paths[0].backend: Required value: port name or number is required",
            ),
        ],
        &[("/spec/rules/0/host", "\"c.d\"", "")],
    );
    check(
        "networking.k8s.io/v1/ingressclasses",
        r#"{"metadata": {"name": "i"}, "spec": {"controller": "a.b/c"}}"#,
        &[
            ("/spec/controller", "\"\"", "spec.controller: Required value"),
            (
                "/spec/parameters",
                "{\"kind\": \"K\", \"name\": \"n\", \"scope\": \"Namespace\"}",
                "spec.parameters.namespace: Required value: `parameters.scope` is set to 'Namespace'",
            ),
        ],
        &[("/spec/controller", "\"x.y/z\"", "spec.controller: Invalid value: \"x.y/z\": field is immutable")],
    );
    check(
        "networking.k8s.io/v1/networkpolicies",
        r#"{"metadata": {"name": "p"}, "spec": {"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}], "ports": [{"port": 80}]}]}}"#,
        &[
            ("/spec/ingress/0/from/0", "{}", "spec.ingress[0].from[0]: Required value: must specify a peer"),
            (
                "/spec/ingress/0/from/0/ipBlock/except/0",
                "\"11.0.0.0/16\"",
                "spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: \"11.0.0.0/16\": must be a strict subset of `cidr`",
            ),
            (
                "/spec/ingress/0/from/0/podSelector",
                "{}",
                "spec.ingress[0].from[0]: Forbidden: may not specify both ipBlock and another peer",
            ),
            (
                "/spec/ingress/0/ports/0/endPort",
                "10",
                "spec.ingress[0].ports[0].endPort: Invalid value: 10: must be greater than or equal to `port`",
            ),
            (
                "/spec/policyTypes",
                "[\"Sideways\"]",
                "spec.policyTypes[0]: Unsupported value: \"Sideways\": supported values: \"Ingress\", \"Egress\"",
            ),
        ],
        &[],
    );
    check(
        "networking.k8s.io/v1/servicecidrs",
        r#"{"metadata": {"name": "c"}, "spec": {"cidrs": ["10.0.0.0/16"]}}"#,
        &[
            ("/spec/cidrs", "[]", "spec.cidrs: Required value: at least one CIDR required"),
            ("/spec/cidrs/0", "\"x\"", "spec.cidrs[0]: Invalid value: \"x\": must be a valid CIDR value"),
        ],
        &[("/spec/cidrs/0", "\"10.1.0.0/16\"", "spec.cidrs: Invalid value: [\"10.1.0.0/16\"]: field is immutable")],
    );
    check(
        "networking.k8s.io/v1/ipaddresses",
        r#"{"metadata": {"name": "10.0.0.1"}, "spec": {"parentRef": {"resource": "services", "name": "s", "namespace": "n"}}}"#,
        &[
            ("/metadata/name", "\"x\"", "metadata.name: Invalid value: \"x\": must be a valid IP address"),
            ("/spec/parentRef", "null", "spec.parentRef: Required value"),
        ],
        &[("/spec/parentRef/name", "\"t\"", "spec.parentRef: Invalid value: ")],
    );
    check(
        "discovery.k8s.io/v1/endpointslices",
        r#"{"metadata": {"name": "e"}, "addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}], "ports": [{"port": 80}]}"#,
        &[
            ("/endpoints/0/addresses", "[]", "endpoints[0].addresses: Required value: must contain at least 1 address"),
            (
                "/endpoints/0/addresses/0",
                "\"::1\"",
                "endpoints[0].addresses[0]: Invalid value: \"::1\": must be an IPv4 address",
            ),
        ],
        &[("/addressType", "\"FQDN\"", "addressType: Invalid value: \"FQDN\": field is immutable")],
    );
    check(
        "v1/services",
        r#"{"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}}"#,
        &[
            ("/spec/ports/0/port", "0", "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive"),
            (
                "/spec/type",
                "\"Magic\"",
                "spec.type: Unsupported value: \"Magic\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\"",
            ),
            ("/spec/externalIPs", "[\"x\"]", "spec.externalIPs[0]: Invalid value: \"x\": must be a valid IP address"),
        ],
        &[],
    );
}
