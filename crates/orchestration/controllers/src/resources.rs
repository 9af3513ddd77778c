//! Which kinds the server has, read by discovery, and calls on objects of any of them.

use bytes::Bytes;
use dhow_client::{Body, Client, Error};
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use serde::Deserialize;
use serde_json::Value;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Resource {
    pub api_version: String,
    pub plural: String,
    pub kind: String,
    pub namespaced: bool,
    pub verbs: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Versions {
    resources: Vec<Found>,
}

#[derive(Deserialize)]
struct Found {
    name: String,
    kind: String,
    namespaced: bool,
    #[serde(default)]
    verbs: Vec<String>,
}

impl Resource {
    pub fn path(&self, namespace: Option<&str>, name: Option<&str>) -> String {
        let root = if self.api_version.contains('/') { "apis" } else { "api" };
        let mut path = format!("/{root}/{}", self.api_version);
        if let Some(namespace) = namespace.filter(|_| self.namespaced) {
            path.push_str(&format!("/namespaces/{namespace}"));
        }
        path.push_str(&format!("/{}", self.plural));
        if let Some(name) = name {
            path.push_str(&format!("/{name}"));
        }
        path
    }

    pub fn can(&self, verb: &str) -> bool {
        self.verbs.iter().any(|own| own == verb)
    }
}

/// Every kind, each in the best version that has it, without subresources.
pub async fn discover(client: &Client) -> Result<Vec<Resource>, Error> {
    let mut versions = vec!["v1".to_owned()];
    let groups = call(client, Method::GET, "/apis", "", Vec::new()).await?;
    for group in groups["groups"].as_array().into_iter().flatten() {
        let all = group["versions"].as_array().into_iter().flatten();
        versions.extend(all.filter_map(|version| version["groupVersion"].as_str().map(str::to_owned)));
    }
    let mut resources: Vec<Resource> = Vec::new();
    let group = |api_version: &str| api_version.rsplit_once('/').map_or("", |(group, _)| group).to_owned();
    for api_version in versions {
        let path =
            if api_version.contains('/') { format!("/apis/{api_version}") } else { format!("/api/{api_version}") };
        let answer = match call(client, Method::GET, &path, "", Vec::new()).await {
            // The definition of its last kind went meanwhile.
            Err(error) if error.is_not_found() => continue,
            // An extension server is away; what others have goes on.
            Err(Error::Api { code: 503, .. }) => continue,
            other => other?,
        };
        let list: Versions = serde_json::from_value(answer)
            .map_err(|source| Error::Decode { context: format!("read resources of {api_version}"), source })?;
        for found in list.resources.into_iter().filter(|found| !found.name.contains('/')) {
            if resources.iter().any(|one| one.plural == found.name && group(&one.api_version) == group(&api_version)) {
                continue;
            }
            resources.push(Resource {
                api_version: api_version.clone(),
                plural: found.name,
                kind: found.kind,
                namespaced: found.namespaced,
                verbs: found.verbs,
            });
        }
    }
    Ok(resources)
}

/// Sends a request and reads its JSON answer; a `Status` failure is an error.
pub async fn call(client: &Client, method: Method, path: &str, media: &str, body: Vec<u8>) -> Result<Value, Error> {
    let (status, body) = open(client, method, path, media, body).await?;
    let bytes = body.collect().await?.to_bytes();
    let answer: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    if status.is_success() {
        return Ok(answer);
    }
    Err(Error::Api {
        code: status.as_u16(),
        reason: answer["reason"].as_str().unwrap_or_default().into(),
        message: answer["message"].as_str().map_or_else(|| format!("{path}: {status}"), str::to_owned),
    })
}

/// Sends a request and gives its status and open body.
pub async fn open(
    client: &Client,
    method: Method,
    path: &str,
    media: &str,
    body: Vec<u8>,
) -> Result<(StatusCode, Body), Error> {
    let mut request = Request::builder().method(method).uri(path).header(http::header::ACCEPT, "application/json");
    if !media.is_empty() {
        request = request.header(http::header::CONTENT_TYPE, media);
    }
    let request = request.body(Bytes::from(body)).map_err(|error| Error::Configuration(format!("{path}: {error}")))?;
    let response = client.request(request).await?;
    Ok((response.status(), response.into_body()))
}
