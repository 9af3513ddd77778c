//! Trust bundles, and volumes that show them.

use serde_json::{Value, json};

use super::access::signer_name;
use super::field::Field;
use super::{Errors, pod_parts};
use crate::trust_bundle;

/// What upstream shows of a bundle that is no good.
const OMITTED: &str = "<value omitted>";

pub fn trust_bundle(value: &Value, errors: &mut Errors) {
    let signer = Field::spec(value).at("signerName");
    let name = crate::meta::name(value);
    errors.complaints("metadata.name", name, trust_bundle::name_problems(name, signer.text()));
    if !signer.text().is_empty() {
        signer_name(&signer, errors);
    }
}

pub fn new_trust_bundle(value: &Value, errors: &mut Errors) {
    let bundle = Field::spec(value).at("trustBundle");
    if bundle.text().len() > trust_bundle::MAX_BYTES {
        return errors.too_long(&bundle.path, trust_bundle::MAX_BYTES);
    }
    for why in trust_bundle::problems(bundle.text()) {
        errors.bad_value(&bundle.path, &json!(OMITTED), &why);
    }
}

pub fn trust_bundle_update(new: &Value, old: &Value, errors: &mut Errors) {
    let (new_spec, old_spec) = (Field::spec(new), Field::spec(old));
    // What was good once stays so.
    if new_spec.at("trustBundle").value != old_spec.at("trustBundle").value {
        new_trust_bundle(new, errors);
    }
    errors.same(&new_spec.at("signerName"), &old_spec.at("signerName"));
}

/// A source of a projected volume; its errors name it as upstream's do.
pub(super) fn bundle_projection(source: &Field, errors: &mut Errors) {
    let place = Field { value: source.value, path: format!("{}PEM", source.path) };
    let (name, signer, labels) = (place.at("name"), place.at("signerName"), place.at("labelSelector"));
    match (name.present(), signer.present()) {
        (true, true) => errors.bad(&place, "only one of name and signerName may be used"),
        (true, false) => {
            if name.text().is_empty() {
                errors.missing(&name, "must be a valid object name");
            }
            let owner = trust_bundle::signer_of(name.text()).unwrap_or_default();
            for why in trust_bundle::name_problems(name.text(), &owner) {
                errors.bad(&name, &format!("not a valid clustertrustbundlename: {why}"));
            }
            if labels.present() {
                errors.bad(&labels, "labelSelector must be unset if name is specified");
            }
        }
        (false, true) => {
            if signer.text().is_empty() {
                errors.missing(&signer, "must be a valid signer name");
            } else {
                signer_name(&signer, errors);
            }
            super::common::selector(&labels, errors);
        }
        (false, false) => errors.missing(&place, "either name or signerName must be specified"),
    }
    pod_parts::relative(&place.at("path"), errors);
}
