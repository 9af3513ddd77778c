//! Access, admission, extension, devices and the small groups.

use super::check;

#[test]
fn access() {
    check(
        "rbac.authorization.k8s.io/v1/roles",
        r#"{"metadata": {"name": "r"}, "rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]}"#,
        &[
            ("/rules/0/verbs", "[]", "rules[0].verbs: Required value: verbs must contain at least one value"),
            (
                "/rules/0/nonResourceURLs",
                "[\"/x\"]",
                "rules[0].nonResourceURLs: Invalid value: [\"/x\"]: namespaced rules cannot apply to non-resource URLs",
            ),
        ],
        &[],
    );
    check(
        "rbac.authorization.k8s.io/v1/clusterroles",
        r#"{"metadata": {"name": "system:r"}, "rules": [{"verbs": ["get"], "nonResourceURLs": ["/x"]}]}"#,
        &[("/aggregationRule", "{}", "aggregationRule.clusterRoleSelectors: Required value")],
        &[],
    );
    check(
        "rbac.authorization.k8s.io/v1/rolebindings",
        r#"{"metadata": {"name": "b"}, "roleRef": {"kind": "Role", "name": "r"}, "subjects": [{"kind": "ServiceAccount", "name": "s", "namespace": "n"}]}"#,
        &[
            (
                "/roleRef/kind",
                "\"Thing\"",
                "roleRef.kind: Unsupported value: \"Thing\": supported values: \"Role\", \"ClusterRole\"",
            ),
            ("/subjects/0/kind", "\"Robot\"", "subjects[0].kind: Unsupported value: \"Robot\""),
        ],
        &[(
            "/roleRef/name",
            "\"q\"",
            "roleRef: Invalid value: {\"kind\":\"Role\",\"name\":\"q\",\"apiGroup\":\"rbac.authorization.k8s.io\"}: cannot change roleRef",
        )],
    );
    check(
        "rbac.authorization.k8s.io/v1/clusterrolebindings",
        r#"{"metadata": {"name": "b"}, "roleRef": {"kind": "ClusterRole", "name": "r"}, "subjects": [{"kind": "ServiceAccount", "name": "s", "namespace": "n"}]}"#,
        &[
            (
                "/roleRef/kind",
                "\"Role\"",
                "roleRef.kind: Unsupported value: \"Role\": supported values: \"ClusterRole\"",
            ),
            // Where a RoleBinding's own would do, there is none.
            ("/subjects/0/namespace", "null", "subjects[0].namespace: Required value"),
        ],
        &[],
    );
    check(
        "certificates.k8s.io/v1/certificatesigningrequests",
        r#"{"metadata": {"name": "c"}, "spec": {"signerName": "a.b/c", "usages": ["client auth"],
            "request": "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0KTUFBPQotLS0tLUVORCBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0K"}}"#,
        &[
            ("/spec/usages", "[]", "spec.usages: Required value: usages must be provided"),
            ("/spec/usages/0", "\"magic\"", "spec.usages[0]: Unsupported value: \"magic\""),
            (
                "/spec/signerName",
                "\"a\"",
                "spec.signerName: Invalid value: \"a\": must be a fully qualified domain and path of the form 'example.com/signer-name'",
            ),
            (
                "/spec/request",
                "\"eA==\"",
                "spec.request: Invalid value: \"eA==\": PEM block type must be CERTIFICATE REQUEST",
            ),
            (
                "/spec/expirationSeconds",
                "60",
                "spec.expirationSeconds: Invalid value: 60: may not specify a duration less than 600 seconds (10 minutes)",
            ),
        ],
        &[("/spec/signerName", "\"d.e/f\"", "")],
    );
    check(
        "certificates.k8s.io/v1beta1/podcertificaterequests",
        r#"{"metadata": {"name": "r"}, "spec": {"signerName": "a.b/c", "podName": "p", "podUID": "uid-1",
            "serviceAccountName": "s", "serviceAccountUID": "u", "nodeName": "n", "nodeUID": "v",
            "pkixPublicKey": "MCowBQYDK2VwAyEAHk+gsKL8YY0GQHWR/v5uD7Slbkwvx+j1Yd/Y/dGAFD8=",
            "proofOfPossession": "xc/EByxb4gICZaD/7tUdoY9A9JzPnpyJ40JnbjTbf9WXTOgBjVFNWS+NyZhnwQWxYRdmetvZV7YOUcbVgbqpCg=="}}"#,
        &[
            ("/spec/signerName", "\"a\"", "spec.signerName: Invalid value: \"a\": must be a fully qualified domain"),
            (
                "/spec/podUID",
                "\"uid-2\"",
                "spec.proofOfPossession: Invalid value: could not verify proof-of-possession",
            ),
            ("/spec/nodeUID", "\"\"", "spec.nodeUID: Invalid value: \"\": must not be empty"),
            ("/spec/maxExpirationSeconds", "60", "spec.maxExpirationSeconds: Invalid value: 60: must be in the range"),
            ("/spec/maxExpirationSeconds", "7862400", ""),
            ("/spec/pkixPublicKey", "\"eA==\"", "spec.pkixPublicKey: Invalid value: \"eA==\": must be a valid PKIX"),
            (
                "/spec/unverifiedUserAnnotations",
                r#"{"plain": "x"}"#,
                "spec.unverifiedUserAnnotations: Invalid value: \"plain\": must be domain-prefixed",
            ),
            ("/spec/unverifiedUserAnnotations", r#"{"a.b/c": "x"}"#, ""),
        ],
        &[("/spec/podName", "\"q\"", "spec: Invalid value: ")],
    );
    let anchor = serde_json::json!(include_str!("../../trust_bundle/one.pem")).to_string();
    let leaf: &'static str = serde_json::json!(include_str!("../../trust_bundle/leaf.pem")).to_string().leak();
    check(
        "certificates.k8s.io/v1beta1/clustertrustbundles",
        &format!(
            r#"{{"metadata": {{"name": "a.b:c:d"}}, "spec": {{"signerName": "a.b/c", "trustBundle": {anchor}}}}}"#
        ),
        &[
            (
                "/spec/signerName",
                "\"a.b/d\"",
                "metadata.name: Invalid value: \"a.b:c:d\": ClusterTrustBundle for signerName a.b/d must be named with prefix a.b:d:",
            ),
            (
                "/spec/signerName",
                "null",
                "metadata.name: Invalid value: \"a.b:c:d\": ClusterTrustBundle without signer name must not have \":\" in its name",
            ),
            (
                "/spec/trustBundle",
                "\"\"",
                "spec.trustBundle: Invalid value: \"<value omitted>\": at least one trust anchor must be provided",
            ),
            (
                "/spec/trustBundle",
                leaf,
                "spec.trustBundle: Invalid value: \"<value omitted>\": entry 0 does not have the CA bit set",
            ),
        ],
        &[
            ("/spec/trustBundle", leaf, "spec.trustBundle: Invalid value: \"<value omitted>\": entry 0 does not"),
            ("/spec/signerName", "\"a.b/d\"", "spec.signerName: Invalid value: \"a.b/d\": field is immutable"),
            ("/metadata/labels", "{\"a\": \"b\"}", ""),
        ],
    );
}

