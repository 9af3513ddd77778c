//! Kinds that are asked, not stored: access, token and self-subject reviews.

use std::sync::Arc;

use dhow_api::Status;
use dhow_client::Body;
use http::Response;
use serde_json::{Value, json};

use crate::encode::{self, Accept};
use crate::identity::UserInfo;
use crate::pipeline::{Authorized, Request};
use crate::rbac::{Attributes, Selected, Verdict};
use crate::{ApiServer, authenticate, node_authorizer};

pub async fn answer(
    server: &Arc<ApiServer>,
    request: &Request<Authorized>,
    mut object: Value,
    accept: &Accept,
) -> Result<Response<Body>, Status> {
    let kind = &request.target.kind;
    object["status"] = match kind.kind {
        "SelfSubjectAccessReview" => access(server, request.user(), &object["spec"]),
        "SubjectAccessReview" | "LocalSubjectAccessReview" => {
            access(server, &subject(&object["spec"]), &object["spec"])
        }
        "SelfSubjectRulesReview" => {
            rules(server, request.user(), object["spec"]["namespace"].as_str().unwrap_or_default())
        }
        "SelfSubjectReview" => json!({"userInfo": user_info(request.user())}),
        "TokenReview" => token(server, &object["spec"]).await?,
        _ => return Err(Status::method_not_allowed()),
    };
    encode::value(201, &object, accept)
}

fn access(server: &ApiServer, user: &UserInfo, spec: &Value) -> Value {
    let text = |part: &str, field: &str| spec[part][field].as_str().unwrap_or_default().to_owned();
    let attributes = if spec["nonResourceAttributes"].is_object() {
        Attributes::Path { verb: text("nonResourceAttributes", "verb"), path: text("nonResourceAttributes", "path") }
    } else {
        let of = |field: &str| text("resourceAttributes", field);
        Attributes::Resource {
            verb: of("verb"),
            group: of("group"),
            resource: of("resource"),
            subresource: of("subresource"),
            namespace: of("namespace"),
            name: of("name"),
        }
    };
    match server.authorizer.decide(user, &attributes, &Selected::default()) {
        Verdict::Refused => json!({"allowed": false, "reason": "no RBAC policy matched"}),
        Verdict::Allowed => json!({"allowed": true}),
        Verdict::Granted(reason) => json!({"allowed": true, "reason": &*reason}),
    }
}

fn subject(spec: &Value) -> UserInfo {
    let groups = spec["groups"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned);
    UserInfo {
        name: spec["user"].as_str().unwrap_or_default().to_owned(),
        uid: spec["uid"].as_str().unwrap_or_default().to_owned(),
        groups: groups.collect(),
        extra: serde_json::from_value(spec["extra"].clone()).unwrap_or_default(),
    }
}

fn rules(server: &ApiServer, user: &UserInfo, namespace: &str) -> Value {
    let (mut resources, mut paths) = (Vec::new(), Vec::new());
    if user.is_master() {
        resources.push(json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}));
        paths.push(json!({"verbs": ["*"], "nonResourceURLs": ["*"]}));
    }
    server.authorizer.each_rule(user, namespace, |rule| match &rule.non_resource_urls {
        Some(urls) => paths.push(json!({"verbs": rule.verbs, "nonResourceURLs": urls})),
        None => resources.push(json!({
            "verbs": rule.verbs,
            "apiGroups": rule.api_groups,
            "resources": rule.resources,
            "resourceNames": rule.resource_names,
        })),
    });
    let mut status = json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": false});
    if node_authorizer::node_of(user).is_some() {
        status["incomplete"] = json!(true);
        status["evaluationError"] = json!("node authorizer does not support user rule resolution");
    }
    status
}

async fn token(server: &ApiServer, spec: &Value) -> Result<Value, Status> {
    let token = spec["token"].as_str().unwrap_or_default();
    if token.is_empty() {
        return Err(Status::bad_request("token is required for TokenReview in authentication"));
    }
    let audiences: Vec<String> = serde_json::from_value(spec["audiences"].clone()).unwrap_or_default();
    Ok(match authenticate::token_user(server, token, &audiences).await {
        Ok((user, audiences)) => {
            json!({"authenticated": true, "user": user_info(&user), "audiences": audiences})
        }
        Err(_) => json!({"error": "[invalid bearer token, Unauthorized]"}),
    })
}

/// Who somebody is, as documents tell it.
pub fn user_info(user: &UserInfo) -> Value {
    let mut info = json!({"username": user.name, "groups": user.groups});
    if !user.uid.is_empty() {
        info["uid"] = json!(user.uid);
    }
    if !user.extra.is_empty() {
        info["extra"] = json!(user.extra);
    }
    info
}
