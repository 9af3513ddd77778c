//! What the servers of one cluster share through etcd: the cluster's authorities and keys, sealed there under the server
//! token. Whoever has the token and reaches the etcd servers can be a further server; whoever reads etcd alone cannot.
//!
//! Invariant: the files in etcd are the cluster's. A data folder that has others belongs to another cluster, and is
//! refused rather than overwritten.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use dhow_base::files;
use dhow_store::{Compare, KeyRange, Kv, Op, RangeRequest, SealingKeys, Txn};
use serde::{Deserialize, Serialize};

use crate::builtins::blocking;
use crate::keys;
use crate::place::Place;

/// Where the files are in etcd. No kind's key: the API server's cache passes over it.
const KEY: &str = "/registry/dhow/keys";
/// Before the sealed bytes, so that a store which seals for itself does not take them for its own.
const MARK: &[u8] = b"dhow:keys:v1:";
/// The authority's certificate tells clusters apart.
const CA: &str = "ca.crt";
/// Below the folder of keys. Every other certificate is each server's own, issued by these authorities.
const FILES: [&str; 6] = ["ca.key", CA, "front-proxy/ca.key", "front-proxy/ca.crt", "sa.key", keys::SEALING];

/// Opens the cluster's keys in etcd: 32 random bytes in hexadecimal behind a prefix that says what it is.
#[derive(Clone, PartialEq, Eq)]
pub struct ServerToken(String);

const PREFIX: &str = "dhow-server-";

impl ServerToken {
    fn generate() -> Result<Self> {
        Ok(Self(format!("{PREFIX}{}", SealingKeys::generate()?)))
    }

    fn keys(&self) -> Result<SealingKeys> {
        Ok(SealingKeys::parse(&self.0[PREFIX.len()..])?)
    }

    /// The token in a file, if there is one.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        let Some(text) = files::read_optional(path)? else { return Ok(None) };
        text.trim().parse().map(Some).map_err(anyhow::Error::msg).with_context(|| path.display().to_string())
    }

    fn write(&self, place: &Place) -> Result<()> {
        Ok(files::write_private(&place.server_token(), format!("{}\n", self.0).as_bytes())?)
    }
}

impl FromStr for ServerToken {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let hex = text.strip_prefix(PREFIX).filter(|hex| SealingKeys::parse(hex).is_ok());
        hex.map(|_| Self(text.to_owned()))
            .ok_or_else(|| format!("no server token: one is {PREFIX} and 64 hexadecimal digits"))
    }
}

impl fmt::Display for ServerToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Names below the folder of keys, and contents.
#[derive(Serialize, Deserialize, PartialEq, Eq)]
struct Bundle {
    files: BTreeMap<String, String>,
}

impl Bundle {
    fn read(folder: &Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        for name in FILES {
            let path = folder.join(name);
            let text = files::read_optional(&path)?.with_context(|| format!("{} is missing", path.display()))?;
            files.insert(name.to_owned(), text);
        }
        Ok(Self { files })
    }

    /// Makes the folder's files these, unless they are another cluster's.
    fn install(&self, place: &Place) -> Result<()> {
        let folder = place.pki_dir();
        let known = files::read_optional(&folder.join(CA))?;
        if known.is_some_and(|known| self.files.get(CA) != Some(&known)) {
            bail!(
                "{} holds the keys of another cluster than the etcd servers; choose another data folder with \
                 --data-dir, or other etcd servers with --store",
                folder.display()
            );
        }
        files::create_private_dir(&folder)?;
        files::create_private_dir(&folder.join("front-proxy"))?;
        // The authority's certificate comes last: without it the folder is nobody's yet.
        let order = FILES.iter().filter(|name| **name != CA).chain([&CA]);
        for (name, text) in order.filter_map(|name| self.files.get_key_value(*name)) {
            let path = folder.join(name);
            if files::read_optional(&path)?.as_ref() != Some(text) {
                files::write_private(&path, text.as_bytes())?;
            }
        }
        Ok(())
    }
}

