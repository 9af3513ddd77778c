//! Defaults as data: a path and the value it has when nobody set it.

use serde_json::{Value, json};

use crate::meta::{child_mut, default_to};

/// A default value.
#[derive(Clone, Copy)]
pub(crate) enum Default {
    Text(&'static str),
    Int(i64),
    Flag(bool),
    /// `{}`.
    Empty,
    Null,
}

/// A path and its default. Steps are separated by dots; `name[]` is every item of a list, and `name!` is made when it
/// is absent, where any other absent step ends the path.
pub(crate) type Row = (&'static str, Default);

/// Applies the rows in order.
pub(crate) fn fill(object: &mut Value, rows: &[Row]) {
    for (path, default) in rows {
        let steps: Vec<&str> = path.split('.').collect();
        apply(object, &steps, *default);
    }
}

fn apply(value: &mut Value, steps: &[&str], default: Default) {
    match steps {
        [] => {}
        [last] => {
            if let Some(map) = value.as_object_mut() {
                default_to(map, last, default.value());
            }
        }
        [first, rest @ ..] => {
            if let Some(list) = first.strip_suffix("[]") {
                for item in value.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
                    apply(item, rest, default);
                }
            } else if let Some(name) = first.strip_suffix('!') {
                child_mut(value, name);
                apply(&mut value[name], rest, default);
            } else if let Some(child) = value.get_mut(*first) {
                apply(child, rest, default);
            }
        }
    }
}

impl Default {
    fn value(self) -> Value {
        match self {
            Self::Text(text) => json!(text),
            Self::Int(number) => json!(number),
            Self::Flag(flag) => json!(flag),
            Self::Empty => json!({}),
            Self::Null => Value::Null,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Default::{Flag, Int, Text};
    use super::*;

    #[test]
    fn paths_go_through_lists_and_make_what_they_are_told_to() {
        let mut object = json!({"list": [{"a": 2}, {}, {"inner": {}}]});
        fill(
            &mut object,
            &[
                ("list[].a", Int(1)),
                ("list[].inner.b", Text("x")),
                ("status!.ready", Flag(false)),
                ("absent.c", Int(3)),
            ],
        );
        assert_eq!(
            object,
            json!({"list": [{"a": 2}, {"a": 1}, {"a": 1, "inner": {"b": "x"}}], "status": {"ready": false}})
        );
    }
}
