//! Port-forward: for each port a data and an error channel of one WebSocket.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use dhow_cri::Runtime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use super::socket::{self, Receiver, Sender};

pub const PROTOCOLS: [&str; 2] = [super::spdy::TUNNEL, "v4.channel.k8s.io"];

/// The ports asked for, as `port=80&port=81` or `ports=80,81`.
pub fn ports(query: &[(String, String)]) -> Result<Vec<u16>, String> {
    let values = query.iter().filter(|(name, _)| name == "port" || name == "ports");
    let ports = values.flat_map(|(_, value)| value.split(',')).map(|text| match text.parse() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(format!("{text:?} is not a port")),
    });
    let ports: Vec<u16> = ports.collect::<Result<_, _>>()?;
    match ports.len() {
        0 => Err("port is required".into()),
        1..=100 => Ok(ports),
        _ => Err("too many ports".into()),
    }
}

async fn one(runtime: &dyn Runtime, sandbox: &str, port: u16, data: u8, to: &Sender, mut input: mpsc::Receiver<Bytes>) {
    // Both channels of a port begin with its number.
    for channel in [data, data + 1] {
        to.send(channel, &port.to_le_bytes()).await;
    }
    let stream = match runtime.port_forward(sandbox, port).await {
        Ok(stream) => stream,
        Err(error) => {
            to.send(data + 1, format!("cannot forward port {port}: {error}").as_bytes()).await;
            return;
        }
    };
    let (mut reader, mut writer) = tokio::io::split(stream);
    let out = async {
        let mut block = vec![0; 32 * 1024];
        while let Ok(count) = reader.read(&mut block).await {
            if count == 0 || !to.send(data, &block[..count]).await {
                return;
            }
        }
    };
    let put = async {
        while let Some(bytes) = input.recv().await {
            if writer.write_all(&bytes).await.is_err() {
                break;
            }
        }
        // Only what the pod says ends a connection; there is no half-close in this protocol.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = out => {}
        () = put => {}
    }
}

/// Runs until every port's connection ended, or the client went away.
pub async fn serve(runtime: Arc<dyn Runtime>, sandbox: String, ports: Vec<u16>, to: Sender, mut from: Receiver) {
    let mut inputs = BTreeMap::new();
    let mut connections = Vec::new();
    for (data, port) in (0u8..).step_by(2).zip(ports) {
        let (sender, receiver) = mpsc::channel(16);
        inputs.insert(data, sender);
        connections.push(one(runtime.as_ref(), &sandbox, port, data, &to, receiver));
    }
    let feed = async {
        while let Some((channel, data)) = socket::next(&mut from).await {
            if let Some(input) = inputs.get(&channel)
                && input.send(data).await.is_err()
            {
                inputs.remove(&channel);
            }
        }
    };
    tokio::select! {
        _ = futures::future::join_all(connections) => to.close().await,
        () = feed => {}
    }
}
