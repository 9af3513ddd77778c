//! Certificates of pods in projected volumes: asked for with keys that stay here, and anew before they expire.
//!
//! What is asked for is known to this run of the agent only. After a restart a volume shows what it has until another
//! certificate is there, which is asked for at once.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime};

use dhow_api::trust_bundle::{blocks, pem};
use dhow_client::{EventType, reference};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1beta1::{
    PodCertificateRequest, PodCertificateRequestSpec, PodCertificateRequestStatus,
};
use k8s_openapi::api::core::v1::{Pod, PodCertificateProjection, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use parking_lot::Mutex;

use super::{bad, is_inside, pod_keys};
use crate::Error;
use crate::csi::attach::WAITS;
use crate::shared::Shared;

/// A request that has not been seen for so long was taken away.
const LOST: Duration = Duration::from_secs(600);
/// How long after its time a refresh is overdue.
const OVERDUE: Duration = Duration::from_secs(600);
/// How long nobody is told that a first certificate is awaited.
const PATIENCE: Duration = Duration::from_secs(20);
/// A refresh that could not be asked for is tried again.
const AGAIN: Duration = Duration::from_secs(60);
/// Refreshes are spread over so many seconds, so that those of many pods do not fall together.
const SPREAD: u64 = 300;

/// A source of a volume: the pod's uid, the volume's name, the place of the source.
type Place = (String, String, usize);

/// All of a node's pods'.
#[derive(Default)]
pub struct Certificates {
    known: Mutex<BTreeMap<Place, Record>>,
}

impl Certificates {
    /// Nothing is left of a pod.
    pub fn forget(&self, uid: &str) {
        self.known.lock().retain(|(of, ..), _| of != uid);
    }
}

#[derive(Clone, Default)]
struct Record {
    shown: Option<Shown>,
    asked: Option<Asked>,
    /// Why there will be no certificate any more.
    over: Option<String>,
}

/// An event's reason and message.
type Told = (&'static str, String);

impl Record {
    /// What the time and the request that was made, if it is there, have changed; what is to be told of that, and whether a
    /// certificate is to be asked for now.
    fn turn(&mut self, request: Option<&PodCertificateRequest>, now: SystemTime) -> (Vec<Told>, bool) {
        let mut told = Vec::new();
        if let Some(asked) = &mut self.asked {
            match request {
                Some(request) => {
                    asked.seen = true;
                    told.extend(self.settle(request));
                }
                None if asked.seen || now > asked.at + LOST => self.asked = None,
                None => {}
            }
        }
        if let Some(shown) = &mut self.shown {
            told.extend(shown.warnings(now));
        }
        let idle = self.over.is_none() && self.asked.is_none();
        (told, idle && self.shown.as_ref().is_none_or(|shown| now >= shown.refresh_at))
    }

    fn settle(&mut self, request: &PodCertificateRequest) -> Option<Told> {
        let status = request.status.as_ref()?;
        match end(status)? {
            End::Issued => {
                let asked = self.asked.take()?;
                self.shown = Shown::of(asked.key, status, spread(&asked.name)).or(self.shown.take());
                None
            }
            End::Refused(kind, reason, message) => {
                let (kind, verb) = if kind == "Denied" { ("Denied", "denied") } else { ("Failed", "failed") };
                let was = if kind == "Denied" { "was denied" } else { "failed" };
                let meta = &request.metadata;
                let text = |text: &Option<String>| text.clone().unwrap_or_default();
                let name = format!("{}/{}", text(&meta.namespace), text(&meta.name));
                self.asked = None;
                let why =
                    format!("PodCertificateRequest was permanently {verb}: reason={reason:?} message={message:?}");
                self.over = Some(why);
                Some((kind, format!("PodCertificateRequest {name} {was}, reason={reason:?}, message={message:?}")))
            }
        }
    }
}

/// What the volume has.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Shown {
    key: String,
    chain: String,
    refresh_at: SystemTime,
    not_after: SystemTime,
    told_overdue: bool,
    told_expired: bool,
}

/// A request that is not settled.
#[derive(Clone)]
struct Asked {
    name: String,
    key: String,
    at: SystemTime,
    seen: bool,
}

/// What a request has come to.
#[derive(Debug, PartialEq, Eq)]
enum End<'a> {
    Issued,
    /// The condition's type, reason and message.
    Refused(&'a str, &'a str, &'a str),
}

fn end(status: &PodCertificateRequestStatus) -> Option<End<'_>> {
    status.conditions.iter().flatten().find_map(|one| match one.type_.as_str() {
        "Issued" => Some(End::Issued),
        kind @ ("Denied" | "Failed") => Some(End::Refused(kind, &one.reason, &one.message)),
        _ => None,
    })
}