#[test]
fn admission() {
    let hook = r#"{"metadata": {"name": "w"}, "webhooks": [{"name": "a.b.c", "sideEffects": "None", "admissionReviewVersions": ["v1"],
        "clientConfig": {"url": "https://x/y"}, "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}]}]}"#;
    for plural in ["mutatingwebhookconfigurations", "validatingwebhookconfigurations"] {
        check(
            &format!("admissionregistration.k8s.io/v1/{plural}"),
            hook,
            &[
                (
                    "/webhooks/0/name",
                    "\"a\"",
                    "webhooks[0].name: Invalid value: \"a\": should be a domain with at least three segments separated by dots",
                ),
                (
                    "/webhooks/0/sideEffects",
                    "null",
                    "webhooks[0].sideEffects: Required value: must specify one of None, NoneOnDryRun",
                ),
                (
                    "/webhooks/0/timeoutSeconds",
                    "60",
                    "webhooks[0].timeoutSeconds: Invalid value: 60: the timeout value must be between 1 and 30 seconds",
                ),
                (
                    "/webhooks/0/admissionReviewVersions",
                    "[\"v9\"]",
                    "webhooks[0].admissionReviewVersions: Invalid value: [\"v9\"]: must include at least one of v1, v1beta1",
                ),
                (
                    "/webhooks/0/clientConfig",
                    "{}",
                    "webhooks[0].clientConfig: Required value: exactly one of url or service is required",
                ),
                (
                    "/webhooks/0/clientConfig/url",
                    "\"http://x\"",
                    "webhooks[0].clientConfig.url: Invalid value: \"http\": 'https' is the only allowed URL scheme",
                ),
                (
                    "/webhooks/0/rules/0/operations",
                    "[\"*\", \"CREATE\"]",
                    "webhooks[0].rules[0].operations: Invalid value: [\"*\",\"CREATE\"]: if '*' is present, must not specify other operations",
                ),
                (
                    "/webhooks/0/rules/0/resources",
                    "[\"pods/*\", \"pods/log\"]",
                    "webhooks[0].rules[0].resources[1]: Invalid value: \"pods/log\": if 'pods/*' is present, must not specify pods/log",
                ),
            ],
            &[],
        );
    }
    check(
        "admissionregistration.k8s.io/v1/validatingadmissionpolicies",
        r#"{"metadata": {"name": "p"}, "spec": {"matchConstraints": {"resourceRules": [{"operations": ["CREATE"], "apiGroups": [""],
            "apiVersions": ["v1"], "resources": ["pods"]}]}, "validations": [{"expression": "true"}]}}"#,
        &[
            (
                "/spec/validations",
                "[]",
                "spec.validations: Required value: validations or auditAnnotations must contain at least one item",
            ),
            ("/spec/matchConstraints", "null", "spec.matchConstraints: Required value"),
            (
                "/spec/validations/0/expression",
                "\" \"",
                "spec.validations[0].expression: Required value: expression is not specified",
            ),
            (
                "/spec/validations/0/reason",
                "\"Why\"",
                "spec.validations[0].reason: Unsupported value: \"Why\": supported values: \"Forbidden\", \"Invalid\", \"RequestEntityTooLarge\", \"Unauthorized\"",
            ),
            (
                "/spec/validations/0/expression",
                "\"object.x +\"",
                "spec.validations[0].expression: Invalid value: \"object.x +\": compilation failed: ERROR: <input>:1:11: Syntax error: mismatched input '<EOF>'",
            ),
            (
                "/spec/validations/0/expression",
                "\"params.x\"",
                "spec.validations[0].expression: Invalid value: \"params.x\": compilation failed: ERROR: <input>:1:1: undeclared reference to 'params' (in container '')",
            ),
            (
                "/spec/validations/0/expression",
                "\"1\"",
                "spec.validations[0].expression: Invalid value: \"1\": must evaluate to bool",
            ),
            (
                "/spec/variables",
                "[{\"name\": \"1x\", \"expression\": \"1\"}]",
                "spec.variables[0].name: Invalid value: \"1x\": name is not a valid CEL identifier",
            ),
        ],
        &[],
    );
    check(
        "admissionregistration.k8s.io/v1beta1/mutatingadmissionpolicies",
        r#"{"metadata": {"name": "p"}, "spec": {"matchConstraints": {"resourceRules": [{"operations": ["CREATE"], "apiGroups": [""],
            "apiVersions": ["v1"], "resources": ["pods"]}]}, "reinvocationPolicy": "Never", "mutations": [{"patchType": "ApplyConfiguration",
            "applyConfiguration": {"expression": "Object{metadata: Object.metadata{labels: {'a': 'b'}}}"}}]}}"#,
        &[
            ("/spec/mutations", "[]", "spec.mutations: Required value: mutations must contain at least one item"),
            (
                "/spec/mutations/0/patchType",
                "\"JSONPatch\"",
                "spec.mutations[0].jsonPatch: Required value: must be specified when patchType is JSONPatch",
            ),
            (
                "/spec/mutations/0/applyConfiguration/expression",
                "\"nope\"",
                "spec.mutations[0].applyConfiguration.expression: Invalid value: \"nope\": compilation failed: ERROR: <input>:1:1: undeclared",
            ),
            (
                "/spec/reinvocationPolicy",
                "\"Odd\"",
                "spec.reinvocationPolicy: Unsupported value: \"Odd\": supported values: \"IfNeeded\", \"Never\"",
            ),
        ],
        &[],
    );
    check(
        "admissionregistration.k8s.io/v1beta1/mutatingadmissionpolicybindings",
        r#"{"metadata": {"name": "p"}, "spec": {"policyName": "p"}}"#,
        &[("/spec/paramRef", "{\"name\": \"x\"}", "spec.paramRef.parameterNotFoundAction: Required value")],
        &[],
    );
    check(
        "admissionregistration.k8s.io/v1/validatingadmissionpolicybindings",
        r#"{"metadata": {"name": "p"}, "spec": {"policyName": "p", "validationActions": ["Deny"]}}"#,
        &[
            (
                "/spec/validationActions",
                "[]",
                "spec.validationActions: Required value: at least one validation action is required",
            ),
            (
                "/spec/validationActions",
                "[\"Deny\", \"Warn\"]",
                "spec.validationActions: Invalid value: [\"Deny\",\"Warn\"]: must not contain both Deny and Warn",
            ),
            ("/spec/paramRef", "{\"name\": \"x\"}", "spec.paramRef.parameterNotFoundAction: Required value"),
        ],
        &[],
    );
}

