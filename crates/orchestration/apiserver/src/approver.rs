//! Certificate requests: who asks is for the server to say, and the right to approve is per signer.

use dhow_api::{Status, meta};
use serde_json::json;

use crate::identity::UserInfo;
use crate::rbac::{Attributes, Authorizer};

const GROUP: &str = "certificates.k8s.io";

/// Refuses approvals by users who may not `approve` for the request's signer, by name or by domain.
pub fn check(authorizer: &Authorizer, user: &UserInfo, request: &serde_json::Value) -> Result<(), Status> {
    let signer = meta::text(request, &["spec", "signerName"]);
    let domain = signer.split('/').next().unwrap_or_default();
    let may = |name: &str| {
        authorizer.allows(
            user,
            &Attributes::Resource {
                verb: "approve".into(),
                group: GROUP.into(),
                resource: "signers".into(),
                subresource: String::new(),
                namespace: String::new(),
                name: name.into(),
            },
        )
    };
    if may(signer) || may(&format!("{domain}/*")) {
        return Ok(());
    }
    let why = format!("user not permitted to approve requests with signerName {signer:?}");
    Err(Status::forbidden(GROUP, "certificatesigningrequests", meta::name(request), &why))
}

/// Who asks for a certificate.
pub fn set_requester(user: &UserInfo, request: &mut serde_json::Value) {
    let spec = meta::child_mut(request, "spec");
    for field in ["username", "uid", "groups", "extra"] {
        spec.remove(field);
    }
    spec.insert("username".into(), json!(user.name));
    spec.insert("groups".into(), json!(user.groups));
    if !user.uid.is_empty() {
        spec.insert("uid".into(), json!(user.uid));
    }
    if !user.extra.is_empty() {
        spec.insert("extra".into(), json!(user.extra));
    }
}
