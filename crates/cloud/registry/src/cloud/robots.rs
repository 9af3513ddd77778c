//! Robots' secrets: made once, put into a Secret, and kept here as a hash.
//!
//! The Secret comes first, and only then the hash that lets it in: who creates it of several servers is the one whose
//! secret counts, and a server that is killed in between goes on with what it finds.

use std::collections::BTreeMap;

use base64::Engine as _;
use dhow_client::{Client, Error, Informer, Key, Outcome, Patch, Reconcile, controller_reference, is_controlled_by};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use ring::rand::SecureRandom;
use serde_json::{Value, json};

use super::condition;
use super::kinds::{RobotAccount, RobotStatus, login_name};
use crate::projects::hash_secret;

const CONFIG: &str = ".dockerconfigjson";
/// Which rotation the Secret's credentials are of.
const ROTATION: &str = "registry.dhow.io/rotation";

pub struct Robots {
    pub client: Client,
    pub robots: Informer<RobotAccount>,
    /// What references call the registry.
    pub hosts: Vec<String>,
}

/// Why a robot has no secret.
struct Refusal {
    reason: &'static str,
    message: String,
}

#[async_trait::async_trait]
impl Reconcile for Robots {
    fn name(&self) -> &'static str {
        "registry-robots"
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let Some(robot) = self.robots.get(key) else { return Ok(Outcome::Done) };
        if robot.metadata.deletion_timestamp.is_some() {
            return Ok(Outcome::Done);
        }
        let old = robot.status.clone().unwrap_or_default();
        let mut status = RobotStatus { observed_generation: robot.metadata.generation, ..old.clone() };
        status.user_name = Some(login_name(key.namespace().unwrap_or_default(), &key.name));
        let current = old.secret_hash.is_some() && old.rotation.as_ref() == Some(&robot.spec.rotation);
        let made = match current {
            true => Ok(None),
            false => self.secret(&robot).await?.map(Some),
        };
        let verdict = match &made {
            Ok(made) => {
                if let Some(secret) = made {
                    status.secret_hash = Some(hex(&hash_secret(secret)));
                    status.rotation = Some(robot.spec.rotation.clone());
                }
                Ok("its secret is made")
            }
            Err(refusal) => Err((refusal.reason, refusal.message.as_str())),
        };
        status.conditions = vec![condition("Ready", verdict, &old.conditions)];
        if status != old {
            let patch = Patch::Merge(json!({
                "metadata": {"resourceVersion": robot.metadata.resource_version}, "status": status,
            }));
            match self.client.patch::<RobotAccount>(key.namespace(), &key.name, patch, Some("status")).await {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        Ok(Outcome::Done)
    }
}

impl Robots {
    /// The robot's secret of its rotation, as its Secret has it from now on.
    async fn secret(&self, robot: &RobotAccount) -> Result<Result<String, Refusal>, Error> {
        let namespace = robot.metadata.namespace.as_deref();
        let robot_name = robot.metadata.name.as_deref().unwrap_or_default();
        let name = robot.spec.secret_name.as_deref().unwrap_or(robot_name);
        let user = login_name(namespace.unwrap_or_default(), robot_name);
        let known = match self.client.get::<Secret>(namespace, name).await {
            Ok(secret) => Some(secret),
            Err(error) if error.is_not_found() => None,
            Err(error) => return Err(error),
        };
        if let Some(secret) = &known {
            if !is_controlled_by(&secret.metadata, robot) {
                let message = format!("the Secret {name} is there already and not this robot's");
                return Ok(Err(Refusal { reason: "SecretTaken", message }));
            }
            let rotation = secret.metadata.annotations.as_ref().and_then(|all| all.get(ROTATION));
            if rotation == Some(&robot.spec.rotation)
                && let Some(found) = password(secret, &user)
            {
                return Ok(Ok(found));
            }
        }
        let Some(fresh) = random() else {
            let message = "the system has no random numbers".to_owned();
            return Ok(Err(Refusal { reason: "NoRandomness", message }));
        };
        let annotations = BTreeMap::from([(ROTATION.to_owned(), robot.spec.rotation.clone())]);
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                namespace: namespace.map(str::to_owned),
                annotations: Some(annotations),
                owner_references: Some(vec![controller_reference(robot)]),
                // Fails if it changed meanwhile.
                resource_version: known.as_ref().and_then(|secret| secret.metadata.resource_version.clone()),
                ..ObjectMeta::default()
            },
            type_: Some("kubernetes.io/dockerconfigjson".to_owned()),
            data: Some(BTreeMap::from([(CONFIG.to_owned(), ByteString(self.config(&user, &fresh)))])),
            ..Secret::default()
        };
        match known {
            Some(_) => self.client.update(&secret).await?,
            None => self.client.create(&secret).await?,
        };
        Ok(Ok(fresh))
    }

    /// As `docker login` writes it.
    fn config(&self, user: &str, password: &str) -> Vec<u8> {
        let auth = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
        let entry = json!({"username": user, "password": password, "auth": auth});
        let auths: BTreeMap<&String, &Value> = self.hosts.iter().map(|host| (host, &entry)).collect();
        json!({ "auths": auths }).to_string().into_bytes()
    }
}

/// The password that a Secret has for this user.
fn password(secret: &Secret, user: &str) -> Option<String> {
    let config: Value = serde_json::from_slice(&secret.data.as_ref()?.get(CONFIG)?.0).ok()?;
    let entry = config["auths"].as_object()?.values().find(|entry| entry["username"] == user)?;
    entry["password"].as_str().map(str::to_owned)
}

/// 256 bits that nobody guesses, in letters that need no quotes.
fn random() -> Option<String> {
    let mut bytes = [0; 32];
    ring::rand::SystemRandom::new().fill(&mut bytes).ok()?;
    Some(base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
