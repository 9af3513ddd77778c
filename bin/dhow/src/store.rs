//! The store that keeps the cluster's state: in the data folder, or in etcd.

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use dhow_apiserver::BackupSource;
use dhow_base::files;
use dhow_store::{EtcdConfig, EtcdKv, FjallKv, KeyRange, Kv, RangeRequest, SealedKv, ShiftedKv};

use crate::builtins::blocking;
use crate::migrate::Origin;
use crate::place::{EtcdPlace, Place};
use crate::{keys, registry, shared};

/// An open store.
pub struct Store {
    pub kv: Arc<dyn Kv>,
    /// The same without its seals, if other servers use it too.
    pub shared: Option<Arc<dyn Kv>>,
    /// Writes a backup; etcd makes its own.
    pub backup: Option<BackupSource>,
}

pub async fn open(place: &Place) -> Result<Store> {
    let (kv, shared, backup) = match &place.etcd {
        Some(etcd) => {
            let kv = open_etcd(etcd).await?;
            shared::settle(place, &kv).await?;
            (Arc::clone(&kv), Some(kv), None)
        }
        None => {
            let kv = open_embedded(place).await?;
            let source = Arc::clone(&kv);
            let backup = move |out: &mut dyn Write| source.backup(out).map(drop).map_err(io::Error::other);
            (kv as Arc<dyn Kv>, None, Some(Arc::new(backup) as BackupSource))
        }
    };
    let (keys, fresh) = blocking(place, "open the sealing keys", keys::sealing).await?;
    let sealed = SealedKv::new(kv, keys, &sealed());
    if fresh {
        // Secrets of a time before there were keys.
        sealed.rewrite().await.context("seal the secrets in the store")?;
    }
    Ok(Store { kv: Arc::new(sealed), shared, backup })
}

/// Values below these are sealed: what the API says of its own, and what signs the registry's tokens.
fn sealed() -> Vec<&'static str> {
    [dhow_apiserver::SENSITIVE, &[registry::TOKEN_KEYS]].concat()
}

/// Seals everything sensitive with a new key and forgets the others; returns how many values that were. Cut off in
/// between, it leaves keys that open everything.
pub async fn rotate_keys(place: &Place) -> Result<usize> {
    let (kv, shared) = match &place.etcd {
        Some(etcd) => {
            let kv = open_etcd(etcd).await?;
            shared::settle(place, &kv).await?;
            alone(&kv).await?;
            (Arc::clone(&kv), Some(kv))
        }
        None => (open_embedded(place).await? as Arc<dyn Kv>, None),
    };
    keys::add_sealing_key(place)?;
    if let Some(shared) = &shared {
        shared::publish(place, shared).await?;
    }
    let (keys, _) = keys::sealing(place)?;
    let rewritten = SealedKv::new(kv, keys, &sealed()).rewrite().await;
    let written = rewritten.context("seal the secrets anew")?;
    keys::keep_first_sealing_key(place)?;
    if let Some(shared) = &shared {
        shared::publish(place, shared).await?;
    }
    Ok(written)
}

/// Fails while servers of the cluster run: they would not know the new key.
async fn alone(kv: &Arc<dyn Kv>) -> Result<()> {
    let request = RangeRequest { keys_only: true, ..RangeRequest::new(KeyRange::prefix(dhow_apiserver::MEMBERS)) };
    let found = kv.range(request).await.context("look for running servers")?;
    let Some(first) = found.kvs.first() else { return Ok(()) };
    let name = String::from_utf8_lossy(&first.key);
    let address = name.strip_prefix(dhow_apiserver::MEMBERS).unwrap_or(&name);
    bail!(
        "a server of the cluster runs at {address}; all of them have to be stopped first (one that was killed is \
           forgotten within seconds)"
    )
}

async fn open_embedded(place: &Place) -> Result<Arc<FjallKv>> {
    if let Some(text) = files::read_optional(&place.moved_file())? {
        bail!(
            "the state of this cloud was moved to {}; start with --store and those servers, or remove {} to go back to \
             the state as it was then",
            text.trim(),
            place.moved_file().display()
        );
    }
    Ok(Arc::new(blocking(place, "open the store", |place| Ok(FjallKv::open(place.store_dir())?)).await?))
}

/// The etcd servers' store, going on where one that was moved there ended.
async fn open_etcd(etcd: &EtcdPlace) -> Result<Arc<dyn Kv>> {
    let kv = connect(etcd).await?;
    let Some(origin) = Origin::read(&kv).await? else { return Ok(kv) };
    if !origin.complete {
        bail!("a move to these etcd servers was not finished; repeat `dhow server migrate-store`");
    }
    Ok(Arc::new(ShiftedKv::new(kv, origin.offset)))
}

/// The etcd servers' store as it is.
pub async fn connect(etcd: &EtcdPlace) -> Result<Arc<dyn Kv>> {
    let kv = EtcdKv::connect(etcd_config(etcd)?).await.context("connect to the etcd servers")?;
    Ok(Arc::new(kv))
}

fn etcd_config(etcd: &EtcdPlace) -> Result<EtcdConfig> {
    let read = |path: &Path| std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()));
    let mut config = EtcdConfig::new(etcd.endpoints.urls.clone());
    config.ca_pem = etcd.ca.as_deref().map(read).transpose()?;
    config.client_pem = match &etcd.client {
        Some((cert, key)) => Some((read(cert)?, read(key)?)),
        None => None,
    };
    Ok(config)
}
