//! The FlowSchemas and PriorityLevelConfigurations every cluster begins with, as upstream has them. `exempt` and
//! `catch-all` hold even where somebody removed them.

use serde_json::{Value, json};

/// Name, concurrency shares, what percentage of them is lent, and queues, hand size and queue length.
type Level = (&'static str, u32, u32, Option<(u32, u32, u32)>);

const LEVELS: &[Level] = &[
    ("catch-all", 5, 0, None),
    ("system", 30, 33, Some((64, 6, 50))),
    ("node-high", 40, 25, Some((64, 6, 50))),
    ("leader-election", 10, 0, Some((16, 4, 50))),
    ("workload-high", 40, 50, Some((128, 6, 50))),
    ("workload-low", 100, 90, Some((128, 6, 50))),
    ("global-default", 20, 50, Some((128, 6, 50))),
];

pub fn levels() -> Vec<Value> {
    let exempt = json!({"type": "Exempt", "exempt": {"nominalConcurrencyShares": 0, "lendablePercent": 0}});
    let limited = LEVELS.iter().map(|(name, shares, lendable, queuing)| {
        let response = match queuing {
            None => json!({"type": "Reject"}),
            Some((queues, hand, length)) => {
                json!({"type": "Queue", "queuing": {"queues": queues, "handSize": hand, "queueLengthLimit": length}})
            }
        };
        let limited =
            json!({"nominalConcurrencyShares": shares, "lendablePercent": lendable, "limitResponse": response});
        named(name, json!({"type": "Limited", "limited": limited}))
    });
    std::iter::once(named("exempt", exempt)).chain(limited).collect()
}

pub fn schemas() -> Vec<Value> {
    let everything =
        || (vec![resources(&["*"], &["*"], &["*"])], vec![json!({"nonResourceURLs": ["*"], "verbs": ["*"]})]);
    let group = |name: &str| json!({"kind": "Group", "group": {"name": name}});
    let user = |name: &str| json!({"kind": "User", "user": {"name": name}});
    let account = |namespace: &str, name: &str| json!({"kind": "ServiceAccount", "serviceAccount": {"namespace": namespace, "name": name}});
    let all = || vec![group("system:unauthenticated"), group("system:authenticated")];
    let leases = |verbs: &[&str]| (vec![resources(verbs, &["coordination.k8s.io"], &["leases"])], Vec::new());
    let write = &["get", "create", "update"];
    let nodes = || vec![group("system:nodes")];
    let health = json!({"verbs": ["get"], "nonResourceURLs": ["/healthz", "/readyz", "/livez"]});
    vec![
        schema("exempt", "exempt", 1, None, vec![group("system:masters")], everything()),
        schema("catch-all", "catch-all", 10_000, Some("ByUser"), all(), everything()),
        schema("probes", "exempt", 2, None, all(), (Vec::new(), vec![health])),
        schema(
            "system-leader-election",
            "leader-election",
            100,
            Some("ByUser"),
            vec![user("system:kube-controller-manager"), user("system:kube-scheduler"), account("kube-system", "*")],
            leases(write),
        ),
        schema(
            "endpoint-controller",
            "workload-high",
            150,
            Some("ByUser"),
            vec![
                user("system:kube-controller-manager"),
                account("kube-system", "endpoint-controller"),
                account("kube-system", "endpointslicemirroring-controller"),
            ],
            (vec![resources(write, &[""], &["endpoints"])], Vec::new()),
        ),
        schema(
            "workload-leader-election",
            "leader-election",
            200,
            Some("ByUser"),
            vec![account("kube-system", "*")],
            leases(write),
        ),
        schema(
            "system-node-high",
            "node-high",
            400,
            Some("ByUser"),
            nodes(),
            (
                vec![
                    resources(&["*"], &[""], &["nodes", "nodes/status"]),
                    resources(&["*"], &["coordination.k8s.io"], &["leases"]),
                ],
                Vec::new(),
            ),
        ),
        schema("system-nodes", "system", 500, Some("ByUser"), nodes(), everything()),
        schema(
            "kube-controller-manager",
            "workload-high",
            800,
            Some("ByNamespace"),
            vec![user("system:kube-controller-manager")],
            everything(),
        ),
        schema(
            "kube-scheduler",
            "workload-high",
            800,
            Some("ByNamespace"),
            vec![user("system:kube-scheduler")],
            everything(),
        ),
        schema(
            "kube-system-service-accounts",
            "workload-high",
            900,
            Some("ByNamespace"),
            vec![account("kube-system", "*")],
            everything(),
        ),
        schema(
            "service-accounts",
            "workload-low",
            9000,
            Some("ByUser"),
            vec![group("system:serviceaccounts")],
            everything(),
        ),
        schema("global-default", "global-default", 9900, Some("ByUser"), all(), everything()),
    ]
}

fn named(name: &str, spec: Value) -> Value {
    let annotations = json!({"apf.kubernetes.io/autoupdate-spec": "true"});
    json!({"metadata": {"name": name, "annotations": annotations}, "spec": spec})
}

fn resources(verbs: &[&str], groups: &[&str], resources: &[&str]) -> Value {
    json!({"verbs": verbs, "apiGroups": groups, "resources": resources, "clusterScope": true, "namespaces": ["*"]})
}

fn schema(
    name: &str,
    level: &str,
    precedence: u32,
    distinguisher: Option<&str>,
    subjects: Vec<Value>,
    (resources, paths): (Vec<Value>, Vec<Value>),
) -> Value {
    let mut rules = json!({"subjects": subjects});
    for (field, list) in [("resourceRules", resources), ("nonResourceRules", paths)] {
        if !list.is_empty() {
            rules[field] = json!(list);
        }
    }
    let mut spec = json!({
        "priorityLevelConfiguration": {"name": level},
        "matchingPrecedence": precedence,
        "rules": [rules],
    });
    if let Some(distinguisher) = distinguisher {
        spec["distinguisherMethod"] = json!({"type": distinguisher});
    }
    named(name, spec)
}
