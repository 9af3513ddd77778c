//! Objects every cluster has from its first moment: namespaces, roles, priority classes, the API's own Service.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use dhow_api::{Status, local_volumes};
use dhow_client::Client;
use http::{Method, Request, header};
use http_body_util::BodyExt;
use serde_json::{Value, json};

use crate::identity::{MASTERS, UserInfo};
use crate::reconcile::{self, AUTOUPDATE};
use crate::{ApiServer, Config, flow, legacy_tokens, service_cidrs};

/// The server itself, as a user.
pub const SERVER: &str = "system:apiserver";

/// The ConfigMap in `kube-public` that tells machines that join which networks the cluster has.
pub const NETWORKS: &str = "dhow-networks";

/// Creates what is missing. Runs through the pipeline like everyone's requests.
pub async fn ensure(server: &Arc<ApiServer>, config: &Config) -> Result<(), Status> {
    let client = server.client(UserInfo::new(SERVER, &[MASTERS]));
    let namespaces = ["default", "kube-system", "kube-public", "kube-node-lease"];
    let named = |name| ("/api/v1/namespaces", json!({"metadata": {"name": name}}));
    create_all(&client, namespaces.map(named)).await?;
    let classes = [("system-cluster-critical", 2_000_000_000), ("system-node-critical", 2_000_001_000)];
    let class = |(name, value)| {
        ("/apis/scheduling.k8s.io/v1/priorityclasses", json!({"metadata": {"name": name}, "value": value}))
    };
    create_all(&client, classes.map(class)).await?;
    let roles = roles().into_iter().map(|role| ("clusterroles", role));
    let policy = roles.chain(bindings().into_iter().map(|binding| ("clusterrolebindings", binding)));
    let policy = policy.chain(network_readers());
    let settled = policy.map(async |(plural, object)| {
        reconcile::ensure(&client, &format!("/apis/rbac.authorization.k8s.io/v1/{plural}"), object).await
    });
    futures::future::try_join_all(settled).await?;
    let of_group = |plural: &'static str| move |object| (plural, object);
    let levels = flow::objects::levels().into_iter().map(of_group(LEVELS));
    create(&client, "/apis/storage.k8s.io/v1/storageclasses", local_class()).await?;
    create(&client, "/api/v1/namespaces/kube-system/configmaps", token_tracking()).await?;
    create_all(&client, levels.chain(flow::objects::schemas().into_iter().map(of_group(SCHEMAS)))).await?;
    service_cidrs::ensure_default(&client, &config.service_ranges).await?;
    api_service(&client, config).await
}

/// Says from which day on uses of tokens in Secrets are noted.
fn token_tracking() -> Value {
    json!({"metadata": {"name": legacy_tokens::TRACKING}, "data": {"since": legacy_tokens::today()}})
}

/// Volumes of the node that runs the pod, for claims that name no class.
fn local_class() -> Value {
    json!({
        "metadata": {
            "name": local_volumes::CLASS,
            "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
        },
        "provisioner": local_volumes::PROVISIONER,
        "reclaimPolicy": "Delete",
        "volumeBindingMode": "WaitForFirstConsumer",
        "allowVolumeExpansion": true,
    })
}

const LEVELS: &str = "/apis/flowcontrol.apiserver.k8s.io/v1/prioritylevelconfigurations";
const SCHEMAS: &str = "/apis/flowcontrol.apiserver.k8s.io/v1/flowschemas";

