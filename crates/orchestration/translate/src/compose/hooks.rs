//! `post_start`, `pre_stop`, `stop_signal`.

use serde_json::{Map, Value, json};

use super::project::{Project, Service};
use super::put;
use crate::error::Result;
use crate::view::View;

pub fn translate(project: &Project<'_>, service: &Service<'_>, container: &mut Map<String, Value>) -> Result<()> {
    let mut lifecycle = Map::new();
    for (key, field) in [("post_start", "postStart"), ("pre_stop", "preStop")] {
        let Some(view) = service.get(key) else { continue };
        let commands: Vec<Vec<String>> = view.items().map(|hook| command(project, &hook)).collect::<Result<_>>()?;
        let command = match commands.as_slice() {
            [] => continue,
            [one] => one.clone(),
            // Kubernetes has one: the shell runs them in their order, until one fails.
            several => {
                let lines: Vec<String> = several.iter().map(|words| line(words)).collect();
                vec!["/bin/sh".to_owned(), "-c".to_owned(), lines.join(" && ")]
            }
        };
        lifecycle.insert(field.into(), json!({"exec": {"command": command}}));
    }
    if let Some(view) = service.get("stop_signal") {
        let text = view.text()?.to_uppercase();
        match signal(&text) {
            Some(name) => {
                lifecycle.insert("stopSignal".into(), json!(name));
            }
            None => return Err(view.invalid(format!("unknown signal {text:?}"))),
        }
    }
    put(container, "lifecycle", Value::Object(lifecycle));
    Ok(())
}

fn command(project: &Project<'_>, hook: &View<'_>) -> Result<Vec<String>> {
    let Some(command) = hook.get("command") else { return Err(hook.invalid("has no command")) };
    let mut words = command.words()?;
    for key in ["user", "privileged"] {
        if let Some(view) = hook.get(key)
            && view.node.scalar() != Some("false")
        {
            view.warn("a hook runs as its container does");
        }
    }
    if let Some(view) = hook.get("environment") {
        let mut line = vec!["env".to_owned()];
        for (name, value, at) in view.pairs()? {
            match value.or_else(|| project.variables.get(&name).cloned()) {
                Some(value) => line.push(format!("{name}={value}")),
                None => at.warn(format!("the variable {name} is not set: the hook does not get it")),
            }
        }
        words = line.into_iter().chain(words).collect();
    }
    if let Some(view) = hook.get("working_dir") {
        let inner = format!("cd {} && exec {}", line(&[view.text()?.to_owned()]), line(&words));
        words = vec!["/bin/sh".to_owned(), "-c".to_owned(), inner];
    }
    Ok(words)
}

/// Words as a shell's line.
fn line(words: &[String]) -> String {
    shlex::try_join(words.iter().map(String::as_str)).unwrap_or_default()
}

/// Signals by name or number, as Kubernetes names them.
fn signal(text: &str) -> Option<String> {
    const NAMES: [(&str, u8); 31] = [
        ("HUP", 1),
        ("INT", 2),
        ("QUIT", 3),
        ("ILL", 4),
        ("TRAP", 5),
        ("ABRT", 6),
        ("BUS", 7),
        ("FPE", 8),
        ("KILL", 9),
        ("USR1", 10),
        ("SEGV", 11),
        ("USR2", 12),
        ("PIPE", 13),
        ("ALRM", 14),
        ("TERM", 15),
        ("STKFLT", 16),
        ("CHLD", 17),
        ("CONT", 18),
        ("STOP", 19),
        ("TSTP", 20),
        ("TTIN", 21),
        ("TTOU", 22),
        ("URG", 23),
        ("XCPU", 24),
        ("XFSZ", 25),
        ("VTALRM", 26),
        ("PROF", 27),
        ("WINCH", 28),
        ("IO", 29),
        ("PWR", 30),
        ("SYS", 31),
    ];
    let name = text.strip_prefix("SIG").unwrap_or(text);
    if name.starts_with("RTMIN") || name.starts_with("RTMAX") {
        return Some(format!("SIG{name}"));
    }
    let number = name.parse::<u8>().ok();
    let found = NAMES.iter().find(|(known, code)| *known == name || number == Some(*code))?;
    Some(format!("SIG{}", found.0))
}