/// Certificates alone: neither what is between them nor their headers.
fn cleaned(chain: &str) -> String {
    blocks(chain).iter().map(|block| pem("CERTIFICATE", &block.der)).collect()
}

fn time(time: Option<&Time>) -> Option<SystemTime> {
    time.map(|time| SystemTime::from(time.0))
}

impl Shown {
    fn of(key: String, status: &PodCertificateRequestStatus, spread: Duration) -> Option<Self> {
        Some(Self {
            key,
            chain: cleaned(status.certificate_chain.as_deref()?),
            refresh_at: time(status.begin_refresh_at.as_ref())? + spread,
            not_after: time(status.not_after.as_ref())?,
            told_overdue: false,
            told_expired: false,
        })
    }

    /// What should have been replaced is told of, once each.
    fn warnings(&mut self, now: SystemTime) -> Vec<Told> {
        let mut told = Vec::new();
        if now > self.refresh_at + OVERDUE && !std::mem::replace(&mut self.told_overdue, true) {
            told.push(("CertificateOverdueForRefresh", "PodCertificate refresh overdue".to_owned()));
        }
        if now > self.not_after && !std::mem::replace(&mut self.told_expired, true) {
            told.push(("CertificateExpired", "PodCertificate expired".to_owned()));
        }
        told
    }

    /// When to look again.
    fn next(&self, asked: bool, now: SystemTime) -> Option<SystemTime> {
        if asked {
            // Its end wakes the pod.
            return [self.refresh_at + OVERDUE, self.not_after].into_iter().filter(|at| *at > now).min();
        }
        Some(self.refresh_at.max(now + AGAIN))
    }

    /// What a run of the agent before this one left in the volume, as long as it is good.
    fn left(source: &PodCertificateProjection, data: &Path, now: SystemTime) -> Option<Self> {
        let read = |path: &Option<String>| {
            let path = path.as_deref().filter(|path| !path.is_empty() && is_inside(path))?;
            std::fs::read_to_string(data.join(path)).ok()
        };
        let bundle = read(&source.credential_bundle_path);
        let text = match &bundle {
            Some(bundle) => bundle.clone(),
            None => read(&source.key_path)? + &read(&source.certificate_chain_path)?,
        };
        let blocks = blocks(&text);
        let (key, chain) = blocks.split_first()?;
        if key.label != "PRIVATE KEY" {
            return None;
        }
        let (_, leaf) = x509_parser::parse_x509_certificate(&chain.first()?.der).ok()?;
        let seconds = u64::try_from(leaf.validity().not_after.timestamp()).ok()?;
        let not_after = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let chain = chain.iter().map(|block| pem("CERTIFICATE", &block.der)).collect();
        let key = pem("PRIVATE KEY", &key.der);
        (now < not_after).then_some(Self {
            key,
            chain,
            refresh_at: now,
            not_after,
            told_overdue: false,
            told_expired: false,
        })
    }
}

/// Where a refresh falls within the time that all are spread over.
fn spread(name: &str) -> Duration {
    let sum = name.bytes().fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte)));
    Duration::from_secs(sum % SPREAD)
}

/// Where a certificate goes.
pub struct Source<'a> {
    pub pod: &'a Pod,
    pub volume: &'a str,
    pub index: usize,
    pub projection: &'a PodCertificateProjection,
    /// The files that the volume has.
    pub data: &'a Path,
}

