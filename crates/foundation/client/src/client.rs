//! The typed client: verbs on kinds.

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, header};
use http_body_util::BodyExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ListMeta, ObjectMeta};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::key::Object;
use crate::transport::{Body, Transport};
use crate::{Error, HttpsConfig, http_transport, kubeconfig};

/// Talks to one API server. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    transport: Arc<dyn Transport>,
}

/// Which objects a list or watch covers.
#[derive(Debug, Clone, Default)]
pub struct ListParams {
    pub label_selector: Option<String>,
    pub field_selector: Option<String>,
    /// 0 means no limit.
    pub limit: u32,
    pub continue_: Option<String>,
    pub resource_version: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(bound = "K: DeserializeOwned")]
pub struct ObjectList<K> {
    pub metadata: ListMeta,
    #[serde(default = "Vec::new")]
    pub items: Vec<K>,
}

/// A change to an object, by media type.
#[derive(Debug, Clone)]
pub enum Patch {
    /// RFC 6902.
    Json(Value),
    /// RFC 7386.
    Merge(Value),
    /// Kubernetes' strategic merge patch.
    Strategic(Value),
}

#[derive(Debug, Clone, Default)]
pub struct DeleteParams {
    /// Seconds; `None` is the kind's default.
    pub grace_period: Option<i64>,
    /// `Background`, `Foreground` or `Orphan`.
    pub propagation: Option<String>,
    /// Precondition.
    pub uid: Option<String>,
    /// Precondition.
    pub resource_version: Option<String>,
}

/// A label selector as [`ListParams::label_selector`] has it; empty for the one that takes everything.
pub fn selector_text(selector: &LabelSelector) -> String {
    let equal = selector.match_labels.iter().flatten().map(|(key, value)| format!("{key}={value}"));
    let others = selector.match_expressions.iter().flatten().map(|one| {
        let values = one.values.as_deref().unwrap_or_default().join(",");
        match one.operator.as_str() {
            "In" => format!("{} in ({values})", one.key),
            "NotIn" => format!("{} notin ({values})", one.key),
            "DoesNotExist" => format!("!{}", one.key),
            _ => one.key.clone(),
        }
    });
    equal.chain(others).collect::<Vec<_>>().join(",")
}

impl Client {
    pub fn new(transport: Arc<dyn Transport>) -> Self {
        Self { transport }
    }

    pub fn https(config: HttpsConfig) -> Result<Self, Error> {
        Ok(Self::new(Arc::new(http_transport::HttpsTransport::new(config)?)))
    }

    /// Uses a context of a kubeconfig file; `None` is its current context.
    pub fn from_kubeconfig(path: &std::path::Path, context: Option<&str>) -> Result<Self, Error> {
        Self::https(kubeconfig::load(path, context)?)
    }

    pub async fn get<K: Object>(&self, namespace: Option<&str>, name: &str) -> Result<K, Error> {
        let path = object_path::<K>(namespace, name, None);
        let answer = self.call(Method::GET, &path, "", Bytes::new()).await?;
        K::decode(&answer).map_err(|source| unreadable(&path, source))
    }

    pub async fn list<K: Object>(&self, namespace: Option<&str>, params: &ListParams) -> Result<ObjectList<K>, Error> {
        let path = with_query(&collection_path::<K>(namespace), &params.query());
        let answer = self.call(Method::GET, &path, "", Bytes::new()).await?;
        K::decode_list(&answer).map_err(|source| unreadable(&path, source))
    }

    /// Creates in the namespace of the object's metadata.
    pub async fn create<K: Object>(&self, object: &K) -> Result<K, Error> {
        let path = collection_path::<K>(object.metadata().namespace.as_deref());
        let answer = self.call(Method::POST, &path, JSON, written(object.encode())?).await?;
        K::decode(&answer).map_err(|source| unreadable(&path, source))
    }

    pub async fn update<K: Object>(&self, object: &K) -> Result<K, Error> {
        self.put(object, None).await
    }

    pub async fn update_status<K: Object>(&self, object: &K) -> Result<K, Error> {
        self.put(object, Some("status")).await
    }

    pub async fn patch<K: Object>(
        &self,
        namespace: Option<&str>,
        name: &str,
        patch: Patch,
        subresource: Option<&str>,
    ) -> Result<K, Error> {
        let (media_type, body) = match patch {
            Patch::Json(value) => ("application/json-patch+json", value),
            Patch::Merge(value) => ("application/merge-patch+json", value),
            Patch::Strategic(value) => ("application/strategic-merge-patch+json", value),
        };
        let path = object_path::<K>(namespace, name, subresource);
        let answer = self.call(Method::PATCH, &path, media_type, encode(&body)?).await?;
        K::decode(&answer).map_err(|source| unreadable(&path, source))
    }

    /// Returns once the server accepted the deletion; a finalizer or grace period may still hold the object.
    pub async fn delete<K: Object>(
        &self,
        namespace: Option<&str>,
        name: &str,
        params: &DeleteParams,
    ) -> Result<(), Error> {
        let path = object_path::<K>(namespace, name, None);
        self.call(Method::DELETE, &path, JSON, encode(&params.body())?).await.map(drop)
    }

    /// Posts to a subresource, such as a pod's `binding`.
    pub async fn create_subresource<K: Object, B: Serialize, R: DeserializeOwned>(
        &self,
        namespace: Option<&str>,
        name: &str,
        subresource: &str,
        body: &B,
    ) -> Result<R, Error> {
        let path = object_path::<K>(namespace, name, Some(subresource));
        let answer = self.call(Method::POST, &path, JSON, encode(body)?).await?;
        serde_json::from_slice(&answer).map_err(|source| unreadable(&path, source))
    }

