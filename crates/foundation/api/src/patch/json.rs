//! JSON Patch (RFC 6902), with bounds on what a small patch can make of an object.
//!
//! Invariant: a document within [`MAX_DEPTH`] stays within it.

use json_patch::jsonptr::Pointer;
use json_patch::{AddOperation, PatchOperation};
use serde_json::Value;

use crate::bounds::{MAX_DEPTH, measure};
use crate::error::Error;

/// Operations in one patch, as upstream allows them.
const MAX_OPERATIONS: usize = 10_000;
/// Bytes that the copies of one patch may add, as upstream allows them.
const MAX_COPIED: usize = 3 << 20;
/// Bytes that its moves may carry to where they might become too deep.
const MAX_MOVED: usize = 64 << 20;

/// Applies `patch`, the array of operations, to `object`, which is left alone on errors.
pub fn json(object: &mut Value, patch: &Value) -> Result<(), Error> {
    let operations: json_patch::Patch =
        serde_json::from_value(patch.clone()).map_err(|error| Error::PatchMalformed(error.to_string()))?;
    if operations.len() > MAX_OPERATIONS {
        return Err(Error::PatchTooLarge(format!(
            "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
            operations.len()
        )));
    }
    let mut result = object.clone();
    let mut bounds = Bounds { depth: measure(object).depth, copied: 0, moved: 0 };
    for operation in operations.iter() {
        if is_absent_as_told(&result, operation) {
            continue;
        }
        bounds.check(&result, operation)?;
        let added = added_instead(&result, operation);
        json_patch::patch_unsafe(&mut result, std::slice::from_ref(added.as_ref().unwrap_or(operation)))
            .map_err(|error| Error::PatchRejected(error.to_string()))?;
    }
    *object = result;
    Ok(())
}

/// A test for null also holds where there is no such field; clients ask like that before they add it.
fn is_absent_as_told(document: &Value, operation: &PatchOperation) -> bool {
    let PatchOperation::Test(test) = operation else { return false };
    test.value.is_null() && lacks(document, &test.path)
}

/// A field that is to be replaced and is not there is added, as upstream does: clients count on it (annotations of an object
/// that has none).
fn added_instead(document: &Value, operation: &PatchOperation) -> Option<PatchOperation> {
    let PatchOperation::Replace(replace) = operation else { return None };
    let (path, value) = (replace.path.clone(), replace.value.clone());
    lacks(document, &path).then_some(PatchOperation::Add(AddOperation { path, value }))
}

/// Whether there is an object at the path's parent that has no such field.
fn lacks(document: &Value, path: &Pointer) -> bool {
    let Some((parent, field)) = path.split_back() else { return false };
    let parent = parent.resolve(document).ok().and_then(Value::as_object);
    parent.is_some_and(|map| !map.contains_key(field.decoded().as_ref()))
}

/// What the operations so far may have made at most.
struct Bounds {
    /// No value lies deeper.
    depth: usize,
    copied: usize,
    moved: usize,
}

