//! System call filters from profiles in the JSON of Docker and the runtime specification; the default profile is one.

mod bpf;
mod default;
mod syscalls;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Result};
use crate::spec::Seccomp;
use crate::sys;
use bpf::{Action, Compare, Condition, Table, Verdict};
use syscalls::Arch;

/// A profile as Docker, containerd and the Kubernetes documentation write it, and the runtime specification's `seccomp`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Profile {
    pub default_action: String,
    pub default_errno_ret: Option<u32>,
    pub architectures: Vec<String>,
    /// Docker's: an architecture with those that run on it as well.
    pub arch_map: Vec<ArchMap>,
    pub flags: Vec<String>,
    pub syscalls: Vec<Rule>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ArchMap {
    pub architecture: String,
    #[serde(default)]
    pub sub_architectures: Option<Vec<String>>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
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

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Argument {
    pub index: u8,
    pub value: u64,
    #[serde(default)]
    pub value_two: Option<u64>,
    pub op: String,
}

/// When a rule applies. `minKernel` is always met: no kernel that this runs on is older.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Scope {
    #[serde(default)]
    pub caps: Vec<String>,
    #[serde(default)]
    pub arches: Vec<String>,
}

/// A program ready to be loaded.
pub struct Filter {
    program: Vec<libc::sock_filter>,
    flags: libc::c_ulong,
}

impl Filter {
    /// Puts the process under the filter, for good.
    pub fn install(&self) -> Result<()> {
        let program = libc::sock_fprog {
            len: u16::try_from(self.program.len()).unwrap_or(u16::MAX),
            filter: self.program.as_ptr().cast_mut(),
        };
        // SAFETY: the program lives through the call, and the kernel copies it.
        let result = unsafe {
            libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, self.flags, std::ptr::from_ref(&program))
        };
        if result == 0 { Ok(()) } else { Err(sys::last_error()).step("install the system call filter") }
    }
}

/// The filter that a process with these capabilities gets; `None` if it gets none. Called before the process enters its root:
/// a profile in a file is the host's, never one that the container brings.
pub fn compile(seccomp: &Seccomp, capabilities: &[String]) -> Result<Option<Arc<Filter>>> {
    let compiled = match seccomp {
        Seccomp::Unconfined => return Ok(None),
        Seccomp::Default => return of_default(capabilities).map(Some),
        Seccomp::Profile(path) => filter(&read(path)?, capabilities),
        Seccomp::Inline(profile) => filter(profile, capabilities),
    };
    compiled.map(|filter| Some(Arc::new(filter)))
}

/// Filters of the default profile by capabilities: whoever forks has them ready for its children.
static OF_DEFAULT: Mutex<Vec<(Vec<String>, Arc<Filter>)>> = Mutex::new(Vec::new());

fn of_default(capabilities: &[String]) -> Result<Arc<Filter>> {
    let mut kept = OF_DEFAULT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, filter)) = kept.iter().find(|(of, _)| of == capabilities) {
        return Ok(Arc::clone(filter));
    }
    let filter = Arc::new(filter(&default::profile(), capabilities)?);
    kept.push((capabilities.to_vec(), Arc::clone(&filter)));
    Ok(filter)
}

/// Does what of compiling depends on no profile.
pub fn warm_up() {
    let _ = Arch::NATIVE.number("read");
}

