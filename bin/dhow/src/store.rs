//! The store that keeps the cluster's state: in the data folder, or in etcd.

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use dhow_apiserver::BackupSource;
use dhow_store::{EtcdConfig, EtcdKv, FjallKv, Kv};

use crate::place::{EtcdPlace, Place};

/// An open store.
pub struct Store {
    pub kv: Arc<dyn Kv>,
    /// Writes a backup; etcd makes its own.
    pub backup: Option<BackupSource>,
}

pub async fn open(place: &Place) -> Result<Store> {
    if let Some(etcd) = &place.etcd {
        let kv = EtcdKv::connect(etcd_config(etcd)?).await.context("connect to the etcd servers")?;
        return Ok(Store { kv: Arc::new(kv), backup: None });
    }
    let folder = place.store_dir();
    let open = move || FjallKv::open(folder);
    let kv = Arc::new(tokio::task::spawn_blocking(open).await.context("open the store")?.context("open the store")?);
    let source = Arc::clone(&kv);
    let backup: BackupSource =
        Arc::new(move |out: &mut dyn Write| source.backup(out).map(drop).map_err(io::Error::other));
    Ok(Store { kv, backup: Some(backup) })
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