#[test]
fn extension() {
    check(
        "apiextensions.k8s.io/v1/customresourcedefinitions",
        r#"{"metadata": {"name": "things.g.io"}, "spec": {"group": "g.io", "scope": "Namespaced", "names": {"kind": "Thing", "plural": "things"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object",
            "properties": {"spec": {"type": "object", "properties": {"size": {"type": "integer"}}}}}}}]}}"#,
        &[
            (
                "/metadata/name",
                "\"other.g.io\"",
                "metadata.name: Invalid value: \"other.g.io\": must be spec.names.plural+\".\"+spec.group",
            ),
            (
                "/spec/scope",
                "\"World\"",
                "spec.scope: Unsupported value: \"World\": supported values: \"Cluster\", \"Namespaced\"",
            ),
            ("/spec/versions/0/storage", "false", "spec.versions: Invalid value: "),
            (
                "/spec/versions/0/schema",
                "null",
                "spec.versions[0].schema.openAPIV3Schema: Required value: schemas are required",
            ),
            (
                "/spec/versions/0/schema/openAPIV3Schema/type",
                "\"string\"",
                "spec.versions[0].schema.openAPIV3Schema.type: Invalid value: \"string\": must be object at the root",
            ),
            (
                "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/size/type",
                "null",
                "spec.versions[0].schema.openAPIV3Schema.properties[spec].properties[size].type: Required value: must not be empty for specified object fields",
            ),
            (
                "/spec/versions/0/schema/openAPIV3Schema/properties/spec/anyOf",
                "[{\"type\": \"object\"}]",
                "spec.versions[0].schema.openAPIV3Schema.properties[spec].anyOf[0].type: Forbidden: must be empty to be structural",
            ),
            (
                "/spec/versions/0/schema/openAPIV3Schema/properties/list",
                "{\"type\": \"array\"}",
                "spec.versions[0].schema.openAPIV3Schema.properties[list].items: Required value: must be specified",
            ),
            (
                "/spec/versions/0/additionalPrinterColumns",
                "[{\"name\": \"a\", \"type\": \"odd\", \"jsonPath\": \".a\"}]",
                "spec.versions[0].additionalPrinterColumns[0].type: Invalid value: \"odd\": must be one of boolean,date,integer,number,string",
            ),
            (
                "/spec/versions/0/subresources",
                "{\"scale\": {\"specReplicasPath\": \".x\", \"statusReplicasPath\": \".status.n\"}}",
                "spec.versions[0].subresources.scale.specReplicasPath: Invalid value: \".x\": should be a json path under .spec",
            ),
            (
                "/spec/conversion",
                "{\"strategy\": \"Webhook\"}",
                "spec.conversion.webhookClientConfig: Required value: required when strategy is set to Webhook",
            ),
        ],
        &[("/spec/names/plural", "\"objects\"", "spec.names.plural: Invalid value: \"objects\": field is immutable")],
    );
    check(
        "apiregistration.k8s.io/v1/apiservices",
        r#"{"metadata": {"name": "v1.g.io"}, "spec": {"group": "g.io", "version": "v1", "groupPriorityMinimum": 100, "versionPriority": 10,
            "service": {"name": "s", "namespace": "n"}}}"#,
        &[
            (
                "/metadata/name",
                "\"v2.g.io\"",
                "metadata.name: Invalid value: \"v2.g.io\": must be `spec.version+\".\"+spec.group`: \"v1.g.io\"",
            ),
            (
                "/spec/groupPriorityMinimum",
                "0",
                "spec.groupPriorityMinimum: Invalid value: 0: must be positive and less than 20000",
            ),
            ("/spec/service/name", "\"\"", "spec.service.name: Required value"),
        ],
        &[],
    );
}