/// All at once: the store makes them durable together.
async fn create_all(client: &Client, objects: impl IntoIterator<Item = (&'static str, Value)>) -> Result<(), Status> {
    let creations = objects.into_iter().map(|(collection, object)| create(client, collection, object));
    futures::future::try_join_all(creations).await.map(drop)
}

/// Posts an object; one that is there already stays as it is. Asked for first, because a Service that is there makes
/// its own address a taken one.
pub async fn create(client: &Client, collection: &str, object: Value) -> Result<(), Status> {
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let (code, _) = send(client, Method::GET, &format!("{collection}/{name}"), "", &Value::Null).await?;
    if code < 300 {
        return Ok(());
    }
    let (code, answer) = send(client, Method::POST, collection, "application/json", &object).await?;
    if code < 300 || code == 409 { Ok(()) } else { Err(failed(&answer)) }
}

/// One request and its answer's code and body.
pub async fn send(
    client: &Client,
    method: Method,
    path: &str,
    media_type: &str,
    body: &Value,
) -> Result<(u16, Bytes), Status> {
    let internal = |error: &dyn std::fmt::Display| Status::internal(error.to_string());
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::CONTENT_TYPE, media_type)
        .body(Bytes::from(body.to_string()))
        .map_err(|error| internal(&error))?;
    let response = client.request(request).await.map_err(|error| internal(&error))?;
    let code = response.status().as_u16();
    let answer = response.into_body().collect().await.map_err(|error| internal(&error))?.to_bytes();
    Ok((code, answer))
}

/// The refusal in an answer's body.
pub fn failed(answer: &[u8]) -> Status {
    serde_json::from_slice(answer).unwrap_or_else(|_| Status::internal(String::from_utf8_lossy(answer).into_owned()))
}

/// The Service `default/kubernetes`, and where it leads if this server is alone.
async fn api_service(client: &Client, config: &Config) -> Result<(), Status> {
    let labels = json!({"component": "apiserver", "provider": "kubernetes"});
    let service = json!({
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": labels},
        "spec": {
            "clusterIP": config.api_service_ip,
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": config.advertise.port()}],
        },
    });
    let services = "/api/v1/namespaces/default/services";
    if let Err(status) = create(client, services, service.clone()).await {
        // Another server made it at this moment: then its address is taken, and it is there now.
        let (code, _) = send(client, Method::GET, &format!("{services}/kubernetes"), "", &Value::Null).await?;
        if code >= 300 {
            return Err(status);
        }
    }
    match config.member_ttl {
        None => api_endpoints(client, &[config.advertise]).await,
        Some(_) => Ok(()),
    }
}

/// The endpoints of `default/kubernetes`: addresses of one family and port.
pub async fn api_endpoints(client: &Client, addresses: &[SocketAddr]) -> Result<(), Status> {
    let Some(first) = addresses.first() else { return Ok(()) };
    let family = if first.is_ipv4() { "IPv4" } else { "IPv6" };
    let endpoints: Vec<Value> =
        addresses.iter().map(|address| json!({"addresses": [address.ip()], "conditions": {"ready": true}})).collect();
    let slice = json!({
        "metadata": {
            "name": "kubernetes",
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": "kubernetes"},
        },
        "addressType": family,
        "endpoints": endpoints,
        "ports": [{"name": "https", "port": first.port(), "protocol": "TCP"}],
    });
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    create(client, slices, slice.clone()).await?;
    let patch = json!({"endpoints": slice["endpoints"], "ports": slice["ports"]});
    let object = format!("{slices}/kubernetes");
    let (code, answer) = send(client, Method::PATCH, &object, "application/merge-patch+json", &patch).await?;
    if code < 300 { Ok(()) } else { Err(failed(&answer)) }
}

fn rule(groups: &[&str], resources: &[&str], verbs: &[&str]) -> Value {
    json!({"apiGroups": groups, "resources": resources, "verbs": verbs})
}

fn role(name: &str, rules: Vec<Value>) -> Value {
    json!({"metadata": policy_metadata(name), "rules": rules})
}

fn aggregated_to(role: &str) -> String {
    format!("rbac.authorization.k8s.io/aggregate-to-{role}")
}

/// What is built in of a role that others add to.
fn part(of: &str, rules: Vec<Value>) -> Value {
    let mut part = role(&format!("system:aggregate-to-{of}"), rules);
    part["metadata"]["labels"][aggregated_to(of)] = json!("true");
    part
}

