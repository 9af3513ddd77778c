//! The reference of all settings, made from the types that read them, from the flags and from the exit codes.

use std::fmt::Write;

use anyhow::{Context, Result};
use clap::CommandFactory;
use serde_json::Value;

use crate::cli::Cli;
use crate::exit;
use crate::settings::{self, Settings};

const HEAD: &str = "\
# Configuration

<!-- Made by `dhow config reference`. Change what the code says, and run it again. -->

What is set is found in this order: flags, then `DHOW_*` variables, then the settings file, `FILE`, over the files
`FILE.d/*.yaml` in the order of their names, then defaults. A key that is unknown is an error with its place. `dhow config
check` reads it all, `dhow config print` shows what is in force, `dhow config schema` prints a JSON schema for editors.

";

/// The whole document.
pub fn text() -> Result<String> {
    let schema = serde_json::to_value(schemars::schema_for!(Settings)).context("encode the schema")?;
    let mut out = HEAD.replace("FILE", settings::DEFAULT_FILE);
    out.push_str("## The settings file\n\nKeys in `<>` are names of your own, `[]` stands for each item of a list.\n");
    let sections = schema["properties"].as_object().context("settings without keys")?;
    for (name, section) in sections {
        let section = Resolved::of(&schema, section);
        write!(out, "\n### `{name}`\n\n{}\n", sentence(&section.description))?;
        let mut rows = Vec::new();
        section.rows(&schema, "", &mut rows);
        if rows.is_empty() {
            continue;
        }
        out.push_str("\n| Key | Type | Default | Meaning |\n|---|---|---|---|\n");
        for [key, kind, default, meaning] in rows {
            writeln!(out, "| `{key}` | {kind} | {default} | {} |", cell(&meaning))?;
        }
    }
    out.push_str(
        "\nKeys of `node`, `images`, `builds`, `registries`, `dns` and `backups` may be given as variables, too: \
         `DHOW_IMAGES_GC_HIGH_THRESHOLD_PERCENT` is `images.gcHighThresholdPercent`.\n",
    );
    flags(&mut out)?;
    out.push_str("\n## Exit codes\n\n| Code | Meaning |\n|---|---|\n");
    for (code, says) in exit::CODES {
        writeln!(out, "| {code} | {says} |")?;
    }
    out.push_str("\n`dhow exec` ends with the exit code of the command, `dhow oci` with those of runc.\n");
    Ok(out)
}

/// Flags and variables that say where a cloud lives and how it is started.
fn flags(out: &mut String) -> Result<()> {
    let command = Cli::command();
    for name in ["up", "join"] {
        let command = command.find_subcommand(name).context("a command that is gone")?;
        write!(out, "\n## Flags of `dhow {name}`\n\n")?;
        let all = command.get_arguments().filter(|argument| !argument.is_hide_set());
        let above: Vec<_> = match name {
            "up" => Vec::new(),
            _ => {
                out.push_str("Those of `dhow up`, and:\n\n");
                let up = Cli::command();
                let up = up.find_subcommand("up").context("a command that is gone")?;
                up.get_arguments().map(|argument| argument.get_id().clone()).collect()
            }
        };
        out.push_str("| Flag | Variable | Default | Meaning |\n|---|---|---|---|\n");
        for argument in all.filter(|argument| !above.contains(argument.get_id())) {
            let value = argument.get_value_names().unwrap_or_default().first().map(|name| name.to_string());
            let takes = argument.get_action().takes_values();
            let flag = match (argument.get_long(), value.filter(|_| takes)) {
                (Some(long), Some(value)) => format!("--{long} {value}"),
                (Some(long), None) => format!("--{long}"),
                (None, value) => value.unwrap_or_default(),
            };
            let variable = argument.get_env().map(|name| format!("`{}`", name.display())).unwrap_or_default();
            let defaults: Vec<String> =
                argument.get_default_values().iter().map(|value| format!("`{}`", value.display())).collect();
            let defaults = if takes { defaults.join(", ") } else { String::new() };
            let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
            writeln!(out, "| `{}` | {variable} | {defaults} | {} |", cell(&flag), cell(&sentence(&help)))?;
        }
    }
    Ok(())
}

/// A key's schema with what it refers to.
struct Resolved<'a> {
    schema: &'a Value,
    description: String,
    default: Option<&'a Value>,
}

impl<'a> Resolved<'a> {
    fn of(root: &'a Value, key: &'a Value) -> Self {
        let mut schema = key;
        // An option of another type, or a reference, with a description of its own beside it.
        loop {
            let inner = ["anyOf", "oneOf", "allOf"]
                .iter()
                .filter_map(|word| schema[*word].as_array())
                .flatten()
                .find(|one| one.get("$ref").is_some());
            let reference = schema["$ref"].as_str().or_else(|| inner?["$ref"].as_str());
            match reference.and_then(|path| root.pointer(path.trim_start_matches('#'))) {
                Some(target) => schema = target,
                None => break,
            }
        }
        let description = key["description"].as_str().or(schema["description"].as_str()).unwrap_or_default();
        Self { schema, description: description.replace('\n', " "), default: key.get("default") }
    }

