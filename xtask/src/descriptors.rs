//! `cargo xtask descriptors`: the table of all built-in messages from checkouts of upstream's API repositories.
//!
//! The `.proto` files tell each field's number and type; the Go declarations tell what they leave out: which struct is
//! inlined in JSON, and which fields mean "absent" when they are zero. Only these facts go into the table.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use walkdir::WalkDir;

use crate::shell;

/// Where the table is kept.
const TABLE: &str = "crates/foundation/api/src/descriptor/table.txt";
/// Packages without a stable version of their kinds, kept.
const KEPT: [&str; 3] = ["admissionregistration.v1beta1", "certificates.v1beta1", "storagemigration.v1beta1"];
/// Packages with a stable version, and the types below them.
const SKIPPED: [&str; 4] = ["alpha", "beta", "testapigroup", "runtime.schema"];

#[derive(clap::Args)]
pub struct Args {
    /// Folders with upstream's `generated.proto` and `types.go` files, all of one release.
    #[arg(required = true)]
    sources: Vec<PathBuf>,
}

pub fn run(args: &Args) -> Result<()> {
    let mut packages: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for source in &args.sources {
        for entry in WalkDir::new(source) {
            let entry = entry?;
            if entry.file_name() != "generated.proto" {
                continue;
            }
            let text = std::fs::read_to_string(entry.path())?;
            let Some(package) = package(&text) else { bail!("{} names no package", entry.path().display()) };
            if SKIPPED.iter().any(|part| package.contains(part)) && !KEPT.iter().any(|kept| package.ends_with(kept)) {
                continue;
            }
            let folder = entry.path().parent().context("the file has no folder")?;
            let structs = declarations(folder)?;
            packages.insert(definition(&package), messages(&text, &package, &structs)?);
        }
    }
    if packages.is_empty() {
        bail!("no generated.proto below {:?}", args.sources);
    }
    let mut table = String::new();
    for (package, messages) in &packages {
        if messages.is_empty() {
            continue;
        }
        table += &format!("@{package}\n");
        for (name, fields) in messages {
            table += &format!("{name}{fields}\n");
        }
    }
    let path = shell::root().join(TABLE);
    std::fs::write(&path, table).with_context(|| format!("write {}", path.display()))?;
    shell::step(&format!("{} packages in {TABLE}", packages.len()));
    Ok(())
}

fn package(text: &str) -> Option<String> {
    let line = text.lines().find_map(|line| line.strip_prefix("package "))?;
    Some(line.trim_end_matches(';').to_owned())
}

/// A protobuf package as OpenAPI definitions name it.
fn definition(package: &str) -> String {
    format!("io.k8s.{}", package.trim_start_matches("k8s.io.")).replace('_', "-")
}

/// What a Go declaration adds to a field.
#[derive(Default, Clone)]
struct GoField {
    json: String,
    pointer: bool,
    omit_empty: bool,
    inline: bool,
}

#[derive(Default)]
struct GoType {
    /// By protobuf number.
    fields: HashMap<u32, GoField>,
    /// Carries `apiVersion` and `kind`.
    typed: bool,
    /// Declared as a list of something, not as a struct.
    list: bool,
}

/// The types declared in a folder.
fn declarations(folder: &Path) -> Result<HashMap<String, GoType>> {
    let mut types = HashMap::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if !name.ends_with(".go") || name.ends_with("_test.go") || name.contains("generated") {
            continue;
        }
        let text = std::fs::read_to_string(&path)?;
        let mut current: Option<(String, GoType)> = None;
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("type ") {
                let mut words = rest.split_whitespace();
                let (name, what) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
                let list = what.starts_with("[]");
                let declared = GoType { list, ..GoType::default() };
                if what == "struct" {
                    current = Some((name.to_owned(), declared));
                } else {
                    types.insert(name.to_owned(), declared);
                }
            } else if line.starts_with('}') {
                types.extend(current.take());
            } else if let Some((_, declared)) = &mut current {
                go_field(line.trim(), declared);
            }
        }
    }
    Ok(types)
}

