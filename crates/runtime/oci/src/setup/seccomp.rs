//! System call filters from profiles in Docker's JSON format; the default profile is one of them.

use std::collections::BTreeMap;
use std::path::Path;

use seccompiler::BpfProgram;
use serde::Deserialize;
use serde_json::{Value, json};

use super::seccomp_default;
use crate::error::{Context, Error, Result};
use crate::spec::Seccomp;
use crate::sys;

/// A profile as Docker, containerd and the Kubernetes documentation write it.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Profile {
    pub default_action: String,
    pub default_errno_ret: Option<u32>,
    #[serde(default)]
    pub syscalls: Vec<Rule>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rule {
    pub names: Vec<String>,
    pub action: String,
    pub errno_ret: Option<u32>,
    #[serde(default)]
    pub args: Option<Vec<Argument>>,
    #[serde(default)]
    pub includes: Option<Scope>,
    #[serde(default)]
    pub excludes: Option<Scope>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Argument {
    pub index: u8,
    pub value: u64,
    #[serde(default)]
    pub value_two: u64,
    pub op: String,
}

/// When a rule applies. `minKernel` is always met: no kernel that this runs on is older.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Scope {
    #[serde(default)]
    pub caps: Vec<String>,
    #[serde(default)]
    pub arches: Vec<String>,
}

/// One loaded program. Several of them together make a profile.
#[derive(Debug)]
pub struct Filter(BpfProgram);

impl Filter {
    /// Puts the process under the filter, for good.
    pub fn install(&self) -> Result<()> {
        let program = libc::sock_fprog {
            len: u16::try_from(self.0.len()).map_err(|_| Error::Invalid("seccomp profile is too long".into()))?,
            filter: self.0.as_ptr().cast_mut().cast(),
        };
        // SAFETY: the program lives through the call, and the kernel copies it.
        let result =
            unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, std::ptr::from_ref(&program)) };
        if result == 0 { Ok(()) } else { Err(sys::last_error()).step("install the system call filter") }
    }
}

/// The filters of a profile for a process with these capabilities (names without `CAP_`), in order of installation.
pub fn compile(seccomp: &Seccomp, capabilities: &[String]) -> Result<Vec<Filter>> {
    match seccomp {
        Seccomp::Unconfined => Ok(Vec::new()),
        Seccomp::Default => filters(&seccomp_default::profile(), capabilities),
        Seccomp::Profile(path) => filters(&read(path)?, capabilities),
    }
}

fn read(path: &Path) -> Result<Profile> {
    let shown = path.display();
    let text =
        std::fs::read(path).map_err(|error| Error::Invalid(format!("cannot load seccomp profile {shown}: {error}")))?;
    serde_json::from_slice(&text)
        .map_err(|error| Error::Invalid(format!("cannot load seccomp profile {shown}: {error}")))
}

/// Rules of one action, by system call; an empty list of conditions matches always.
type Rules = BTreeMap<String, Vec<Vec<Value>>>;

fn filters(profile: &Profile, capabilities: &[String]) -> Result<Vec<Filter>> {
    let default = action(&profile.default_action, profile.default_errno_ret)?;
    let mut by_action: BTreeMap<String, (Value, Rules)> = BTreeMap::new();
    for rule in profile.syscalls.iter().filter(|rule| applies(rule, capabilities)) {
        let action = action(&rule.action, rule.errno_ret.or(profile.default_errno_ret))?;
        let (_, rules) = by_action.entry(action.to_string()).or_insert_with(|| (action.clone(), Rules::new()));
        let conditions = rule.args.iter().flatten().map(condition).collect::<Result<Vec<_>>>()?;
        for name in &rule.names {
            rules.entry(name.clone()).or_default().push(conditions.clone());
        }
    }
    let allow = json!("allow");
    by_action.remove(&default.to_string());
    let mut programs = Vec::new();
    if default != allow {
        // What another action is for must get past this filter to reach that one.
        let mut passed = Rules::new();
        for (_, rules) in by_action.values() {
            for (name, conditions) in rules {
                passed.entry(name.clone()).or_default().extend(conditions.iter().cloned());
            }
        }
        programs.push(program(&default, &allow, &passed)?);
    }
    for (action, rules) in by_action.values().filter(|(action, _)| *action != allow) {
        programs.push(program(&allow, action, rules)?);
    }
    Ok(programs)
}

fn applies(rule: &Rule, capabilities: &[String]) -> bool {
    let has = |cap: &String| capabilities.iter().any(|have| have == cap.trim_start_matches("CAP_"));
    let arch = |arch: &String| arch == if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let included = rule
        .includes
        .as_ref()
        .is_none_or(|scope| scope.caps.iter().all(has) && (scope.arches.is_empty() || scope.arches.iter().any(arch)));
    let excluded =
        rule.excludes.as_ref().is_some_and(|scope| scope.caps.iter().any(has) || scope.arches.iter().any(arch));
    included && !excluded
}

