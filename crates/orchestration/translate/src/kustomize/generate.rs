//! ConfigMaps and Secrets from files, files of variables and literals.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::{Reader, Resource};
use crate::error::Result;

pub fn all(reader: &Reader<'_>, fields: &Map<String, Value>, resources: &mut Vec<Resource>) -> Result<()> {
    let shared = fields.get("generatorOptions").cloned().unwrap_or_default();
    for (key, kind) in [("configMapGenerator", "ConfigMap"), ("secretGenerator", "Secret")] {
        for item in reader.list(fields, key)? {
            one(reader, item, kind, &shared, resources)?;
        }
    }
    Ok(())
}

fn one(reader: &Reader<'_>, item: &Value, kind: &str, shared: &Value, resources: &mut Vec<Resource>) -> Result<()> {
    let Some(fields) = item.as_object() else { return Err(reader.wrong("a generator is no map")) };
    let name = reader.text(fields, "name")?.ok_or_else(|| reader.wrong("a generator has no name"))?;
    let known = ["name", "namespace", "files", "envs", "env", "literals", "behavior", "type", "options"];
    if let Some(unknown) = fields.keys().find(|key| !known.contains(&key.as_str())) {
        return Err(reader.wrong(format!("`{unknown}` of the generator {name} is not understood")));
    }
    let contents = contents(reader, fields)?;
    let (mut data, mut binary) = (Map::new(), Map::new());
    for (key, value) in contents {
        if !dhow_api::names::config_key(&key).is_empty() {
            return Err(reader.wrong(format!("{key:?} of the generator {name} is no name of a key")));
        }
        match (kind, String::from_utf8(value)) {
            ("ConfigMap", Ok(text)) => data.insert(key, json!(text)),
            ("ConfigMap", Err(error)) => binary.insert(key, json!(STANDARD.encode(error.as_bytes()))),
            (_, Ok(text)) => data.insert(key, json!(STANDARD.encode(text))),
            (_, Err(error)) => data.insert(key, json!(STANDARD.encode(error.as_bytes()))),
        };
    }
    let options = |key: &str| item.pointer(&format!("/options/{key}")).or_else(|| shared.get(key)).cloned();
    let behavior = reader.text(fields, "behavior")?.unwrap_or("create");
    if behavior != "create" {
        let target =
            resources.iter_mut().find(|known| known.kind() == kind && (known.original == name || known.name() == name));
        let Some(target) = target else {
            return Err(reader.wrong(format!("there is no {kind} {name} to {behavior}")));
        };
        for (field, new) in [("data", data), ("binaryData", binary)] {
            if behavior == "replace" {
                target.object[field] = Value::Object(new);
            } else if !new.is_empty() {
                let known = target.object[field].as_object().cloned().unwrap_or_default();
                target.object[field] = Value::Object(known.into_iter().chain(new).collect());
            }
            if target.object[field].as_object().is_none_or(Map::is_empty) {
                target.object.as_object_mut().into_iter().for_each(|object| drop(object.remove(field)));
            }
        }
        return Ok(());
    }
    let mut metadata = Map::new();
    metadata.insert("name".into(), json!(name));
    if let Some(namespace) = reader.text(fields, "namespace")? {
        metadata.insert("namespace".into(), json!(namespace));
    }
    for key in ["labels", "annotations"] {
        if let Some(found) = options(key) {
            metadata.insert(key.into(), found);
        }
    }
    let mut object = json!({"apiVersion": "v1", "kind": kind, "metadata": metadata});
    if kind == "Secret" {
        object["type"] = json!(reader.text(fields, "type")?.unwrap_or("Opaque"));
    }
    for (field, map) in [("data", data), ("binaryData", binary)] {
        if !map.is_empty() {
            object[field] = Value::Object(map);
        }
    }
    if options("immutable") == Some(json!(true)) {
        object["immutable"] = json!(true);
    }
    let plain = options("disableNameSuffixHash") == Some(json!(true));
    resources.push(Resource { object, original: name.to_owned(), hashed: !plain });
    Ok(())
}

fn contents(reader: &Reader<'_>, fields: &Map<String, Value>) -> Result<Vec<(String, Vec<u8>)>> {
    let mut all: Vec<(String, Vec<u8>)> = Vec::new();
    let mut files = reader.texts(fields, "envs")?;
    files.extend(reader.text(fields, "env")?.map(str::to_owned));
    for file in files {
        let text = String::from_utf8_lossy(&reader.bytes(&reader.path(&file))?).into_owned();
        let known = crate::interpolate::Variables::new();
        all.extend(
            crate::dotenv::parse_raw(&file, &text, &known)?.into_iter().map(|(key, value)| (key, value.into_bytes())),
        );
    }
    for literal in reader.texts(fields, "literals")? {
        let (key, value) =
            literal.split_once('=').ok_or_else(|| reader.wrong(format!("the literal {literal:?} is not KEY=VALUE")))?;
        let quoted = ['"', '\''].iter().find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote));
        all.push((key.to_owned(), quoted.unwrap_or(value).as_bytes().to_vec()));
    }
    for file in reader.texts(fields, "files")? {
        let (key, path) = match file.split_once('=') {
            Some((key, path)) => (key.to_owned(), path.to_owned()),
            None => (file.rsplit('/').next().unwrap_or(&file).to_owned(), file.clone()),
        };
        all.push((key, reader.bytes(&reader.path(&path))?));
    }
    for (index, (key, _)) in all.iter().enumerate() {
        if all[..index].iter().any(|(known, _)| known == key) {
            return Err(reader.wrong(format!("the key {key:?} is generated twice")));
        }
    }
    Ok(all)
}
