//! The built-in definitions, by the rules of the API that serves them, and the documented example by their schemas.

use dhow_api::custom::Definition;
use dhow_api::validation::{Errors, extension};
use serde_json::{Value, json};

fn definitions() -> Vec<Value> {
    serde_saphyr::from_multiple(dhow_dns::zones::kinds::DEFINITIONS).unwrap()
}

fn problems(mut object: Value) -> Vec<String> {
    let definitions: Vec<Definition> = definitions().iter().map(|value| Definition::parse(value).unwrap()).collect();
    let definition = definitions.iter().find(|definition| definition.kind == object["kind"]).unwrap();
    let version = definition.version("v1alpha1").unwrap();
    let unknown = version.settle(&mut object);
    let by_schema = version.validate(&object);
    let by_rules = version.rules().validate(None, &object, None);
    unknown.into_iter().chain(by_schema.into_iter().chain(by_rules).map(|error| error.message)).collect()
}

#[test]
fn the_definitions_are_valid_and_so_is_the_documented_example() {
    for mut definition in definitions() {
        // What the API fills in before it judges.
        definition["spec"]["conversion"] = json!({"strategy": "None"});
        let mut errors = Errors::default();
        extension::definition(&definition, &mut errors);
        extension::definition_create(&definition, &mut errors);
        let errors: Vec<String> = errors.into_vec().iter().map(|e| format!("{}: {}", e.field, e.message)).collect();
        assert!(errors.is_empty(), "{errors:?}");
    }
    let text = include_str!("../../../../../docs/dns.md");
    let example = text.split("```yaml\n").find(|part| part.starts_with("apiVersion: dns.dhow.io")).unwrap();
    let objects: Vec<Value> = serde_saphyr::from_multiple(example.split("```").next().unwrap()).unwrap();
    assert_eq!(objects.len(), 2);
    for object in &objects {
        assert_eq!(problems(object.clone()), Vec::<String>::new(), "{object}");
    }
    let record = |name: &str, kind: &str, values: Value| {
        json!({"apiVersion": "dns.dhow.io/v1alpha1", "kind": "Record", "metadata": {"name": "x"},
            "spec": {"zone": "z", "name": name, "type": kind, "values": values}})
    };
    assert!(problems(record("www", "AAAA", json!(["::1"]))).is_empty());
    for wrong in [
        record("www", "CNAME", json!(["a.example", "b.example"])),
        record("@", "CNAME", json!(["a.example"])),
        record("www", "RRSIG", json!(["x"])),
        record("www", "A", json!([])),
        json!({"apiVersion": "dns.dhow.io/v1alpha1", "kind": "Zone", "spec": {"origin": "no good"}}),
    ] {
        assert!(!problems(wrong.clone()).is_empty(), "{wrong}");
    }
}
