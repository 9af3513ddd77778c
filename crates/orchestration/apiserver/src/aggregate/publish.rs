//! What extension servers read to know whom to believe.

use std::sync::Arc;

use dhow_api::Status;
use http::Method;
use serde_json::json;

use super::FRONT_PROXY_CLIENT;
use crate::identity::{MASTERS, UserInfo};
use crate::{ApiServer, bootstrap};

const NAME: &str = "extension-apiserver-authentication";
const MAPS: &str = "/api/v1/namespaces/kube-system/configmaps";
const ROLES: &str = "/apis/rbac.authorization.k8s.io/v1/namespaces/kube-system/roles";

/// Writes the ConfigMap, and the role that lets it be read.
pub async fn ensure(server: &Arc<ApiServer>) -> Result<(), Status> {
    let client = server.client(UserInfo::new(bootstrap::SERVER, &[MASTERS]));
    let mut data = json!({});
    if !server.access.root_ca_pem.is_empty() {
        data["client-ca-file"] = json!(server.access.root_ca_pem);
    }
    if let Some(proxy) = &server.access.front_proxy {
        data["requestheader-client-ca-file"] = json!(proxy.ca_pem);
        data["requestheader-allowed-names"] = json!(json!([FRONT_PROXY_CLIENT]).to_string());
        data["requestheader-extra-headers-prefix"] = json!(r#"["X-Remote-Extra-"]"#);
        data["requestheader-group-headers"] = json!(r#"["X-Remote-Group"]"#);
        data["requestheader-uid-headers"] = json!(r#"["X-Remote-Uid"]"#);
        data["requestheader-username-headers"] = json!(r#"["X-Remote-User"]"#);
    }
    let map = json!({"metadata": {"name": NAME, "namespace": "kube-system"}, "data": data});
    let role = json!({
        "metadata": {
            "name": "extension-apiserver-authentication-reader",
            "namespace": "kube-system",
            "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
        },
        "rules": [{
            "apiGroups": [""],
            "resources": ["configmaps"],
            "resourceNames": [NAME],
            "verbs": ["get", "list", "watch"],
        }],
    });
    bootstrap::create(&client, ROLES, role).await?;
    let path = format!("{MAPS}/{NAME}");
    let (code, found) = bootstrap::send(&client, Method::GET, &path, "", &json!(null)).await?;
    let kept: serde_json::Value = serde_json::from_slice(&found).unwrap_or_default();
    if code < 300 && kept["data"] == map["data"] {
        return Ok(());
    }
    let (method, path) = if code < 300 { (Method::PUT, path.as_str()) } else { (Method::POST, MAPS) };
    let (code, answer) = bootstrap::send(&client, method, path, "application/json", &map).await?;
    if code < 300 { Ok(()) } else { Err(bootstrap::failed(&answer)) }
}
