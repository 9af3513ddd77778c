//! Certificates on disk: made once, private, kept while good, replaced when not.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt;

use super::*;

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn the_authority_is_made_once_and_private() {
    let dir = tempfile::tempdir().unwrap();
    let pki = dir.path().join("pki");
    let first = ClusterCa::load_or_create(&pki).unwrap();
    let second = ClusterCa::load_or_create(&pki).unwrap();
    assert_eq!(first.cert_pem(), second.cert_pem());
    assert_eq!(mode(&pki), 0o700);
    assert_eq!(mode(&pki.join("ca.key")), 0o600);
    assert_eq!(mode(&pki.join("ca.crt")), 0o600);
    let names: Vec<_> = std::fs::read_dir(&pki).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "temporary files left behind: {names:?}");
}

#[test]
fn half_an_authority_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    ClusterCa::load_or_create(dir.path()).unwrap();
    std::fs::remove_file(dir.path().join("ca.key")).unwrap();
    let error = ClusterCa::load_or_create(dir.path()).err().unwrap().to_string();
    assert!(error.contains("ca.key") && error.contains("missing"), "{error}");
    // A foreign key is no better.
    let other = tempfile::tempdir().unwrap();
    ClusterCa::load_or_create(other.path()).unwrap();
    std::fs::copy(other.path().join("ca.key"), dir.path().join("ca.key")).unwrap();
    let error = ClusterCa::load_or_create(dir.path()).err().unwrap().to_string();
    assert!(error.contains("does not belong"), "{error}");
}

#[test]
fn issued_certificates_are_kept_until_something_changes() {
    let dir = tempfile::tempdir().unwrap();
    let ca = ClusterCa::load_or_create(&dir.path().join("ca")).unwrap();
    let spec = CertSpec::server("api", &["localhost".into(), "127.0.0.1".into(), "::1".into()]);
    let first = ca.load_or_issue(dir.path(), "api", &spec).unwrap();
    assert_eq!(ca.load_or_issue(dir.path(), "api", &spec).unwrap(), first);
    assert_eq!(mode(&dir.path().join("api.key")), 0o600);

    let wider = CertSpec::server("api", &["localhost".into(), "127.0.0.1".into(), "::1".into(), "example.test".into()]);
    let second = ca.load_or_issue(dir.path(), "api", &wider).unwrap();
    assert_ne!(second, first, "a new name needs a new certificate");

    let other = ClusterCa::load_or_create(&dir.path().join("other-ca")).unwrap();
    assert_ne!(other.load_or_issue(dir.path(), "api", &wider).unwrap(), second, "another authority signed it");
}

#[test]
fn a_certificate_in_its_last_third_is_renewed() {
    let dir = tempfile::tempdir().unwrap();
    let ca = ClusterCa::load_or_create(&dir.path().join("ca")).unwrap();
    let spec = CertSpec::client("system:admin", &["system:masters"]);
    let day = Duration::from_secs(24 * 3600);
    let now = SystemTime::now();
    for (behind, ahead, renew) in [(day * 70, day * 29, true), (day * 60, day * 40, false), (day * 9, day, true)] {
        let pair = ca.issue_between(&spec, now - behind, now + ahead).unwrap();
        assert_eq!(needs_renewal(&pair.cert_pem), renew, "{behind:?} behind, {ahead:?} ahead");
        files::write_private(&dir.path().join("admin.crt"), pair.cert_pem.as_bytes()).unwrap();
        files::write_private(&dir.path().join("admin.key"), pair.key_pem.as_bytes()).unwrap();
        let now = ca.load_or_issue(dir.path(), "admin", &spec).unwrap();
        assert_eq!(now != pair, renew);
        assert!(!needs_renewal(&now.cert_pem));
    }
    assert!(needs_renewal("garbage"));
}

#[test]
fn groups_become_organisations() {
    let dir = tempfile::tempdir().unwrap();
    let ca = ClusterCa::load_or_create(dir.path()).unwrap();
    for groups in [vec![], vec!["system:nodes"], vec!["a", "b"]] {
        let spec = CertSpec::client("system:node:n1", &groups);
        let pair = ca.load_or_issue(dir.path(), "node", &spec).unwrap();
        assert_eq!(ca.load_or_issue(dir.path(), "node", &spec).unwrap(), pair, "{groups:?} read back");
    }
    assert!(ca.issue_client("u", &["a", "b", "c"]).is_err());
}

#[test]
fn the_service_account_key_is_stable() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys/sa.key");
    let first = SaKey::load_or_create(&path).unwrap();
    let second = SaKey::load_or_create(&path).unwrap();
    assert_eq!(first.key_id(), second.key_id());
    assert_eq!(first.jwk(), second.jwk());
    assert_eq!(mode(&path), 0o600);
    assert_eq!(mode(path.parent().unwrap()), 0o700);
    std::fs::write(&path, "nonsense").unwrap();
    let error = SaKey::load_or_create(&path).err().unwrap().to_string();
    assert!(error.contains("sa.key"), "{error}");
}

#[tokio::test]
async fn a_running_process_renews() {
    let dir = tempfile::tempdir().unwrap();
    let ca = ClusterCa::load_or_create(&dir.path().join("ca")).unwrap();
    let spec = CertSpec::server("api", &["localhost".into()]);
    let (hour, now) = (Duration::from_secs(3600), SystemTime::now());
    let old = ca.issue_between(&spec, now - hour * 9, now + hour).unwrap();
    let stop = CancellationToken::new();
    let renewed = std::sync::Mutex::new(Vec::new());
    let note = |pair: &CertPair| {
        renewed.lock().unwrap().push(pair.clone());
        stop.cancel();
    };
    keep_renewed(&ca, dir.path(), "api", &spec, old.clone(), note, stop.clone()).await;
    let renewed = renewed.into_inner().unwrap();
    assert_eq!(renewed.len(), 1, "once is enough");
    assert!(renewed[0] != old && !needs_renewal(&renewed[0].cert_pem));
    assert_eq!(ca.load_or_issue(dir.path(), "api", &spec).unwrap(), renewed[0]);
}
