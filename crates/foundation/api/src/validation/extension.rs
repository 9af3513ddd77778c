//! CustomResourceDefinitions and APIServices.

use serde_json::Value;

use super::admission::{mixed_case, review_versions};
use super::common::webhook;
use super::field::Field;
use super::{Errors, FieldError};
use crate::custom::{Definition, Schema, cost, rules};
use crate::meta::{self, items, text};
use crate::names;

const COLUMN_TYPES: &str = "boolean,date,integer,number,string";
const COLUMN_FORMATS: &str = "byte,date,date-time,double,float,int32,int64,password";

pub fn definition(value: &Value, errors: &mut Errors) {
    let spec = Field::spec(value);
    let wanted = format!("{}.{}", text(value, &["spec", "names", "plural"]), spec.at("group").text());
    if meta::name(value) != wanted {
        let name = Field::top(value, "metadata").at("name");
        errors.bad(&name, "must be spec.names.plural+\".\"+spec.group");
    }
    let group = spec.at("group");
    if errors.need(&group) {
        errors.name(&group, names::dns1123_subdomain);
        if !group.text().contains('.') {
            errors.bad(&group, "should be a domain with at least one dot");
        }
        protected_group(value, group.text(), errors);
    }
    errors.need_known(&spec.at("scope"), &["Cluster", "Namespaced"]);
    if spec.at("preserveUnknownFields").is_true() {
        errors.bad(
            &spec.at("preserveUnknownFields"),
            "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead",
        );
    }
    let versions = spec.at("versions");
    for version in versions.items() {
        self::version(&version, errors);
    }
    let tally = |flag: &str| versions.items().filter(|version| version.at(flag).is_true()).count();
    let mut named: Vec<&str> = items(versions.value, &[]).iter().map(|version| text(version, &["name"])).collect();
    named.sort_unstable();
    if named.windows(2).any(|pair| pair[0] == pair[1]) {
        errors.bad(&versions, "must contain unique version names");
    }
    if tally("storage") != 1 {
        errors.bad(&versions, "must have exactly one version marked as storage version");
    }
    for name in ["plural", "singular", "kind", "listKind"] {
        errors.need(&spec.at("names").at(name));
    }
    self::names(&spec.at("names"), errors);
    conversion(&spec.at("conversion"), errors);
    stored_versions(value, errors);
    if errors.is_empty()
        && let Err(error) = Definition::parse(value)
    {
        errors.push(FieldError::invalid("spec.versions", "", &error.to_string()));
    }
}

/// Groups of the project itself need a word about their review.
fn protected_group(value: &Value, group: &str, errors: &mut Errors) {
    const KEY: &str = "api-approved.kubernetes.io";
    let protected =
        ["k8s.io", "kubernetes.io"].iter().any(|root| group == *root || group.ends_with(&format!(".{root}")));
    let said = text(value, &["metadata", "annotations", KEY]);
    let place = Field::top(value, "metadata").at("annotations").key(KEY);
    if protected && said.is_empty() {
        errors.missing(&place, "protected groups must have approval annotation \"api-approved.kubernetes.io\", see https://github.com/kubernetes/enhancements/pull/1111");
    } else if protected && !said.starts_with("unapproved") && !said.starts_with("https://") {
        errors.bad(&place, "protected groups must have approval annotation \"api-approved.kubernetes.io\" with either a URL or a reason starting with \"unapproved\", see https://github.com/kubernetes/enhancements/pull/1111");
    }
}

fn version(version: &Field, errors: &mut Errors) {
    errors.complaints(
        &version.at("name").path,
        version.at("name").text(),
        names::dns1035_label(version.at("name").text()),
    );
    let warning = version.at("deprecationWarning");
    if warning.present() {
        if !version.at("deprecated").is_true() {
            errors.bad(&warning, "can only be set for deprecated versions");
        }
        if warning.text().is_empty() {
            errors.bad(&warning, "must not be an empty string");
        }
        if warning.text().len() > 256 {
            errors.bad(&warning, "must be <= 256 characters long");
        }
    }
    let schema = version.at("schema").at("openAPIV3Schema");
    if schema.present() {
        root_schema(&schema, errors);
    } else {
        errors.missing(&schema, "schemas are required");
    }
    subresources(&version.at("subresources"), errors);
    for column in version.at("additionalPrinterColumns").items() {
        errors.need(&column.at("name"));
        one_of_words(&column.at("type"), COLUMN_TYPES, true, errors);
        one_of_words(&column.at("format"), COLUMN_FORMATS, false, errors);
        json_path(&column.at("jsonPath"), errors);
    }
    let fields = version.at("selectableFields");
    errors.at_most(&fields, 8);
    for field in fields.items() {
        let path = field.at("jsonPath");
        if errors.need(&path) && path.text().starts_with(".metadata") {
            errors.bad(&path, "must not point to fields in metadata");
        }
    }
    errors.distinct(&fields, "jsonPath");
}

