//! An issuer's keys: found by discovery, kept, and fetched again when a token names one that is not known.

use dhow_base::chain;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use dhow_client::{Auth, Client, HttpsConfig};
use http::{Request, Uri};
use http_body_util::{BodyExt, Limited};
use jsonwebtoken::DecodingKey;
use jsonwebtoken::jwk::Jwk;
use serde_json::Value;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::config::Source;
use crate::webhook::system_authorities;

/// Unknown keys, which anyone can name, make the issuer be asked this often at most, after a few times at once.
const PAUSE: Duration = Duration::from_secs(10);
const BURST: u32 = 3;
/// What an issuer gets to answer.
const PATIENCE: Duration = Duration::from_secs(10);
const LARGEST: usize = 1 << 20;

pub struct Keys {
    source: Source,
    known: ArcSwap<Vec<Key>>,
    /// Held while the issuer is asked; the time at which the allowance is used up no more.
    settled: Mutex<Instant>,
}

pub struct Key {
    id: Option<String>,
    pub key: DecodingKey,
}

impl Keys {
    pub fn new(source: Source) -> Self {
        Self { source, known: ArcSwap::default(), settled: Mutex::new(Instant::now()) }
    }

    /// The keys that may have signed a token which names `id`.
    pub async fn find(&self, id: Option<&str>) -> Arc<Vec<Key>> {
        let fits = |keys: &[Key]| keys.iter().any(|key| key.fits(id));
        let known = self.known.load_full();
        if fits(&known) {
            return known;
        }
        let mut settled = self.settled.lock().await;
        // Who waited here may find what the one before has fetched.
        let known = self.known.load_full();
        let now = Instant::now();
        if fits(&known) || *settled > now + PAUSE * (BURST - 1) {
            return known;
        }
        *settled = (*settled).max(now) + PAUSE;
        match tokio::time::timeout(PATIENCE, self.fetch()).await.unwrap_or_else(|_| Err("it does not answer".into())) {
            Ok(keys) => {
                let keys = Arc::new(keys);
                self.known.store(keys.clone());
                keys
            }
            Err(error) => {
                tracing::warn!(issuer = self.source.url, error, "cannot fetch the issuer's keys");
                known
            }
        }
    }

    async fn fetch(&self) -> Result<Vec<Key>, String> {
        let source = &self.source;
        let usual = || format!("{}/.well-known/openid-configuration", source.url.trim_end_matches('/'));
        let discovery = self.get(&source.discovery_url.clone().unwrap_or_else(usual)).await?;
        if discovery["issuer"] != source.url.as_str() {
            return Err(format!("its discovery document is of the issuer {}", discovery["issuer"]));
        }
        let set = self.get(discovery["jwks_uri"].as_str().ok_or("its discovery document has no jwks_uri")?).await?;
        let keys = set["keys"].as_array().ok_or("its key set has no keys")?;
        // A key of a kind that is not known here is no reason to do without the others.
        let read = |key: &Value| {
            let jwk: Jwk = serde_json::from_value(key.clone()).ok().filter(|_| key["use"] != "enc")?;
            Some(Key { id: jwk.common.key_id.clone(), key: DecodingKey::from_jwk(&jwk).ok()? })
        };
        Ok(keys.iter().filter_map(read).collect())
    }

    async fn get(&self, url: &str) -> Result<Value, String> {
        let uri: Uri = url.parse().map_err(|error| format!("{url}: {error}"))?;
        let (Some("https"), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(format!("{url} is not an https URL"));
        };
        let ca_pem = match self.source.certificate_authority.as_str() {
            "" => system_authorities(),
            pem => pem.to_owned(),
        };
        let config = HttpsConfig { server: format!("https://{authority}"), ca_pem, auth: Auth::None };
        let client = Client::https(config).map_err(|error| error.to_string())?;
        let request = Request::get(uri.path_and_query().map_or("/", |path| path.as_str()))
            .body(Bytes::new())
            .map_err(|error| error.to_string())?;
        let answer = client.request(request).await.map_err(|error| chain(&error))?;
        if !answer.status().is_success() {
            return Err(format!("{url} answers {}", answer.status()));
        }
        let body = Limited::new(answer.into_body(), LARGEST).collect().await.map_err(|error| error.to_string())?;
        serde_json::from_slice(&body.to_bytes()).map_err(|error| format!("{url}: {error}"))
    }
}

impl Key {
    /// Whether it may be the key of this name; a token or a key without a name fits all.
    pub fn fits(&self, id: Option<&str>) -> bool {
        match (&self.id, id) {
            (Some(own), Some(id)) => own == id,
            _ => true,
        }
    }
}
