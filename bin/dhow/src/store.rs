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
    let (kv, backup): (Arc<dyn Kv>, _) = match &place.etcd {
        Some(etcd) => {
            let kv = EtcdKv::connect(etcd_config(etcd)?).await.context("connect to the etcd servers")?;
            (Arc::new(kv), None)
        }
        None => {
            let open = |place: &Place| Ok(FjallKv::open(place.store_dir())?);
            let kv = Arc::new(blocking(place, "open the store", open).await?);
            let source = Arc::clone(&kv);
            let backup: BackupSource =
                Arc::new(move |out: &mut dyn Write| source.backup(out).map(drop).map_err(io::Error::other));
            (kv, Some(backup))
        }
    };
    let sealed = SealedKv::new(kv, keys, dhow_apiserver::SENSITIVE);
    if fresh {
        // Secrets of a time before there were keys.
        sealed.rewrite().await.context("seal the secrets in the store")?;
    }
    Ok(Store { kv: Arc::new(sealed), backup })
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
