//! The baseline level: known ways out of a container are closed.

use std::collections::BTreeSet;

use dhow_api::meta;
use serde_json::Value;

use super::checks::{Pod, Violation, containers, others, plural, quoted, setters};

/// All checks of the level, in the order of upstream's names for them. The restricted level has stricter ones in the
/// place of some.
pub fn check(pod: &Pod<'_>, restricted: bool) -> Vec<Violation> {
    let stricter = |minor: u32| restricted && pod.minor >= minor;
    let mut found = Vec::new();
    found.extend(app_armor(pod));
    if !stricter(22) {
        found.extend(capabilities(pod));
    }
    found.extend(host_namespaces(pod));
    if !restricted {
        found.extend(host_paths(pod));
    }
    found.extend(host_ports(pod));
    found.extend(probe_hosts(pod));
    found.extend(privileged(pod));
    found.extend(proc_mount(pod));
    found.extend(se_linux(pod));
    if !stricter(19) {
        found.extend(seccomp(pod));
    }
    found.extend(sysctls(pod));
    found.extend(host_process(pod));
    found
}

fn app_armor(pod: &Pod<'_>) -> Option<Violation> {
    const PREFIX: &str = "container.apparmor.security.beta.kubernetes.io/";
    let bad_kind = |context: &Value| {
        let kind = context["appArmorProfile"]["type"].as_str();
        kind.filter(|kind| !matches!(*kind, "RuntimeDefault" | "Localhost")).map(str::to_owned)
    };
    let mut values = BTreeSet::new();
    values.extend(bad_kind(pod.context));
    let of_pod = !values.is_empty();
    let names = pod.those(|context| bad_kind(context).is_some());
    values.extend(pod.containers().filter_map(|container| bad_kind(&container["securityContext"])));
    let mut details = Vec::new();
    if !values.is_empty() {
        let who = setters(of_pod, &names);
        details.push(format!("{who} must not set AppArmor profile type to {}", quoted(&values)));
    }
    let annotations = meta::object(pod.value, &["metadata", "annotations"]).into_iter().flatten();
    let mut annotated: Vec<String> = annotations
        .filter_map(|(key, value)| Some((key, value.as_str()?)))
        .filter(|(key, value)| key.starts_with(PREFIX) && !allowed_profile(value))
        .map(|(key, value)| format!("{key}={value:?}"))
        .collect();
    annotated.sort();
    let count = annotated.len() + values.len();
    details.extend(annotated);
    let reason = plural("forbidden AppArmor profile", "forbidden AppArmor profiles", count);
    (count > 0).then(|| Violation::new(reason, details.join(", ")))
}

fn allowed_profile(profile: &str) -> bool {
    profile.is_empty() || profile == "runtime/default" || profile.starts_with("localhost/")
}

fn capabilities(pod: &Pod<'_>) -> Option<Violation> {
    const DEFAULT: [&str; 13] = [
        "AUDIT_WRITE",
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "MKNOD",
        "NET_BIND_SERVICE",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_CHROOT",
    ];
    let mut forbidden = BTreeSet::new();
    let mut names = Vec::new();
    for container in pod.containers() {
        if others(&container["securityContext"]["capabilities"]["add"], &DEFAULT, &mut forbidden) {
            names.push(container["name"].as_str().unwrap_or_default().to_owned());
        }
    }
    (!names.is_empty()).then(|| {
        let who = containers(&names);
        let detail = format!("{who} must not include {} in securityContext.capabilities.add", quoted(forbidden));
        Violation::new("non-default capabilities", detail)
    })
}

fn host_namespaces(pod: &Pod<'_>) -> Option<Violation> {
    let set: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
        .into_iter()
        .filter(|field| pod.spec[*field] == true)
        .map(|field| format!("{field}=true"))
        .collect();
    (!set.is_empty()).then(|| Violation::new("host namespaces", set.join(", ")))
}

fn host_paths(pod: &Pod<'_>) -> Option<Violation> {
    let volumes = meta::items(pod.spec, &["volumes"]).iter().filter(|volume| volume["hostPath"].is_object());
    let names: Vec<&str> = volumes.filter_map(|volume| volume["name"].as_str()).collect();
    let title = plural("volume", "volumes", names.len());
    (!names.is_empty()).then(|| Violation::new("hostPath volumes", format!("{title} {}", quoted(&names))))
}

fn host_ports(pod: &Pod<'_>) -> Option<Violation> {
    let (mut names, mut ports) = (Vec::new(), BTreeSet::new());
    for container in pod.containers() {
        let held = meta::items(container, &["ports"]).iter().filter_map(|port| port["hostPort"].as_i64());
        let held: Vec<i64> = held.filter(|port| *port != 0).collect();
        if !held.is_empty() {
            names.push(container["name"].as_str().unwrap_or_default().to_owned());
            ports.extend(held.iter().map(ToString::to_string));
        }
    }
    (!names.is_empty()).then(|| {
        let uses = plural("uses", "use", names.len());
        let title = plural("hostPort", "hostPorts", ports.len());
        let list = ports.into_iter().collect::<Vec<_>>().join(", ");
        Violation::new("hostPort", format!("{} {uses} {title} {list}", containers(&names)))
    })
}

