//! What there is about each image of a repository: `/v2/<name>/_dhow/artifacts`. Signatures, bills of material, reports of
//! vulnerabilities, and how often it is used.
//!
//! That there is a signature is said, not whose it is: that is for image policies.

use std::collections::{BTreeMap, BTreeSet};

use dhow_image::Digest;
use dhow_image::media::{DOCKER_INDEX, OCI_INDEX};
use http::{Response, StatusCode};
use serde::Serialize;
use serde_json::{Value, json};

use crate::catalog::Record;
use crate::request::{Asked, Body, json_answer};
use crate::{Error, Inner, Result};

/// Tags in one answer.
const PAGE: usize = 100;
/// Larger reports are not read.
const MAX_REPORT: u64 = 32 << 20;
/// What says when something was made.
const CREATED: &str = "org.opencontainers.image.created";
/// What a layer of an attestation is about.
const PREDICATE: &str = "in-toto.io/predicate-type";

/// How many vulnerabilities of each severity a report has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Severities {
    critical: u64,
    high: u64,
    medium: u64,
    low: u64,
    unknown: u64,
}

impl Severities {
    fn add(&mut self, severity: &str) {
        *match severity.to_ascii_lowercase().as_str() {
            "critical" => &mut self.critical,
            "high" | "important" => &mut self.high,
            "medium" | "moderate" => &mut self.medium,
            "low" | "negligible" | "minor" => &mut self.low,
            _ => &mut self.unknown,
        } += 1;
    }

    /// Of a report as Trivy, Grype or any SARIF writer makes them; `None`: it is none of these.
    fn of(report: &Value) -> Option<Self> {
        let mut found = Self::default();
        if let Some(results) = report["Results"].as_array() {
            let all = results.iter().flat_map(|result| result["Vulnerabilities"].as_array().into_iter().flatten());
            all.for_each(|one| found.add(one["Severity"].as_str().unwrap_or_default()));
        } else if let Some(matches) = report["matches"].as_array() {
            matches.iter().for_each(|one| found.add(one["vulnerability"]["severity"].as_str().unwrap_or_default()));
        } else if let Some(runs) = report["runs"].as_array() {
            for run in runs {
                let rules = run["tool"]["driver"]["rules"].as_array();
                let rules: BTreeMap<&str, &Value> =
                    rules.into_iter().flatten().filter_map(|rule| Some((rule["id"].as_str()?, rule))).collect();
                for result in run["results"].as_array().into_iter().flatten() {
                    let rule = result["ruleId"].as_str().and_then(|id| rules.get(id).copied()).unwrap_or(&Value::Null);
                    found.add(severity_of(rule));
                }
            }
        } else {
            return None;
        }
        Some(found)
    }
}

/// Of a rule of SARIF, by its score.
fn severity_of(rule: &Value) -> &'static str {
    let score = &rule["properties"]["security-severity"];
    let score = score.as_f64().or_else(|| score.as_str()?.parse().ok());
    match score {
        Some(9.0..) => "critical",
        Some(7.0..) => "high",
        Some(4.0..) => "medium",
        Some(score) if score > 0.0 => "low",
        _ => "unknown",
    }
}

/// What a media type, an artifact type or a predicate's type says of its content.
fn sbom_of(kind: &str) -> Option<&'static str> {
    let kind = kind.to_ascii_lowercase();
    ["spdx", "cyclonedx", "syft"].into_iter().find(|format| kind.contains(format))
}

fn is_report(kind: &str) -> bool {
    let kind = kind.to_ascii_lowercase();
    ["sarif", "trivy", "grype", "vuln"].iter().any(|word| kind.contains(word))
}

fn signer_of(kind: &str) -> Option<&'static str> {
    let is = |word| kind.contains(word);
    if is("cncf.notary.signature") {
        Some("notation")
    } else if is("dev.cosign.") || is("sigstore.bundle") {
        Some("cosign")
    } else {
        None
    }
}

/// What was found about an image and its parts.
#[derive(Default)]
struct About {
    signatures: BTreeSet<&'static str>,
    sboms: BTreeSet<&'static str>,
    /// The newest report: when it was made, and what it says.
    report: Option<(String, Severities)>,
    referrers: Vec<Value>,
}

impl Inner {
    pub async fn list_artifacts(&self, asked: &Asked, repository: &str) -> Result<Response<Body>> {
        if !self.catalog.exists(repository).await? {
            return Err(Error::name_unknown(repository));
        }
        let (names, more) = match asked.parameter("tag") {
            Some(tag) => (vec![tag.to_owned()], false),
            None => {
                let last = asked.parameter("last").filter(|last| !last.is_empty());
                self.catalog.tag_names(repository, last, PAGE).await?
            }
        };
        let mut tags = Vec::new();
        for name in &names {
            match self.artifacts_of(repository, name).await? {
                Some(tag) => tags.push(tag),
                None if asked.parameter("tag").is_some() => return Err(Error::manifest_unknown(name)),
                None => {}
            }
        }
        let next = names.last().filter(|_| more);
        let usage = self.usage_of(repository).await?;
        let answer = json!({ "repository": repository, "tags": tags, "next": next, "usage": usage });
        Ok(json_answer(StatusCode::OK, &[], &answer))
    }

