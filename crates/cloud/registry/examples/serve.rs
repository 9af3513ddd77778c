//! A registry by itself, open to everyone: `serve FOLDER ADDRESS`. For measurements and for trying clients on it.
#![allow(clippy::print_stdout)]

use std::path::PathBuf;
use std::sync::Arc;

use dhow_registry::{Config, Everyone, Registry};
use dhow_store::{FjallKv, FsBlob};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(folder), Some(address)) = (arguments.next(), arguments.next()) else {
        return Err("usage: serve FOLDER ADDRESS".into());
    };
    let folder = PathBuf::from(folder);
    let kv = Arc::new(FjallKv::open(folder.join("records"))?);
    let blobs = Arc::new(FsBlob::open(folder.join("registry"))?);
    let registry = Registry::open(Config::default(), kv, blobs, Arc::new(Everyone::default())).await?;
    let listener = TcpListener::bind(address).await?;
    println!("serving {}", listener.local_addr()?);
    let stop = CancellationToken::new();
    let asked = stop.clone();
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            asked.cancel();
        }
    });
    registry.serve(listener, None, stop).await;
    Ok(())
}