/// The node itself connects there (1.34).
fn probe_hosts(pod: &Pod<'_>) -> Option<Violation> {
    if pod.minor < 34 {
        return None;
    }
    const PLACES: [&[&str]; 5] = [
        &["livenessProbe"],
        &["readinessProbe"],
        &["startupProbe"],
        &["lifecycle", "postStart"],
        &["lifecycle", "preStop"],
    ];
    let (mut names, mut hosts) = (BTreeSet::new(), BTreeSet::new());
    for container in pod.containers() {
        for handler in PLACES.iter().filter_map(|place| meta::at(container, place)) {
            for host in ["httpGet", "tcpSocket"].map(|kind| meta::text(handler, &[kind, "host"])) {
                if !host.is_empty() {
                    names.insert(container["name"].as_str().unwrap_or_default().to_owned());
                    hosts.insert(host);
                }
            }
        }
    }
    (!names.is_empty()).then(|| {
        let names: Vec<String> = names.into_iter().collect();
        let uses = plural("uses", "use", names.len());
        let title = plural("probe or lifecycle host", "probe or lifecycle hosts", hosts.len());
        Violation::new("probe or lifecycle host", format!("{} {uses} {title} {}", containers(&names), quoted(hosts)))
    })
}

fn privileged(pod: &Pod<'_>) -> Option<Violation> {
    let names = pod.those(|context| context["privileged"] == true);
    (!names.is_empty()).then(|| {
        let detail = format!("{} must not set securityContext.privileged=true", containers(&names));
        Violation::new("privileged", detail)
    })
}

fn proc_mount(pod: &Pod<'_>) -> Option<Violation> {
    let bad = |context: &Value| context["procMount"].as_str().filter(|mount| *mount != "Default").map(str::to_owned);
    let names = pod.those(|context| bad(context).is_some());
    let values: BTreeSet<String> =
        pod.containers().filter_map(|container| bad(&container["securityContext"])).collect();
    (!names.is_empty()).then(|| {
        let detail = format!("{} must not set securityContext.procMount to {}", containers(&names), quoted(values));
        Violation::new("procMount", detail)
    })
}

fn se_linux(pod: &Pod<'_>) -> Option<Violation> {
    const TYPES: [&str; 5] = ["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"];
    let text = |context: &Value, field: &str| meta::text(context, &["seLinuxOptions", field]).to_owned();
    let bad = |context: &Value| {
        !TYPES.contains(&text(context, "type").as_str())
            || !text(context, "user").is_empty()
            || !text(context, "role").is_empty()
    };
    let names = pod.those(bad);
    let who = setters(bad(pod.context), &names);
    if who.is_empty() {
        return None;
    }
    let contexts: Vec<&Value> =
        pod.containers().map(|container| &container["securityContext"]).chain([pod.context]).collect();
    let kinds: BTreeSet<String> =
        contexts.iter().map(|context| text(context, "type")).filter(|kind| !TYPES.contains(&kind.as_str())).collect();
    let mut what = Vec::new();
    if !kinds.is_empty() {
        what.push(format!("{} {}", plural("type", "types", kinds.len()), quoted(&kinds)));
    }
    for field in ["user", "role"] {
        if contexts.iter().any(|context| !text(context, field).is_empty()) {
            what.push(format!("{field} may not be set"));
        }
    }
    let detail = format!("{who} set forbidden securityContext.seLinuxOptions: {}", what.join("; "));
    Some(Violation::new("seLinuxOptions", detail))
}

pub fn bad_seccomp(context: &Value) -> Option<String> {
    let kind = context["seccompProfile"]["type"].as_str();
    kind.filter(|kind| !matches!(*kind, "RuntimeDefault" | "Localhost")).map(str::to_owned)
}

/// Profiles that are set badly, by whom.
pub fn seccomp(pod: &Pod<'_>) -> Option<Violation> {
    if pod.minor < 19 {
        return None;
    }
    let names = pod.those(|context| bad_seccomp(context).is_some());
    let of_pod = bad_seccomp(pod.context);
    let who = setters(of_pod.is_some(), &names);
    if who.is_empty() {
        return None;
    }
    let mut values: BTreeSet<String> =
        pod.containers().filter_map(|container| bad_seccomp(&container["securityContext"])).collect();
    values.extend(of_pod);
    let detail = format!("{who} must not set securityContext.seccompProfile.type to {}", quoted(values));
    Some(Violation::new("seccompProfile", detail))
}

fn sysctls(pod: &Pod<'_>) -> Option<Violation> {
    /// Safe ones, and the version that began to say so.
    const SAFE: [(&str, u32); 12] = [
        ("kernel.shm_rmid_forced", 0),
        ("net.ipv4.ip_local_port_range", 0),
        ("net.ipv4.tcp_syncookies", 0),
        ("net.ipv4.ping_group_range", 0),
        ("net.ipv4.ip_unprivileged_port_start", 0),
        ("net.ipv4.ip_local_reserved_ports", 27),
        ("net.ipv4.tcp_keepalive_time", 29),
        ("net.ipv4.tcp_fin_timeout", 29),
        ("net.ipv4.tcp_keepalive_intvl", 29),
        ("net.ipv4.tcp_keepalive_probes", 29),
        ("net.ipv4.tcp_rmem", 32),
        ("net.ipv4.tcp_wmem", 32),
    ];
    let safe = |name: &&str| SAFE.iter().any(|(known, since)| known == name && *since <= pod.minor);
    let set = meta::items(pod.context, &["sysctls"]).iter().filter_map(|sysctl| sysctl["name"].as_str());
    let forbidden: Vec<&str> = set.filter(|name| !safe(name)).collect();
    (!forbidden.is_empty()).then(|| Violation::new("forbidden sysctls", forbidden.join(", ")))
}

fn host_process(pod: &Pod<'_>) -> Option<Violation> {
    let bad = |context: &Value| context["windowsOptions"]["hostProcess"] == true;
    let who = setters(bad(pod.context), &pod.those(bad));
    (!who.is_empty()).then(|| {
        let detail = format!("{who} must not set securityContext.windowsOptions.hostProcess=true");
        Violation::new("hostProcess", detail)
    })
}
