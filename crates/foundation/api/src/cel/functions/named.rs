//! Kubernetes' named formats: `format.dns1123Label().validate(name)`.

use base64::Engine;

use super::{Result1, url};
use crate::cel::eval::{EvalError, Evaluation};
use crate::cel::value::Value;
use crate::names;

const NAMES: [&str; 13] = [
    "dns1123Label",
    "dns1123Subdomain",
    "dns1035Label",
    "qualifiedName",
    "dns1123LabelPrefix",
    "dns1123SubdomainPrefix",
    "dns1035LabelPrefix",
    "labelValue",
    "uri",
    "uuid",
    "byte",
    "date",
    "datetime",
];

/// `format.NAME()`, and `format.named('NAME')` which may give none.
pub fn make(name: &str, args: &[Value]) -> Result1 {
    let known = |name: &str| NAMES.iter().find(|known| **known == name).map(|name| Value::Format(name));
    match (name, args) {
        ("named", [Value::String(name)]) => known(name).map_or(Ok(Value::Optional(None)), Value::some),
        (name, []) => known(name).ok_or_else(EvalError::no_overload),
        _ => Err(EvalError::no_overload()),
    }
}

/// What is wrong with a text, if anything is.
pub fn validate(on: &mut Evaluation, format: &str, args: &[Value]) -> Result1 {
    let [Value::String(text)] = args else { return Err(EvalError::no_overload()) };
    on.meter.text(text.len() * 4)?;
    let says = |good: bool, why: &str| if good { Vec::new() } else { vec![why.to_owned()] };
    // The prefix of a name may end with a dash: as if something followed.
    let whole = || text.strip_suffix('-').map_or_else(|| text.to_string(), |text| format!("{text}a"));
    let problems = match format {
        "dns1123Label" => names::dns1123_label(text),
        "dns1123Subdomain" => names::dns1123_subdomain(text),
        "dns1035Label" => names::dns1035_label(text),
        "qualifiedName" => names::qualified_name(text),
        "dns1123LabelPrefix" => names::dns1123_label(&whole()),
        "dns1123SubdomainPrefix" => names::dns1123_subdomain(&whole()),
        "dns1035LabelPrefix" => names::dns1035_label(&whole()),
        "labelValue" => names::label_value(text),
        "uri" => says(url::Url::parse(text).is_some(), "does not match the format uri"),
        "uuid" => says(uuid::Uuid::try_parse(text).is_ok_and(|_| text.len() == 36), "does not match the UUID format"),
        "byte" => says(base64::engine::general_purpose::STANDARD.decode(&**text).is_ok(), "invalid base64"),
        "date" => says(text.parse::<jiff::civil::Date>().is_ok() && text.len() == 10, "invalid date"),
        "datetime" => says(crate::time::parse(text).is_ok(), "invalid datetime"),
        _ => return Err(EvalError::no_overload()),
    };
    if problems.is_empty() {
        return Ok(Value::Optional(None));
    }
    Value::some(Value::list(problems.iter().map(|problem| Value::text(problem)).collect())?)
}