fn one_of_words(field: &Field, words: &str, needed: bool, errors: &mut Errors) {
    let why = format!("must be one of {words}");
    if field.text().is_empty() {
        if needed {
            errors.missing(field, &why);
        }
    } else if !words.split(',').any(|word| word == field.text()) {
        errors.bad(field, &why);
    }
}

/// `.spec.replicas`.
fn json_path(field: &Field, errors: &mut Errors) {
    if errors.need(field) && !field.text().starts_with('.') {
        errors.bad(field, "must be a simple json path starting with .");
    }
}

fn subresources(subresources: &Field, errors: &mut Errors) {
    let scale = subresources.at("scale");
    if !scale.present() {
        return;
    }
    for (name, root) in [("specReplicasPath", ".spec."), ("statusReplicasPath", ".status.")] {
        let path = scale.at(name);
        if errors.need(&path) && !path.text().starts_with(root) {
            errors.bad(&path, &format!("should be a json path under {}", root.trim_end_matches('.')));
        }
    }
    let selector = scale.at("labelSelectorPath");
    if !selector.text().is_empty() && ![".spec.", ".status."].iter().any(|root| selector.text().starts_with(root)) {
        errors.bad(&selector, "should be a json path under either .spec or .status");
    }
}

fn names(names_: &Field, errors: &mut Errors) {
    for name in ["plural", "singular"] {
        if !names_.at(name).text().is_empty() {
            errors.name(&names_.at(name), names::dns1035_label);
        }
    }
    for name in ["kind", "listKind"] {
        if !names_.at(name).text().is_empty() {
            mixed_case(&names_.at(name), errors);
        }
    }
    for list in ["shortNames", "categories"] {
        names_.at(list).items().for_each(|name| errors.name(&name, names::dns1035_label));
    }
    if !names_.at("kind").text().is_empty() && names_.at("kind").value == names_.at("listKind").value {
        errors.bad(&names_.at("listKind"), "kind and listKind may not be the same");
    }
}

fn conversion(conversion: &Field, errors: &mut Errors) {
    errors.need_known(&conversion.at("strategy"), &["None", "Webhook"]);
    let hook = conversion.at("webhook");
    // The paths are those of upstream's internal form, which errors have always named.
    let within =
        |name: &str, shown: &str| Field { value: &hook.value[name], path: format!("{}.{shown}", conversion.path) };
    let client = within("clientConfig", "webhookClientConfig");
    let versions = within("conversionReviewVersions", "conversionReviewVersions");
    if conversion.at("strategy").is("Webhook") {
        match client.present() {
            true => webhook(&client, errors),
            false => errors.missing(&client, "required when strategy is set to Webhook"),
        }
        review_versions(&versions, "", errors);
    } else {
        for field in [client, versions] {
            if field.present() {
                errors.deny(&field, "should not be set when strategy is not set to Webhook");
            }
        }
    }
}

fn stored_versions(value: &Value, errors: &mut Errors) {
    let stored = Field::top(value, "status").at("storedVersions");
    if !stored.present() {
        return;
    }
    let versions = items(value, &["spec", "versions"]);
    if let Some(storage) = versions.iter().find(|version| version["storage"] == true).map(|v| text(v, &["name"]))
        && !stored.contains(storage)
    {
        errors.bad(&stored, &format!("must have the storage version {storage}"));
    }
    for version in stored.items() {
        let name = version.text();
        if !versions.iter().any(|known| text(known, &["name"]) == name) {
            errors.bad(&version, &format!(
                "missing from spec.versions; {name} was previously a storage version, and must remain in spec.versions \
                 until a storage migration ensures no data remains persisted in {name} and removes {name} from \
                 status.storedVersions"
            ));
        }
    }
}

