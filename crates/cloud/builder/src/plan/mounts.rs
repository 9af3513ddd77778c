//! `RUN --mount=`.

use crate::dockerfile::suggestion;

/// What a mount shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountKind {
    /// Files of a stage, image or context.
    Bind { from: Option<String>, source: String, writable: bool },
    /// A folder that stays from build to build.
    Cache {
        id: String,
        sharing: Sharing,
        from: Option<String>,
        source: String,
        mode: u32,
        uid: u32,
        gid: u32,
        readonly: bool,
    },
    /// Memory.
    Tmpfs { size: Option<u64> },
    /// A secret of the caller's, as a file or a variable.
    Secret { id: String, required: bool, mode: u32, uid: u32, gid: u32, env: Option<String> },
    /// The caller's SSH agent.
    Ssh { id: String, required: bool, mode: u32, uid: u32, gid: u32 },
}

/// Who may use a cache at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    Shared,
    Private,
    Locked,
}

/// A mount of one RUN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    pub kind: MountKind,
    /// Absolute, or relative to the working directory; empty for a secret that is a variable only.
    pub target: String,
}

const KEYS: [&str; 20] = [
    "type",
    "target",
    "dst",
    "destination",
    "source",
    "src",
    "from",
    "readonly",
    "ro",
    "readwrite",
    "rw",
    "id",
    "sharing",
    "required",
    "size",
    "mode",
    "uid",
    "gid",
    "env",
    "required",
];

/// Reads `type=cache,target=/x`.
pub fn parse(text: &str) -> Result<Mount, String> {
    let mut kind = "bind".to_owned();
    let (mut target, mut source, mut from, mut id) = (String::new(), String::new(), None, None);
    let (mut readonly, mut required, mut size, mut mode, mut uid, mut gid) = (None, false, None, None, None, None);
    let (mut sharing, mut env) = (Sharing::Shared, None);
    for field in fields(text) {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key.to_ascii_lowercase(), Some(value.to_owned())),
            None => (field.to_ascii_lowercase(), None),
        };
        let bad = |what: &str| format!("invalid value {:?} for {key}: {what}", value.as_deref().unwrap_or_default());
        let flag = || match value.as_deref() {
            None | Some("true" | "1") => Ok(true),
            Some("false" | "0") => Ok(false),
            Some(_) => Err(bad("true or false is expected")),
        };
        let need = || value.clone().ok_or_else(|| format!("invalid field {field:?} must be a key=value pair"));
        let number = |text: &str| text.parse::<u32>().map_err(|_| bad("a number is expected"));
        match key.as_str() {
            "type" => kind = need()?.to_ascii_lowercase(),
            "target" | "dst" | "destination" => target = need()?,
            "source" | "src" => source = need()?,
            "from" => from = Some(need()?),
            "readonly" | "ro" => readonly = Some(flag()?),
            "readwrite" | "rw" => readonly = Some(!flag()?),
            "id" => id = Some(need()?),
            "required" => required = flag()?,
            "env" => env = Some(need()?),
            "size" => size = Some(bytes(&need()?).ok_or_else(|| bad("a size is expected"))?),
            "mode" => mode = Some(u32::from_str_radix(&need()?, 8).map_err(|_| bad("an octal mode is expected"))?),
            "uid" => uid = Some(number(&need()?)?),
            "gid" => gid = Some(number(&need()?)?),
            "sharing" => {
                sharing = match need()?.to_ascii_lowercase().as_str() {
                    "shared" => Sharing::Shared,
                    "private" => Sharing::Private,
                    "locked" => Sharing::Locked,
                    _ => return Err(bad("shared, private and locked are known")),
                }
            }
            other => return Err(format!("unexpected key {other:?} in {field:?}{}", suggestion(other, &KEYS))),
        }
    }
    let base = |path: &str| path.rsplit('/').find(|part| !part.is_empty()).unwrap_or_default().to_owned();
    let (own_uid, own_gid) = (uid.unwrap_or(0), gid.unwrap_or(0));
    let kind = match kind.as_str() {
        "bind" => MountKind::Bind { from, source, writable: readonly == Some(false) },
        "cache" => MountKind::Cache {
            id: id.unwrap_or_else(|| target.clone()),
            sharing,
            from,
            source,
            mode: mode.unwrap_or(0o755),
            uid: own_uid,
            gid: own_gid,
            readonly: readonly == Some(true),
        },
        "tmpfs" => MountKind::Tmpfs { size },
        "secret" => {
            let id = id.or_else(|| Some(base(&source)).filter(|name| !name.is_empty()));
            let id = id.or_else(|| Some(base(&target)).filter(|name| !name.is_empty()));
            let id = id.ok_or("one of source, target required")?;
            if target.is_empty() && env.is_none() {
                target = format!("/run/secrets/{id}");
            }
            MountKind::Secret { id, required, mode: mode.unwrap_or(0o400), uid: own_uid, gid: own_gid, env }
        }
        "ssh" => {
            let id = id.unwrap_or_else(|| "default".to_owned());
            MountKind::Ssh { id, required, mode: mode.unwrap_or(0o600), uid: own_uid, gid: own_gid }
        }
        other => {
            let known = ["bind", "cache", "tmpfs", "secret", "ssh"];
            return Err(format!("unsupported mount type {other:?}{}", suggestion(other, &known)));
        }
    };
    let optional = matches!(kind, MountKind::Secret { .. } | MountKind::Ssh { .. });
    if target.is_empty() && !optional {
        return Err(format!("target required in mount {text:?}"));
    }
    Ok(Mount { kind, target })
}

