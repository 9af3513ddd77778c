//! Keeps the zones as their objects are: builds, serves, tells secondaries, and writes what became of it into the status.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use dhow_api::conditions;
use dhow_client::{Client, Error, Informer, Key, ListParams, Object, Patch};
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use serde_json::json;
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;

use super::build::{Built, Inputs, Refusal, build, missing_glue};
use super::dnssec::ZoneKey;
use super::kinds::{Record, RecordStatus, Zone as ZoneObject, ZoneStatus};
use super::notify;
use super::tsig::TsigKey;
use super::zone::Zone;
use crate::ZonesConfig;
use crate::answer::{View, unix_time};
use crate::name::WireName;

/// Signatures are looked at so often, whatever happens.
const REVIEW: Duration = Duration::from_secs(3 * 3600);
/// After a status that could not be written.
const RETRY: Duration = Duration::from_secs(5);
const KEY: &str = "key.pkcs8";
const ACCEPTED: &str = "Accepted";

pub struct Keeper {
    client: Client,
    view: Arc<View>,
    config: ZonesConfig,
    zones: Informer<ZoneObject>,
    records: Informer<Record>,
    secrets: Informer<Secret>,
    changed: Arc<Notify>,
    /// What is served, by the object's name.
    served: HashMap<String, Arc<Zone>>,
    /// Keys that were made here, until the watch has them.
    made: HashMap<String, Vec<u8>>,
}

/// What became of one object.
struct Verdict {
    zone: Arc<ZoneObject>,
    built: Result<Built, Refusal>,
    ds: Option<String>,
    records: Vec<Arc<Record>>,
}

impl Keeper {
    pub fn start(client: Client, view: Arc<View>, config: ZonesConfig, shutdown: &CancellationToken) -> Self {
        let all = ListParams::default;
        let zones = Informer::<ZoneObject>::start(client.clone(), all(), None, shutdown.clone());
        let records = Informer::<Record>::start(client.clone(), all(), None, shutdown.clone());
        let secrets = Informer::<Secret>::start(client.clone(), all(), Some(&config.namespace), shutdown.clone());
        let changed = Arc::new(Notify::new());
        let tell = |changed: &Arc<Notify>| {
            let changed = Arc::clone(changed);
            move || changed.notify_one()
        };
        let (a, b, c) = (tell(&changed), tell(&changed), tell(&changed));
        zones.on_change(move |_| a());
        records.on_change(move |_| b());
        secrets.on_change(move |_| c());
        let (served, made) = Default::default();
        Self { client, view, config, zones, records, secrets, changed, served, made }
    }

    /// Returns once all objects are known.
    pub async fn synced(&self) {
        self.zones.synced().await;
        self.records.synced().await;
        self.secrets.synced().await;
    }