pub fn definition_create(value: &Value, errors: &mut Errors) {
    expenses(value, &Value::Null, errors);
}

/// Rules that may cost too much, in versions whose schema is another than it was.
fn expenses(new: &Value, old: &Value, errors: &mut Errors) {
    let document = |version: &Value| version["schema"]["openAPIV3Schema"].clone();
    for (index, version) in items(new, &["spec", "versions"]).iter().enumerate() {
        let before = items(old, &["spec", "versions"]).iter().find(|known| known["name"] == version["name"]);
        let schema = document(version);
        if before.map(document).as_ref() == Some(&schema) {
            continue;
        }
        // A schema that cannot be read has been refused for it.
        if let Ok(parsed) = Schema::parse(&schema) {
            let path = format!("spec.versions[{index}].schema.openAPIV3Schema");
            cost::problems(&parsed, &path).into_iter().for_each(|error| errors.push(error));
        }
    }
}

pub fn definition_update(new: &Value, old: &Value, errors: &mut Errors) {
    let (spec, before) = (Field::spec(new), Field::spec(old));
    expenses(new, old, errors);
    let established = items(old, &["status", "conditions"])
        .iter()
        .any(|condition| condition["type"] == "Established" && condition["status"] == "True");
    if established {
        errors.same(&spec.at("scope"), &before.at("scope"));
        errors.same(&spec.at("names").at("kind"), &before.at("names").at("kind"));
    }
    errors.same(&spec.at("group"), &before.at("group"));
    errors.same(&spec.at("names").at("plural"), &before.at("names").at("plural"));
}