/// Separated by commas; a field in double quotes may have some of its own.
fn fields(text: &str) -> Vec<String> {
    let (mut fields, mut field, mut quoted) = (Vec::new(), String::new(), false);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.next_if_eq(&'"').is_some() => field.push('"'),
            '"' if quoted || field.is_empty() => quoted = !quoted,
            ',' if !quoted => fields.push(std::mem::take(&mut field)),
            c => field.push(c),
        }
    }
    fields.push(field);
    fields.retain(|field| !field.is_empty());
    fields
}

/// A size as people write it: `64m`, `1gb`, `2GiB`, `512`.
pub fn bytes(text: &str) -> Option<u64> {
    let lower = text.trim().to_ascii_lowercase();
    let lower = lower.strip_suffix('b').unwrap_or(&lower);
    let lower = lower.strip_suffix('i').unwrap_or(lower);
    let (digits, shift) = match lower.chars().last()? {
        'k' => (&lower[..lower.len() - 1], 10),
        'm' => (&lower[..lower.len() - 1], 20),
        'g' => (&lower[..lower.len() - 1], 30),
        't' => (&lower[..lower.len() - 1], 40),
        _ => (lower, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn mounts_are_read() {
        let cache = parse("type=cache,id=x,dst=/c,sharing=locked,mode=0700,uid=5").unwrap();
        let want = MountKind::Cache {
            id: "x".into(),
            sharing: Sharing::Locked,
            from: None,
            source: String::new(),
            mode: 0o700,
            uid: 5,
            gid: 0,
            readonly: false,
        };
        assert_eq!(cache, Mount { kind: want, target: "/c".into() });
        assert_eq!(parse("type=secret,id=key").unwrap().target, "/run/secrets/key");
        assert_eq!(parse("type=secret,id=key,env=KEY").unwrap().target, "");
        assert!(matches!(parse("target=/x,rw").unwrap().kind, MountKind::Bind { writable: true, .. }));
        assert!(matches!(
            parse("type=tmpfs,target=/x,size=64m").unwrap().kind,
            MountKind::Tmpfs { size: Some(67108864) }
        ));
        assert!(parse("type=cach,target=/x").unwrap_err().contains("did you mean cache?"));
        assert!(parse("type=cache").unwrap_err().contains("target required"));
        assert!(parse("type=cache,taget=/x").unwrap_err().contains("did you mean target?"));
    }
}
