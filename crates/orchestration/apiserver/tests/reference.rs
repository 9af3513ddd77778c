//! Compares what the server serves with upstream's own document of its API, when the checkout sits beside one.
//!
//! The outcome is `docs/api-coverage.md`; `DHOW_WRITE_DOCS=1` writes it anew.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

#[path = "reference/facts.rs"]
mod facts;
mod harness;
#[path = "reference/report.rs"]
mod report;

use std::path::{Path, PathBuf};

use bytes::Bytes;
use dhow_apiserver::UserInfo;
use harness::Cluster;
use serde_json::Value;

const NAME: &str = "kubernetes-v1.33-swagger.json";

/// A file beside the checkout or above it.
fn find(file: &str) -> Option<PathBuf> {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().map(|folder| folder.join(file)).find(|path| path.exists())
}

async fn get(cluster: &Cluster, path: &str, accept: &str) -> Value {
    let request = http::Request::builder().uri(path).header("accept", accept).body(Bytes::new()).unwrap();
    let (code, _, body) = cluster.send(UserInfo::new("admin", &["system:masters"]), request).await;
    assert_eq!(code, 200, "{path}");
    serde_json::from_slice(&body).unwrap()
}

/// Everything that the server says of its API.
async fn served() -> facts::Served {
    const JSON: &str = "application/json";
    const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let cluster = Cluster::start().await;
    let mut legacy = vec![get(&cluster, "/api/v1", JSON).await];
    for group in get(&cluster, "/apis", JSON).await["groups"].as_array().unwrap() {
        for version in group["versions"].as_array().unwrap() {
            let path = format!("/apis/{}", version["groupVersion"].as_str().unwrap());
            legacy.push(get(&cluster, &path, JSON).await);
        }
    }
    let aggregated = [get(&cluster, "/api", AGGREGATED).await, get(&cluster, "/apis", AGGREGATED).await];
    let mut v3 = Vec::new();
    for (_, document) in get(&cluster, "/openapi/v3", JSON).await["paths"].as_object().unwrap() {
        v3.push(get(&cluster, document["serverRelativeURL"].as_str().unwrap(), JSON).await);
    }
    let v2 = get(&cluster, "/openapi/v2", JSON).await;
    facts::Served::new(&legacy, &aggregated, v2, v3)
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_stable_is_missing() {
    let Some(path) = find(&format!("shared/reference/{NAME}")) else {
        eprintln!("no shared/reference/{NAME} beside the checkout: skipped");
        return;
    };
    let reference: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let served = served().await;
    let report = report::Report::new(&facts::Wanted::new(&reference), &served);
    let text = report.to_string();
    let file = find("docs/api-coverage.md").unwrap_or_else(|| find("docs").unwrap().join("api-coverage.md"));
    if std::env::var_os("DHOW_WRITE_DOCS").is_some() {
        std::fs::write(&file, &text).unwrap();
    }
    assert!(report.absent().is_empty(), "{}", report.absent().join("\n"));
    let written = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        written == text,
        "docs/api-coverage.md is not what the server serves; DHOW_WRITE_DOCS=1 writes it:\n{text}"
    );
}

/// Short names and categories are in no OpenAPI document; these are upstream's.
#[tokio::test(flavor = "multi_thread")]
async fn short_names_and_categories_are_upstreams() {
    const NAMES: &str = "componentstatuses=cs configmaps=cm endpoints=ep events=ev limitranges=limits namespaces=ns nodes=no \
                         persistentvolumeclaims=pvc persistentvolumes=pv pods=po replicationcontrollers=rc \
                         resourcequotas=quota serviceaccounts=sa services=svc daemonsets=ds deployments=deploy \
                         replicasets=rs statefulsets=sts cronjobs=cj horizontalpodautoscalers=hpa \
                         certificatesigningrequests=csr ingresses=ing ipaddresses=ip networkpolicies=netpol \
                         poddisruptionbudgets=pdb priorityclasses=pc storageclasses=sc volumeattributesclasses=vac \
                         customresourcedefinitions=crd,crds";
    const ALL: &str = "cronjobs daemonsets deployments horizontalpodautoscalers jobs pods replicasets \
                       replicationcontrollers services statefulsets";
    const EXTENSIONS: &str = "apiservices customresourcedefinitions mutatingadmissionpolicies \
                              mutatingadmissionpolicybindings mutatingwebhookconfigurations validatingadmissionpolicies \
                              validatingadmissionpolicybindings validatingwebhookconfigurations";
    let served = served().await;
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let mut wrong = Vec::new();
    for ((group_version, name), resource) in served.legacy.iter().filter(|((_, name), _)| !name.contains('/')) {
        // No group of upstream's own server.
        if group_version.starts_with("metrics.k8s.io/") {
            continue;
        }
        let prefix = format!("{name}=");
        let names =
            words(NAMES).iter().find_map(|word| word.strip_prefix(&prefix).map(str::to_owned)).unwrap_or_default();
        let mut categories = Vec::new();
        for (category, list) in [("all", ALL), ("api-extensions", EXTENSIONS)] {
            if words(list).contains(name) {
                categories.push(category.to_owned());
            }
        }
        if resource.short_names.join(",") != names || resource.categories != categories {
            wrong.push(format!("{group_version} {name}: {:?} {:?}", resource.short_names, resource.categories));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
