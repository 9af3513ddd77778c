//! Kubelet's image credential providers: exec plugins that speak `credentialprovider.kubelet.k8s.io`.
//! <https://kubernetes.io/docs/tasks/administer-cluster/kubelet-credential-provider/>

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::json;

use super::{Auth, match_key, run};
use crate::{Error, Result};

/// The file `--image-credential-provider-config` names.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ProviderConfig {
    api_version: String,
    kind: String,
    providers: Vec<Provider>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Provider {
    name: String,
    match_images: Vec<String>,
    default_cache_duration: String,
    api_version: String,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: Vec<Variable>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Variable {
    name: String,
    value: String,
}

/// The providers in the order of their file, and what they answered lately.
pub struct Providers {
    bin_dir: PathBuf,
    providers: Vec<(Provider, Duration)>,
    cache: Mutex<HashMap<String, Cached>>,
}

struct Cached {
    until: Instant,
    auth: BTreeMap<String, Auth>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    kind: String,
    #[serde(default)]
    cache_key_type: String,
    #[serde(default)]
    cache_duration: Option<String>,
    #[serde(default)]
    auth: BTreeMap<String, Pair>,
}

#[derive(Deserialize)]
struct Pair {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
}

impl Providers {
    /// Reads a CredentialProviderConfig (YAML or JSON); the plugins are programs in `bin_dir`.
    pub fn read(config: &Path, bin_dir: &Path) -> Result<Self> {
        let bad = |message: String| Error::Config(format!("{}: {message}", config.display()));
        let text = std::fs::read_to_string(config).map_err(|e| bad(e.to_string()))?;
        let parsed: ProviderConfig = serde_saphyr::from_str(&text).map_err(|e| bad(e.to_string()))?;
        let known = parsed.api_version.strip_prefix("kubelet.config.k8s.io/");
        if parsed.kind != "CredentialProviderConfig" || !known.is_some_and(supported) {
            return Err(bad("not a CredentialProviderConfig of kubelet.config.k8s.io/v1".to_owned()));
        }
        let mut providers = Vec::new();
        for provider in parsed.providers {
            if provider.name.contains('/') || matches!(provider.name.as_str(), "" | "." | "..") {
                return Err(bad(format!("{:?} is not a file name", provider.name)));
            }
            if !provider.api_version.strip_prefix("credentialprovider.kubelet.k8s.io/").is_some_and(supported) {
                return Err(bad(format!(
                    "provider {}: unsupported apiVersion {}",
                    provider.name, provider.api_version
                )));
            }
            if provider.match_images.is_empty() {
                return Err(bad(format!("provider {}: matchImages is required", provider.name)));
            }
            let keep = duration(&provider.default_cache_duration)
                .ok_or_else(|| bad(format!("provider {}: malformed defaultCacheDuration", provider.name)))?;
            providers.push((provider, keep));
        }
        Ok(Self { bin_dir: bin_dir.to_owned(), providers, cache: Mutex::default() })
    }

    /// The most specific credentials that any provider has for `image` (`host[:port]/path`).
    pub async fn find(&self, image: &str) -> Result<Option<Auth>> {
        let mut best: Option<(usize, Auth)> = None;
        for (provider, keep) in &self.providers {
            if !provider.match_images.iter().any(|pattern| match_key(pattern, image).is_some()) {
                continue;
            }
            for (key, auth) in self.ask(provider, *keep, image).await? {
                if let Some(specific) = match_key(&key, image)
                    && best.as_ref().is_none_or(|(known, _)| specific > *known)
                {
                    best = Some((specific, auth));
                }
            }
        }
        Ok(best.map(|(_, auth)| auth))
    }

    async fn ask(&self, provider: &Provider, keep: Duration, image: &str) -> Result<BTreeMap<String, Auth>> {
        let host = image.split('/').next().unwrap_or(image);
        // An answer is kept for the image, the registry or everything, as the plugin says.
        let key = |scope: &str| format!("{}\n{scope}", provider.name);
        let keys = [key(image), key(host), key("")];
        {
            let mut cache = self.cache.lock();
            let now = Instant::now();
            cache.retain(|_, cached| cached.until > now);
            if let Some(cached) = keys.iter().find_map(|key| cache.get(key)) {
                return Ok(cached.auth.clone());
            }
        }
        let program = self.bin_dir.join(&provider.name);
        let mut command = tokio::process::Command::new(&program);
        command.args(&provider.args).envs(provider.env.iter().map(|v| (&v.name, &v.value)));
        let request = json!({"apiVersion": provider.api_version, "kind": "CredentialProviderRequest", "image": image})
            .to_string();
        let name = program.display().to_string();
        let (good, out, complaint) = run(command, &name, request.as_bytes()).await?;
        if !good {
            return Err(Error::Credentials(format!("credential provider {name} failed: {complaint}")));
        }
        let answer: Answer = serde_json::from_slice(&out)
            .map_err(|e| Error::Credentials(format!("credential provider {name}: malformed answer: {e}")))?;
        if answer.kind != "CredentialProviderResponse" {
            return Err(Error::Credentials(format!("credential provider {name} answered a {}", answer.kind)));
        }
        let auth: BTreeMap<String, Auth> = answer
            .auth
            .into_iter()
            .map(|(key, pair)| (key, Auth::Basic { username: pair.username, password: pair.password }))
            .collect();
        let keep = match answer.cache_duration.as_deref() {
            Some(text) => duration(text)
                .ok_or_else(|| Error::Credentials(format!("credential provider {name}: malformed cacheDuration")))?,
            None => keep,
        };
        let [image_key, host_key, global_key] = keys;
        let key = match answer.cache_key_type.as_str() {
            "Image" => image_key,
            "Registry" => host_key,
            "Global" => global_key,
            other => {
                return Err(Error::Credentials(format!("credential provider {name}: unknown cacheKeyType {other:?}")));
            }
        };
        if !keep.is_zero() {
            self.cache.lock().insert(key, Cached { until: Instant::now() + keep, auth: auth.clone() });
        }
        Ok(auth)
    }
}

fn supported(version: &str) -> bool {
    matches!(version, "v1" | "v1beta1" | "v1alpha1")
}

/// Go's notation: `1h30m`, `90s`, `1.5h`, `0`.
pub fn duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    Duration::try_from_secs_f64(dhow_base::duration::go_seconds(text)?).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn durations_as_go_writes_them() {
        assert_eq!(duration("1h30m"), Some(Duration::from_secs(5400)));
        assert_eq!(duration("1.5s"), Some(Duration::from_millis(1500)));
        assert_eq!(duration("0"), Some(Duration::ZERO));
        assert_eq!((duration(""), duration("5"), duration("x")), (None, None, None));
    }

    #[tokio::test]
    async fn asks_the_plugin_once_as_long_as_it_says() {
        let dir = tempfile::tempdir().unwrap();
        let plugin = dir.path().join("plugin");
        let script = format!(
            r#"#!/bin/sh
cat >{0}/request; echo x >>{0}/count; test "$1-$MODE" = get-test || exit 1
echo '{{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1","cacheKeyType":"Registry",
"cacheDuration":"1m","auth":{{"*.test.io":{{"username":"u","password":"low"}},"a.test.io/team":{{"username":"u","password":"p"}}}}}}'
"#,
            dir.path().display()
        );
        std::fs::write(&plugin, script).unwrap();
        std::fs::set_permissions(&plugin, std::fs::Permissions::from_mode(0o755)).unwrap();
        let config = dir.path().join("config.yaml");
        let text = "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n- name: plugin\n  \
                    matchImages: ['*.test.io']\n  defaultCacheDuration: 0s\n  apiVersion: credentialprovider.kubelet.k8s.io/v1\n  \
                    args: [get]\n  env: [{name: MODE, value: test}]\n";
        std::fs::write(&config, text).unwrap();
        let providers = Providers::read(&config, dir.path()).unwrap();
        let wanted = Auth::Basic { username: "u".into(), password: "p".into() };
        assert!(providers.find("a.test.io/team/app").await.unwrap() == Some(wanted));
        assert!(providers.find("a.test.io/other").await.unwrap().is_some());
        assert!(providers.find("other.io/app").await.unwrap().is_none());
        assert_eq!(std::fs::read_to_string(dir.path().join("count")).unwrap(), "x\n");
        let request = std::fs::read_to_string(dir.path().join("request")).unwrap();
        assert!(request.contains(r#""image":"a.test.io/team/app""#), "{request}");
        std::fs::write(&config, text.replace("args", "arguments")).unwrap();
        assert!(Providers::read(&config, dir.path()).is_err());
    }
}
