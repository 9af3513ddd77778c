//! The group admissionregistration.k8s.io.

use std::sync::Arc;

use serde_json::Value;

use super::Errors;
use super::common::{lonely_wildcard, qualified, selector, webhook};
use super::field::Field;
use crate::cel::admission::Names;
use crate::cel::{self, Type};
use crate::names;

const FAILURE: &[&str] = &["Fail", "Ignore"];
const MATCH: &[&str] = &["Equivalent", "Exact"];
const OPERATIONS: &[&str] = &["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
const REVIEWS: [&str; 2] = ["v1", "v1beta1"];
const MESSAGE: &str = "validations or auditAnnotations must contain at least one item";

pub fn validating_webhooks(value: &Value, errors: &mut Errors) {
    webhooks(value, errors);
}

pub fn mutating_webhooks(value: &Value, errors: &mut Errors) {
    webhooks(value, errors);
    for hook in Field::top(value, "webhooks").items() {
        errors.known(&hook.at("reinvocationPolicy"), &["IfNeeded", "Never"]);
    }
}

fn webhooks(value: &Value, errors: &mut Errors) {
    let hooks = Field::top(value, "webhooks");
    for hook in hooks.items() {
        qualified(&hook.at("name"), errors);
        hook.at("rules").items().for_each(|rule| self::rule(&rule, true, errors));
        errors.known(&hook.at("failurePolicy"), FAILURE);
        errors.known(&hook.at("matchPolicy"), MATCH);
        let effects = hook.at("sideEffects");
        match effects.present() {
            true => errors.known(&effects, &["None", "NoneOnDryRun"]),
            false => errors.missing(&effects, "must specify one of None, NoneOnDryRun"),
        }
        let timeout = hook.at("timeoutSeconds");
        if timeout.int().is_some_and(|seconds| !(1..=30).contains(&seconds)) {
            errors.bad(&timeout, "the timeout value must be between 1 and 30 seconds");
        }
        selector(&hook.at("namespaceSelector"), errors);
        selector(&hook.at("objectSelector"), errors);
        webhook(&hook.at("clientConfig"), errors);
        match_conditions(&hook.at("matchConditions"), &Names { authorizer: true, ..Names::default() }, errors);
        review_versions(&hook.at("admissionReviewVersions"), "must specify one of v1, v1beta1", errors);
    }
    errors.distinct(&hooks, "name");
}

/// Versions of the review that a webhook understands; we must understand one of them.
pub(super) fn review_versions(versions: &Field, absent: &str, errors: &mut Errors) {
    if versions.len() == 0 {
        return errors.missing(versions, absent);
    }
    let mut seen = Vec::new();
    for version in versions.items() {
        if seen.contains(&version.text()) {
            errors.bad(&version, "duplicate version");
            continue;
        }
        seen.push(version.text());
        errors.name(&version, names::dns1035_label);
    }
    if !seen.iter().any(|version| REVIEWS.contains(version)) {
        errors.bad(versions, "must include at least one of v1, v1beta1");
    }
}

fn match_conditions(conditions: &Field, names: &Names, errors: &mut Errors) {
    errors.at_most(conditions, 64);
    for condition in conditions.items() {
        if condition.at("expression").text().trim().is_empty() {
            errors.missing(&condition.at("expression"), "");
        } else {
            compile(&condition.at("expression"), names, &[Type::Bool], errors);
        }
        errors.need_name(&condition.at("name"), names::qualified_name);
    }
    errors.distinct(conditions, "name");
}

/// Compiles what is there; gives what it would give.
fn compile(expression: &Field, names: &Names, gives: &[Type], errors: &mut Errors) -> Type {
    match names.compile(expression.text(), gives) {
        Ok(program) => program.result().clone(),
        Err(why) => {
            errors.bad(expression, &why);
            Type::Any
        }
    }
}

/// What requests a webhook or policy is about.
fn rule(rule: &Field, subresources: bool, errors: &mut Errors) {
    let operations = rule.at("operations");
    if operations.len() == 0 {
        errors.missing(&operations, "");
    }
    lonely_wildcard(&operations, errors, "operations");
    operations.items().for_each(|operation| errors.known(&operation, OPERATIONS));
    let (groups, versions, resources) = (rule.at("apiGroups"), rule.at("apiVersions"), rule.at("resources"));
    if groups.len() == 0 {
        errors.missing(&groups, "");
    }
    lonely_wildcard(&groups, errors, "API groups");
    if versions.len() == 0 {
        errors.missing(&versions, "");
    }
    lonely_wildcard(&versions, errors, "API versions");
    versions.items().for_each(|version| {
        errors.need(&version);
    });
    if resources.len() == 0 {
        errors.missing(&resources, "");
    }
    for resource in resources.items() {
        if errors.need(&resource) && !subresources && resource.text().contains('/') {
            errors.bad(&resource, "must not specify subresources");
        }
    }
    if resources.contains("*/*") && resources.len() > 1 {
        errors.bad(&resources, "if '*/*' is present, must not specify other resources");
    }
    let whole = |resource: &Field| !resource.text().contains('/') && resource.text() != "*";
    if resources.contains("*") && resources.items().any(|resource| whole(&resource)) {
        errors.bad(&resources, "if '*' is present, must not specify other resources without subresources");
    }
    wildcards(&resources, errors);
    errors.known(&rule.at("scope"), &["*", "Cluster", "Namespaced"]);
}

/// `pods/*` makes `pods/log` pointless, and so does `*/log`.
fn wildcards(resources: &Field, errors: &mut Errors) {
    for one in resources.items() {
        let Some((resource, subresource)) = one.text().split_once('/') else { continue };
        if subresource != "*" && resource != "*" {
            for wide in [format!("{resource}/*"), format!("*/{subresource}")] {
                if resources.contains(&wide) {
                    errors.bad(&one, &format!("if '{wide}' is present, must not specify {}", one.text()));
                }
            }
        }
    }
}

fn match_resources(resources: &Field, errors: &mut Errors) {
    if !resources.present() {
        return;
    }
    errors.need_known(&resources.at("matchPolicy"), MATCH);
    selector(&resources.at("namespaceSelector"), errors);
    selector(&resources.at("objectSelector"), errors);
    for list in ["resourceRules", "excludeResourceRules"] {
        for rule in resources.at(list).items() {
            let mut seen = Vec::new();
            for name in rule.at("resourceNames").items() {
                errors.name(&name, names::path_segment);
                if seen.contains(&name.text()) {
                    errors.twice(&name);
                }
                seen.push(name.text());
            }
            self::rule(&rule, true, errors);
        }
    }
}

/// What both sorts of policies have. Returns the names that its expressions may use.
fn policy_header(spec: &Field, errors: &mut Errors) -> Names {
    errors.need_known(&spec.at("failurePolicy"), FAILURE);
    let kind = spec.at("paramKind");
    if kind.present() {
        param_kind(&kind, errors);
    }
    let constraints = spec.at("matchConstraints");
    if constraints.present() {
        match_resources(&constraints, errors);
        if constraints.at("resourceRules").len() == 0 {
            errors.missing(&constraints.at("resourceRules"), "");
        }
    } else {
        errors.missing(&constraints, "");
    }
    let conditions = Names { params: kind.present(), authorizer: true, ..Names::default() };
    match_conditions(&spec.at("matchConditions"), &conditions, errors);
    let mut known = Vec::new();
    for variable in spec.at("variables").items() {
        let name = variable.at("name");
        if name.text().trim().is_empty() {
            errors.missing(&name, "name is not specified");
        } else if !identifier(name.text()) {
            errors.bad(&name, "name is not a valid CEL identifier");
        }
        let mut of = Type::Any;
        if variable.at("expression").text().trim().is_empty() {
            errors.missing(&variable.at("expression"), "expression is not specified");
        } else {
            let names = names(kind.present(), true, &known);
            of = compile(&variable.at("expression"), &names, &[], errors);
        }
        known.push((name.text().into(), of));
    }
    names(kind.present(), true, &known)
}

fn names(params: bool, authorizer: bool, variables: &[(Arc<str>, Type)]) -> Names {
    Names { params, authorizer, variables: Some(variables.to_vec()), ..Names::default() }
}

pub fn policy(value: &Value, errors: &mut Errors) {
    let spec = Field::spec(value);
    let names = policy_header(&spec, errors);
    let (validations, annotations) = (spec.at("validations"), spec.at("auditAnnotations"));
    if validations.len() == 0 && annotations.len() == 0 {
        errors.missing(&validations, MESSAGE);
        errors.missing(&annotations, MESSAGE);
    }
    validations.items().for_each(|validation| self::validation(&validation, &names, errors));
    if annotations.len() > 20 {
        errors.bad(&annotations, "must not have more than 20 auditAnnotations");
    }
    for annotation in annotations.items() {
        errors.need_name(&annotation.at("key"), names::qualified_name);
        let expression = annotation.at("valueExpression");
        if expression.text().trim().is_empty() {
            errors.missing(&expression, "valueExpression is not specified");
        } else if expression.text().len() > 5 << 10 {
            errors.bad(&expression, "must not exceed 5kb in length");
        } else {
            compile(&expression, &names, &[Type::String, Type::Null], errors);
        }
    }
    errors.distinct(&annotations, "key");
}

pub fn mutating_policy(value: &Value, errors: &mut Errors) {
    let spec = Field::spec(value);
    let names = Names { mutation: true, ..policy_header(&spec, errors) };
    errors.need_known(&spec.at("reinvocationPolicy"), &["IfNeeded", "Never"]);
    let mutations = spec.at("mutations");
    if mutations.len() == 0 {
        errors.missing(&mutations, "mutations must contain at least one item");
    }
    for mutation in mutations.items() {
        let kind = mutation.at("patchType");
        errors.need_known(&kind, &["ApplyConfiguration", "JSONPatch"]);
        let (wanted, other) = match kind.text() {
            "JSONPatch" => ("jsonPatch", "applyConfiguration"),
            "ApplyConfiguration" => ("applyConfiguration", "jsonPatch"),
            _ => continue,
        };
        if mutation.at(other).present() {
            let why = format!("must not be specified when patchType is {}", kind.text());
            errors.bad(&mutation.at(other), &why);
        }
        let expression = mutation.at(wanted).at("expression");
        if !mutation.at(wanted).present() {
            errors.missing(&mutation.at(wanted), &format!("must be specified when patchType is {}", kind.text()));
        } else if expression.text().trim().is_empty() {
            errors.missing(&expression, "expression is not specified");
        } else {
            let gives = if wanted == "jsonPatch" { Type::List(Type::Any.into()) } else { Type::Map(Type::Any.into()) };
            compile(&expression, &names, &[gives], errors);
        }
    }
}

fn validation(validation: &Field, names: &Names, errors: &mut Errors) {
    if validation.at("expression").text().trim().is_empty() {
        errors.missing(&validation.at("expression"), "expression is not specified");
    } else {
        compile(&validation.at("expression"), names, &[Type::Bool], errors);
    }
    let (message, computed) = (validation.at("message"), validation.at("messageExpression"));
    if !computed.text().is_empty() && computed.text().trim().is_empty() {
        errors.bad(&computed, "must be non-empty if specified");
    } else if !computed.text().is_empty() {
        compile(&computed, &Names { authorizer: false, ..names.clone() }, &[Type::String], errors);
    }
    if !message.text().is_empty() && message.text().trim().is_empty() {
        errors.bad(&message, "message must be non-empty if specified");
    } else if message.text().trim().contains(['\n', '\r']) {
        errors.bad(&message, "message must not contain line breaks");
    }
    errors.known(&validation.at("reason"), &["Forbidden", "Invalid", "RequestEntityTooLarge", "Unauthorized"]);
}

fn identifier(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    !text.starts_with(|c: char| c.is_ascii_digit()) && text.bytes().all(word) && text != "__" && !cel::is_keyword(text)
}

fn param_kind(kind: &Field, errors: &mut Errors) {
    let version = kind.at("apiVersion");
    if errors.need(&version) {
        let (group, name) = crate::header::split_api_version(version.text());
        if !group.is_empty() {
            errors.complaints(&version.path, group, names::dns1123_subdomain(group));
        }
        errors.complaints(&version.path, name, names::dns1035_label(name));
    }
    let name = kind.at("kind");
    if errors.need(&name) {
        mixed_case(&name, errors);
    }
}

/// A kind: a label once its letters are small.
pub(super) fn mixed_case(name: &Field, errors: &mut Errors) {
    let problems = names::dns1035_label(&name.text().to_lowercase());
    if !problems.is_empty() {
        errors.bad(name, &format!("may have mixed case, but should otherwise match: {}", problems.join(",")));
    }
}

/// What both sorts of bindings have.
pub fn mutating_policy_binding(value: &Value, errors: &mut Errors) {
    let spec = Field::spec(value);
    errors.need_name(&spec.at("policyName"), names::dns1123_subdomain);
    let parameter = spec.at("paramRef");
    if parameter.present() {
        let (name, selected) = (parameter.at("name"), parameter.at("selector"));
        match (!name.text().is_empty(), selected.present()) {
            (false, false) => errors.missing(&parameter, "one of name or selector must be specified"),
            (true, true) => errors.deny(&name, "name and selector are mutually exclusive"),
            (true, false) => errors.name(&name, names::path_segment),
            (false, true) => selector(&selected, errors),
        }
        let action = parameter.at("parameterNotFoundAction");
        match action.present() {
            true => errors.known(&action, &["Allow", "Deny"]),
            false => errors.missing(&action, ""),
        }
    }
    match_resources(&spec.at("matchResources"), errors);
}

pub fn policy_binding(value: &Value, errors: &mut Errors) {
    mutating_policy_binding(value, errors);
    let spec = Field::spec(value);
    let actions = spec.at("validationActions");
    let mut seen = Vec::new();
    for action in actions.items() {
        errors.known(&action, &["Audit", "Deny", "Warn"]);
        if seen.contains(&action.text()) {
            errors.twice(&action);
        }
        seen.push(action.text());
    }
    if seen.contains(&"Deny") && seen.contains(&"Warn") {
        let why = "must not contain both Deny and Warn (repeating the same validation failure information in the API \
                   response and headers serves no purpose)";
        errors.bad(&actions, why);
    }
    if seen.is_empty() {
        errors.missing(&actions, "at least one validation action is required");
    }
}