#[test]
fn devices() {
    check(
        "resource.k8s.io/v1/resourceclaims",
        r#"{"metadata": {"name": "c"}, "spec": {"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "d"}}],
            "config": [{"requests": ["r"], "opaque": {"driver": "a.b", "parameters": {}}}]}}}"#,
        &[
            (
                "/spec/devices/requests/0/exactly",
                "null",
                "spec.devices.requests[0]: Required value: exactly one of `exactly` or `firstAvailable` is required",
            ),
            (
                "/spec/devices/requests/0/exactly/deviceClassName",
                "null",
                "spec.devices.requests[0].exactly.deviceClassName: Required value",
            ),
            (
                "/spec/devices/requests/0/exactly/allocationMode",
                "\"Some\"",
                "spec.devices.requests[0].exactly.allocationMode: Unsupported value: \"Some\": supported values: \"All\", \"ExactCount\"",
            ),
            (
                "/spec/devices/config/0/requests/0",
                "\"q\"",
                "spec.devices.config[0].requests[0]: Invalid value: \"q\": must be the name of a request in the claim",
            ),
        ],
        &[("/spec/devices/requests/0/exactly/count", "2", "spec: Invalid value: ")],
    );
    check(
        "resource.k8s.io/v1/resourceclaimtemplates",
        r#"{"metadata": {"name": "c"}, "spec": {"spec": {"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "d"}}]}}}}"#,
        &[(
            "/spec/spec/devices/requests/0/name",
            "\"R\"",
            "spec.spec.devices.requests[0].name: Invalid value: \"R\": a lowercase RFC 1123 label",
        )],
        &[],
    );
    check(
        "resource.k8s.io/v1/deviceclasses",
        r#"{"metadata": {"name": "d"}, "spec": {"selectors": [{"cel": {"expression": "true"}}]}}"#,
        &[
            ("/spec/selectors/0", "{}", "spec.selectors[0].cel: Required value"),
            (
                "/spec/selectors/0/cel/expression",
                "\"device.nothing == 1\"",
                "spec.selectors[0].cel.expression: Invalid value: \"device.nothing == 1\": compilation failed: ",
            ),
        ],
        &[],
    );
    check(
        "resource.k8s.io/v1alpha3/devicetaintrules",
        r#"{"metadata": {"name": "r"}, "spec": {"deviceSelector": {"driver": "a.b"}, "taint": {"key": "k", "effect": "NoExecute"}}}"#,
        &[(
            "/spec/taint/effect",
            "\"PreferNoSchedule\"",
            "spec.taint.effect: Unsupported value: \"PreferNoSchedule\": supported values: \"NoExecute\", \"NoSchedule\", \"None\"",
        )],
        &[],
    );
    check(
        "resource.k8s.io/v1/resourceslices",
        r#"{"metadata": {"name": "s"}, "spec": {"driver": "a.b", "nodeName": "n", "pool": {"name": "p", "resourceSliceCount": 1},
            "devices": [{"name": "d", "attributes": {"m": {"string": "x"}}}]}}"#,
        &[
            (
                "/spec/nodeName",
                "null",
                "spec: Required value: exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required",
            ),
            (
                "/spec/pool/resourceSliceCount",
                "0",
                "spec.pool.resourceSliceCount: Invalid value: 0: must be greater than zero",
            ),
            (
                "/spec/devices/0/attributes/m",
                "{}",
                "spec.devices[0].attributes[m]: Invalid value: {}: exactly one value must be specified",
            ),
        ],
        &[("/spec/driver", "\"c.d\"", "spec.driver: Invalid value: \"c.d\": field is immutable")],
    );
}