    async fn artifacts_of(&self, repository: &str, tag: &str) -> Result<Option<Value>> {
        let Some(named) = self.catalog.tag(repository, tag).await? else { return Ok(None) };
        let Some(record) = self.catalog.manifest(repository, &named.digest).await? else { return Ok(None) };
        let (mut blobs, mut about, mut bytes) = (BTreeSet::new(), About::default(), record.size);
        self.look_at(repository, &named.digest, &record, &mut about).await?;
        blobs.extend(record.blobs.iter().cloned());
        for child in &record.manifests {
            let Some(record) = self.catalog.manifest(repository, child).await? else { continue };
            bytes += record.size;
            self.look_at(repository, child, &record, &mut about).await?;
            blobs.extend(record.blobs.iter().cloned());
        }
        for blob in &blobs {
            bytes += self.catalog.linked(repository, blob).await?.map_or(0, |link| link.size);
        }
        let pushed = jiff::Timestamp::from_second(i64::try_from(named.at).unwrap_or_default()).unwrap_or_default();
        Ok(Some(json!({
            "tag": tag, "digest": named.digest, "mediaType": record.media_type, "artifactType": record.artifact_type,
            "size": bytes, "pushed": pushed.to_string(), "signatures": about.signatures, "sboms": about.sboms,
            "vulnerabilities": about.report.map(|(_, severities)| severities), "referrers": about.referrers,
        })))
    }

    async fn look_at(&self, repository: &str, digest: &Digest, record: &Record, about: &mut About) -> Result<()> {
        let stem = format!("{}-{}", digest.algorithm(), digest.hex());
        if self.catalog.tag(repository, &format!("{stem}.sig")).await?.is_some() {
            about.signatures.insert("cosign");
        }
        // Attestations that builds put beside the platforms.
        let is_index = matches!(record.media_type.as_str(), OCI_INDEX | DOCKER_INDEX);
        if !is_index && let Some(bytes) = self.whole(digest).await? {
            about
                .sboms
                .extend(layers(&bytes).iter().filter_map(|layer| sbom_of(layer["annotations"][PREDICATE].as_str()?)));
        }
        for descriptor in self.catalog.referrers(repository, digest, None, 0).await?.0 {
            let kind = descriptor["artifactType"].as_str().unwrap_or_default().to_owned();
            about.signatures.extend(signer_of(&kind));
            about.sboms.extend(sbom_of(&kind));
            if is_report(&kind) {
                self.read_report(repository, &descriptor, about).await?;
            }
            about.referrers.push(descriptor);
        }
        Ok(())
    }

    async fn read_report(&self, repository: &str, descriptor: &Value, about: &mut About) -> Result<()> {
        let Some(Ok(digest)) = descriptor["digest"].as_str().map(Digest::parse) else { return Ok(()) };
        let made = descriptor["annotations"][CREATED].as_str().map(str::to_owned);
        let made = match (made, self.catalog.manifest(repository, &digest).await?) {
            (Some(made), _) => made,
            (None, Some(record)) => {
                let at = i64::try_from(record.at).unwrap_or_default();
                jiff::Timestamp::from_second(at).unwrap_or_default().to_string()
            }
            (None, None) => return Ok(()),
        };
        if about.report.as_ref().is_some_and(|(newest, _)| *newest >= made) {
            return Ok(());
        }
        let Some(manifest) = self.whole(&digest).await? else { return Ok(()) };
        for layer in layers(&manifest) {
            let Some(Ok(blob)) = layer["digest"].as_str().map(Digest::parse) else { continue };
            let small = self.size(&blob).await?.is_some_and(|size| size <= MAX_REPORT);
            if !small || self.catalog.linked(repository, &blob).await?.is_none() {
                continue;
            }
            let bytes = self.read_whole(&blob, MAX_REPORT).await?.unwrap_or_default();
            let report = serde_json::from_slice::<Value>(&bytes).ok().as_ref().and_then(Severities::of);
            if let Some(severities) = report {
                about.report = Some((made, severities));
                return Ok(());
            }
        }
        Ok(())
    }
}

fn layers(manifest: &[u8]) -> Vec<Value> {
    let mut manifest: Value = serde_json::from_slice(manifest).unwrap_or_default();
    match manifest["layers"].take() {
        Value::Array(layers) => layers,
        _ => Vec::new(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn reports_of_three_kinds_are_read() {
        let trivy = json!({"Results": [
            {"Vulnerabilities": [{"Severity": "CRITICAL"}, {"Severity": "LOW"}]}, {"Target": "no vulnerabilities"},
        ]});
        let found = Severities::of(&trivy).unwrap();
        assert_eq!((found.critical, found.low, found.high), (1, 1, 0));
        let grype = json!({"matches": [
            {"vulnerability": {"severity": "High"}}, {"vulnerability": {"severity": "Negligible"}}, {},
        ]});
        let found = Severities::of(&grype).unwrap();
        assert_eq!((found.high, found.low, found.unknown), (1, 1, 1));
        let sarif = json!({"runs": [{
            "tool": {"driver": {"rules": [
                {"id": "a", "properties": {"security-severity": "9.8"}}, {"id": "b", "properties": {"security-severity": 4.1}},
            ]}},
            "results": [{"ruleId": "a"}, {"ruleId": "a"}, {"ruleId": "b"}, {"ruleId": "none"}],
        }]});
        let found = Severities::of(&sarif).unwrap();
        assert_eq!((found.critical, found.medium, found.unknown), (2, 1, 1));
        assert_eq!(Severities::of(&json!({"other": []})), None);
    }

    #[test]
    fn kinds_are_known_by_their_types() {
        assert_eq!(sbom_of("application/spdx+json"), Some("spdx"));
        assert_eq!(sbom_of("https://cyclonedx.org/bom"), Some("cyclonedx"));
        assert_eq!(signer_of("application/vnd.cncf.notary.signature"), Some("notation"));
        assert_eq!(signer_of("application/vnd.dev.sigstore.bundle.v0.3+json"), Some("cosign"));
        assert!(is_report("application/sarif+json") && !is_report("application/spdx+json"));
    }
}
