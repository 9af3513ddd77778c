//! The registry's own bearer tokens: what a client may do where, for some minutes, signed with a key that all servers of
//! one registry share.

use std::time::SystemTime;

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use ring::rand::SecureRandom;
use serde::{Deserialize, Serialize};

use crate::access::{Actions, User};
use crate::catalog::{Catalog, seconds};
use crate::{Config, Error, Result};

/// Seconds.
const REFRESH_LIFETIME: u64 = 3600;
/// Bytes of groups' names.
const MAX_GROUPS: usize = 4 << 10;

#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    iss: String,
    aud: String,
    /// Empty for nobody in particular.
    sub: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    groups: Vec<String>,
    /// Whether it is no key to the registry but one to further tokens.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    refresh: bool,
    iat: u64,
    exp: u64,
    access: Vec<Grant>,
}

/// As the token specification has it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Grant {
    #[serde(rename = "type")]
    pub kind: String,
    pub name: String,
    pub actions: Vec<String>,
}

/// What a token says, once believed.
#[derive(Debug)]
pub struct Granted {
    pub user: Option<User>,
    grants: Vec<Grant>,
}

impl Granted {
    pub fn actions(&self, repository: &str) -> Actions {
        let ours = self.grants.iter().filter(|grant| grant.kind == "repository" && grant.name == repository);
        ours.fold(Actions::NONE, |all, grant| all.or(Actions::from_words(grant.actions.iter().map(String::as_str))))
    }
}

pub struct Tokens {
    service: String,
    lifetime: u64,
    sign: EncodingKey,
    verify: DecodingKey,
    validation: Validation,
}

impl Tokens {
    pub async fn load(catalog: &Catalog, config: &Config) -> Result<Self> {
        let mut fresh = [0u8; 32];
        let random = ring::rand::SystemRandom::new();
        random.fill(&mut fresh).map_err(|_| Error::Internal("the system gives no random bytes".to_owned()))?;
        let key = catalog.token_key(&fresh).await?;
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_audience(&[&config.service]);
        validation.set_issuer(&[&config.service]);
        validation.leeway = 5;
        Ok(Self {
            service: config.service.clone(),
            lifetime: config.token_lifetime.as_secs(),
            sign: EncodingKey::from_secret(&key),
            verify: DecodingKey::from_secret(&key),
            validation,
        })
    }

    /// The token, its lifetime in seconds and when that begins.
    pub fn issue(&self, user: Option<&User>, access: Vec<Grant>) -> Result<(String, u64, i64)> {
        let now = seconds(SystemTime::now());
        let token = self.sign(user, access, (now, self.lifetime), false)?;
        Ok((token, self.lifetime, i64::try_from(now).unwrap_or(i64::MAX)))
    }

    /// What stands for this user's credentials for an hour, where these cannot be sent again.
    pub fn issue_refresh(&self, user: &User) -> Result<String> {
        self.sign(Some(user), Vec::new(), (seconds(SystemTime::now()), REFRESH_LIFETIME), true)
    }

    fn sign(&self, user: Option<&User>, access: Vec<Grant>, life: (u64, u64), refresh: bool) -> Result<String> {
        let mut groups = user.map(|user| user.groups.clone()).unwrap_or_default();
        // It has to fit into a header; who is in so many groups gives blobs from one repository to another less easily.
        if groups.iter().map(String::len).sum::<usize>() > MAX_GROUPS && !refresh {
            groups.clear();
        }
        let claims = Claims {
            iss: self.service.clone(),
            aud: self.service.clone(),
            sub: user.map(|user| user.name.clone()).unwrap_or_default(),
            groups,
            refresh,
            iat: life.0,
            exp: life.0 + life.1,
            access,
        };
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &self.sign)
            .map_err(|error| Error::Internal(format!("sign a token: {error}")))
    }

    /// `None`: not ours, or no longer good.
    pub fn read(&self, token: &str) -> Option<Granted> {
        let claims = self.claims(token).filter(|claims| !claims.refresh)?;
        let user = (!claims.sub.is_empty()).then_some(User { name: claims.sub, groups: claims.groups });
        Some(Granted { user, grants: claims.access })
    }

    /// Whom a token of [`Tokens::issue_refresh`] stands for.
    pub fn read_refresh(&self, token: &str) -> Option<User> {
        let claims = self.claims(token).filter(|claims| claims.refresh)?;
        Some(User { name: claims.sub, groups: claims.groups })
    }

    fn claims(&self, token: &str) -> Option<Claims> {
        Some(jsonwebtoken::decode::<Claims>(token, &self.verify, &self.validation).ok()?.claims)
    }
}

/// One scope of a token request: `repository:some/name:pull,push`. A class in brackets after the type is ignored.
pub fn scope(text: &str) -> Option<(String, String, Actions)> {
    let (kind, rest) = text.split_once(':')?;
    let (name, actions) = rest.rsplit_once(':')?;
    let kind = kind.split('(').next().unwrap_or(kind);
    Some((kind.to_owned(), name.to_owned(), Actions::from_words(actions.split(','))))
}
