//! `dhow config`: the settings file, checked and as it is in force.
#![allow(clippy::print_stderr, clippy::print_stdout)]

mod reference;

use anyhow::{Context, Result};
use serde_json::{Map, Value};

use crate::cli::{ConfigCommand, ConfigOutput};
use crate::settings::Settings;

pub fn run(command: &ConfigCommand) -> Result<()> {
    match command {
        ConfigCommand::Check(args) => {
            let settings = Settings::load(&args.config)?;
            settings.schedulers()?;
            settings.tuning(None)?;
            eprintln!("The settings are valid.");
        }
        ConfigCommand::Print { config, changed, output } => {
            let settings = value(&Settings::load(&config.config)?)?;
            let settings = if *changed {
                difference(&value(&Settings::default())?, &settings).unwrap_or(Value::Object(Map::new()))
            } else {
                settings
            };
            match output {
                ConfigOutput::Json => println!("{}", serde_json::to_string_pretty(&settings).context("encode")?),
                ConfigOutput::Yaml => print!("{}", serde_saphyr::to_string(&settings).context("encode")?),
            }
        }
        ConfigCommand::Reference => print!("{}", reference::text()?),
        ConfigCommand::Schema => {
            let schema = schemars::schema_for!(Settings);
            println!("{}", serde_json::to_string_pretty(&schema).context("encode")?);
        }
    }
    Ok(())
}

fn value(settings: &Settings) -> Result<Value> {
    serde_json::to_value(settings).context("encode the settings")
}

/// What of `now` is not as in `before`.
fn difference(before: &Value, now: &Value) -> Option<Value> {
    match (before, now) {
        (Value::Object(before), Value::Object(now)) => {
            let changed: Map<String, Value> = now
                .iter()
                .filter_map(|(key, value)| {
                    let value = before.get(key).map_or(Some(value.clone()), |before| difference(before, value))?;
                    Some((key.clone(), value))
                })
                .collect();
            (!changed.is_empty()).then_some(Value::Object(changed))
        }
        _ => (before != now).then(|| now.clone()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_differs_is_shown() {
        let before = json!({"a": {"b": 1, "c": [1]}, "d": null, "e": {}});
        assert_eq!(difference(&before, &before), None);
        let now = json!({"a": {"b": 2, "c": [1]}, "d": null, "e": {"f": 3}});
        assert_eq!(difference(&before, &now), Some(json!({"a": {"b": 2}, "e": {"f": 3}})));
    }
}
