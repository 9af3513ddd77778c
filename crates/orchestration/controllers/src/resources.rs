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
    discover_all(client).await.map(|(found, _)| found)
}

/// As [`discover`], and the group versions whose servers are away.
pub async fn discover_all(client: &Client) -> Result<(Vec<Resource>, Vec<String>), Error> {
    let mut versions = vec!["v1".to_owned()];
    let groups = call(client, Method::GET, "/apis", "", Vec::new()).await?;
    for group in groups["groups"].as_array().into_iter().flatten() {
        let all = group["versions"].as_array().into_iter().flatten();
        versions.extend(all.filter_map(|version| version["groupVersion"].as_str().map(str::to_owned)));
    }
    let (mut resources, mut away) = (Vec::<Resource>::new(), Vec::new());
    let group = |api_version: &str| api_version.rsplit_once('/').map_or("", |(group, _)| group).to_owned();
    for api_version in versions {
        let found = match kinds_of_version(client, &api_version).await {
            // The definition of its last kind went meanwhile.
            Err(error) if error.is_not_found() => continue,
            // An extension server is away; what others have goes on.
            Err(Error::Api { code: 503, message, .. }) => {
                away.push(format!("{api_version}: {message}"));
                continue;
            }
            other => other?,
        };
        for one in found {
            let same =
                |known: &&Resource| known.plural == one.plural && group(&known.api_version) == group(&api_version);
            if !resources.iter().any(|known| same(&known)) {
                resources.push(one);
            }
        }
    }
    Ok((resources, away))
}

/// The kinds of one group version, without subresources.
pub async fn kinds_of_version(client: &Client, api_version: &str) -> Result<Vec<Resource>, Error> {
    let root = if api_version.contains('/') { "apis" } else { "api" };
    let answer = call(client, Method::GET, &format!("/{root}/{api_version}"), "", Vec::new()).await?;
    let list: Versions = serde_json::from_value(answer)
        .map_err(|source| Error::Decode { context: format!("read resources of {api_version}"), source })?;
    let own = list.resources.into_iter().filter(|found| !found.name.contains('/'));
    let resource = |found: Found| Resource {
        api_version: api_version.to_owned(),
        plural: found.name,
        kind: found.kind,
        namespaced: found.namespaced,
        verbs: found.verbs,
    };
    Ok(own.map(resource).collect())
}

/// Sends a request and reads its JSON answer; a `Status` failure is an error.
pub async fn call(client: &Client, method: Method, path: &str, media: &str, body: Vec<u8>) -> Result<Value, Error> {
    let (status, body) = open(client, method, path, media, body).await?;
    read(path, status, body).await
}

/// Reads a path in the form that `accept` names.
pub async fn get_as(client: &Client, path: &str, accept: &str) -> Result<Value, Error> {
    let request = Request::builder().uri(path).header(http::header::ACCEPT, accept).body(Bytes::new());
    let request = request.map_err(|error| Error::Configuration(format!("{path}: {error}")))?;
    let response = client.request(request).await?;
    read(path, response.status(), response.into_body()).await
}

async fn read(path: &str, status: StatusCode, body: Body) -> Result<Value, Error> {
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
