//! Reads of a document only what lies at some paths; the rest is skipped, not built.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// The document with nothing in it but what lies at these paths (`spec.nodeName`). Lists have no paths in them.
///
/// # Errors
/// Those of a document that is no JSON.
pub fn read(document: &[u8], paths: &[&str]) -> serde_json::Result<Value> {
    let mut deserializer = serde_json::Deserializer::from_slice(document);
    let value = Below(paths.to_vec()).deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(value)
}

/// The paths that go on from here.
struct Below<'p>(Vec<&'p str>);

/// What is left of a path below a member: nothing if it ends there.
fn below<'p>(path: &'p str, key: &str) -> Option<&'p str> {
    let rest = path.strip_prefix(key)?;
    if rest.is_empty() { Some(rest) } else { rest.strip_prefix('.') }
}

#[derive(Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de> DeserializeSeed<'de> for Below<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Below<'_> {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("any value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut found = Map::new();
        while let Some(Key(key)) = members.next_key()? {
            let below: Vec<&str> = self.0.iter().filter_map(|path| below(path, &key)).collect();
            if below.is_empty() {
                members.next_value::<IgnoredAny>()?;
            } else if below.contains(&"") {
                found.insert(key.into_owned(), members.next_value()?);
            } else {
                found.insert(key.into_owned(), members.next_value_seed(Below(below))?);
            }
        }
        Ok(Value::Object(found))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_was_asked_for_is_there() {
        let document =
            br#"{"a": {"b": {"c": [1, {"x": null}], "d": 1}, "bc": 2}, "e\u0066": true, "g": [{"h": 1}], "i": null}"#;
        let read = |paths: &[&str]| read(document, paths).unwrap();
        assert_eq!(read(&[]), json!({}));
        assert_eq!(read(&["a.b.c", "ef"]), json!({"a": {"b": {"c": [1, {"x": null}]}}, "ef": true}));
        assert_eq!(read(&["a.b", "a.b.d"]), json!({"a": {"b": {"c": [1, {"x": null}], "d": 1}}}));
        assert_eq!(read(&["a.bc", "a.x", "z"]), json!({"a": {"bc": 2}}));
        // Nothing lies below what is no object.
        assert_eq!(read(&["g.h", "ef.x", "i.x"]), json!({"ef": null, "g": null, "i": null}));
        assert!(super::read(b"{\"a\": 1} x", &["a"]).is_err());
        assert!(super::read(b"{\"a\": 1, \"b\": tru}", &["a"]).is_err());
    }
}
