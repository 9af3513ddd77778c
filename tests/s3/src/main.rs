//! `dhow-test-s3 FOLDER ADDRESS`: the server by itself, for clouds in network namespaces of their own.
#![allow(clippy::print_stdout)]

use std::path::PathBuf;

use dhow_test_s3::{Script, prepare, serve};
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(folder), Some(address)) = (arguments.next(), arguments.next()) else {
        return Err(std::io::Error::other("usage: dhow-test-s3 FOLDER ADDRESS"));
    };
    let folder = PathBuf::from(folder);
    prepare(&folder)?;
    let listener = TcpListener::bind(address).await?;
    println!("serving {}", listener.local_addr()?);
    serve(listener, folder, None, Script::default()).await
}
