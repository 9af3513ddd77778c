//! Trust bundles in projected volumes: by name, or all of a signer that a selector takes.

use std::sync::Arc;

use dhow_api::selectors::LabelSelector;
use dhow_api::trust_bundle::merged;
use k8s_openapi::api::certificates::v1beta1::ClusterTrustBundle;
use k8s_openapi::api::core::v1::ClusterTrustBundleProjection;

use super::bad;
use crate::Error;

/// The certificates a source shows, given all bundles.
pub fn of(source: &ClusterTrustBundleProjection, all: &[Arc<ClusterTrustBundle>]) -> Result<String, Error> {
    let mut found = Vec::new();
    let missing = match (&source.name, &source.signer_name) {
        (Some(name), _) => {
            found.extend(all.iter().find(|bundle| bundle.metadata.name.as_ref() == Some(name)));
            format!("while getting ClusterTrustBundle: clustertrustbundle.certificates.k8s.io {name:?} not found")
        }
        (None, Some(signer)) => {
            let selector = source.label_selector.as_ref().map(serde_json::to_value).transpose();
            let selector = selector.map_err(|error| bad(format!("while parsing label selector: {error}")))?;
            // None takes nothing, an empty one everything.
            let selector = LabelSelector::from_object(selector.as_ref());
            let selector = selector.map_err(|error| bad(format!("while parsing label selector: {error}")))?;
            let empty = Default::default();
            found.extend(all.iter().filter(|bundle| {
                bundle.spec.signer_name.as_ref() == Some(signer)
                    && selector.matches(bundle.metadata.labels.as_ref().unwrap_or(&empty))
            }));
            "combination of signerName and labelSelector matched zero ClusterTrustBundles".to_owned()
        }
        (None, None) => return Err(bad("either name or signerName must be specified")),
    };
    if found.is_empty() && source.optional != Some(true) {
        return Err(bad(missing));
    }
    Ok(merged(found.into_iter().map(|bundle| bundle.spec.trust_bundle.as_str())))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    fn bundle(name: &str, signer: Option<&str>, label: &str, bodies: &[&str]) -> Arc<ClusterTrustBundle> {
        let block = |body: &&str| format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n");
        let text: String = bodies.iter().map(block).collect();
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": name, "labels": {"l": label}},
                "spec": {"signerName": signer, "trustBundle": text}}))
            .unwrap(),
        )
    }

    fn bodies(source: serde_json::Value, all: &[Arc<ClusterTrustBundle>]) -> Result<Vec<String>, String> {
        let mut source = source;
        source["path"] = "p".into();
        let source = serde_json::from_value(source).unwrap();
        let text = of(&source, all).map_err(|error| error.to_string())?;
        Ok(text.lines().filter(|line| !line.starts_with('-')).map(str::to_owned).collect())
    }

    #[test]
    fn a_source_shows_what_it_names_or_selects_each_once() {
        let all = [
            bundle("s.x:y:a", Some("s.x/y"), "1", &["BBBB", "AAAA"]),
            bundle("s.x:y:b", Some("s.x/y"), "2", &["CCCC", "AAAA"]),
            bundle("own", None, "1", &["DDDD"]),
        ];
        let signer = |selector| json!({"signerName": "s.x/y", "labelSelector": selector});
        assert_eq!(bodies(json!({"name": "own"}), &all).unwrap(), ["DDDD"]);
        assert_eq!(bodies(signer(json!({})), &all).unwrap(), ["AAAA", "BBBB", "CCCC"]);
        assert_eq!(bodies(signer(json!({"matchLabels": {"l": "2"}})), &all).unwrap(), ["AAAA", "CCCC"]);
        let none = "combination of signerName and labelSelector matched zero ClusterTrustBundles";
        assert_eq!(bodies(signer(json!(null)), &all).unwrap_err(), none);
        assert_eq!(bodies(signer(json!({"matchLabels": {"l": "3"}})), &all).unwrap_err(), none);
        assert!(bodies(json!({"name": "absent"}), &all).unwrap_err().ends_with("\"absent\" not found"));
        assert!(bodies(json!({"name": "absent", "optional": true}), &all).unwrap().is_empty());
    }
}