/// A role of all the parts, which a controller puts together; with what is built in it is of use before. `into` has all of it,
/// too.
fn sum(name: &str, into: Option<&str>, rules: Vec<Value>) -> Value {
    let mut sum = role(name, rules);
    sum["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {aggregated_to(name): "true"}}]});
    if let Some(into) = into {
        sum["metadata"]["labels"][aggregated_to(into)] = json!("true");
    }
    sum
}

fn policy_metadata(name: &str) -> Value {
    json!({
        "name": name,
        "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
        "annotations": {AUTOUPDATE: "true"},
    })
}

/// A machine that joins reads which networks the cluster has before it is a node.
fn network_readers() -> [(&'static str, Value); 2] {
    const NAME: &str = "dhow:networks";
    let named = json!({
        "apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"], "resourceNames": [NETWORKS],
    });
    let binding = json!({
        "metadata": policy_metadata(NAME),
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": NAME},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": JOINING}],
    });
    [("namespaces/kube-public/roles", role(NAME, vec![named])), ("namespaces/kube-public/rolebindings", binding)]
}

/// The group that a token for joining gives.
const JOINING: &str = "system:bootstrappers:dhow:default-node-token";

const READ: &[&str] = &["get", "list", "watch"];
const WRITE: &[&str] = &["create", "delete", "deletecollection", "patch", "update"];

/// Resources of applications that `view` may read and `edit` may write.
const APPLICATION: &[(&str, &[&str])] = &[
    (
        "",
        &[
            "configmaps",
            "endpoints",
            "events",
            "persistentvolumeclaims",
            "pods",
            "replicationcontrollers",
            "serviceaccounts",
            "services",
        ],
    ),
    (
        "apps",
        &[
            "controllerrevisions",
            "daemonsets",
            "deployments",
            "deployments/scale",
            "replicasets",
            "replicasets/scale",
            "statefulsets",
            "statefulsets/scale",
        ],
    ),
    ("autoscaling", &["horizontalpodautoscalers"]),
    ("batch", &["cronjobs", "jobs"]),
    ("discovery.k8s.io", &["endpointslices"]),
    ("networking.k8s.io", &["ingresses", "networkpolicies"]),
    ("policy", &["poddisruptionbudgets"]),
];

