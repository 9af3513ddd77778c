//! `dhow token create|list|delete`: the Secrets with which machines join.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::time::Duration;

use anyhow::{Context, Result};
use comfy_table::{Table, presets};
use dhow_base::pki;
use dhow_client::{Client, DeleteParams, HttpsConfig, ListParams};
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::Timestamp;
use serde_json::json;

use super::{connect, kubeconfig_path};
use crate::cli::{ConnectArgs, Output, TokenCommand};
use crate::join::Token;
use crate::place::Place;

const NAMESPACE: &str = "kube-system";
const PREFIX: &str = "bootstrap-token-";
const TYPE: &str = "bootstrap.kubernetes.io/token";
/// What the holder may do: ask for a node's first certificate.
const GROUP: &str = "system:bootstrappers:dhow:default-node-token";
/// Of the line that `dhow up` prints.
const LIFE: Duration = Duration::from_secs(24 * 3600);
/// One with less life left than this is made anew.
const LEFT: Duration = Duration::from_secs(3600);
const PRINTED: &str = "printed by dhow up";

pub async fn run(command: TokenCommand) -> Result<()> {
    match command {
        TokenCommand::Create { connect: args, ttl, description, print_join_command } => {
            let (server, hash) = cluster(&args)?;
            let token = create(&connect(&args)?, &hash, ttl, &description).await?;
            if print_join_command {
                println!("{}", line(&server, &token));
            } else {
                println!("{}", token.text());
            }
            Ok(())
        }
        TokenCommand::List { connect: args, output } => list(&connect(&args)?, output).await,
        TokenCommand::Delete { connect: args, tokens } => {
            let client = connect(&args)?;
            for token in tokens {
                let id = token.parse::<Token>().map_or_else(|_| token.clone(), |token| token.id().to_owned());
                let name = format!("{PREFIX}{id}");
                client
                    .delete::<Secret>(Some(NAMESPACE), &name, &DeleteParams::default())
                    .await
                    .with_context(|| format!("remove token {id}"))?;
                eprintln!("token {id} is removed");
            }
            Ok(())
        }
    }
}

/// `30m`, `24h`, `2h30m`; 0 is for ever.
pub fn parse_life(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let wrong = || format!("{text:?} is no duration such as 90s, 30m or 24h");
    let (mut total, mut number) = (Duration::ZERO, String::new());
    for letter in text.chars() {
        if letter.is_ascii_digit() {
            number.push(letter);
            continue;
        }
        let unit = match letter {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 24 * 3600,
            _ => return Err(wrong()),
        };
        let count: u64 = std::mem::take(&mut number).parse().map_err(|_| wrong())?;
        total += Duration::from_secs(count.checked_mul(unit).ok_or_else(wrong)?);
    }
    if total.is_zero() || !number.is_empty() { Err(wrong()) } else { Ok(total) }
}

/// The server's address, and the digest of its authority's public key.
fn cluster(args: &ConnectArgs) -> Result<(String, String)> {
    let (path, context) = kubeconfig_path(args)?;
    let config = HttpsConfig::from_kubeconfig(&path, context).with_context(|| format!("use {}", path.display()))?;
    let hash = pki::fingerprint(&config.ca_pem).context("read the cluster's authority")?;
    Ok((config.server, hash.trim_start_matches("sha256:").to_owned()))
}

async fn create(client: &Client, hash: &str, life: Duration, description: &str) -> Result<Token> {
    let (id, secret) = (random(6)?, random(16)?);
    let mut data = json!({
        "token-id": id,
        "token-secret": secret,
        "usage-bootstrap-authentication": "true",
        "auth-extra-groups": GROUP,
    });
    if !description.is_empty() {
        data["description"] = json!(description);
    }
    if !life.is_zero() {
        let end = Timestamp::from_second(Timestamp::now().as_second().saturating_add(life.as_secs().try_into()?));
        data["expiration"] = json!(end.context("a life that long cannot be written")?.to_string());
    }
    let secret_object: Secret = serde_json::from_value(json!({
        "metadata": {"name": format!("{PREFIX}{id}"), "namespace": NAMESPACE},
        "type": TYPE,
        "stringData": data,
    }))
    .context("build the token's Secret")?;
    client.create(&secret_object).await.context("make the token")?;
    Ok(Token::new(id, secret, hash.to_owned()))
}

fn random(length: usize) -> Result<String> {
    const LETTERS: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    // The largest multiple of the alphabet's size in a byte: bytes beyond it would favour some letters.
    const FAIR: u8 = 252;
    let mut text = String::with_capacity(length);
    while text.len() < length {
        let mut bytes = [0_u8; 32];
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).context("get random bytes")?;
        let letters =
            bytes.iter().filter(|byte| **byte < FAIR).map(|byte| char::from(LETTERS[usize::from(*byte) % 36]));
        text.extend(letters.take(length - text.len()));
    }
    Ok(text)
}

fn line(server: &str, token: &Token) -> String {
    format!("dhow join {server} --token {}", token.text())
}