/// Makes the folder of keys that of the cluster in these etcd servers, or the cluster that of the folder where neither
/// was there before.
pub async fn settle(place: &Place, etcd: &Arc<dyn Kv>) -> Result<()> {
    let given = place.token_file.clone();
    let token = blocking(place, "read the server token", move |place| match &given {
        Some(path) => {
            let read = ServerToken::read(path)?;
            Ok(Some(read.with_context(|| format!("{} does not exist", path.display()))?))
        }
        None => ServerToken::read(&place.server_token()),
    })
    .await?;
    if is_stored(etcd).await? {
        let Some(token) = token else {
            bail!(
                "the etcd servers hold a cluster, and this machine does not know its server token: name a file with it \
                 by --token-file (`dhow server token` prints it on a server)"
            );
        };
        return take(place, etcd, token).await;
    }
    let token = match token {
        Some(token) => token,
        None => ServerToken::generate()?,
    };
    if offer(place, etcd, &token).await? {
        return Ok(());
    }
    // Another server was faster.
    take(place, etcd, token).await
}

/// Writes the folder's keys over those in etcd, after they were changed here.
pub async fn publish(place: &Place, etcd: &Arc<dyn Kv>) -> Result<()> {
    let token = ServerToken::read(&place.server_token())?.context("this data folder has no server token")?;
    let bundle = Bundle::read(&place.pki_dir())?;
    store(etcd, &token, &bundle, Vec::new()).await.map(drop)
}

async fn is_stored(etcd: &Arc<dyn Kv>) -> Result<bool> {
    let request = RangeRequest { count_only: true, ..RangeRequest::new(KeyRange::key(KEY)) };
    Ok(etcd.range(request).await.context("read the cluster's keys from etcd")?.count > 0)
}

/// The cluster's keys from etcd.
async fn take(place: &Place, etcd: &Arc<dyn Kv>, token: ServerToken) -> Result<()> {
    let found = etcd.range(RangeRequest::new(KeyRange::key(KEY))).await.context("read the cluster's keys from etcd")?;
    let value = found.kvs.into_iter().next().context("the cluster's keys are gone from etcd")?.value;
    let sealed = value.strip_prefix(MARK).with_context(|| format!("{KEY} in etcd is not of this version"))?;
    let opened = token.keys()?.open(KEY.as_bytes(), &value.slice_ref(sealed)).context(
        "the server token is not that of the cluster in the etcd servers (`dhow server token` on one of its servers \
         prints it)",
    )?;
    let bundle: Bundle = serde_json::from_slice(&opened).context("read the cluster's keys")?;
    blocking(place, "write the cluster's keys", move |place| {
        bundle.install(place)?;
        token.write(place)
    })
    .await
}

/// The folder's keys, or new ones, to etcd; false if others are there by now.
async fn offer(place: &Place, etcd: &Arc<dyn Kv>, token: &ServerToken) -> Result<bool> {
    let known = files::read_optional(&place.pki_dir().join(CA))?.is_some();
    let objects = RangeRequest { count_only: true, ..RangeRequest::new(KeyRange::prefix("/registry/")) };
    if !known && etcd.range(objects).await.context("look into etcd")?.count > 0 {
        bail!(
            "the etcd servers hold objects of a cluster whose keys are neither there nor in {}; start with the data \
             folder of one of its servers",
            place.pki_dir().display()
        );
    }
    let own = token.clone();
    let (bundle, _work) = blocking(place, "make the cluster's keys", move |place| {
        files::create_private_dir(&place.pki_dir())?;
        // Before anything is sealed under it.
        own.write(place)?;
        // New ones become this folder's once they are the cluster's.
        let work = tempfile::Builder::new().prefix(".keys-").tempdir_in(&place.data_dir).context("make a folder")?;
        let folder = if known { place.pki_dir() } else { work.path().to_owned() };
        keys::make_shared(&folder)?;
        Ok((Bundle::read(&folder)?, work))
    })
    .await?;
    if !store(etcd, token, &bundle, vec![Compare::mod_revision(KEY, 0)]).await? {
        return Ok(false);
    }
    blocking(place, "write the cluster's keys", move |place| bundle.install(place)).await?;
    Ok(true)
}

