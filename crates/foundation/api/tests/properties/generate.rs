//! Random documents: any JSON, objects of built-in kinds, and pods whose parts meet.

use dhow_api::descriptor::{Field, Form, Label, Message, Presence, Scalar, Type, messages};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

/// As many cases as the environment says, or few enough for a test that is always run.
pub fn cases() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(64);
    ProptestConfig::with_cases(cases)
}

/// Any JSON. Keys are few, so that documents meet.
pub fn any_json() -> impl Strategy<Value = Value> {
    // With few digits: not every reader of decimal numbers finds the nearest of two.
    let eighths = any::<i32>().prop_map(|number| f64::from(number) / 8.0);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-3..3i64).prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        eighths.prop_map(Value::from),
        "\\PC{0,6}".prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 48, 5, |inner| {
        prop_oneof![vec(inner.clone(), 0..5).prop_map(Value::from), object_of("[a-d]", inner)]
    })
}

/// An object with such keys and values.
pub fn object_of(keys: &'static str, values: impl Strategy<Value = Value>) -> impl Strategy<Value = Value> {
    btree_map(keys, values, 0..5).prop_map(|entries| Value::Object(entries.into_iter().collect()))
}

/// Any JSON object.
pub fn any_object() -> impl Strategy<Value = Value> {
    object_of("[a-d]", any_json())
}

/// The document without nulls, which mean "remove" in patches.
pub fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept = map.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(kept.map(|(key, value)| (key, without_nulls(value))).collect())
        }
        Value::Array(items) => items.into_iter().map(without_nulls).collect(),
        other => other,
    }
}

/// A part of a pod: containers by name, their environment and ports, labels, finalizers, tolerations.
pub fn any_pod() -> impl Strategy<Value = Value> {
    let container = (0..3u8, btree_map(0..3u8, 0..3u8, 0..3), btree_map(0..3u8, 0..3u8, 0..3));
    let lists = (btree_map(0..4u8, container, 0..4), btree_map(0..4u8, 0..3u8, 0..3), vec(0..4u8, 0..3));
    (lists, btree_map(0..4u8, 0..3u8, 0..4), proptest::option::of(0..3u8)).prop_map(
        |((containers, volumes, finalizers), labels, grace)| {
            let mut pod = json!({"metadata": {}, "spec": {}});
            for (key, value) in labels {
                pod["metadata"]["labels"][format!("l{key}")] = json!(format!("v{value}"));
            }
            let mut finalizers: Vec<String> = finalizers.iter().map(|n| format!("example.com/{n}")).collect();
            finalizers.sort();
            finalizers.dedup();
            if !finalizers.is_empty() {
                pod["metadata"]["finalizers"] = json!(finalizers);
            }
            let volumes: Vec<Value> = volumes
                .iter()
                .map(|(name, kind)| json!({"name": format!("v{name}"), (["emptyDir", "hostPath", "secret"][usize::from(*kind)]): {}}))
                .collect();
            if !volumes.is_empty() {
                pod["spec"]["volumes"] = json!(volumes);
            }
            let containers: Vec<Value> = containers
                .iter()
                .map(|(name, (image, env, ports))| {
                    let mut one = json!({"name": format!("c{name}"), "image": format!("i{image}")});
                    let env: Vec<Value> =
                        env.iter().map(|(key, value)| json!({"name": format!("e{key}"), "value": value.to_string()})).collect();
                    let ports: Vec<Value> =
                        ports.iter().map(|(port, name)| json!({"containerPort": 80 + u32::from(*port), "name": format!("p{name}")})).collect();
                    for (field, list) in [("env", env), ("ports", ports)] {
                        if !list.is_empty() {
                            one[field] = json!(list);
                        }
                    }
                    one
                })
                .collect();
            if !containers.is_empty() {
                pod["spec"]["containers"] = json!(containers);
            }
            if let Some(grace) = grace {
                pod["spec"]["terminationGracePeriodSeconds"] = json!(grace);
            }
            pod
        },
    )
}