#[test]
fn small_groups() {
    check(
        "scheduling.k8s.io/v1/priorityclasses",
        r#"{"metadata": {"name": "p"}, "value": 5}"#,
        &[
            (
                "/value",
                "1000000001",
                "value: Forbidden: maximum allowed value of a user defined priority is 1000000000",
            ),
            (
                "/metadata/name",
                "\"system-x\"",
                "metadata.name: Forbidden: priority class names with 'system-' prefix are reserved for system use only.",
            ),
        ],
        &[("/value", "6", "value: Forbidden: may not be changed in an update.")],
    );
    check(
        "coordination.k8s.io/v1/leases",
        r#"{"metadata": {"name": "l"}, "spec": {"holderIdentity": "h", "leaseDurationSeconds": 15}}"#,
        &[("/spec/leaseDurationSeconds", "0", "spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0")],
        &[],
    );
    check(
        "node.k8s.io/v1/runtimeclasses",
        r#"{"metadata": {"name": "r"}, "handler": "crun"}"#,
        &[("/handler", "\"X\"", "handler: Invalid value: \"X\": a lowercase RFC 1123 label")],
        &[("/handler", "\"runc\"", "handler: Invalid value: \"runc\": field is immutable")],
    );
    check(
        "flowcontrol.apiserver.k8s.io/v1/flowschemas",
        r#"{"metadata": {"name": "f"}, "spec": {"priorityLevelConfiguration": {"name": "p"}, "rules": [{"subjects": [{"kind": "User", "user": {"name": "u"}}],
            "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}]}]}}"#,
        &[
            (
                "/spec/matchingPrecedence",
                "10001",
                "spec.matchingPrecedence: Invalid value: 10001: must not be greater than 10000",
            ),
            (
                "/spec/priorityLevelConfiguration/name",
                "\"\"",
                "spec.priorityLevelConfiguration.name: Required value: must reference a priority level",
            ),
            (
                "/spec/rules/0/subjects/0/user",
                "null",
                "spec.rules[0].subjects[0].user: Required value: user is required when subject kind is 'User'",
            ),
            (
                "/spec/rules/0/nonResourceRules",
                "[]",
                "spec.rules[0]: Required value: at least one of resourceRules and nonResourceRules has to be non-empty",
            ),
        ],
        &[],
    );
    check(
        "flowcontrol.apiserver.k8s.io/v1/prioritylevelconfigurations",
        r#"{"metadata": {"name": "p"}, "spec": {"type": "Limited", "limited": {"limitResponse": {"type": "Queue", "queuing": {}}}}}"#,
        &[
            (
                "/spec/type",
                "\"Exempt\"",
                "spec.type: Invalid value: \"Exempt\": type must be 'Exempt' if and only if name is 'exempt'",
            ),
            ("/spec/limited/limitResponse/queuing", "null", "spec.limited.limitResponse.queuing: Required value"),
            (
                "/spec/limited/limitResponse/queuing/handSize",
                "65",
                "spec.limited.limitResponse.queuing.handSize: Invalid value: 65: should not be greater than queues (64)",
            ),
        ],
        &[],
    );
    check(
        "storagemigration.k8s.io/v1beta1/storageversionmigrations",
        r#"{"metadata": {"name": "m"}, "spec": {"resource": {"group": "apps", "resource": "deployments"}}}"#,
        &[("/spec/resource/resource", "\"\"", "spec.resource.resource: Required value: resource is required")],
        &[(
            "/spec/resource/resource",
            "\"replicasets\"",
            "spec.resource: Invalid value: {\"group\":\"apps\",\"resource\":\"replicasets\"}: field is immutable",
        )],
    );
    check(
        "events.k8s.io/v1/events",
        r#"{"metadata": {"name": "e"}, "eventTime": "2026-01-01T00:00:00.000000Z", "reportingController": "a.b/c", "reportingInstance": "i",
            "action": "Run", "reason": "Ran", "type": "Normal", "regarding": {"kind": "Pod", "name": "p", "namespace": "n"}}"#,
        &[
            ("/type", "\"Odd\"", "type: Unsupported value: \"Odd\": supported values: \"Normal\", \"Warning\""),
            ("/reason", "\"\"", "reason: Required value"),
        ],
        &[],
    );
}

/// Whoever adds a kind adds cases for it, or says here why it has no rules.
#[test]
fn every_kind_with_rules_has_cases() {
    let sources = [
        include_str!("workloads.rs"),
        include_str!("networking.rs"),
        include_str!("core.rs"),
        include_str!("others.rs"),
    ]
    .concat();
    let free = ["bindings", "componentstatuses", "namespaces", "podtemplates", "serviceaccounts"];
    for kind in crate::registry::builtin().iter().filter(|kind| kind.stored && !free.contains(&kind.plural)) {
        let name = match kind.group {
            "" => format!("{}/{}", kind.version, kind.plural),
            group => format!("{group}/{}/{}", kind.version, kind.plural),
        };
        assert!(sources.contains(&name) || sources.contains(&format!("\"{}\"", kind.plural)), "{name} has no cases");
    }
}
