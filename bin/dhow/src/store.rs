//! The store that keeps the cluster's state: in the data folder, or in etcd.

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use dhow_apiserver::BackupSource;
use dhow_store::{EtcdConfig, EtcdKv, FjallKv, Kv, SealedKv};

use crate::builtins::blocking;
use crate::keys;
use crate::place::{EtcdPlace, Place};

/// An open store.
pub struct Store {
    pub kv: Arc<dyn Kv>,
    /// Writes a backup; etcd makes its own.
    pub backup: Option<BackupSource>,
}

pub async fn open(place: &Place) -> Result<Store> {
    let (keys, fresh) = blocking(place, "open the sealing keys", keys::sealing).await?;
    let (kv, backup) = open_plain(place).await?;
    let sealed = SealedKv::new(kv, keys, dhow_apiserver::SENSITIVE);
    if fresh {
        // Secrets of a time before there were keys.
        sealed.rewrite().await.context("seal the secrets in the store")?;
    }
    Ok(Store { kv: Arc::new(sealed), backup })
}

/// Seals everything sensitive with a new key and forgets the others; returns how many values that were. Cut off in
/// between, it leaves keys that open everything.
pub async fn rotate_keys(place: &Place) -> Result<usize> {
    keys::add_sealing_key(place)?;
    let (keys, _) = keys::sealing(place)?;
    let (kv, _) = open_plain(place).await?;
    let rewritten = SealedKv::new(kv, keys, dhow_apiserver::SENSITIVE).rewrite().await;
    let written = rewritten.context("seal the secrets anew")?;
    keys::keep_first_sealing_key(place)?;
    Ok(written)
}

/// The store as it is, and how it makes backups.
async fn open_plain(place: &Place) -> Result<(Arc<dyn Kv>, Option<BackupSource>)> {
    if let Some(etcd) = &place.etcd {
        let kv = EtcdKv::connect(etcd_config(etcd)?).await.context("connect to the etcd servers")?;
        return Ok((Arc::new(kv), None));
    }
    let kv = Arc::new(blocking(place, "open the store", |place| Ok(FjallKv::open(place.store_dir())?)).await?);
    let source = Arc::clone(&kv);
    let backup = move |out: &mut dyn Write| source.backup(out).map(drop).map_err(io::Error::other);
    Ok((kv, Some(Arc::new(backup))))
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
