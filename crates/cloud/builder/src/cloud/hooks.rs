//! What hosts of repositories say when somebody pushed, and how it is known that it is them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use ring::hmac;
use serde_json::Value;

use super::kinds::WebhookKind;
use crate::glob::Glob;

/// Longest text that is kept of a commit's message.
const SUBJECT: usize = 200;

/// What Gitea and its kin call the signature and the event.
const GITEA: [[&str; 2]; 3] = [
    ["x-gitea-signature", "x-gitea-event"],
    ["x-forgejo-signature", "x-forgejo-event"],
    ["x-gogs-signature", "x-gogs-event"],
];

/// What a delivery says.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    Push(Push),
    /// Nothing that a build is run for, and why.
    Nothing(&'static str),
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Push {
    /// A branch, or `tags/` and a tag; empty if it is not said.
    pub reference: String,
    pub commit: String,
    pub subject: String,
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// Whether the sender knows the secret. Takes the same time for every wrong proof.
pub fn is_proven(kind: WebhookKind, secret: &[u8], headers: &HeaderMap, body: &[u8]) -> bool {
    // A Secret's trailing line break is nobody's secret.
    let secret = secret.trim_ascii();
    if secret.is_empty() {
        return false;
    }
    let signed = |hex: &str| {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
        unhex(hex).is_some_and(|tag| hmac::verify(&key, body, &tag).is_ok())
    };
    let with_prefix = |name: &str| header(headers, name).strip_prefix("sha256=").is_some_and(signed);
    match kind {
        WebhookKind::GitHub => with_prefix("x-hub-signature-256"),
        WebhookKind::Gitea => {
            GITEA.iter().any(|[signature, _]| signed(header(headers, signature))) || with_prefix("x-hub-signature-256")
        }
        WebhookKind::GitLab => {
            same(secret, header(headers, "x-gitlab-token").as_bytes()) || is_standard(secret, headers, body)
        }
        WebhookKind::Generic => {
            // What stands in `Authorization` is for the API server.
            same(secret, header(headers, "x-build-token").as_bytes())
                || with_prefix("x-hub-signature-256")
                || is_standard(secret, headers, body)
        }
    }
}

/// As the specification Standard Webhooks has it, which GitLab's signing tokens follow: signed are the delivery's id, its time and the body. What
/// is told again is known by its body.
fn is_standard(secret: &[u8], headers: &HeaderMap, body: &[u8]) -> bool {
    let of = |name: &str| header(headers, name);
    let signed = [of("webhook-id").as_bytes(), b".", of("webhook-timestamp").as_bytes(), b".", body].concat();
    let plain = secret.strip_prefix(b"whsec_").unwrap_or(secret);
    let keys = [STANDARD.decode(plain).ok(), Some(secret.to_vec())];
    let mut tags = of("webhook-signature").split(' ').filter_map(|one| STANDARD.decode(one.strip_prefix("v1,")?).ok());
    tags.any(|tag| {
        let keys = keys.iter().flatten().filter(|key| !key.is_empty());
        keys.into_iter().any(|key| hmac::verify(&hmac::Key::new(hmac::HMAC_SHA256, key), &signed, &tag).is_ok())
    })
}

/// Compares what is said with a secret without telling by the time how much of it is right.
fn same(secret: &[u8], said: &[u8]) -> bool {
    let key = hmac::Key::new(hmac::HMAC_SHA256, b"compare");
    hmac::verify(&key, said, hmac::sign(&key, secret).as_ref()).is_ok()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let fine = text.len() == 64 && text.is_ascii();
    fine.then(|| (0..32).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()).collect())?
}

/// Reads a delivery whose sender is known.
///
/// # Errors
/// With what is not understood.
pub fn read(kind: WebhookKind, headers: &HeaderMap, body: &[u8]) -> Result<Said, String> {
    let event = match kind {
        WebhookKind::GitHub => header(headers, "x-github-event"),
        WebhookKind::Gitea => {
            let named = GITEA.iter().map(|[_, event]| header(headers, event));
            named.into_iter().find(|event| !event.is_empty()).unwrap_or_default()
        }
        WebhookKind::GitLab => header(headers, "x-gitlab-event"),
        WebhookKind::Generic => "push",
    };
    if !matches!(event, "push" | "Push Hook" | "Tag Push Hook") {
        return Ok(Said::Nothing("it is no push"));
    }
    let form = header(headers, "content-type").starts_with("application/x-www-form-urlencoded");
    let payload = if form && kind != WebhookKind::Generic {
        payload(body).ok_or("no payload in the form")?
    } else {
        body.to_vec()
    };
    if kind == WebhookKind::Generic && payload.trim_ascii().is_empty() {
        return Ok(Said::Push(Push::default()));
    }
    let said: Value = serde_json::from_slice(&payload).map_err(|error| format!("the payload is no JSON: {error}"))?;
    let text = |pointer: &str| said.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let whole = |commit: &str| matches!(commit.len(), 40 | 64) && commit.bytes().all(|b| b.is_ascii_hexdigit());
    let is_tag = text("/ref").starts_with("refs/tags/");
    let commit = match kind {
        WebhookKind::GitLab if !text("/checkout_sha").is_empty() => text("/checkout_sha"),
        // `after` is the tag itself there, if it has a message.
        WebhookKind::GitHub | WebhookKind::Gitea if is_tag && whole(text("/head_commit/id")) => text("/head_commit/id"),
        WebhookKind::Generic => text("/commit"),
        _ => text("/after"),
    };
    if said["deleted"] == true || !commit.is_empty() && commit.bytes().all(|b| b == b'0') {
        return Ok(Said::Nothing("a branch or tag was deleted"));
    }
    let is_plain = kind == WebhookKind::Generic && commit.is_empty();
    if !is_plain && !whole(commit) {
        return Err(format!("{:?} is no commit", commit.chars().take(80).collect::<String>()));
    }
    let reference = text("/ref");
    let reference = match reference.strip_prefix("refs/heads/") {
        Some(branch) => branch.to_owned(),
        None => reference.strip_prefix("refs/").unwrap_or(reference).to_owned(),
    };
    if reference.is_empty() && kind != WebhookKind::Generic {
        return Err("the payload names no branch or tag".to_owned());
    }
    let last = said["commits"].as_array().into_iter().flatten().find(|one| one["id"] == commit);
    let message = match text("/head_commit/message") {
        "" => last.and_then(|one| one["message"].as_str()).unwrap_or_default(),
        said => said,
    };
    let subject = message.lines().next().unwrap_or_default().chars().take(SUBJECT).collect();
    Ok(Said::Push(Push { reference, commit: commit.to_owned(), subject }))
}

/// The `payload` of a form.
fn payload(body: &[u8]) -> Option<Vec<u8>> {
    let found = form_urlencoded::parse(body).find(|(name, _)| name == "payload")?;
    Some(found.1.into_owned().into_bytes())
}

/// Whether a push is one that the build is run for.
pub fn is_wanted(refs: &[String], own: &str, push: &Push) -> bool {
    let of = |pattern: &str| {
        let pattern = pattern.strip_prefix("refs/heads/").or(pattern.strip_prefix("refs/")).unwrap_or(pattern);
        push.reference == pattern || Glob::new(pattern, true).is_ok_and(|glob| glob.matches(&push.reference))
    };
    match (push.reference.is_empty(), refs.is_empty(), own.is_empty()) {
        // A plain request to build.
        (true, ..) => true,
        (_, false, _) => refs.iter().any(|pattern| of(pattern)),
        (_, true, false) => of(own) || push.reference == format!("tags/{own}"),
        (_, true, true) => !push.reference.starts_with("tags/"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    const COMMIT: &str = "9049f1265b7d61be4a8904a9a27120d2064dab3b";

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pairs =
            pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_str(value).unwrap()));
        pairs.collect()
    }

    #[test]
    fn senders_prove_themselves() {
        use WebhookKind::{Generic, GitHub, GitLab, Gitea};
        // GitHub's own example of a signature.
        let (secret, body) = (b"It's a Secret to Everybody".as_slice(), b"Hello, World!".as_slice());
        let hex = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
        let long = format!("sha256={hex}");
        let token = String::from_utf8_lossy(secret).into_owned();
        for (kind, name, value) in [
            (GitHub, "x-hub-signature-256", long.as_str()),
            (Gitea, "x-gitea-signature", hex),
            (Gitea, "x-hub-signature-256", &long),
            (Gitea, "x-forgejo-signature", hex),
            (Gitea, "x-gogs-signature", hex),
            (GitLab, "x-gitlab-token", &token),
            (Generic, "x-build-token", &token),
            (Generic, "x-hub-signature-256", &long),
        ] {
            let right = headers(&[(name, value)]);
            assert!(is_proven(kind, secret, &right, body), "{kind:?} {name}");
            assert!(is_proven(kind, b"It's a Secret to Everybody\n", &right, body), "{kind:?} {name}");
            assert!(!is_proven(kind, b"another", &right, body), "{kind:?} {name}");
            assert!(!is_proven(kind, b"", &right, body) && !is_proven(kind, secret, &headers(&[]), body));
        }
        assert!(!is_proven(GitHub, secret, &headers(&[("x-hub-signature-256", &long)]), b"Hello, World?"));
        assert!(!is_proven(GitHub, secret, &headers(&[("x-hub-signature-256", "sha256=é")]), body));
    }

    /// The specification's own example.
    #[test]
    fn standard_webhooks_are_proven() {
        use WebhookKind::{Generic, GitHub, GitLab};
        let (secret, body) =
            (b"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".as_slice(), br#"{"test": 2432232314}"#.as_slice());
        let told = |signature: &str| {
            headers(&[
                ("webhook-id", "msg_p5jXN8AQM9LWM0D4loKWxJek"),
                ("webhook-timestamp", "1614265330"),
                ("webhook-signature", signature),
            ])
        };
        let right = told("v1,AAAA v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        for kind in [GitLab, Generic] {
            assert!(is_proven(kind, secret, &right, body), "{kind:?}");
            assert!(!is_proven(kind, secret, &right, b"{}") && !is_proven(kind, b"whsec_AAAA", &right, body));
            assert!(!is_proven(kind, secret, &told("v1,"), body) && !is_proven(kind, secret, &told(""), body));
        }
        assert!(!is_proven(GitHub, secret, &right, body));
    }

    #[test]
    fn deliveries_are_read_in_their_senders_words() {
        use WebhookKind::{Generic, GitHub, GitLab, Gitea};
        let push = |reference: &str, subject: &str| {
            Said::Push(Push { reference: reference.into(), commit: COMMIT.into(), subject: subject.into() })
        };
        let github = format!(
            r#"{{"ref": "refs/heads/main", "after": "{COMMIT}", "head_commit": {{"message": "Fix\n\nmore"}}}}"#
        );
        let event = headers(&[("x-github-event", "push")]);
        assert_eq!(read(GitHub, &event, github.as_bytes()).unwrap(), push("main", "Fix"));
        let form = headers(&[("x-github-event", "push"), ("content-type", "application/x-www-form-urlencoded")]);
        let encoded: String = form_urlencoded::Serializer::new(String::new()).append_pair("payload", &github).finish();
        assert_eq!(read(GitHub, &form, encoded.as_bytes()).unwrap(), push("main", "Fix"));
        let gitlab = format!(
            r#"{{"ref": "refs/tags/v1", "checkout_sha": "{COMMIT}", "after": "82b3", "commits": [{{"id": "{COMMIT}", "message": "Tag"}}]}}"#
        );
        let event = headers(&[("x-gitlab-event", "Tag Push Hook")]);
        assert_eq!(read(GitLab, &event, gitlab.as_bytes()).unwrap(), push("tags/v1", "Tag"));
        let tagged = format!(
            r#"{{"ref": "refs/tags/v1", "after": "{}", "head_commit": {{"id": "{COMMIT}", "message": "Fix"}}}}"#,
            "1".repeat(40)
        );
        let event = headers(&[("x-github-event", "push")]);
        assert_eq!(read(GitHub, &event, tagged.as_bytes()).unwrap(), push("tags/v1", "Fix"));
        let event = headers(&[("x-gogs-event", "push")]);
        assert_eq!(read(Gitea, &event, github.as_bytes()).unwrap(), push("main", "Fix"));
        let gone = format!(r#"{{"ref": "refs/heads/x", "after": "{}"}}"#, "0".repeat(40));
        let event = headers(&[("x-gitea-event", "push")]);
        assert!(matches!(read(Gitea, &event, gone.as_bytes()), Ok(Said::Nothing(_))));
        let other = headers(&[("x-github-event", "ping")]);
        assert!(matches!(read(GitHub, &other, b"{}"), Ok(Said::Nothing(_))));
        assert_eq!(read(Generic, &headers(&[]), b"").unwrap(), Said::Push(Push::default()));
        let event = headers(&[("x-github-event", "push")]);
        for bad in ["", "[]", r#"{"ref": "refs/heads/main", "after": "--upload-pack=x"}"#] {
            assert!(read(GitHub, &event, bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn pushes_are_wanted_by_their_ref() {
        let wanted = |refs: &[&str], own: &str, reference: &str| {
            let refs: Vec<String> = refs.iter().map(|&one| one.to_owned()).collect();
            is_wanted(&refs, own, &Push { reference: reference.to_owned(), ..Push::default() })
        };
        assert!(wanted(&[], "main", "main") && !wanted(&[], "main", "other"));
        assert!(wanted(&[], "", "any") && !wanted(&[], "", "tags/v1"));
        assert!(wanted(&["release-*", "tags/v*"], "main", "tags/v1"));
        assert!(!wanted(&["release-*"], "main", "main"));
        assert!(wanted(&["refs/heads/main"], "", "main"));
        assert!(wanted(&["release-*"], "main", ""));
    }
}
