//! Image policies on a server: what judges pods' images before the API lets them in.

use std::sync::Arc;

use anyhow::{Context, Result};
use async_trait::async_trait;
use dhow_apiserver::{ApiServer, ImageJudge, ImageVerdict, PodImages, UserInfo};
use dhow_registry::cloud::judge::{Asked, Judge, Verdict};
use dhow_registry::cloud::policy;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::builtins::{Parts, part};

const USER: &str = "system:dhow:image-policies";

/// The API's way to ask.
pub struct Asking(pub Arc<Judge>);

#[async_trait]
impl ImageJudge for Asking {
    async fn judge(&self, pod: PodImages) -> ImageVerdict {
        let PodImages { namespace, namespace_labels, pull_secrets, images } = pod;
        let asked = Asked { namespace, namespace_labels, pull_secrets, images };
        let Verdict { refused, warnings, audit, pinned } = self.0.judge(&asked).await;
        ImageVerdict { refused, warnings, audit, pinned }
    }
}

/// Follows the policies until `shutdown`.
pub fn start(judge: Arc<Judge>, server: &Arc<ApiServer>, shutdown: &CancellationToken, parts: &mut Parts) {
    let client = server.client(UserInfo::new(USER, &[]));
    parts.spawn(part("image policies", judge.run(client, shutdown.clone())));
}

/// The kind, and the rights of whoever reads it.
pub fn objects() -> Result<Vec<Value>> {
    let definitions: Vec<Value> =
        serde_saphyr::from_multiple(policy::DEFINITION).context("read the definition of image policies")?;
    let rbac = "rbac.authorization.k8s.io";
    let rule = |group: &str, resource: &str, verbs: &[&str]| json!({"apiGroups": [group], "resources": [resource], "verbs": verbs});
    let group = "registry.dhow.io";
    let own = [
        json!({
            "apiVersion": format!("{rbac}/v1"), "kind": "ClusterRole", "metadata": {"name": USER},
            "rules": [
                rule("apiextensions.k8s.io", "customresourcedefinitions", &["get", "list", "watch"]),
                rule(group, "imagepolicies", &["get", "list", "watch"]),
                rule(group, "imagepolicies/status", &["patch"]),
                // Keys, and what pods pull with.
                rule("", "secrets", &["get"]),
            ],
        }),
        json!({
            "apiVersion": format!("{rbac}/v1"), "kind": "ClusterRoleBinding", "metadata": {"name": USER},
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": USER},
            "subjects": [{"apiGroup": rbac, "kind": "User", "name": USER}],
        }),
    ];
    Ok(definitions.into_iter().chain(own).collect())
}
