//! Paths that are not objects: discovery, OpenAPI, version, health, metrics.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use bytes::Bytes;
use dhow_api::custom::Catalog;
use dhow_api::{Status, discovery, openapi};
use dhow_client::Body;
use http::{HeaderMap, Response, StatusCode, header};
use serde_json::{Value, json};

use crate::encode::{self, Accept};
use crate::health;
use crate::info::Query;
use crate::{ApiServer, aggregate};

/// The Kubernetes version whose API this server serves.
const MAJOR: &str = "1";
const MINOR: &str = "35";

/// The protobuf form of an OpenAPI v2 document. Clients may ask for it by a name that is no valid media type.
const GNOSTIC: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
const OLD_GNOSTIC: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

pub async fn answer(
    server: &ApiServer,
    path: &str,
    query: &Query,
    headers: &HeaderMap,
    accept: &Accept,
) -> Result<Response<Body>, Status> {
    let trimmed = path.trim_end_matches('/');
    let catalog = server.definitions.catalog();
    if let Some(path) = trimmed.strip_prefix("/openapi/v3") {
        return openapi_v3(server, &catalog, path.trim_start_matches('/'), headers);
    }
    match trimmed {
        "/api" | "/apis" if wants_aggregated(accept) => {
            let Some(mut document) = discovery::aggregated(&catalog, trimmed) else {
                return Err(Status::no_such_resource());
            };
            if trimmed == "/apis" {
                aggregate::aggregated(&mut document, &server.aggregator.remotes());
            }
            let form = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
            tagged(form, document.to_string().into(), headers)
        }
        "/api" => encode::json(200, discovery::api_versions().to_string()),
        "/apis" => {
            let mut document = discovery::group_list(&catalog);
            aggregate::add_groups(&mut document, &server.aggregator.remotes());
            encode::json(200, document.to_string())
        }
        "/openapi/v2" if accept.raw.contains(GNOSTIC) || accept.raw.contains(OLD_GNOSTIC) => {
            tagged(GNOSTIC, server.aggregator.swagger.protobuf(&catalog, &server.aggregator.remotes())?, headers)
        }
        "/.well-known/openid-configuration" => encode::json(200, issuer(server).to_string()),
        "/openid/v1/jwks" => encode::build(200, "application/jwk-set+json", server.tokens.jwks().to_string().into()),
        "/openapi/v2" => {
            tagged("application/json", server.aggregator.swagger.json(&catalog, &server.aggregator.remotes())?, headers)
        }
        "/version" => encode::json(200, version().to_string()),
        "/backup" => crate::backup::stream(server),
        "/metrics" => {
            server.flow.iter().for_each(|flow| flow.measure());
            let text = server.metrics.encode(&server.store.cache, &catalog);
            encode::build(200, "text/plain; version=0.0.4; charset=utf-8", text.into())
        }
        other => match health::answer(server, other, query).await {
            Some(answer) => answer,
            None => group(server, &catalog, other),
        },
    }
}

/// `/apis/<group>` and `/api/v1`, `/apis/<group>/<version>`.
fn group(server: &ApiServer, catalog: &Catalog, path: &str) -> Result<Response<Body>, Status> {
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let document = match parts.as_slice() {
        ["api", version] => discovery::resource_list(catalog, "", version),
        ["apis", name] => aggregate::group(discovery::group(catalog, name), &server.aggregator.remotes(), name),
        ["apis", group, version] => discovery::resource_list(catalog, group, version),
        _ => None,
    };
    encode::json(200, document.ok_or_else(Status::no_such_resource)?.to_string())
}

fn wants_aggregated(accept: &Accept) -> bool {
    accept.raw.contains("g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList")
}

fn openapi_v3(
    server: &ApiServer,
    catalog: &Catalog,
    path: &str,
    headers: &HeaderMap,
) -> Result<Response<Body>, Status> {
    let document = match path {
        "" => {
            let mut root = openapi::v3_root(catalog);
            aggregate::add_documents(&mut root, &server.aggregator.remotes());
            root.to_string().into()
        }
        path => openapi::v3(catalog, path).ok_or_else(Status::no_such_resource)?,
    };
    tagged("application/json", document, headers)
}

/// A document that clients keep: with its ETag, and "not modified" for those who have it.
fn tagged(media_type: &str, bytes: Bytes, headers: &HeaderMap) -> Result<Response<Body>, Status> {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    let tag = format!("\"{:016X}\"", hasher.finish());
    let known = headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok());
    let mut response = if known == Some(tag.as_str()) {
        let mut unchanged = encode::build(304, media_type, Bytes::new())?;
        *unchanged.status_mut() = StatusCode::NOT_MODIFIED;
        unchanged
    } else {
        encode::build(200, media_type, bytes)?
    };
    let value = header::HeaderValue::try_from(tag).map_err(|error| Status::internal(error.to_string()))?;
    response.headers_mut().insert(header::ETAG, value);
    response.headers_mut().insert(header::VARY, header::HeaderValue::from_static("Accept"));
    Ok(response)
}

/// What others need to check service-account tokens (OpenID Connect Discovery 1.0).
fn issuer(server: &ApiServer) -> Value {
    json!({
        "issuer": server.tokens.issuer(),
        "jwks_uri": format!("https://{}/openid/v1/jwks", server.advertise),
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
    })
}

fn version() -> Value {
    json!({
        "major": MAJOR,
        "minor": MINOR,
        "gitVersion": format!("v{MAJOR}.{MINOR}.0+dhow.{}", env!("CARGO_PKG_VERSION")),
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none",
        "compiler": "rustc",
        "platform": format!("linux/{}", architecture()),
    })
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