fn action(name: &str, errno: Option<u32>) -> Result<Value> {
    let errno = errno.unwrap_or(libc::EPERM as u32);
    Ok(match name {
        "SCMP_ACT_ALLOW" => json!("allow"),
        "SCMP_ACT_ERRNO" => json!({"errno": errno}),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => json!("kill_thread"),
        "SCMP_ACT_KILL_PROCESS" => json!("kill_process"),
        "SCMP_ACT_TRAP" => json!("trap"),
        "SCMP_ACT_TRACE" => json!({"trace": errno}),
        "SCMP_ACT_LOG" => json!("log"),
        _ => return Err(Error::Invalid(format!("seccomp action {name:?} is not supported"))),
    })
}

fn condition(argument: &Argument) -> Result<Value> {
    let value = argument.value;
    let (op, value) = match argument.op.as_str() {
        "SCMP_CMP_EQ" => (json!("eq"), value),
        "SCMP_CMP_NE" => (json!("ne"), value),
        "SCMP_CMP_LT" => (json!("lt"), value),
        "SCMP_CMP_LE" => (json!("le"), value),
        "SCMP_CMP_GT" => (json!("gt"), value),
        "SCMP_CMP_GE" => (json!("ge"), value),
        // The value is the mask, the second value what must be left of it.
        "SCMP_CMP_MASKED_EQ" => (json!({"masked_eq": value}), argument.value_two),
        other => return Err(Error::Invalid(format!("seccomp operator {other:?} is not supported"))),
    };
    Ok(json!({"index": argument.index, "type": "qword", "op": op, "val": value}))
}

/// Compiles one filter.
fn program(otherwise: &Value, matched: &Value, rules: &Rules) -> Result<Filter> {
    let compiled = try_program(otherwise, matched, rules);
    if compiled.is_ok() {
        return compiled;
    }
    // Profiles are written for all architectures; nobody can call what this one lacks.
    let known =
        |name: &String| try_program(otherwise, matched, &Rules::from([(name.clone(), vec![Vec::new()])])).is_ok();
    let rules =
        rules.iter().filter(|(name, _)| known(name)).map(|(name, rules)| (name.clone(), rules.clone())).collect();
    try_program(otherwise, matched, &rules)
}

fn try_program(otherwise: &Value, matched: &Value, rules: &Rules) -> Result<Filter> {
    let mut list = Vec::new();
    for (name, alternatives) in rules {
        if alternatives.iter().any(Vec::is_empty) {
            list.push(json!({"syscall": name}));
        } else {
            list.extend(alternatives.iter().map(|conditions| json!({"syscall": name, "args": conditions})));
        }
    }
    let text = json!({"main": {"mismatch_action": otherwise, "match_action": matched, "filter": list}}).to_string();
    let arch = std::env::consts::ARCH;
    let arch = arch.try_into().map_err(|_| Error::Invalid(format!("no system call filters for {arch}")))?;
    let mut programs = seccompiler::compile_from_json(text.as_bytes(), arch)
        .map_err(|error| Error::Invalid(format!("seccomp profile: {error}")))?;
    Ok(Filter(programs.remove("main").unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_default_profile_compiles_and_grows_with_capabilities() {
        let plain = compile(&Seccomp::Default, &[]).unwrap();
        let admin = compile(&Seccomp::Default, &["SYS_ADMIN".into()]).unwrap();
        assert!(plain[0].0.len() > 500);
        assert!(admin.iter().map(|f| f.0.len()).sum::<usize>() > plain.iter().map(|f| f.0.len()).sum());
    }

    #[test]
    fn every_name_of_the_default_profile_is_known_here() {
        for rule in seccomp_default::profile().syscalls {
            for name in &rule.names {
                let rules = Rules::from([(name.clone(), vec![Vec::new()])]);
                assert!(try_program(&json!({"errno": 1}), &json!("allow"), &rules).is_ok(), "{name}");
            }
        }
    }

    #[test]
    fn unknown_actions_are_refused_and_unknown_calls_left_out() {
        let profile = |text: &str| serde_json::from_str::<Profile>(text).unwrap();
        let refused = profile(r#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#);
        assert!(filters(&refused, &[]).unwrap_err().to_string().contains("SCMP_ACT_NOTIFY"));
        let newer = profile(
            r#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["read", "from_the_future"], "action": "SCMP_ACT_ALLOW"}]}"#,
        );
        assert_eq!(filters(&newer, &[]).unwrap().len(), 1);
    }
}
