//! The three patch formats that are not server-side apply.

mod strategic;

use crate::error::Error;
use serde_json::Value;

pub use strategic::strategic;

/// RFC 6902. `patch` is the array of operations.
pub fn json(object: &mut Value, patch: &Value) -> Result<(), Error> {
    let operations: json_patch::Patch =
        serde_json::from_value(patch.clone()).map_err(|error| Error::PatchMalformed(error.to_string()))?;
    // Upstream bounds the work a patch may ask for.
    if operations.len() > 10_000 {
        return Err(Error::PatchMalformed(format!(
            "The allowed maximum operations in a JSON patch is 10000, got {}",
            operations.len()
        )));
    }
    json_patch::patch(object, &operations).map_err(|error| Error::PatchRejected(error.to_string()))
}

/// RFC 7386.
pub fn merge(object: &mut Value, patch: &Value) -> Result<(), Error> {
    if !patch.is_object() {
        return Err(Error::PatchMalformed("a merge patch must be an object".into()));
    }
    json_patch::merge(object, patch);
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn json_patch_applies_or_leaves_alone() {
        let mut object = json!({"a": {"b": 1}, "l": [1]});
        json(
            &mut object,
            &json!([{"op": "test", "path": "/a/b", "value": 1}, {"op": "add", "path": "/l/-", "value": 2}]),
        )
        .unwrap();
        assert_eq!(object["l"], json!([1, 2]));
        let before = object.clone();
        let failed =
            json(&mut object, &json!([{"op": "remove", "path": "/a"}, {"op": "test", "path": "/l/0", "value": 9}]));
        assert!(matches!(failed, Err(Error::PatchRejected(_))));
        assert_eq!(object, before);
        assert!(matches!(json(&mut object, &json!({"a": 1})), Err(Error::PatchMalformed(_))));
    }

    #[test]
    fn merge_patch_removes_nulls() {
        let mut object = json!({"a": 1, "l": [1, 2]});
        merge(&mut object, &json!({"a": null, "l": [3], "n": {"x": null, "y": 1}})).unwrap();
        assert_eq!(object, json!({"l": [3], "n": {"y": 1}}));
    }
}
