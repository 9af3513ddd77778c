//! The three patch formats that are not server-side apply.

mod json;
mod strategic;

use crate::error::Error;
use serde_json::Value;

pub use json::json;
pub use strategic::strategic;

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
    fn merge_patch_removes_nulls() {
        let mut object = json!({"a": 1, "l": [1, 2]});
        merge(&mut object, &json!({"a": null, "l": [3], "n": {"x": null, "y": 1}})).unwrap();
        assert_eq!(object, json!({"l": [3], "n": {"y": 1}}));
    }
}
