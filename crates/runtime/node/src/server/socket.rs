//! The WebSocket a request becomes: the handshake, and frames that carry a channel's number first.

use bytes::{Bytes, BytesMut};
use dhow_cri::streaming::{UPGRADE, VERSION};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Utf8Bytes;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, Role};

use super::{Answer, Refusal, body};

type Io = WebSocketStream<TokioIo<Upgraded>>;
pub type Receiver = SplitStream<Io>;

/// The sending half, shared by the streams of one connection.
#[derive(Clone)]
pub struct Sender(std::sync::Arc<tokio::sync::Mutex<SplitSink<Io, Message>>>);

impl Sender {
    /// `false` once the peer is gone.
    pub async fn send(&self, channel: u8, data: &[u8]) -> bool {
        let mut frame = BytesMut::with_capacity(data.len() + 1);
        frame.extend_from_slice(&[channel]);
        frame.extend_from_slice(data);
        self.0.lock().await.send(Message::Binary(frame.freeze())).await.is_ok()
    }

    /// A frame without a channel; `false` once the peer is gone.
    pub async fn send_raw(&self, data: Bytes) -> bool {
        self.0.lock().await.send(Message::Binary(data)).await.is_ok()
    }

    /// Ends the session. Without this very code kubectl takes the end for a failure, whatever was said before.
    pub async fn close(&self) {
        let normal = CloseFrame { code: CloseCode::Normal, reason: Utf8Bytes::default() };
        let mut sink = self.0.lock().await;
        let _ = sink.send(Message::Close(Some(normal))).await;
        let _ = sink.close().await;
    }
}

fn has_token(headers: &HeaderMap, name: header::HeaderName, wanted: &str) -> bool {
    let values = headers.get_all(name).into_iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|v| v.split(',')).any(|token| token.trim().eq_ignore_ascii_case(wanted))
}

/// An answered handshake, whose socket comes once the answer has been sent.
pub struct Handshake {
    pub protocol: &'static str,
    pub answer: Answer,
    upgrade: hyper::upgrade::OnUpgrade,
}

impl Handshake {
    /// Takes the first protocol of the client's that is in `supported`.
    pub fn accept(request: &mut Request<Incoming>, supported: &[&'static str]) -> Result<Self, Refusal> {
        let headers = request.headers();
        if !has_token(headers, header::UPGRADE, "websocket") || !has_token(headers, header::CONNECTION, "upgrade") {
            return Err(Refusal::bad_request("this is a WebSocket endpoint; other upgrades are not supported"));
        }
        if headers.get(header::SEC_WEBSOCKET_VERSION).is_none_or(|v| v != "13") {
            return Err(Refusal::bad_request("only WebSocket version 13 is supported"));
        }
        let key = headers.get(header::SEC_WEBSOCKET_KEY).ok_or_else(|| Refusal::bad_request("no Sec-WebSocket-Key"))?;
        let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes()))
            .map_err(|_| Refusal::bad_request("bad Sec-WebSocket-Key"))?;
        let asked = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).into_iter().filter_map(|v| v.to_str().ok());
        let mut asked = asked.flat_map(|v| v.split(',')).map(str::trim);
        let protocol = asked
            .find_map(|name| supported.iter().find(|s| **s == name).copied())
            .ok_or_else(|| Refusal::bad_request(format!("supported subprotocols are {}", supported.join(", "))))?;
        let answer = Response::builder()
            .status(StatusCode::SWITCHING_PROTOCOLS)
            .header(header::UPGRADE, "websocket")
            .header(header::CONNECTION, "Upgrade")
            .header(header::SEC_WEBSOCKET_ACCEPT, accept)
            .header(header::SEC_WEBSOCKET_PROTOCOL, protocol)
            .body(body(Bytes::new()))
            .map_err(|error| Refusal::internal(error.to_string()))?;
        Ok(Self { protocol, answer, upgrade: hyper::upgrade::on(request) })
    }

    /// Splits off the answer to be returned; `then` runs with the socket.
    pub fn run<F>(self, then: impl FnOnce(Sender, Receiver) -> F + Send + 'static) -> Answer
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let upgrade = self.upgrade;
        tokio::spawn(async move {
            match upgrade.await {
                Ok(io) => {
                    let socket = WebSocketStream::from_raw_socket(TokioIo::new(io), Role::Server, None).await;
                    let (sink, receiver) = socket.split();
                    then(Sender(std::sync::Arc::new(tokio::sync::Mutex::new(sink))), receiver).await;
                }
                Err(error) => tracing::debug!(%error, "upgrade failed"),
            }
        });
        self.answer
    }
}

/// The next frame's bytes; `None` once the peer closed.
pub async fn next_raw(receiver: &mut Receiver) -> Option<Bytes> {
    loop {
        match receiver.next().await?.ok()? {
            Message::Binary(data) => return Some(data),
            Message::Text(text) => return Some(Bytes::from(text)),
            Message::Close(_) => return None,
            _ => {}
        }
    }
}

/// The next frame that has a channel; `None` once the peer closed.
pub async fn next(receiver: &mut Receiver) -> Option<(u8, Bytes)> {
    loop {
        let mut data = next_raw(receiver).await?;
        if !data.is_empty() {
            return Some((data.split_to(1)[0], data));
        }
    }
}

/// A switch to SPDY without a WebSocket around it, as clients before 1.31 ask for.
pub struct Spdy {
    answer: Answer,
    upgrade: hyper::upgrade::OnUpgrade,
}

impl Spdy {
    /// `None` when this client does not ask for SPDY; an error when it speaks another protocol on the streams.
    pub fn accept(request: &mut Request<Incoming>, protocol: &'static str) -> Result<Option<Self>, Refusal> {
        if !has_token(request.headers(), header::UPGRADE, UPGRADE) {
            return Ok(None);
        }
        let asked = request.headers().get_all(VERSION).into_iter().filter_map(|v| v.to_str().ok());
        if !asked.flat_map(|v| v.split(',')).any(|name| name.trim() == protocol) {
            return Err(Refusal::new(StatusCode::FORBIDDEN, format!("supported stream protocols are {protocol}")));
        }
        let answer = Response::builder()
            .status(StatusCode::SWITCHING_PROTOCOLS)
            .header(header::UPGRADE, UPGRADE)
            .header(header::CONNECTION, "Upgrade")
            .header(VERSION, protocol)
            .body(body(Bytes::new()))
            .map_err(|error| Refusal::internal(error.to_string()))?;
        Ok(Some(Self { answer, upgrade: hyper::upgrade::on(request) }))
    }

    /// Splits off the answer to be returned; `then` runs with the connection.
    pub fn run<F>(self, then: impl FnOnce(TokioIo<Upgraded>) -> F + Send + 'static) -> Answer
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let upgrade = self.upgrade;
        tokio::spawn(async move {
            match upgrade.await {
                Ok(io) => then(TokioIo::new(io)).await,
                Err(error) => tracing::debug!(%error, "upgrade failed"),
            }
        });
        self.answer
    }
}