fn go_field(line: &str, declared: &mut GoType) {
    if line.starts_with("//") {
        return;
    }
    let Some((head, tags)) = line.split_once('`') else { return };
    let words: Vec<&str> = head.split_whitespace().collect();
    let tag = |name: &str| {
        let start = tags.find(&format!("{name}:\""))? + name.len() + 2;
        tags[start..].split('"').next()
    };
    let json = tag("json").unwrap_or_default();
    let mut parts = json.split(',');
    let json_name = parts.next().unwrap_or_default().to_owned();
    let options: Vec<&str> = parts.collect();
    let inline = options.contains(&"inline");
    if inline && words.first().is_some_and(|name| name.ends_with("TypeMeta")) {
        declared.typed = true;
        return;
    }
    let number = tag("protobuf").and_then(|tag| tag.split(',').nth(1)).and_then(|number| number.parse().ok());
    let Some(number) = number else { return };
    let pointer = words.get(1).is_some_and(|kind| kind.starts_with('*'));
    let omit_empty = options.contains(&"omitempty") || options.contains(&"omitzero");
    declared.fields.insert(number, GoField { json: json_name, pointer, omit_empty, inline });
}

/// Every message of a file: its name and its row.
fn messages(text: &str, package: &str, structs: &HashMap<String, GoType>) -> Result<BTreeMap<String, String>> {
    let unknown = GoType::default();
    let mut found = BTreeMap::new();
    let mut current: Option<(String, String)> = None;
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("message ") {
            let name = name.trim_end_matches('{').trim().to_owned();
            let declared = structs.get(&name).unwrap_or(&unknown);
            let mark = match (declared.typed, declared.list) {
                (true, _) => "+",
                (_, true) => "*",
                _ => "",
            };
            current = Some((name, mark.to_owned()));
        } else if line == "}" {
            found.extend(current.take());
        } else if let Some((name, row)) = &mut current
            && let Some(field) = line.strip_suffix(';')
            && !line.starts_with("//")
        {
            let declared = structs.get(name.as_str()).unwrap_or(&unknown);
            row.push(' ');
            row.push_str(&field_row(field, package, declared).with_context(|| format!("{package}.{name}: {field}"))?);
        }
    }
    Ok(found)
}

/// `name=number` with marks and type: `*` a list, `%` a map from strings, `&` inlined in JSON, `!` always present in
/// JSON, `-` absent when zero, nothing for a pointer.
fn field_row(field: &str, package: &str, declared: &GoType) -> Result<String> {
    let (rest, number) = field.rsplit_once('=').context("a field has a number")?;
    let number: u32 = number.trim().parse()?;
    let rest = rest.trim();
    let (mark, kind, name) = if let Some(rest) = rest.strip_prefix("map<") {
        let (types, name) = rest.split_once('>').context("a map ends")?;
        let (key, value) = types.split_once(',').context("a map has two types")?;
        if key.trim() != "string" {
            bail!("maps are keyed by strings");
        }
        ("%", value.trim(), name.trim())
    } else {
        let words: Vec<&str> = rest.split_whitespace().collect();
        let [label, kind, name] = words[..] else { bail!("not a field") };
        (if label == "repeated" { "*" } else { "" }, kind, name)
    };
    let go = declared.fields.get(&number).cloned();
    let json = go.as_ref().map(|go| go.json.as_str()).filter(|json| !json.is_empty()).unwrap_or(name);
    let presence = match &go {
        _ if !mark.is_empty() => "",
        Some(go) if go.inline => "&",
        Some(go) if go.pointer => "",
        Some(go) if go.omit_empty => "-",
        Some(_) => "!",
        None => "",
    };
    Ok(format!("{json}={number}{mark}{presence}{}", type_name(kind, package)))
}

/// Scalars in short; messages by definition name, without what every name shares, or bare within their package.
fn type_name(kind: &str, package: &str) -> String {
    let short = match kind {
        "string" => "s",
        "bytes" => "y",
        "bool" => "b",
        "int32" => "i",
        "int64" => "l",
        "double" => "d",
        other => {
            let full = other.trim_start_matches('.');
            return match full.rsplit_once('.') {
                Some((of, name)) if of != package => {
                    format!(".{}.{name}", definition(of).trim_start_matches("io.k8s."))
                }
                Some((_, name)) => format!(".{name}"),
                None => format!(".{full}"),
            };
        }
    };
    short.to_owned()
}