impl Bounds {
    fn check(&mut self, document: &Value, operation: &PatchOperation) -> Result<(), Error> {
        let added = match operation {
            PatchOperation::Add(add) => measure(&add.value).depth,
            PatchOperation::Replace(replace) => measure(&replace.value).depth,
            PatchOperation::Copy(copy) => {
                let Ok(source) = copy.from.resolve(document) else { return Ok(()) };
                let source = measure(source);
                self.copied += source.bytes;
                if self.copied > MAX_COPIED {
                    return Err(Error::PatchRejected(format!(
                        "Unable to copy, the accumulated size increase of copy is {}, exceeding the limit {MAX_COPIED}",
                        self.copied
                    )));
                }
                source.depth
            }
            PatchOperation::Move(mov) => {
                let from = mov.from.count();
                // Most moves cannot become too deep, whatever they carry.
                if mov.path.count() + self.depth.saturating_sub(from) <= MAX_DEPTH {
                    self.depth.saturating_sub(from)
                } else {
                    let Ok(source) = mov.from.resolve(document) else { return Ok(()) };
                    let source = measure(source);
                    self.moved += source.bytes;
                    if self.moved > MAX_MOVED {
                        return Err(Error::PatchRejected(format!(
                            "Unable to move, the accumulated size of moves is {}, exceeding the limit {MAX_MOVED}",
                            self.moved
                        )));
                    }
                    source.depth
                }
            }
            PatchOperation::Remove(_) | PatchOperation::Test(_) => return Ok(()),
        };
        let depth = operation.path().count() + added;
        if depth > MAX_DEPTH {
            return Err(Error::PatchRejected(format!(
                "exceeded max depth: {depth} levels, and the limit is {MAX_DEPTH}"
            )));
        }
        self.depth = self.depth.max(depth);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn applies_or_leaves_alone() {
        let mut object = json!({"a": {"b": 1}, "l": [1]});
        json(
            &mut object,
            &json!([{"op": "test", "path": "/a/b", "value": 1}, {"op": "add", "path": "/l/-", "value": 2}]),
        )
        .unwrap();
        assert_eq!(object["l"], json!([1, 2]));
        let absent = |path: &str| json!([{"op": "test", "path": path, "value": null}]);
        json(&mut object, &absent("/a/c")).unwrap();
        assert!(json(&mut object, &absent("/a/b")).is_err() && json(&mut object, &absent("/x/c")).is_err());
        json(&mut object, &json!([{"op": "replace", "path": "/a/new", "value": {"c": 1}}])).unwrap();
        assert_eq!(object["a"]["new"], json!({"c": 1}));
        for path in ["/x/new", "/l/7", "/l/x"] {
            assert!(json(&mut object, &json!([{"op": "replace", "path": path, "value": 1}])).is_err(), "{path}");
        }
        let before = object.clone();
        let failed =
            json(&mut object, &json!([{"op": "remove", "path": "/a"}, {"op": "test", "path": "/l/0", "value": 9}]));
        assert!(matches!(failed, Err(Error::PatchRejected(_))));
        assert_eq!(object, before);
        assert!(matches!(json(&mut object, &json!({"a": 1})), Err(Error::PatchMalformed(_))));
        let many = json!(vec![json!({"op": "test", "path": "/l", "value": []}); MAX_OPERATIONS + 1]);
        assert!(matches!(json(&mut object, &many), Err(Error::PatchTooLarge(_))));
    }

    /// Each copy doubles the object: forty would fill any machine.
    #[test]
    fn copies_are_bounded() {
        let mut object = json!({"a": "x".repeat(1000)});
        let copies: Vec<Value> = (0..40).map(|n| json!({"op": "copy", "from": "", "path": format!("/c{n}")})).collect();
        let refused = json(&mut object, &json!(copies)).unwrap_err().to_string();
        assert!(refused.contains("the accumulated size increase of copy is"), "{refused}");
        json(&mut object, &json!(copies[..5])).unwrap();
        assert!(measure(&object).bytes > 32_000);
    }

    #[test]
    fn depth_is_bounded() {
        let inner = |levels: usize| (0..levels).fold(json!(1), |value, _| json!({ "a": value }));
        let mut object = inner(60);
        let deeper = [
            json!([{"op": "add", "path": "/a".repeat(60), "value": inner(41)}]),
            json!([{"op": "copy", "from": "", "path": "/a".repeat(60)}]),
            json!([{"op": "add", "path": "/b", "value": inner(60)},
                {"op": "move", "from": "/b", "path": "/a".repeat(60)}]),
        ];
        for patch in deeper {
            let refused = json(&mut object, &patch).unwrap_err().to_string();
            assert!(refused.contains("exceeded max depth"), "{refused}");
        }
        json(&mut object, &json!([{"op": "add", "path": "/a".repeat(60), "value": inner(40)}])).unwrap();
        assert_eq!(measure(&object).depth, MAX_DEPTH);
        // Moving about at the same level is no growth, however often.
        let moves: Vec<Value> = (0..500)
            .map(|n| match n % 2 {
                0 => json!({"op": "move", "from": "/a", "path": "/b"}),
                _ => json!({"op": "move", "from": "/b", "path": "/a"}),
            })
            .collect();
        json(&mut object, &json!(moves)).unwrap();
    }
}