fn roles() -> Vec<Value> {
    let all = rule(&["*"], &["*"], &["*"]);
    let everything = vec![all, json!({"nonResourceURLs": ["*"], "verbs": ["*"]})];
    let mut view: Vec<Value> = APPLICATION.iter().map(|(group, resources)| rule(&[*group], resources, READ)).collect();
    view.push(rule(&[""], &["limitranges", "namespaces", "pods/log", "pods/status", "resourcequotas"], READ));
    view.push(rule(&["metrics.k8s.io"], &["nodes", "pods"], READ));
    let mut edit: Vec<Value> = APPLICATION.iter().map(|(group, resources)| rule(&[*group], resources, WRITE)).collect();
    edit.push(rule(&[""], &["secrets"], &[READ, WRITE].concat()));
    edit.push(rule(&[""], &["pods/attach", "pods/exec", "pods/portforward", "pods/eviction"], &["create", "get"]));
    let admin = vec![
        rule(&["rbac.authorization.k8s.io"], &["rolebindings", "roles"], &[READ, WRITE].concat()),
        rule(&["authorization.k8s.io"], &["localsubjectaccessreviews"], &["create"]),
    ];
    let discovery = json!({
        "nonResourceURLs": ["/api", "/api/*", "/apis", "/apis/*", "/healthz", "/livez", "/openapi", "/openapi/*", "/readyz", "/version", "/version/"],
        "verbs": ["get"],
    });
    vec![
        role("cluster-admin", everything),
        part("view", view.clone()),
        part("edit", edit.clone()),
        part("admin", admin.clone()),
        sum("view", Some("edit"), view.clone()),
        sum("edit", Some("admin"), [view.clone(), edit.clone()].concat()),
        sum("admin", None, [view, edit, admin].concat()),
        role("system:discovery", vec![discovery]),
        role(
            "system:basic-user",
            vec![
                rule(&["authorization.k8s.io"], &["selfsubjectaccessreviews", "selfsubjectrulesreviews"], &["create"]),
                rule(&["authentication.k8s.io"], &["selfsubjectreviews"], &["create"]),
            ],
        ),
        role(
            "system:service-account-issuer-discovery",
            vec![json!({
                "nonResourceURLs": ["/.well-known/openid-configuration", "/.well-known/openid-configuration/", "/openid/v1/jwks", "/openid/v1/jwks/"],
                "verbs": ["get"],
            })],
        ),
        role(
            "system:cluster-trust-bundle-discovery",
            vec![rule(&["certificates.k8s.io"], &["clustertrustbundles"], READ)],
        ),
        // What an extension server asks about its own callers.
        role(
            "system:auth-delegator",
            vec![
                rule(&["authentication.k8s.io"], &["tokenreviews"], &["create"]),
                rule(&["authorization.k8s.io"], &["subjectaccessreviews"], &["create"]),
            ],
        ),
        role("system:kube-controller-manager", controllers()),
        role(
            "system:kube-scheduler",
            vec![
                rule(
                    &[""],
                    &[
                        "nodes",
                        "pods",
                        "namespaces",
                        "services",
                        "persistentvolumeclaims",
                        "persistentvolumes",
                        "replicationcontrollers",
                    ],
                    READ,
                ),
                rule(&["apps"], &["replicasets", "statefulsets"], READ),
                rule(&["policy"], &["poddisruptionbudgets"], READ),
                rule(&["scheduling.x-k8s.io"], &["podgroups"], READ),
                rule(&["apiextensions.k8s.io"], &["customresourcedefinitions"], READ),
                rule(&["storage.k8s.io"], &["*"], READ),
                rule(
                    &["resource.k8s.io"],
                    &["deviceclasses", "devicetaintrules", "resourceclaims", "resourceslices"],
                    READ,
                ),
                rule(&["resource.k8s.io"], &["resourceclaims", "resourceclaims/status"], &["patch", "update"]),
                rule(&[""], &["persistentvolumeclaims", "persistentvolumes"], &["patch", "update"]),
                rule(&[""], &["pods/binding", "bindings"], &["create"]),
                rule(&[""], &["pods/status"], &["patch", "update"]),
                rule(&[""], &["pods"], &["delete"]),
                rule(&["", "events.k8s.io"], &["events"], &["create", "patch", "update"]),
                rule(&["coordination.k8s.io"], &["leases"], &["create", "get", "list", "update", "watch"]),
            ],
        ),
        // Nobody has it by default: what a node may do is decided by what it is and runs (`node_authorizer`).
        role(
            "system:node",
            vec![
                rule(&["authentication.k8s.io"], &["tokenreviews"], &["create"]),
                rule(&["authorization.k8s.io"], &["localsubjectaccessreviews", "subjectaccessreviews"], &["create"]),
                rule(&[""], &["services"], READ),
                rule(&[""], &["nodes"], &["create", "get", "list", "patch", "update", "watch"]),
                rule(&[""], &["nodes/status", "pods/status"], &["patch", "update"]),
                rule(&["", "events.k8s.io"], &["events"], &["create", "patch", "update"]),
                rule(&[""], &["pods"], &["create", "delete", "get", "list", "watch"]),
                rule(&[""], &["pods/eviction", "serviceaccounts/token"], &["create"]),
                rule(&[""], &["configmaps", "secrets"], READ),
                rule(&[""], &["endpoints", "persistentvolumeclaims", "persistentvolumes", "serviceaccounts"], &["get"]),
                rule(&[""], &["persistentvolumes"], &["list", "patch", "watch"]),
                rule(&[""], &["persistentvolumeclaims/status"], &["get", "patch", "update"]),
                rule(&["certificates.k8s.io"], &["certificatesigningrequests"], &["create", "get", "list", "watch"]),
                rule(&["certificates.k8s.io"], &["clustertrustbundles"], READ),
                rule(&["certificates.k8s.io"], &["podcertificaterequests"], &["create", "get", "list", "watch"]),
                rule(&["coordination.k8s.io"], &["leases"], &["create", "delete", "get", "patch", "update"]),
                rule(&["storage.k8s.io"], &["volumeattachments"], &["get"]),
                rule(&["storage.k8s.io"], &["csidrivers"], READ),
                rule(&["storage.k8s.io"], &["csinodes"], &["create", "delete", "get", "patch", "update"]),
                rule(&["node.k8s.io"], &["runtimeclasses"], READ),
                rule(&["resource.k8s.io"], &["resourceclaims"], &["get"]),
                rule(
                    &["resource.k8s.io"],
                    &["resourceslices"],
                    &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"],
                ),
            ],
        ),
        role(
            "system:node-proxier",
            vec![
                rule(&[""], &["endpoints", "nodes", "services"], &["list", "watch"]),
                rule(&["discovery.k8s.io"], &["endpointslices"], &["list", "watch"]),
                rule(&["networking.k8s.io"], &["servicecidrs"], &["list", "watch"]),
                rule(&["", "events.k8s.io"], &["events"], &["create", "patch", "update"]),
            ],
        ),
        // What a node has to know to answer for load balancers; each address is its holder's of a Lease.
        role(
            "system:dhow:load-balancer",
            vec![
                rule(&[""], &["nodes", "services"], &["list", "watch"]),
                rule(&["discovery.k8s.io"], &["endpointslices"], &["list", "watch"]),
                rule(&["coordination.k8s.io"], &["leases"], &["create", "get", "list", "patch", "update", "watch"]),
            ],
        ),
        // What a node has to know to enforce network policies.
        role(
            "system:dhow:network-policy",
            vec![
                rule(&[""], &["namespaces", "nodes", "pods"], &["list", "watch"]),
                rule(&["networking.k8s.io"], &["networkpolicies"], &["list", "watch"]),
                rule(
                    &["policy.networking.k8s.io"],
                    &["adminnetworkpolicies", "baselineadminnetworkpolicies", "clusternetworkpolicies"],
                    &["list", "watch"],
                ),
                rule(&["apiextensions.k8s.io"], &["customresourcedefinitions"], &["list", "watch"]),
            ],
        ),
        role(
            "system:certificates.k8s.io:certificatesigningrequests:nodeclient",
            vec![rule(&["certificates.k8s.io"], &["certificatesigningrequests/nodeclient"], &["create"])],
        ),
        role(
            "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient",
            vec![rule(&["certificates.k8s.io"], &["certificatesigningrequests/selfnodeclient"], &["create"])],
        ),
        role(
            "system:node-bootstrapper",
            vec![rule(&["certificates.k8s.io"], &["certificatesigningrequests"], &["create", "get", "list", "watch"])],
        ),
        role(
            "system:kube-dns",
            vec![
                rule(&[""], &["endpoints", "namespaces", "pods", "services"], &["list", "watch"]),
                rule(&["discovery.k8s.io"], &["endpointslices"], &["list", "watch"]),
                rule(&["dns.dhow.io"], &["records", "zones"], &["list", "watch"]),
                rule(&["dns.dhow.io"], &["records/status", "zones/status"], &["patch"]),
            ],
        ),
    ]
}