/// Asks for all that the pod's volumes show, so that no certificate waits for another. `dir` is the folder of volumes.
pub async fn ask_all(shared: &Shared, pod: &Pod, dir: &Path) {
    for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
        let sources = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
        for (index, source) in sources.enumerate() {
            let Some(projection) = &source.pod_certificate else { continue };
            let data = dir.join(&volume.name).join("..data");
            let source = Source { pod, volume: &volume.name, index, projection, data: &data };
            // What is wrong is told when it is the volume's turn.
            let _ = of(shared, &source).await;
        }
    }
}

/// The files that the source shows, and when to look again.
pub async fn of(shared: &Shared, source: &Source<'_>) -> Result<(Vec<(String, String)>, Option<SystemTime>), Error> {
    let uid = source.pod.metadata.uid.clone().unwrap_or_default();
    let place = (uid, source.volume.to_owned(), source.index);
    let known = shared.certificates.known.lock().get(&place).cloned();
    let now = (shared.now)();
    let mut record = known
        .unwrap_or_else(|| Record { shown: Shown::left(source.projection, source.data, now), ..Record::default() });
    let looked = look(shared, source, &mut record, now).await;
    shared.certificates.known.lock().insert(place, record.clone());
    looked?;
    if let Some(why) = record.over {
        return Err(bad(why));
    }
    let Some(shown) = record.shown else {
        let waits = record.asked.as_ref().is_some_and(|asked| now < asked.at + PATIENCE);
        let message = "credential bundle is not issued yet".to_owned();
        return Err(if waits { Error::Spec { reason: WAITS, message } } else { bad(message) });
    };
    let next = shown.next(record.asked.is_some(), now);
    let Shown { key, chain, .. } = shown;
    let paths = source.projection;
    let files = [
        (&paths.credential_bundle_path, format!("{key}{chain}")),
        (&paths.key_path, key),
        (&paths.certificate_chain_path, chain),
    ];
    let named = |(path, text): (&Option<String>, String)| Some((path.clone().filter(|path| !path.is_empty())?, text));
    Ok((files.into_iter().filter_map(named).collect(), next))
}

