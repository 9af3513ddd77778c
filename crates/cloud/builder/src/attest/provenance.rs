//! How an image came to be, as SLSA's provenance v1 has it.

use std::collections::BTreeMap;

use base64::Engine as _;
use dhow_image::{Digest, Platform, Statement};
use serde_json::{Value, json};

use super::ProvenanceMode;
use crate::Job;
use crate::report::{Material, Report};

const PREDICATE: &str = "https://slsa.dev/provenance/v1";
/// What the parameters below mean.
const BUILD_TYPE: &str = "https://dhow.io/build/dockerfile/v1";
const BUILDER: &str = "https://dhow.io/builder";

/// What was asked for, beside what the job says.
pub struct Asked<'a> {
    pub job: &'a Job,
    /// Where the context came from, if not with the request.
    pub source: Option<&'a Material>,
    pub invocation: &'a str,
}

/// The statement about one image.
pub fn statement(mode: ProvenanceMode, asked: &Asked<'_>, report: &Report) -> Statement {
    let job = asked.job;
    let mut locals: Vec<&str> = Vec::new();
    if asked.source.is_none() {
        locals.push("context");
    }
    locals.extend(job.contexts.keys().map(String::as_str).filter(|name| !name.is_empty()));
    locals.sort_unstable();
    let mut request = json!({"frontend": "dockerfile.v0", "locals": locals.iter().map(|name| json!({"name": name})).collect::<Vec<_>>()});
    if mode == ProvenanceMode::Max {
        let mut args: BTreeMap<String, &str> = BTreeMap::new();
        args.extend(job.wanted.args.iter().map(|(name, value)| (format!("build-arg:{name}"), value.as_str())));
        args.extend(job.wanted.labels.iter().map(|(name, value)| (format!("label:{name}"), value.as_str())));
        args.extend(job.wanted.target.iter().map(|target| ("target".to_owned(), target.as_str())));
        args.extend(job.network.iter().map(|network| ("force-network-mode".to_owned(), network.as_str())));
        request["args"] = json!(args);
        let ids = |mut ids: Vec<&String>| {
            ids.sort_unstable();
            ids.into_iter().map(|id| json!({"id": id})).collect::<Vec<_>>()
        };
        request["secrets"] = Value::Array(ids(job.secrets.keys().collect()));
        request["ssh"] = Value::Array(ids(job.agents.keys().collect()));
    }
    let mut config = json!({"path": job.file});
    if let Some(source) = asked.source {
        config["uri"] = json!(source.uri);
        config["digest"] = json!(source.digest);
    }
    let mut materials: Vec<&Material> = report.materials.iter().chain(asked.source).collect();
    materials.sort();
    materials.dedup();
    let dependencies: Vec<Value> =
        materials.into_iter().map(|material| json!({"uri": material.uri, "digest": material.digest})).collect();
    let mut predicate = json!({
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "externalParameters": {"configSource": config, "request": request},
            "internalParameters": {"builderPlatform": Platform::host().to_string()},
            "resolvedDependencies": dependencies,
        },
        "runDetails": {
            "builder": {"id": BUILDER, "version": {"dhow": env!("CARGO_PKG_VERSION")}},
            "metadata": {
                "invocationId": asked.invocation,
                "startedOn": report.started.to_string(),
                "finishedOn": report.finished.to_string(),
            },
        },
    });
    if mode == ProvenanceMode::Max {
        let text = base64::engine::general_purpose::STANDARD.encode(&job.dockerfile);
        predicate["runDetails"]["byproducts"] = json!([{
            "name": job.file,
            "mediaType": "text/x-dockerfile",
            "digest": {"sha256": Digest::of(job.dockerfile.as_bytes()).hex()},
            "content": text,
        }]);
    }
    Statement { predicate_type: PREDICATE.to_owned(), predicate }
}