/// What controllers need. They delete, adopt and resize objects of all kinds, also of those that are yet to come, but
/// make only what is theirs to make, and act as nobody else.
fn controllers() -> Vec<Value> {
    let anywhere = ["delete", "deletecollection", "get", "list", "patch", "update", "watch"];
    vec![
        rule(&["*"], &["*"], &anywhere),
        json!({"nonResourceURLs": ["/api", "/api/*", "/apis", "/apis/*", "/version"], "verbs": ["get"]}),
        rule(
            &[""],
            &[
                "configmaps",
                "endpoints",
                "events",
                "persistentvolumeclaims",
                "persistentvolumes",
                "pods",
                "pods/eviction",
                "serviceaccounts",
                "serviceaccounts/token",
            ],
            &["create"],
        ),
        rule(&["apps"], &["controllerrevisions", "replicasets"], &["create"]),
        rule(&["authentication.k8s.io"], &["tokenreviews"], &["create"]),
        rule(&["authorization.k8s.io"], &["subjectaccessreviews"], &["create"]),
        rule(&["batch"], &["jobs"], &["create"]),
        rule(&["certificates.k8s.io"], &["clustertrustbundles"], &["create"]),
        rule(&["certificates.k8s.io"], &["signers"], &["approve", "attest", "sign"]),
        rule(&["coordination.k8s.io"], &["leases"], &["create"]),
        rule(&["discovery.k8s.io"], &["endpointslices"], &["create"]),
        rule(&["events.k8s.io"], &["events"], &["create"]),
        rule(&["networking.k8s.io"], &["ipaddresses"], &["create"]),
        // A role that sums others up gets rules that its keeper has not.
        rule(&["rbac.authorization.k8s.io"], &["clusterroles"], &["escalate"]),
        rule(&["resource.k8s.io"], &["resourceclaims"], &["create"]),
        rule(&["snapshot.storage.k8s.io"], &["volumesnapshotclasses", "volumesnapshotcontents"], &["create"]),
        rule(&["storage.k8s.io"], &["csistoragecapacities", "volumeattachments"], &["create"]),
    ]
}