/// A tree of the type `message`, some of its fields set. Nothing is zero or empty, which not every form can tell from
/// absent.
pub fn any_of(message: &'static Message, depth: u32) -> BoxedStrategy<Value> {
    let raw = any_json().prop_filter("null is absent", |value| !value.is_null());
    match message.form {
        Form::Struct => fields_of(message, depth).prop_map(Value::Object).boxed(),
        Form::Quantity => "[1-9][0-9]{0,3}(m|Ki|M|)".prop_map(Value::from).boxed(),
        Form::IntOrString => prop_oneof![(1..9i32).prop_map(Value::from), "[a-z]{1,5}".prop_map(Value::from)].boxed(),
        Form::Time => (1..2_000_000_000i64)
            .prop_map(|seconds| json!(dhow_api::time::rfc3339(jiff::Timestamp::from_second(seconds).unwrap())))
            .boxed(),
        Form::MicroTime => (1..2_000_000_000i64, 0..1_000_000i32)
            .prop_map(|(seconds, micros)| {
                json!(dhow_api::time::micro(jiff::Timestamp::new(seconds, micros * 1000).unwrap()))
            })
            .boxed(),
        // What is raw in an object is an object where the schema says so, and that is all of it.
        Form::Raw => raw.boxed(),
        Form::List => match message.fields.first() {
            Some(field) => vec(one(field, depth), 1..3).prop_map(Value::from).boxed(),
            None => Just(json!([])).boxed(),
        },
        Form::SchemaOrBool => any::<bool>().prop_map(Value::from).boxed(),
        Form::SchemaOrList | Form::SchemaOrStrings => {
            match message.fields.iter().find(|field| field.label == Label::One) {
                Some(field) => one(field, depth),
                None => Just(json!([])).boxed(),
            }
        }
    }
}

fn fields_of(message: &'static Message, depth: u32) -> BoxedStrategy<Map<String, Value>> {
    let own: Vec<&'static Field> = message.fields.iter().filter(|field| field.presence != Presence::Inline).collect();
    let wanted = if depth == 0 { 0..1 } else { 0..own.len().min(5) + 1 };
    let inlined: Vec<BoxedStrategy<Map<String, Value>>> = message
        .fields
        .iter()
        .filter(|field| field.presence == Presence::Inline)
        .filter_map(|field| match field.kind {
            Type::Message(index) => Some(fields_of(&messages()[index], depth)),
            Type::Scalar(_) => None,
        })
        .collect();
    let chosen = proptest::sample::subsequence(own, wanted).prop_flat_map(move |fields| {
        let values: Vec<BoxedStrategy<(String, Value)>> = fields
            .into_iter()
            .map(|field| {
                let name = field.name.to_owned();
                field_value(field, depth.saturating_sub(1)).prop_map(move |value| (name.clone(), value)).boxed()
            })
            .collect();
        values
    });
    (chosen, inlined).prop_map(|(own, inlined)| own.into_iter().chain(inlined.into_iter().flatten()).collect()).boxed()
}

fn field_value(field: &'static Field, depth: u32) -> BoxedStrategy<Value> {
    match field.label {
        Label::One => one(field, depth),
        Label::List => vec(one(field, depth), 1..3).prop_map(Value::from).boxed(),
        Label::Map => btree_map("[a-z]{1,3}", one(field, depth), 1..3)
            .prop_map(|entries| Value::Object(entries.into_iter().collect()))
            .boxed(),
    }
}

fn one(field: &'static Field, depth: u32) -> BoxedStrategy<Value> {
    match field.kind {
        Type::Message(index) => any_of(&messages()[index], depth),
        Type::Scalar(Scalar::String) => "[a-zü]{1,6}".prop_map(Value::from).boxed(),
        Type::Scalar(Scalar::Bytes) => "([A-Za-z]{4}){1,3}".prop_map(Value::from).boxed(),
        Type::Scalar(Scalar::Bool) => Just(json!(true)).boxed(),
        Type::Scalar(Scalar::Int32) => (1..i32::MAX).prop_map(Value::from).boxed(),
        Type::Scalar(Scalar::Int64) => (1..i64::MAX).prop_map(Value::from).boxed(),
        Type::Scalar(Scalar::Double) => (1..1000u32).prop_map(|n| json!(f64::from(n) / 8.0)).boxed(),
    }
}