/// A profile in the runtime specification's words for another runtime: the rules that apply to these capabilities, and
/// nothing that only Docker's form has. `None` for a process without a filter.
pub fn document(seccomp: &Seccomp, capabilities: &[String]) -> Result<Option<serde_json::Value>> {
    let given = match seccomp {
        Seccomp::Unconfined => return Ok(None),
        Seccomp::Default => default::profile(),
        Seccomp::Profile(path) => read(path)?,
        Seccomp::Inline(profile) => profile.as_ref().clone(),
    };
    let mut architectures = given.architectures.clone();
    let native = |map: &&ArchMap| Arch::from_profile(&map.architecture) == Some(Arch::NATIVE);
    for map in given.arch_map.iter().filter(native) {
        architectures.push(map.architecture.clone());
        architectures.extend(map.sub_architectures.iter().flatten().cloned());
    }
    let mut syscalls = Vec::new();
    for rule in given.syscalls.iter().filter(|rule| applies(rule, capabilities)) {
        let mut written = serde_json::json!({"names": rule.names, "action": rule.action});
        if let Some(errno) = rule.errno_ret {
            written["errnoRet"] = errno.into();
        }
        if let Some(arguments) = rule.args.as_ref().filter(|list| !list.is_empty()) {
            written["args"] = serde_json::to_value(arguments)
                .map_err(|error| Error::Invalid(format!("encode a seccomp rule: {error}")))?;
        }
        syscalls.push(written);
    }
    let mut all = serde_json::json!({"defaultAction": given.default_action, "syscalls": syscalls});
    for (name, list) in [("architectures", &architectures), ("flags", &given.flags)] {
        if !list.is_empty() {
            all[name] = list.clone().into();
        }
    }
    if let Some(errno) = given.default_errno_ret {
        all["defaultErrnoRet"] = errno.into();
    }
    Ok(Some(all))
}

fn read(path: &Path) -> Result<Profile> {
    let shown = path.display();
    let text =
        std::fs::read(path).map_err(|error| Error::Invalid(format!("cannot load seccomp profile {shown}: {error}")))?;
    serde_json::from_slice(&text)
        .map_err(|error| Error::Invalid(format!("cannot load seccomp profile {shown}: {error}")))
}

fn filter(profile: &Profile, capabilities: &[String]) -> Result<Filter> {
    let default = action(&profile.default_action, profile.default_errno_ret)?;
    let mut rules: BTreeMap<&str, Vec<(Vec<Condition>, Action)>> = BTreeMap::new();
    for rule in profile.syscalls.iter().filter(|rule| applies(rule, capabilities)) {
        let action = action(&rule.action, rule.errno_ret)?;
        let conditions = rule.args.iter().flatten().map(condition).collect::<Result<Vec<_>>>()?;
        for name in &rule.names {
            let rules = rules.entry(name).or_default();
            if about_one_argument_twice(&conditions) {
                rules.extend(conditions.iter().map(|condition| (vec![*condition], action)));
            } else {
                rules.push((conditions.clone(), action));
            }
        }
    }
    let verdicts: Vec<(&str, Verdict)> =
        rules.into_iter().map(|(name, rules)| (name, verdict(rules, default))).collect();
    let tables: Vec<(Arch, Table)> = architectures(profile)
        .into_iter()
        .map(|arch| {
            // Profiles are written for all architectures; nobody can call what this one lacks.
            let known = verdicts.iter().filter_map(|(name, verdict)| Some((arch.number(name)?, verdict.clone())));
            (arch, known.collect())
        })
        .collect();
    let program = bpf::program(&tables, default, libc::SECCOMP_RET_KILL_PROCESS);
    if program.len() > bpf::MAX_LENGTH {
        return Err(Error::Invalid(format!("seccomp profile: {} instructions are too many", program.len())));
    }
    Ok(Filter { program, flags: flags(profile)? })
}

/// Conditions are a conjunction unless two are about the same argument: then each is a rule of its own, as libseccomp's
/// users have it.
fn about_one_argument_twice(conditions: &[Condition]) -> bool {
    conditions.iter().enumerate().any(|(place, one)| conditions[..place].iter().any(|o| o.argument == one.argument))
}

/// What several rules for one call come to: the strictest first, as the kernel has it among several filters.
fn verdict(mut rules: Vec<(Vec<Condition>, Action)>, default: Action) -> Verdict {
    rules.sort_by_key(|(_, action)| (*action & libc::SECCOMP_RET_ACTION_FULL) as i32);
    let mut alternatives = Vec::new();
    for (conditions, action) in rules {
        if conditions.is_empty() {
            return Verdict { alternatives, otherwise: action };
        }
        alternatives.push((conditions, action));
    }
    Verdict { alternatives, otherwise: default }
}

