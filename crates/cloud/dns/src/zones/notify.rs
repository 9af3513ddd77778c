//! Tells secondaries that a zone has changed (RFC 1996).

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::UdpSocket;

use super::zone::Zone;
use crate::kind::{CLASS_IN, rtype};
use crate::random;

const TRIES: u32 = 4;
const FIRST_PATIENCE: Duration = Duration::from_secs(2);

/// `192.0.2.1` or with a port.
pub fn address(text: &str) -> Option<SocketAddr> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, 53)))
}

/// Tells one secondary, until it says that it heard or patience ends.
pub async fn tell(zone: &Zone, secondary: SocketAddr, now: u64) {
    for attempt in 0..TRIES {
        match tokio::time::timeout(FIRST_PATIENCE * 2u32.pow(attempt), once(zone, secondary, now)).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => {
                tracing::debug!(zone = %zone.origin, %secondary, %error, "notify");
                tokio::time::sleep(FIRST_PATIENCE * 2u32.pow(attempt)).await;
            }
            Err(_) => {}
        }
    }
    tracing::warn!(zone = %zone.origin, %secondary, "the secondary does not acknowledge that the zone has changed");
}

async fn once(zone: &Zone, secondary: SocketAddr, now: u64) -> std::io::Result<()> {
    let any: IpAddr = if secondary.is_ipv4() { [0, 0, 0, 0].into() } else { [0u16; 8].into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(secondary).await?;
    let id: [u8; 2] = random::bytes()?;
    let mut message = id.to_vec();
    // NOTIFY, authoritative, one question.
    message.extend([0x24, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    message.extend(zone.origin.as_bytes());
    message.extend(rtype::SOA.to_be_bytes());
    message.extend(CLASS_IN.to_be_bytes());
    if let Some(key) = zone.keys.first() {
        key.sign(&mut message, 0, &[], false, now, 0);
    }
    socket.send(&message).await?;
    let mut reply = [0; 512];
    loop {
        let length = socket.recv(&mut reply).await?;
        if length >= 12 && reply[..2] == id && reply[2] & 0xf8 == 0xa0 {
            return match reply[3] & 15 {
                0 => Ok(()),
                code => Err(std::io::Error::other(format!("the secondary answers with code {code}"))),
            };
        }
    }
}
