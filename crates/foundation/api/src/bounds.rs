//! How deep and how large a document may be, in whatever form it comes.

use serde_json::Value;

/// Lists and objects within one another. A list of such objects, or an event with one, is then still within what
/// readers of JSON take, which is 128 with some.
pub const MAX_DEPTH: usize = 100;
/// Bytes of one stored object: what etcd takes in one request by default, whichever store there is.
pub const MAX_STORED: usize = 3 << 19;

/// What a document comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measure {
    /// Of its JSON, about.
    pub bytes: usize,
    /// Lists and objects around the innermost value.
    pub depth: usize,
}

/// Measures a document, which is not too deep to be walked through.
pub fn measure(value: &Value) -> Measure {
    let whole = |parts: &mut dyn Iterator<Item = (usize, &Value)>| {
        parts.fold(Measure { bytes: 2, depth: 1 }, |all, (extra, part)| {
            let part = measure(part);
            Measure { bytes: all.bytes + extra + part.bytes, depth: all.depth.max(part.depth + 1) }
        })
    };
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => Measure { bytes: 4, depth: 0 },
        Value::String(text) => Measure { bytes: text.len() + 2, depth: 0 },
        Value::Array(items) => whole(&mut items.iter().map(|item| (1, item))),
        Value::Object(map) => whole(&mut map.iter().map(|(key, item)| (key.len() + 4, item))),
    }
}
