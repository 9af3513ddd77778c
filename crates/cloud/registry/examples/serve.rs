//! A registry by itself, open to everyone: `serve FOLDER ADDRESS [ENDPOINT BUCKET]`. For measurements and for trying clients on it. With a
//! bucket, what it is spoken to with is in `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`.
#![allow(clippy::print_stdout)]

use std::path::PathBuf;
use std::sync::Arc;

use dhow_registry::{Config, Everyone, Registry};
use dhow_store::{Blob, FjallKv, FsBlob, S3Blob, S3Config, S3Credentials};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(folder), Some(address)) = (arguments.next(), arguments.next()) else {
        return Err("usage: serve FOLDER ADDRESS [ENDPOINT BUCKET]".into());
    };
    let folder = PathBuf::from(folder);
    let kv = Arc::new(FjallKv::open(folder.join("records"))?);
    let blobs: Arc<dyn Blob> = match (arguments.next(), arguments.next()) {
        (Some(endpoint), Some(bucket)) => {
            let config = S3Config::new(bucket, S3Credentials::Environment);
            Arc::new(S3Blob::new(S3Config { endpoint: Some(endpoint), path_style: true, ..config })?)
        }
        _ => Arc::new(FsBlob::open(folder.join("registry"))?),
    };
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