/// Takes note of what became of a request, and makes one when it is time.
async fn look(shared: &Shared, source: &Source<'_>, record: &mut Record, now: SystemTime) -> Result<(), Error> {
    let namespace = source.pod.metadata.namespace.as_deref().unwrap_or_default();
    let request = match &record.asked {
        Some(asked) => shared.objects.certificate_request(namespace, &asked.name).await?,
        None => None,
    };
    let (told, due) = record.turn(request.as_deref(), now);
    for (reason, message) in told {
        shared.events.event(reference(source.pod), EventType::Warning, reason, &message);
    }
    if !due {
        return Ok(());
    }
    match ask(shared, source).await {
        Ok((name, key)) => record.asked = Some(Asked { name, key, at: now, seen: false }),
        // What there is serves until it can be replaced.
        Err(error) if record.shown.is_some() => {
            tracing::warn!(pod = source.pod.metadata.name, volume = source.volume, %error, "cannot refresh a certificate");
        }
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Makes a key and a request for it; returns the request's name and the key.
async fn ask(shared: &Shared, source: &Source<'_>) -> Result<(String, String), Error> {
    let Source { pod, projection, .. } = source;
    let client = &shared.config.client;
    let meta = &pod.metadata;
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let (uid, namespace) = (text(&meta.uid), text(&meta.namespace));
    let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref()).unwrap_or("default");
    let found = client.get::<ServiceAccount>(Some(&namespace), account).await;
    let found = found.map_err(Error::client("while fetching service account"))?;
    let node = shared.node.list().into_iter().next().ok_or_else(|| bad("the node's own object is not known yet"))?;
    let (kind, owner) = (projection.key_type.clone(), uid.clone());
    // Keys of some kinds take long.
    let made = tokio::task::spawn_blocking(move || pod_keys::make(&kind, &owner)).await;
    let made = made.map_err(|error| bad(format!("while generating keypair: {error}")))?.map_err(bad)?;
    let request = PodCertificateRequest {
        metadata: ObjectMeta {
            namespace: meta.namespace.clone(),
            generate_name: Some("req-".into()),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".into(),
                kind: "Pod".into(),
                name: text(&meta.name),
                uid: uid.clone(),
                ..OwnerReference::default()
            }]),
            ..ObjectMeta::default()
        },
        spec: PodCertificateRequestSpec {
            signer_name: projection.signer_name.clone(),
            pod_name: text(&meta.name),
            pod_uid: uid,
            service_account_name: account.to_owned(),
            service_account_uid: text(&found.metadata.uid),
            node_name: shared.config.name.clone(),
            node_uid: text(&node.metadata.uid),
            max_expiration_seconds: projection.max_expiration_seconds,
            pkix_public_key: ByteString(made.public),
            proof_of_possession: ByteString(made.proof),
            unverified_user_annotations: projection.user_annotations.clone(),
        },
        status: None,
    };
    let made_request = client.create(&request).await.map_err(Error::client("while creating PodCertificateRequest"))?;
    Ok((text(&made_request.metadata.name), made.private))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    const LEAF: &str = include_str!("../../../../foundation/api/src/trust_bundle/leaf.pem");

    fn status(value: serde_json::Value) -> PodCertificateRequestStatus {
        serde_json::from_value(value).unwrap()
    }

    fn condition(kind: &str) -> serde_json::Value {
        json!([{"type": kind, "status": "True", "reason": "R", "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z"}])
    }

    #[test]
    fn a_request_ends_in_one_of_three_ways() {
        assert_eq!(end(&status(json!({}))), None);
        assert_eq!(end(&status(json!({"conditions": condition("Issued")}))), Some(End::Issued));
        for kind in ["Denied", "Failed"] {
            let status = status(json!({"conditions": condition(kind)}));
            assert_eq!(end(&status), Some(End::Refused(kind, "R", "m")));
        }
    }

    /// A day from the time on, with the refresh after an hour.
    fn signed(at: SystemTime, chain: &str) -> PodCertificateRequest {
        let time = |hours: u64| {
            let at = at + Duration::from_secs(3600 * hours);
            jiff::Timestamp::try_from(at).unwrap().to_string()
        };
        let status = status(json!({
            "conditions": condition("Issued"), "certificateChain": chain, "beginRefreshAt": time(1), "notAfter": time(24),
        }));
        PodCertificateRequest { status: Some(status), ..PodCertificateRequest::default() }
    }

    fn asked(name: &str, at: SystemTime) -> Option<Asked> {
        Some(Asked { name: name.into(), key: format!("key of {name}"), at, seen: false })
    }

    #[test]
    fn a_certificate_is_replaced_when_its_time_has_come_and_not_before() {
        let begin = SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600);
        let after = |minutes: u64| begin + Duration::from_secs(60 * minutes);
        let mut record = Record::default();
        assert_eq!(record.turn(None, begin), (vec![], true));

        record.asked = asked("one", begin);
        assert_eq!(record.turn(None, after(1)), (vec![], false));
        let waiting = PodCertificateRequest::default();
        assert_eq!(record.turn(Some(&waiting), after(2)), (vec![], false));
        assert_eq!(record.turn(Some(&signed(begin, LEAF)), after(3)), (vec![], false));
        let first = record.shown.clone().unwrap();
        assert_eq!((first.key.as_str(), first.chain.as_str()), ("key of one", LEAF));
        assert_eq!(first.refresh_at, after(60) + spread("one"));
        assert_eq!(first.next(false, after(3)), Some(first.refresh_at));

        let second = Duration::from_secs(1);
        assert_eq!(record.turn(None, first.refresh_at - second), (vec![], false));
        assert_eq!(record.turn(None, first.refresh_at), (vec![], true));
        assert_eq!(first.next(false, first.refresh_at), Some(first.refresh_at + AGAIN), "it could not be asked for");

        // What there was is shown until the new one is there.
        record.asked = asked("two", first.refresh_at);
        assert_eq!(record.turn(Some(&waiting), first.refresh_at + second), (vec![], false));
        assert_eq!(record.shown, Some(first.clone()));
        assert_eq!(first.next(true, first.refresh_at + second), Some(first.refresh_at + OVERDUE));
        let new = signed(first.refresh_at, &format!("{LEAF}{LEAF}"));
        assert_eq!(record.turn(Some(&new), first.refresh_at + second), (vec![], false));
        let shown = record.shown.unwrap();
        assert_eq!((shown.key.as_str(), shown.chain), ("key of two", format!("{LEAF}{LEAF}")));
        assert_eq!(shown.refresh_at, first.refresh_at + Duration::from_secs(3600) + spread("two"));
    }

    #[test]
    fn what_is_late_is_told_once_and_what_was_taken_away_asked_anew() {
        let begin = SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600);
        let mut record = Record { asked: asked("one", begin), ..Record::default() };
        record.turn(Some(&signed(begin, LEAF)), begin);
        let refresh_at = record.shown.as_ref().unwrap().refresh_at;
        record.asked = asked("two", refresh_at);
        let waiting = PodCertificateRequest::default();
        let reasons =
            |(told, due): (Vec<Told>, bool)| (told.into_iter().map(|(reason, _)| reason).collect::<Vec<_>>(), due);
        let late = refresh_at + OVERDUE + Duration::from_secs(1);
        assert_eq!(reasons(record.turn(Some(&waiting), late)), (vec!["CertificateOverdueForRefresh"], false));
        assert_eq!(reasons(record.turn(Some(&waiting), late)), (vec![], false));
        let expired = begin + Duration::from_secs(25 * 3600);
        assert_eq!(reasons(record.turn(Some(&waiting), expired)), (vec!["CertificateExpired"], false));
        assert_eq!(record.shown.as_ref().unwrap().next(true, expired), None);
        // It was seen, and is gone.
        assert_eq!(reasons(record.turn(None, expired)), (vec![], true));
        // One that was never seen may not have come here yet.
        record.asked = asked("three", expired);
        assert_eq!(reasons(record.turn(None, expired + LOST)), (vec![], false));
        assert_eq!(reasons(record.turn(None, expired + LOST + Duration::from_secs(1))), (vec![], true));

        record.asked = asked("four", expired);
        let status = status(json!({"conditions": condition("Denied")}));
        let denied = PodCertificateRequest { status: Some(status), ..PodCertificateRequest::default() };
        assert_eq!(reasons(record.turn(Some(&denied), expired)), (vec!["Denied"], false));
        assert_eq!(
            record.over.as_deref(),
            Some("PodCertificateRequest was permanently denied: reason=\"R\" message=\"m\"")
        );
        assert_eq!(reasons(record.turn(None, expired)), (vec![], false));
    }

    #[test]
    fn a_chain_is_shown_without_what_is_around_it() {
        let status = status(json!({
            "certificateChain": format!("who made it\n{LEAF}and\n{LEAF}"),
            "beginRefreshAt": "2026-01-01T00:00:10Z", "notAfter": "2026-01-01T01:00:00Z",
        }));
        let shown = Shown::of("key".into(), &status, Duration::from_secs(5)).unwrap();
        assert_eq!(shown.chain, format!("{LEAF}{LEAF}"));
        let at = |seconds: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600 + seconds);
        assert_eq!((shown.refresh_at, shown.not_after), (at(15), at(3600)));
    }

    #[test]
    fn what_a_volume_has_is_found_again_while_it_is_good() {
        let dir = tempfile::tempdir().unwrap();
        let key = pem("PRIVATE KEY", b"key");
        std::fs::write(dir.path().join("both"), format!("{key}{LEAF}")).unwrap();
        std::fs::write(dir.path().join("key"), &key).unwrap();
        std::fs::write(dir.path().join("chain"), LEAF).unwrap();
        let of = |paths: serde_json::Value, now| {
            let mut source = json!({"signerName": "a.b/c", "keyType": "ED25519"});
            source.as_object_mut().unwrap().extend(paths.as_object().unwrap().clone());
            Shown::left(&serde_json::from_value(source).unwrap(), dir.path(), now)
        };
        let now = SystemTime::now();
        let apart = json!({"keyPath": "key", "certificateChainPath": "chain"});
        for paths in [json!({"credentialBundlePath": "both"}), apart.clone()] {
            let shown = of(paths, now).unwrap();
            assert_eq!((shown.key.as_str(), shown.chain.as_str(), shown.refresh_at), (key.as_str(), LEAF, now));
        }
        assert_eq!(of(json!({"keyPath": "key"}), now), None);
        assert_eq!(of(apart, now + Duration::from_secs(3600 * 24 * 36525 * 2)), None);
    }
}
