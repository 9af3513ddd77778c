//! `serviceaccounts/token`: a token for a while, for some audiences, bound to an object if asked.

use std::sync::Arc;

use dhow_api::validation::FieldError;
use dhow_api::{Status, meta, registry, time};
use dhow_client::Body;
use http::Response;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::admission::{Attributes, Operation};
use crate::encode::{self, Accept};
use crate::object::Stored;
use crate::pipeline::{Authorized, Request};
use crate::tokens::{Bound, Life, NamedUid};
use crate::{ApiServer, admission, body, read};

/// Shortest and longest life that may be asked for, and the one of a token that names none. Seconds.
const SHORTEST: i64 = 600;
const LONGEST: i64 = 1 << 32;
const USUAL: i64 = 3600;

pub async fn create(
    server: &Arc<ApiServer>,
    request: &Request<Authorized>,
    accept: &Accept,
) -> Result<Response<Body>, Status> {
    let asked = body::decode(request)?;
    let account = read::existing(server, &request.target).await?;
    let mut admitted = Attributes::of(request, Operation::Create, &account.header.name, asked, None);
    admission::admit(server, &mut admitted).await?;
    let mut asked = admitted.object;
    let mut life = asked["spec"]["expirationSeconds"].as_i64().unwrap_or(USUAL);
    if let Some(error) = complaint(life) {
        return Err(Status::invalid("authentication.k8s.io", "TokenRequest", "", &[error]));
    }
    if let Some(longest) = server.access.longest_token
        && life > longest
    {
        request.warnings.add(format!("requested expiration of {life} seconds shortened to {longest} seconds"));
        life = longest;
    }
    let audiences: Vec<String> = match asked["spec"]["audiences"].as_array() {
        Some(list) if !list.is_empty() => list.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => server.audiences(),
    };
    let mut bound = Bound {
        namespace: account.header.namespace.clone(),
        serviceaccount: named(&account),
        pod: None,
        secret: None,
        node: None,
    };
    bind(server, &mut bound, &asked["spec"]["boundObjectRef"]).await?;
    let now = Timestamp::now();
    let until = now + SignedDuration::from_secs(life);
    let times = Life { from: now.as_second(), until: until.as_second() };
    let (token, _) = server.tokens.sign(bound, audiences.clone(), &times)?;
    asked["kind"] = json!("TokenRequest");
    asked["apiVersion"] = json!("authentication.k8s.io/v1");
    asked["metadata"]["name"] = json!(account.header.name);
    asked["metadata"]["namespace"] = json!(account.header.namespace);
    asked["spec"]["audiences"] = json!(audiences);
    asked["spec"]["expirationSeconds"] = json!(life);
    asked["status"] = json!({"token": token, "expirationTimestamp": time::rfc3339(until)});
    encode::value(201, &asked, accept)
}

fn complaint(life: i64) -> Option<FieldError> {
    let why = match life {
        _ if life < SHORTEST => "may not specify a duration less than 10 minutes",
        _ if life > LONGEST => "may not specify a duration larger than 2^32 seconds",
        _ => return None,
    };
    Some(FieldError::invalid("spec.expirationSeconds", &life.to_string(), why))
}

fn named(object: &Stored) -> NamedUid {
    NamedUid { name: object.header.name.clone(), uid: object.header.uid.clone() }
}

/// Notes the object that the token will live and die with.
async fn bind(server: &ApiServer, bound: &mut Bound, reference: &Value) -> Result<(), Status> {
    if !reference.is_object() {
        return Ok(());
    }
    let text = |field: &str| reference[field].as_str().unwrap_or_default();
    let (kind, name) = (text("kind"), text("name"));
    let find = async |plural: &str, namespace: Option<&str>| {
        let row = registry::builtin().get("", "v1", plural).ok_or_else(Status::no_such_resource)?;
        let object = server.store.get(row, namespace, name).await?;
        let wanted = text("uid");
        if !wanted.is_empty() && wanted != object.header.uid {
            let why = format!(
                "the UID in the bound object reference ({wanted}) does not match the UID in record. The object might have \
                 been deleted and then recreated"
            );
            return Err(Status::conflict_because("", kind, name, &why));
        }
        Ok(object)
    };
    let namespace = bound.namespace.clone();
    match (text("apiVersion"), kind) {
        ("v1", "Pod") => {
            let pod = find("pods", Some(&namespace)).await?;
            let tree = pod.value()?;
            if meta::text(&tree, &["spec", "serviceAccountName"]) != bound.serviceaccount.name {
                return Err(Status::bad_request(format!(
                    "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                    bound.serviceaccount.name
                )));
            }
            bound.pod = Some(named(&pod));
            bound.node = node_of(server, meta::text(&tree, &["spec", "nodeName"]));
        }
        ("v1", "Secret") => {
            let secret = find("secrets", Some(&namespace)).await?;
            bound.secret = Some(named(&secret));
        }
        ("v1", "Node") => {
            let node = find("nodes", None).await?;
            bound.node = Some(named(&node));
        }
        (version, kind) => {
            return Err(Status::bad_request(format!("cannot bind token to object of type {version}, Kind={kind}")));
        }
    }
    Ok(())
}

/// The node that a pod runs on, as far as it is known.
fn node_of(server: &ApiServer, name: &str) -> Option<NamedUid> {
    if name.is_empty() {
        return None;
    }
    let node = server.store.cache.find("", "nodes", None, name);
    Some(NamedUid { name: name.into(), uid: node.map(|node| node.header.uid.clone()).unwrap_or_default() })
}