    /// Keeps on until shut down; tells `served` once everything is served for the first time.
    pub async fn run(mut self, shutdown: CancellationToken, served: oneshot::Sender<()>) {
        let mut served = Some(served);
        loop {
            let complete = self.review().await;
            if let Some(served) = served.take() {
                let _ = served.send(());
            }
            let pause = if complete { REVIEW } else { RETRY };
            tokio::select! {
                () = self.changed.notified() => {}
                () = tokio::time::sleep(pause) => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    /// Returns whether all of it could be written down.
    async fn review(&mut self) -> bool {
        let mut objects = self.zones.list();
        let created = |zone: &ZoneObject| zone.metadata.creation_timestamp.as_ref().map(|time| time.0);
        objects.sort_by(|a, b| (created(a), &a.metadata.name).cmp(&(created(b), &b.metadata.name)));
        let mut records = self.records.list();
        // Of two that cannot both be, the older is.
        let age = |record: &Record| record.metadata.creation_timestamp.as_ref().map(|time| time.0);
        records.sort_by_key(|record| age(record));
        let mut complete = true;
        let (mut claimed, mut verdicts) = (HashSet::new(), Vec::new());
        for object in objects {
            let origin = WireName::parse(&object.spec.origin);
            let taken = origin.is_some_and(|origin| !claimed.insert(origin.as_bytes().to_vec()));
            let key = match object.spec.dnssec.enabled && !taken {
                true => match self.zone_key(object.metadata.name.as_deref().unwrap_or_default()).await {
                    Ok(key) => Some(key),
                    Err(error) => {
                        tracing::warn!(zone = object.metadata.name, %error, "cannot get the key of a signed zone");
                        complete = false;
                        // Unsigned it would be worse than as it was.
                        continue;
                    }
                },
                false => None,
            };
            verdicts.push(self.judge(object, origin, taken, key.as_ref(), &records));
        }
        self.serve(&verdicts);
        for verdict in &verdicts {
            complete &= self.report(verdict).await;
        }
        let names: HashSet<&str> = verdicts.iter().filter_map(|v| v.zone.metadata.name.as_deref()).collect();
        let orphans = records.iter().filter(|record| !names.contains(record.spec.zone.as_str()));
        for record in orphans {
            let refusal = Refusal { reason: "NoZone", message: format!("there is no Zone {:?}", record.spec.zone) };
            complete &= self.report_record(record, Some(&refusal)).await;
        }
        complete
    }

    fn judge(
        &self,
        zone: Arc<ZoneObject>,
        origin: Option<WireName>,
        taken: bool,
        key: Option<&ZoneKey>,
        records: &[Arc<Record>],
    ) -> Verdict {
        let name = zone.metadata.name.clone().unwrap_or_default();
        let mine: Vec<Arc<Record>> = records.iter().filter(|record| record.spec.zone == name).cloned().collect();
        let apex = self.view.names.read().apex;
        let allowed: Vec<&Record> = mine.iter().filter(|r| is_allowed(&zone, r)).map(AsRef::as_ref).collect();
        let inputs = Inputs {
            zone: &zone,
            records: &allowed,
            key,
            transfer_keys: self.transfer_keys(&zone),
            server: &self.config.server,
            previous: self.served.get(&name).map(AsRef::as_ref),
            now: unix_time(),
        };
        let built = match origin {
            Some(origin) if origin.under(&apex).is_some() => {
                Err(Refusal { reason: "ClusterDomain", message: format!("{origin} belongs to the cluster's own zone") })
            }
            _ if taken => {
                Err(Refusal { reason: "OriginTaken", message: "an older Zone has the same origin".to_owned() })
            }
            _ => build(&inputs),
        };
        let ds = key.zip(origin).map(|(key, origin)| key.ds_text(&origin));
        Verdict { zone, built, ds, records: mine }
    }

    fn serve(&mut self, verdicts: &[Verdict]) {
        let mut served = HashMap::new();
        for verdict in verdicts {
            let Ok(built) = &verdict.built else { continue };
            let name = verdict.zone.metadata.name.clone().unwrap_or_default();
            let zone = Arc::new(built.zone.clone());
            if self.served.get(&name).is_none_or(|before| before.serial != zone.serial) {
                for secondary in verdict.zone.spec.transfer.notify.iter().filter_map(|text| notify::address(text)) {
                    let zone = Arc::clone(&zone);
                    tokio::spawn(async move { notify::tell(&zone, secondary, u64::from(unix_time())).await });
                }
            }
            served.insert(name, zone);
        }
        self.served = served;
        self.view.zones.replace(self.served.values().cloned().collect());
    }

    /// The key of a signed zone; made and kept in a Secret if there is none.
    async fn zone_key(&mut self, zone: &str) -> Result<ZoneKey, String> {
        let name = format!("zone-{zone}");
        let stored = self.secrets.get(&Key::new(Some(&self.config.namespace), &name));
        let bytes = stored.and_then(|secret| secret.data.as_ref()?.get(KEY).map(|bytes| bytes.0.clone()));
        let bytes = match bytes.or_else(|| self.made.get(zone).cloned()) {
            Some(bytes) => bytes,
            None => {
                let made = ZoneKey::generate().ok_or("the system has no random numbers")?;
                let secret: Secret = serde_json::from_value(json!({
                    "metadata": {"name": name, "namespace": self.config.namespace},
                    "type": "dns.dhow.io/zone-key",
                }))
                .map_err(|error| error.to_string())?;
                let data = BTreeMap::from([(KEY.to_owned(), ByteString(made.clone()))]);
                // Of several servers one is first; the others learn its key by the watch.
                self.client.create(&Secret { data: Some(data), ..secret }).await.map_err(|error| error.to_string())?;
                self.made.insert(zone.to_owned(), made.clone());
                made
            }
        };
        ZoneKey::from_pkcs8(&bytes).ok_or_else(|| format!("Secret {name} holds no ECDSA P-256 key under {KEY}"))
    }

    fn transfer_keys(&self, zone: &ZoneObject) -> Vec<TsigKey> {
        let names = &zone.spec.transfer.key_secrets;
        let secrets = names.iter().filter_map(|name| self.secrets.get(&Key::new(Some(&self.config.namespace), name)));
        let keys = secrets.filter_map(|secret| {
            let text = |field: &str| {
                let bytes = secret.data.as_ref()?.get(field)?;
                String::from_utf8(bytes.0.clone()).ok().map(|text| text.trim().to_owned())
            };
            let bytes = base64::engine::general_purpose::STANDARD.decode(text("secret")?).ok()?;
            let algorithm = text("algorithm").unwrap_or_else(|| "hmac-sha256".to_owned());
            TsigKey::new(&text("name")?, &algorithm, &bytes)
        });
        keys.collect()
    }

    async fn report(&self, verdict: &Verdict) -> bool {
        let zone = &verdict.zone;
        let old = zone.status.clone().unwrap_or_default();
        let generation = zone.metadata.generation;
        let mut status =
            ZoneStatus { observed_generation: generation, ds: verdict.ds.clone(), ..ZoneStatus::default() };
        let condition = match &verdict.built {
            Ok(built) => {
                status.serial = Some(built.zone.serial);
                status.content_hash = Some(built.zone.content_hash.clone());
                let sets = built.zone.nodes.values().flat_map(|entry| entry.node.sets.iter());
                status.records = u32::try_from(sets.map(crate::rrset::Rrset::len).sum::<usize>()).ok();
                let missing = missing_glue(&built.zone);
                let wanted = zone.spec.transfer.key_secrets.len();
                let message = match missing.first() {
                    Some(server) => format!("serving; the delegation to {server} lacks the server's address"),
                    None if built.zone.keys.len() < wanted => {
                        "serving; a transfer key's Secret is not usable".to_owned()
                    }
                    None => "serving".to_owned(),
                };
                accepted(Ok(&message), generation, &old.conditions)
            }
            Err(refusal) => {
                // Should it be served again, the serial goes on from where it was.
                status.serial = old.serial;
                status.content_hash = old.content_hash.clone();
                accepted(Err(refusal), generation, &old.conditions)
            }
        };
        status.conditions = vec![condition];
        let written = status == old || self.write::<ZoneObject>(None, zone.metadata.name.as_deref(), &status).await;
        let mut complete = written;
        let mut index = 0;
        for record in &verdict.records {
            let not_allowed = Refusal {
                reason: "NamespaceNotAllowed",
                message: "the Zone's recordNamespaces does not have this namespace".to_owned(),
            };
            let refusal = match (is_allowed(zone, record), &verdict.built) {
                (false, _) => Some(not_allowed),
                (true, Ok(built)) => {
                    index += 1;
                    built.refused.get(&(index - 1)).cloned()
                }
                (true, Err(_)) => {
                    Some(Refusal { reason: "ZoneNotServed", message: "the Zone is not served".to_owned() })
                }
            };
            complete &= self.report_record(record, refusal.as_ref()).await;
        }
        complete
    }

    async fn report_record(&self, record: &Record, refusal: Option<&Refusal>) -> bool {
        let old = record.status.clone().unwrap_or_default();
        let generation = record.metadata.generation;
        let verdict = refusal.map_or(Ok("serving"), Err);
        let status = RecordStatus { conditions: vec![accepted(verdict, generation, &old.conditions)] };
        let meta = &record.metadata;
        status == old || self.write::<Record>(meta.namespace.as_deref(), meta.name.as_deref(), &status).await
    }

    async fn write<K: Object>(
        &self,
        namespace: Option<&str>,
        name: Option<&str>,
        status: &impl serde::Serialize,
    ) -> bool {
        let patch = Patch::Merge(json!({ "status": status }));
        match self.client.patch::<K>(namespace, name.unwrap_or_default(), patch, Some("status")).await {
            Ok(_) => true,
            // It went meanwhile.
            Err(error) if error.is_not_found() => true,
            Err(error) => {
                self.complain::<K>(name, &error);
                false
            }
        }
    }

    fn complain<K: Object>(&self, name: Option<&str>, error: &Error) {
        tracing::warn!(kind = K::KIND, name, %error, "cannot write the status");
    }
}

fn is_allowed(zone: &ZoneObject, record: &Record) -> bool {
    let namespace = record.metadata.namespace.as_deref().unwrap_or_default();
    zone.spec.record_namespaces.iter().any(|allowed| allowed == "*" || allowed == namespace)
}

/// Whether a zone or a record is served, and why not.
fn accepted(verdict: Result<&str, &Refusal>, generation: Option<i64>, old: &[Condition]) -> Condition {
    let (status, reason, message) = match verdict {
        Ok(message) => ("True", "Served", message),
        Err(refusal) => ("False", refusal.reason, refusal.message.as_str()),
    };
    Condition {
        type_: ACCEPTED.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        last_transition_time: conditions::since(old, ACCEPTED, status, Timestamp::now()),
        observed_generation: generation,
    }
}