    /// Sends a request as it is; any status is an answer, not an error.
    pub async fn request(&self, request: Request<Bytes>) -> Result<Response<Body>, Error> {
        self.transport.call(request).await
    }

    /// As [`Client::request`], with a body that is sent as it comes.
    pub async fn upload(&self, request: Request<Body>) -> Result<Response<Body>, Error> {
        self.transport.upload(request).await
    }

    /// Opens a stream: the response's body if the server agreed, else its error.
    pub async fn open(&self, path: &str) -> Result<Body, Error> {
        let response = self.send(Method::GET, path, "", Bytes::new()).await?;
        if response.status().is_success() {
            return Ok(response.into_body());
        }
        let code = response.status().as_u16();
        Err(status_error(code, &collect(response).await?))
    }

    async fn put<K: Object>(&self, object: &K, subresource: Option<&str>) -> Result<K, Error> {
        let metadata: &ObjectMeta = object.metadata();
        let name = metadata.name.as_deref().unwrap_or_default();
        let path = object_path::<K>(metadata.namespace.as_deref(), name, subresource);
        let answer = self.call(Method::PUT, &path, JSON, written(object.encode())?).await?;
        K::decode(&answer).map_err(|source| unreadable(&path, source))
    }

    async fn send(&self, method: Method, path: &str, media_type: &str, body: Bytes) -> Result<Response<Body>, Error> {
        let mut request = Request::builder().method(method).uri(path).header(header::ACCEPT, JSON);
        if !media_type.is_empty() {
            request = request.header(header::CONTENT_TYPE, media_type);
        }
        let request =
            request.body(body).map_err(|error| Error::Configuration(format!("request to {path}: {error}")))?;
        self.transport.call(request).await
    }

    /// The answer's body, if the server agreed.
    async fn call(&self, method: Method, path: &str, media_type: &str, body: Bytes) -> Result<Bytes, Error> {
        let response = self.send(method, path, media_type, body).await?;
        let status = response.status();
        let bytes = collect(response).await?;
        if status.is_success() { Ok(bytes) } else { Err(status_error(status.as_u16(), &bytes)) }
    }
}

fn unreadable(path: &str, source: serde_json::Error) -> Error {
    Error::Decode { context: format!("read answer of {path}"), source }
}

const JSON: &str = "application/json";

async fn collect(response: Response<Body>) -> Result<Bytes, Error> {
    Ok(response.into_body().collect().await?.to_bytes())
}

fn encode(value: &impl Serialize) -> Result<Bytes, Error> {
    written(serde_json::to_vec(value))
}

fn written(json: serde_json::Result<Vec<u8>>) -> Result<Bytes, Error> {
    json.map(Bytes::from).map_err(|source| Error::Decode { context: "write the request".into(), source })
}

/// The error in a `Status` document, or the text as it came.
pub fn status_error(code: u16, body: &[u8]) -> Error {
    let status: Value = serde_json::from_slice(body).unwrap_or_default();
    let text = |field: &str| status[field].as_str().map(str::to_owned);
    Error::Api {
        code: status["code"].as_u64().and_then(|code| u16::try_from(code).ok()).unwrap_or(code),
        reason: text("reason").unwrap_or_default(),
        message: text("message").unwrap_or_else(|| format!("{code}: {}", String::from_utf8_lossy(body))),
    }
}

impl ListParams {
    pub(crate) fn query(&self) -> Vec<(&'static str, String)> {
        let mut query = Vec::new();
        let mut add = |name, value: &Option<String>| {
            if let Some(value) = value {
                query.push((name, value.clone()));
            }
        };
        add("labelSelector", &self.label_selector);
        add("fieldSelector", &self.field_selector);
        add("continue", &self.continue_);
        add("resourceVersion", &self.resource_version);
        if self.limit > 0 {
            query.push(("limit", self.limit.to_string()));
        }
        query
    }
}

impl DeleteParams {
    fn body(&self) -> Value {
        let mut body = json!({"apiVersion": "v1", "kind": "DeleteOptions"});
        if let Some(grace) = self.grace_period {
            body["gracePeriodSeconds"] = json!(grace);
        }
        if let Some(propagation) = &self.propagation {
            body["propagationPolicy"] = json!(propagation);
        }
        if let Some(uid) = &self.uid {
            body["preconditions"]["uid"] = json!(uid);
        }
        if let Some(version) = &self.resource_version {
            body["preconditions"]["resourceVersion"] = json!(version);
        }
        body
    }
}

/// The collection's path; without a namespace, of all namespaces.
pub(crate) fn collection_path<K: Object>(namespace: Option<&str>) -> String {
    let root = if K::GROUP.is_empty() { format!("/api/{}", K::VERSION) } else { format!("/apis/{}", K::API_VERSION) };
    match namespace {
        Some(namespace) => format!("{root}/namespaces/{namespace}/{}", K::URL_PATH_SEGMENT),
        None => format!("{root}/{}", K::URL_PATH_SEGMENT),
    }
}

fn object_path<K: Object>(namespace: Option<&str>, name: &str, subresource: Option<&str>) -> String {
    let object = format!("{}/{name}", collection_path::<K>(namespace));
    match subresource {
        Some(subresource) => format!("{object}/{subresource}"),
        None => object,
    }
}

pub(crate) fn with_query(path: &str, query: &[(&'static str, String)]) -> String {
    let mut full = path.to_owned();
    for (index, (name, value)) in query.iter().enumerate() {
        full.push(if index == 0 { '?' } else { '&' });
        full.push_str(name);
        full.push('=');
        for byte in value.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                full.push(char::from(byte));
            } else {
                full.push_str(&format!("%{byte:02X}"));
            }
        }
    }
    full
}