/// A schema as a whole: structural, so that pruning and defaulting have one meaning.
fn root_schema(schema: &Field, errors: &mut Errors) {
    match schema.at("type").text() {
        "object" => {}
        "" => errors.missing(&schema.at("type"), "must not be empty at the root"),
        _ => errors.bad(&schema.at("type"), "must be object at the root"),
    }
    if schema.at("nullable").is_true() {
        errors.deny(&schema.at("nullable"), "nullable cannot be true at the root");
    }
    node(schema, Level::Root, errors);
    // A schema that cannot be read has been refused for it.
    if let Ok(parsed) = Schema::parse(schema.value) {
        rules::problems(&parsed, &schema.path).into_iter().for_each(|error| errors.push(error));
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Level {
    Root,
    Field,
    Item,
}

fn node(schema: &Field, level: Level, errors: &mut Errors) {
    let field = |name: &str| schema.at(name);
    let (kind, free) = (field("type"), field("x-kubernetes-preserve-unknown-fields"));
    let either = field("x-kubernetes-int-or-string").is_true();
    if kind.text().is_empty() && !either && !free.is_true() {
        match level {
            Level::Root => {}
            Level::Field => errors.missing(&kind, "must not be empty for specified object fields"),
            Level::Item => errors.missing(&kind, "must not be empty for specified array items"),
        }
    }
    if !kind.text().is_empty() {
        errors.known(&kind, &["array", "boolean", "integer", "number", "object", "string"]);
        if either {
            errors.bad(&kind, "must be empty if x-kubernetes-int-or-string is true");
        }
    }
    if free.present() && !free.is_true() {
        errors.bad(&free, "must be true or undefined");
    }
    if field("uniqueItems").is_true() {
        let why = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
        errors.deny(&field("uniqueItems"), why);
    }
    let (properties, additional) = (field("properties"), field("additionalProperties"));
    if properties.len() > 0 && additional.present() && additional.value != &Value::Bool(true) {
        errors.deny(&additional, "additionalProperties and properties are mutual exclusive");
    }
    if field("x-kubernetes-embedded-resource").is_true() && !kind.is("object") {
        errors.bad(&kind, "must be object if x-kubernetes-embedded-resource is true");
    }
    lists(schema, errors);
    for name in properties.value.as_object().into_iter().flatten().map(|(name, _)| name) {
        node(&properties.key(name), Level::Field, errors);
    }
    if additional.value.is_object() {
        node(&additional, Level::Field, errors);
    }
    if field("items").present() {
        node(&field("items"), Level::Item, errors);
    } else if kind.is("array") {
        errors.missing(&field("items"), "must be specified");
    }
    for list in ["allOf", "anyOf", "oneOf"] {
        field(list).items().for_each(|one| bare(&one, either, errors));
    }
    if field("not").present() {
        bare(&field("not"), either, errors);
    }
}

/// What is below a junction constrains only; it may not say what the value is.
fn bare(schema: &Field, int_or_string: bool, errors: &mut Errors) {
    for name in ["additionalProperties", "default", "description", "nullable", "title", "type"] {
        let field = schema.at(name);
        let allowed = name == "type" && int_or_string;
        if field.present() && field.value != &Value::Bool(false) && !allowed {
            errors.deny(&field, "must be empty to be structural");
        }
    }
    for name in schema.at("properties").value.as_object().into_iter().flatten().map(|(name, _)| name) {
        bare(&schema.at("properties").key(name), false, errors);
    }
    if schema.at("items").present() {
        bare(&schema.at("items"), false, errors);
    }
}

fn lists(schema: &Field, errors: &mut Errors) {
    let (kind, list, keys) =
        (schema.at("type"), schema.at("x-kubernetes-list-type"), schema.at("x-kubernetes-list-map-keys"));
    if list.present() {
        if !kind.is("array") {
            errors.bad(&kind, "must be array if x-kubernetes-list-type is specified");
        }
        errors.known(&list, &["atomic", "map", "set"]);
    }
    let map = schema.at("x-kubernetes-map-type");
    if map.present() {
        if !kind.is("object") {
            errors.bad(&kind, "must be object if x-kubernetes-map-type is specified");
        }
        errors.known(&map, &["atomic", "granular"]);
    }
    if list.is("map") && keys.len() == 0 {
        errors.missing(&keys, "must not be empty if x-kubernetes-list-type is map");
    } else if !list.is("map") && keys.len() > 0 {
        errors.bad(&list, "must be map if x-kubernetes-list-map-keys is non-empty");
    }
    for key in keys.items() {
        if !schema.at("items").at("properties").at(key.text()).present() {
            let why = "entries must all be names of item properties";
            errors.bad(&key, why);
        }
    }
}

pub fn api_service(value: &Value, errors: &mut Errors) {
    let spec = Field::spec(value);
    let (group, version) = (spec.at("group"), spec.at("version"));
    let wanted = format!("{}.{}", version.text(), group.text());
    if meta::name(value) != wanted {
        let name = Field::top(value, "metadata").at("name");
        errors.bad(&name, &format!("must be `spec.version+\".\"+spec.group`: {wanted:?}"));
    }
    if !group.text().is_empty() {
        errors.name(&group, names::dns1123_subdomain);
    }
    errors.complaints(&version.path, version.text(), names::dns1035_label(version.text()));
    let bounds = [("groupPriorityMinimum", 20_000), ("versionPriority", 1000)];
    for (name, limit) in bounds {
        let field = spec.at(name);
        if !(1..=limit).contains(&field.int().unwrap_or(0)) {
            errors.bad(
                &field,
                &format!("must be positive and less than {}", if limit == 1000 { "1000" } else { "20000" }),
            );
        }
    }
    let (service, bundle) = (spec.at("service"), spec.at("caBundle"));
    let careless = spec.at("insecureSkipTLSVerify");
    if !service.present() {
        if !bundle.text().is_empty() {
            errors.complaints(&bundle.path, "", vec!["local APIServices may not have a caBundle".into()]);
        }
        if careless.is_true() {
            errors.bad(&careless, "local APIServices may not have insecureSkipTLSVerify");
        }
        return;
    }
    errors.need(&service.at("namespace"));
    errors.need(&service.at("name"));
    let port = service.at("port");
    if let Some(number) = port.int() {
        for problem in names::port_number(number) {
            errors.bad(&port, &format!("port is not valid: {problem}"));
        }
    }
    if careless.is_true() && !bundle.text().is_empty() {
        errors.bad(&careless, "may not be true if caBundle is present");
    }
}