fn bindings() -> Vec<Value> {
    let bind = |name: &str, role: &str, kind: &str, subject: &str| {
        json!({
            "metadata": policy_metadata(name),
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": subject}],
        })
    };
    let of_nobody = json!({
        "metadata": policy_metadata("system:node"),
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:node"},
    });
    vec![
        of_nobody,
        bind("cluster-admin", "cluster-admin", "Group", MASTERS),
        bind("system:discovery", "system:discovery", "Group", crate::identity::AUTHENTICATED),
        bind("system:basic-user", "system:basic-user", "Group", crate::identity::AUTHENTICATED),
        bind(
            "system:service-account-issuer-discovery",
            "system:service-account-issuer-discovery",
            "Group",
            "system:serviceaccounts",
        ),
        bind(
            "system:cluster-trust-bundle-discovery",
            "system:cluster-trust-bundle-discovery",
            "Group",
            "system:serviceaccounts",
        ),
        // Whoever has a token for joining may ask for a node's first certificate, and gets it.
        bind("dhow:node-bootstrapper", "system:node-bootstrapper", "Group", JOINING),
        bind(
            "dhow:node-autoapprove-bootstrap",
            "system:certificates.k8s.io:certificatesigningrequests:nodeclient",
            "Group",
            JOINING,
        ),
        bind("system:node-proxier", "system:node-proxier", "User", "system:kube-proxy"),
        bind("system:dhow:network-policy", "system:dhow:network-policy", "User", "system:dhow:network-policy"),
        bind("system:dhow:load-balancer", "system:dhow:load-balancer", "User", "system:dhow:load-balancer"),
        bind("system:kube-dns", "system:kube-dns", "User", "system:kube-dns"),
        bind(
            "system:kube-controller-manager",
            "system:kube-controller-manager",
            "User",
            "system:kube-controller-manager",
        ),
        bind("system:kube-scheduler", "system:kube-scheduler", "User", "system:kube-scheduler"),
    ]
}