fn architectures(profile: &Profile) -> Vec<Arch> {
    let mut arches = vec![Arch::NATIVE];
    let mapped = profile.arch_map.iter().filter(|map| Arch::from_profile(&map.architecture) == Some(Arch::NATIVE));
    let mapped = mapped.flat_map(|map| map.sub_architectures.iter().flatten());
    for arch in profile.architectures.iter().chain(mapped).filter_map(|name| Arch::from_profile(name)) {
        if !arches.contains(&arch) {
            arches.push(arch);
        }
    }
    arches
}

fn flags(profile: &Profile) -> Result<libc::c_ulong> {
    profile.flags.iter().try_fold(0, |flags, name| match name.as_str() {
        // One thread has nobody to synchronise with.
        "SECCOMP_FILTER_FLAG_TSYNC" => Ok(flags),
        "SECCOMP_FILTER_FLAG_LOG" => Ok(flags | libc::SECCOMP_FILTER_FLAG_LOG),
        "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => Ok(flags | libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW),
        _ => Err(Error::Invalid(format!("seccomp flag {name:?} is not supported"))),
    })
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

fn action(name: &str, errno: Option<u32>) -> Result<Action> {
    let data = errno.unwrap_or(libc::EPERM as u32) & libc::SECCOMP_RET_DATA;
    Ok(match name {
        "SCMP_ACT_ALLOW" => libc::SECCOMP_RET_ALLOW,
        "SCMP_ACT_ERRNO" => libc::SECCOMP_RET_ERRNO | data,
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => libc::SECCOMP_RET_KILL_THREAD,
        "SCMP_ACT_KILL_PROCESS" => libc::SECCOMP_RET_KILL_PROCESS,
        "SCMP_ACT_TRAP" => libc::SECCOMP_RET_TRAP,
        "SCMP_ACT_TRACE" => libc::SECCOMP_RET_TRACE | data,
        "SCMP_ACT_LOG" => libc::SECCOMP_RET_LOG,
        _ => return Err(Error::Invalid(format!("seccomp action {name:?} is not supported"))),
    })
}

fn condition(argument: &Argument) -> Result<Condition> {
    if argument.index > 5 {
        return Err(Error::Invalid(format!("seccomp argument {} does not exist: calls have six", argument.index)));
    }
    let (compare, value) = match argument.op.as_str() {
        "SCMP_CMP_EQ" => (Compare::Equal, argument.value),
        "SCMP_CMP_NE" => (Compare::NotEqual, argument.value),
        "SCMP_CMP_LT" => (Compare::Less, argument.value),
        "SCMP_CMP_LE" => (Compare::LessOrEqual, argument.value),
        "SCMP_CMP_GT" => (Compare::Greater, argument.value),
        "SCMP_CMP_GE" => (Compare::GreaterOrEqual, argument.value),
        // The value is the mask, the second value what must be left of it.
        "SCMP_CMP_MASKED_EQ" => (Compare::Masked(argument.value), argument.value_two.unwrap_or(0)),
        other => return Err(Error::Invalid(format!("seccomp operator {other:?} is not supported"))),
    };
    Ok(Condition { argument: argument.index, compare, value })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn profile(text: &str) -> Profile {
        serde_json::from_str(text).unwrap()
    }

    /// What a profile says to a call of that name.
    fn says(filter: &Filter, arch: Arch, name: &str, first: u64) -> Action {
        bpf::tests::run(&filter.program, arch.audit(), arch.number(name).unwrap(), [first, 0, 0, 0, 0, 0])
    }

    const EPERM: Action = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    const ENOSYS: Action = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
    const ALLOW: Action = libc::SECCOMP_RET_ALLOW;

    #[test]
    fn the_default_profile_refuses_the_machine_and_grows_with_capabilities() {
        let plain = filter(&default::profile(), &[]).unwrap();
        let admin = filter(&default::profile(), &["SYS_ADMIN".into()]).unwrap();
        for call in ["mount", "bpf", "keyctl", "add_key", "unshare", "setns", "kexec_load", "init_module", "open_tree"]
        {
            assert_eq!(says(&plain, Arch::NATIVE, call, 0), EPERM, "{call}");
        }
        assert_eq!(says(&admin, Arch::NATIVE, "mount", 0), ALLOW);
        assert_eq!(says(&admin, Arch::NATIVE, "keyctl", 0), EPERM);
        assert_eq!(says(&plain, Arch::NATIVE, "clone3", 0), ENOSYS);
        assert_eq!(says(&plain, Arch::NATIVE, "clone", libc::CLONE_NEWUSER as u64), EPERM);
        assert_eq!(says(&plain, Arch::NATIVE, "clone", libc::CLONE_VM as u64), ALLOW);
        assert_eq!(says(&plain, Arch::NATIVE, "socket", 40), EPERM);
        assert_eq!(says(&plain, Arch::NATIVE, "socket", 1), ALLOW);
        assert_eq!(says(&plain, Arch::NATIVE, "personality", 0x400), EPERM);
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn the_default_profile_holds_for_32_bit_programs() {
        let plain = filter(&default::profile(), &[]).unwrap();
        for call in ["socketcall", "mmap2", "stat64", "clock_gettime64", "getuid32", "_llseek", "sigreturn"] {
            assert_eq!(says(&plain, Arch::X86, call, 0), ALLOW, "{call}");
        }
        for call in ["mount", "bpf", "keyctl", "umount", "swapon", "create_module"] {
            assert_eq!(says(&plain, Arch::X86, call, 0), EPERM, "{call}");
        }
    }

    #[test]
    fn every_name_of_the_default_profile_is_known_here() {
        for rule in default::profile().syscalls {
            for name in &rule.names {
                let known = [Arch::NATIVE, Arch::X86].iter().any(|arch| arch.number(name).is_some());
                assert!(known, "{name}");
            }
        }
    }

    #[test]
    fn rules_of_the_specification() {
        let given = profile(
            r#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "architectures": ["SCMP_ARCH_X86_64"],
                "flags": ["SECCOMP_FILTER_FLAG_LOG"], "syscalls": [
                {"names": ["read", "from_the_future"], "action": "SCMP_ACT_ALLOW"},
                {"names": ["getcwd"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5},
                {"names": ["read"], "action": "SCMP_ACT_KILL", "args": [
                    {"index": 0, "value": 240, "valueTwo": 16, "op": "SCMP_CMP_MASKED_EQ"}]}]}"#,
        );
        let filter = filter(&given, &[]).unwrap();
        assert_eq!(filter.flags, libc::SECCOMP_FILTER_FLAG_LOG);
        assert_eq!(says(&filter, Arch::NATIVE, "write", 0), ENOSYS);
        assert_eq!(says(&filter, Arch::NATIVE, "getcwd", 0), libc::SECCOMP_RET_ERRNO | 5);
        assert_eq!(says(&filter, Arch::NATIVE, "read", 0), ALLOW);
        assert_eq!(says(&filter, Arch::NATIVE, "read", 0x11), libc::SECCOMP_RET_KILL_THREAD);
        assert_eq!(says(&filter, Arch::X86, "read", 0), libc::SECCOMP_RET_KILL_PROCESS);
    }

    #[test]
    fn what_is_not_supported_is_refused() {
        for (text, named) in [
            (r#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#, "SCMP_ACT_NOTIFY"),
            (r#"{"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SOME_FLAG"]}"#, "SOME_FLAG"),
            (
                r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW",
                    "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]}]}"#,
                "argument 6",
            ),
        ] {
            let error = filter(&profile(text), &[]).err().map(|error| error.to_string());
            assert!(error.as_ref().is_some_and(|error| error.contains(named)), "{error:?}");
        }
    }
}