/// What a person types on another machine; `None` where nobody could reach this one. A token that cannot be made is no
/// reason to fail.
pub async fn line_after_start(place: &Place) -> Option<String> {
    if place.node_ip.is_loopback() {
        return None;
    }
    let args = ConnectArgs {
        kubeconfig: Some(place.admin_kubeconfig()),
        data_dir: place.data_dir.clone(),
        run_dir: place.run_dir.clone(),
    };
    let made = async {
        let (server, hash) = cluster(&args)?;
        let client = connect(&args)?;
        let held = secrets(&client).await?;
        // A start is no reason for another key to the cluster.
        let token = match held.iter().find_map(|secret| printed(secret, &hash, Timestamp::now())) {
            Some(token) => token,
            None => create(&client, &hash, LIFE, PRINTED).await?,
        };
        anyhow::Ok(line(&server, &token))
    };
    made.await.ok()
}

async fn secrets(client: &Client) -> Result<Vec<Secret>> {
    let scope = ListParams { field_selector: Some(format!("type={TYPE}")), ..ListParams::default() };
    Ok(client.list::<Secret>(Some(NAMESPACE), &scope).await.context("list the tokens")?.items)
}

fn field(secret: &Secret, key: &str) -> String {
    let bytes = secret.data.as_ref().and_then(|data| data.get(key));
    bytes.map(|bytes| String::from_utf8_lossy(&bytes.0).into_owned()).unwrap_or_default()
}

/// The token that an earlier start printed, while it is good for a while yet.
fn printed(secret: &Secret, hash: &str, now: Timestamp) -> Option<Token> {
    let end: Timestamp = field(secret, "expiration").parse().ok()?;
    let lasts = end.as_second() - now.as_second() >= i64::try_from(LEFT.as_secs()).ok()?;
    let ours = field(secret, "description") == PRINTED
        && field(secret, "usage-bootstrap-authentication") == "true"
        && field(secret, "auth-extra-groups") == GROUP;
    let token = Token::new(field(secret, "token-id"), field(secret, "token-secret"), hash.to_owned());
    // What somebody edited into something else is not handed out.
    (lasts && ours && token.text().parse::<Token>().is_ok()).then_some(token)
}

async fn list(client: &Client, output: Output) -> Result<()> {
    let rows: Vec<[String; 3]> = secrets(client)
        .await?
        .iter()
        .map(|secret| ["token-id", "expiration", "description"].map(|key| field(secret, key)))
        .collect();
    let value: Vec<_> =
        rows.iter().map(|[id, end, what]| json!({"id": id, "expires": end, "description": what})).collect();
    match output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&value)?),
        Output::Yaml => print!("{}", serde_saphyr::to_string(&value)?),
        Output::Table => {
            let mut table = Table::new();
            table.load_style(presets::NOTHING).set_header(["ID", "EXPIRES", "DESCRIPTION"]);
            for [id, end, what] in rows {
                table.add_row([id, if end.is_empty() { "never".into() } else { end }, what]);
            }
            println!("{table}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn lives_as_people_write_them() {
        assert_eq!(parse_life("90s").unwrap(), Duration::from_secs(90));
        assert_eq!(parse_life("2h30m").unwrap(), Duration::from_secs(9000));
        assert_eq!(parse_life("0").unwrap(), Duration::ZERO);
        for bad in ["", "5", "h", "1y", "-1h"] {
            assert!(parse_life(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_printed_token_is_printed_again_while_it_lasts() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let hash = "ab".repeat(32);
        let secret = |changes: &[(&str, &str)]| {
            let mut data = std::collections::BTreeMap::from([
                ("token-id", "abcdef"),
                ("token-secret", "0123456789abcdef"),
                ("expiration", "2026-01-01T02:00:00Z"),
                ("description", PRINTED),
                ("usage-bootstrap-authentication", "true"),
                ("auth-extra-groups", GROUP),
            ]);
            data.extend(changes.iter().copied());
            let data = data.into_iter().map(|(key, text)| (key.to_owned(), k8s_openapi::ByteString(text.into())));
            Secret { data: Some(data.collect()), ..Secret::default() }
        };
        let token = printed(&secret(&[]), &hash, now).unwrap();
        assert_eq!(token.text(), format!("K10{hash}::abcdef.0123456789abcdef"));
        for change in [
            ("expiration", "2026-01-01T00:30:00Z"),
            ("expiration", ""),
            ("description", "made by hand"),
            ("usage-bootstrap-authentication", "false"),
            ("auth-extra-groups", "system:bootstrappers:others"),
            ("token-secret", "short"),
        ] {
            assert!(printed(&secret(&[change]), &hash, now).is_none(), "{change:?}");
        }
    }

    #[test]
    fn random_parts_are_of_the_alphabet() {
        let text = random(200).unwrap();
        assert!(text.len() == 200 && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()));
        assert_ne!(text, random(200).unwrap());
    }
}