async fn store(etcd: &Arc<dyn Kv>, token: &ServerToken, bundle: &Bundle, compare: Vec<Compare>) -> Result<bool> {
    let value = serde_json::to_vec(bundle).context("encode the cluster's keys")?;
    let sealed = token.keys()?.seal(KEY.as_bytes(), &value).context("seal the cluster's keys")?;
    let op = Op::Put { key: Bytes::from_static(KEY.as_bytes()), value: [MARK, &sealed].concat().into(), lease: 0 };
    let txn = Txn { compare, success: vec![op], ..Txn::default() };
    Ok(etcd.txn(txn).await.context("write the cluster's keys to etcd")?.succeeded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::place::tests::place;
    use dhow_store::MemoryKv;

    fn etcd() -> Arc<dyn Kv> {
        Arc::new(MemoryKv::new())
    }

    async fn refusal(place: &Place, etcd: &Arc<dyn Kv>) -> String {
        format!("{:#}", settle(place, etcd).await.unwrap_err())
    }

    #[tokio::test]
    async fn a_further_server_has_the_clusters_keys_by_its_token() {
        let folder = tempfile::tempdir().unwrap();
        let etcd = etcd();
        let first = place(&folder.path().join("a"));
        settle(&first, &etcd).await.unwrap();
        let mut second = place(&folder.path().join("b"));
        assert!(refusal(&second, &etcd).await.contains("--token-file"));
        second.token_file = Some(first.server_token());
        settle(&second, &etcd).await.unwrap();
        for name in FILES {
            let read = |place: &Place| std::fs::read(place.pki_dir().join(name)).unwrap();
            assert_eq!(read(&first), read(&second), "{name}");
        }
        // From then on without being told.
        second.token_file = None;
        settle(&second, &etcd).await.unwrap();
        // Nothing of it can be read in the store.
        let all = etcd.range(RangeRequest::new(KeyRange::prefix(""))).await.unwrap();
        assert!(all.kvs.iter().all(|kv| kv.value.starts_with(MARK)));
        // A store that seals for itself passes it over.
        let keys = SealingKeys::parse(&SealingKeys::generate().unwrap()).unwrap();
        let sealed = dhow_store::SealedKv::new(etcd.clone(), keys, &["/registry/core/secrets/"]);
        sealed.range(RangeRequest::new(KeyRange::prefix("/registry/"))).await.unwrap();
        assert_eq!(sealed.rewrite().await.unwrap(), 0);

        let wrong = folder.path().join("wrong");
        std::fs::write(&wrong, ServerToken::generate().unwrap().to_string()).unwrap();
        let mut third = place(&folder.path().join("c"));
        third.token_file = Some(wrong);
        assert!(refusal(&third, &etcd).await.contains("not that of the cluster"));
    }

    #[tokio::test]
    async fn two_that_start_at_once_with_one_token_are_one_cluster() {
        let folder = tempfile::tempdir().unwrap();
        let etcd = etcd();
        let token = folder.path().join("token");
        std::fs::write(&token, ServerToken::generate().unwrap().to_string()).unwrap();
        let both = ["a", "b"].map(|name| Place { token_file: Some(token.clone()), ..place(&folder.path().join(name)) });
        let (one, other) = tokio::join!(settle(&both[0], &etcd), settle(&both[1], &etcd));
        one.unwrap();
        other.unwrap();
        let ca = |place: &Place| std::fs::read(place.pki_dir().join(CA)).unwrap();
        assert_eq!(ca(&both[0]), ca(&both[1]));
    }

    #[tokio::test]
    async fn clusters_are_not_mixed() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (etcd(), etcd());
        let mut first = place(&folder.path().join("a"));
        settle(&first, &one).await.unwrap();
        let second = place(&folder.path().join("b"));
        settle(&second, &other).await.unwrap();
        first.token_file = Some(second.server_token());
        assert!(refusal(&first, &other).await.contains("another cluster"));
        // Objects without keys are somebody's.
        let orphan = etcd();
        let op = Op::Put { key: "/registry/core/pods/a/b".into(), value: "{}".into(), lease: 0 };
        orphan.txn(Txn { success: vec![op], ..Txn::default() }).await.unwrap();
        assert!(refusal(&place(&folder.path().join("c")), &orphan).await.contains("hold objects"));
    }
}
