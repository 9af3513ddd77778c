//! One gRPC call: `grpc.health.v1.Health/Check` over HTTP/2 without TLS.

use bytes::{BufMut, Bytes, BytesMut};
use http::{Request, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

/// `HealthCheckResponse{status: SERVING}`.
const SERVING: [u8; 2] = [0x08, 0x01];
const ANSWER_LIMIT: usize = 4096;

/// A message of the wire: not compressed, its length, `HealthCheckRequest{service}`.
fn question(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(0x0a);
        let mut left = service.len();
        while left > 0x7f {
            message.put_u8(0x80 | (left & 0x7f) as u8);
            left >>= 7;
        }
        message.put_u8(left as u8);
        message.put_slice(service.as_bytes());
    }
    let mut frame = BytesMut::with_capacity(message.len() + 5);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    frame.put(message);
    frame.freeze()
}

/// Whether the service says it is serving.
pub async fn is_serving(host: &str, port: u16, service: &str) -> bool {
    check(host, port, service).await.unwrap_or(false)
}

async fn check(host: &str, port: u16, service: &str) -> Option<bool> {
    let stream = TcpStream::connect((host, port)).await.ok()?;
    let io = TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.ok()?;
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let request = Request::post(format!("http://{host}:{port}/grpc.health.v1.Health/Check"))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .header(header::USER_AGENT, "kube-probe/1.35")
        .body(Full::new(question(service)))
        .ok()?;
    let answer = async {
        let answer = sender.send_request(request).await.ok()?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, ANSWER_LIMIT).collect().await.ok()?;
        let status = body.trailers().and_then(|t| t.get("grpc-status")).or(head.headers.get("grpc-status"));
        let fine = head.status.is_success() && status.is_some_and(|s| s == "0");
        Some(fine && body.to_bytes().get(5..) == Some(&SERVING))
    };
    tokio::select! {
        answer = answer => answer,
        _ = connection => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use http::{HeaderMap, Response};
    use http_body_util::StreamBody;
    use hyper::body::{Frame, Incoming};

    /// Serves one connection that is healthy for the service `db` only.
    async fn server() -> u16 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let service = hyper::service::service_fn(async |request: Request<Incoming>| {
                assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                let asked = request.into_body().collect().await.unwrap().to_bytes();
                let status = if asked.as_ref() == b"\0\0\0\0\x04\x0a\x02db" { 1 } else { 2 };
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", "0".parse().unwrap());
                let data = Bytes::from(vec![0, 0, 0, 0, 2, 8, status]);
                let frames = [Ok::<_, std::io::Error>(Frame::data(data)), Ok(Frame::trailers(trailers))];
                Ok::<_, std::io::Error>(Response::new(StreamBody::new(futures::stream::iter(frames))))
            });
            let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            http.serve_connection(TokioIo::new(stream), service).await
        });
        port
    }

    #[tokio::test]
    async fn only_a_serving_service_passes() {
        assert!(is_serving("127.0.0.1", server().await, "db").await);
        assert!(!is_serving("127.0.0.1", server().await, "").await);
    }
}
