//! Acting as somebody else: the `Impersonate-*` headers, each of which must be allowed.

use std::collections::BTreeMap;

use dhow_api::Status;
use http::HeaderMap;

use crate::identity::{ANONYMOUS, AUTHENTICATED, UserInfo};
use crate::info::unescape;
use crate::rbac::{Attributes, Authorizer};

/// Whom a request wants to be made as.
#[derive(Debug, Default)]
pub struct Wanted {
    user: String,
    uid: String,
    groups: Vec<String>,
    extra: BTreeMap<String, Vec<String>>,
}

/// What the headers ask for, if they do.
pub fn wanted(headers: &HeaderMap) -> Result<Option<Wanted>, Status> {
    let mut wanted = Wanted::default();
    let mut any = false;
    for (name, value) in headers {
        let Some(what) = name.as_str().strip_prefix("impersonate-") else { continue };
        let value = value.to_str().map_err(|_| Status::bad_request(format!("header {name} is not text")))?.to_owned();
        any = true;
        match what {
            "user" => wanted.user = value,
            "uid" => wanted.uid = value,
            "group" => wanted.groups.push(value),
            _ => match what.strip_prefix("extra-") {
                Some(key) => wanted.extra.entry(unescape(key)).or_default().push(value),
                None => return Err(Status::bad_request(format!("unknown header {name}"))),
            },
        }
    }
    if any && wanted.user.is_empty() {
        return Err(Status::internal("requested impersonation without impersonating a user"));
    }
    Ok(any.then_some(wanted))
}

/// The user to go on as, if the caller may be each part of them.
pub fn become_user(authorizer: &Authorizer, caller: &UserInfo, wanted: Wanted) -> Result<UserInfo, Status> {
    let ask = |group: &str, resource: &str, subresource: &str, namespace: &str, name: &str| {
        authorizer.check(
            caller,
            &Attributes::Resource {
                verb: "impersonate".into(),
                group: group.into(),
                resource: resource.into(),
                subresource: subresource.into(),
                namespace: namespace.into(),
                name: name.into(),
            },
        )
    };
    let account = wanted.user.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    match account {
        Some((namespace, name)) => ask("", "serviceaccounts", "", namespace, name)?,
        None => ask("", "users", "", "", &wanted.user)?,
    }
    for group in &wanted.groups {
        ask("", "groups", "", "", group)?;
    }
    for (key, values) in &wanted.extra {
        for value in values {
            ask("authentication.k8s.io", "userextras", key, "", value)?;
        }
    }
    if !wanted.uid.is_empty() {
        ask("authentication.k8s.io", "uids", "", "", &wanted.uid)?;
    }
    let mut groups = wanted.groups;
    if let (Some((namespace, name)), true) = (account, groups.is_empty()) {
        groups = UserInfo::service_account(namespace, name, "").groups;
    }
    // Whoever is somebody has proven it.
    let proof = if wanted.user == ANONYMOUS { "system:unauthenticated" } else { AUTHENTICATED };
    if !groups.iter().any(|group| group == proof) {
        groups.push(proof.into());
    }
    Ok(UserInfo { name: wanted.user, uid: wanted.uid, groups, extra: wanted.extra })
}