    /// A row for each key below this one, of names beginning with `prefix`.
    fn rows(&self, root: &'a Value, prefix: &str, rows: &mut Vec<[String; 4]>) {
        for (own, key) in self.schema["properties"].as_object().into_iter().flatten() {
            let inner = Self::of(root, key);
            let name = if prefix.is_empty() { own.clone() } else { format!("{prefix}.{own}") };
            // Where the type says nothing of one value, the default of the whole does.
            let whole = self.default.and_then(|whole| whole.get(own));
            let inner = Self { default: whole.or(inner.default), ..inner };
            let (path, below) = inner.below(root, &name);
            if below.schema["properties"].is_object() {
                if !inner.description.is_empty() && !std::ptr::eq(inner.schema, below.schema) {
                    rows.push([name.clone(), inner.kind(), inner.default_text(), sentence(&inner.description)]);
                } else if key["description"].is_string() {
                    rows.push([name.clone(), inner.kind(), String::new(), sentence(&inner.description)]);
                }
                below.rows(root, &path, rows);
            } else {
                rows.push([name, inner.kind(), inner.default_text(), sentence(&inner.description)]);
            }
        }
        if let Some(values) = self.schema.get("additionalProperties").filter(|values| values.is_object())
            && prefix.is_empty()
        {
            Self::of(root, values).rows(root, "<name>", rows);
        }
    }

    /// What is in a list or map, and how its path is written.
    fn below(&'a self, root: &'a Value, name: &str) -> (String, Resolved<'a>) {
        if let Some(items) = self.schema.get("items").filter(|items| items.is_object()) {
            return (format!("{name}[]"), Self::of(root, items));
        }
        if let Some(values) = self.schema.get("additionalProperties").filter(|values| values.is_object()) {
            return (format!("{name}.<name>"), Self::of(root, values));
        }
        (name.to_owned(), Self { schema: self.schema, description: String::new(), default: self.default })
    }

    fn kind(&self) -> String {
        let named = |kind: &str| match kind {
            "array" => "list".to_owned(),
            "object" if self.schema["properties"].is_object() => "section".to_owned(),
            "object" => "map".to_owned(),
            other => other.to_owned(),
        };
        if let Some(values) = self.schema["enum"].as_array() {
            return values
                .iter()
                .filter_map(Value::as_str)
                .map(|one| format!("`{one}`"))
                .collect::<Vec<_>>()
                .join(", ");
        }
        match &self.schema["type"] {
            Value::String(kind) => named(kind),
            Value::Array(kinds) => {
                kinds.iter().filter_map(Value::as_str).find(|one| *one != "null").map_or_else(String::new, named)
            }
            _ => String::new(),
        }
    }

    fn default_text(&self) -> String {
        match self.default {
            None | Some(Value::Null) => String::new(),
            Some(Value::Array(items)) if items.is_empty() => String::new(),
            Some(Value::Object(fields)) if fields.is_empty() => String::new(),
            Some(Value::String(text)) => format!("`{text}`"),
            Some(value) => format!("`{value}`"),
        }
    }
}

fn sentence(text: &str) -> String {
    let text = text.trim();
    if text.is_empty() || text.ends_with(['.', '!', '?', ':']) { text.to_owned() } else { format!("{text}.") }
}

/// A bar would end the cell, and what looks like a tag would be one.
fn cell(text: &str) -> String {
    let mut out = String::new();
    for (index, part) in text.split('`').enumerate() {
        if index > 0 {
            out.push('`');
        }
        let part = part.replace('|', "\\|");
        out.push_str(&if index % 2 == 0 { part.replace('<', "&lt;") } else { part });
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_document_is_what_the_code_says() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/configuration.md");
        let text = text().unwrap();
        let there = std::fs::read_to_string(file).unwrap();
        assert!(text == there, "docs/configuration.md is out of date: `dhow config reference > docs/configuration.md`");
    }

    #[test]
    fn every_key_is_in_it_with_its_default() {
        let text = text().unwrap();
        for row in [
            "| `gcHighThresholdPercent` | integer | `85` |",
            "| `hosts.<name>.mirrors[].endpoint` | string |",
            "| `<name>.path` | string |",
            "| `schedule` | string | `30 3 * * *` |",
            "| `evictionHard.memory.available` | string | `100Mi` |",
            "| `--api-port PORT` | `DHOW_API_PORT` | `6443` |",
            "| `--discovery-token-ca-cert-hash sha256:HASH` |",
            "| 7 | done in part",
        ] {
            assert!(text.contains(row), "{row}\n{text}");
        }
    }
}
