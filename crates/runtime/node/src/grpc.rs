//! One gRPC call: `grpc.health.v1.Health/Check` over HTTP/2 without TLS.

use bytes::{BufMut, Bytes, BytesMut};
use http::{Request, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};

use crate::http_check;

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

/// Fails unless the service says that it is serving; the error is for the pod's events.
pub async fn check(host: &str, port: u16, service: &str) -> Result<(), String> {
    let stream = http_check::connect(host, port).await?;
    let io = TokioIo::new(stream);
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await;
    let (mut sender, connection) = handshake.map_err(|error| format!("error: health rpc failed: {error}"))?;
    let request = Request::post(format!("http://{}/grpc.health.v1.Health/Check", http_check::authority(host, port)))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .header(header::USER_AGENT, "kube-probe/1.35")
        .body(Full::new(question(service)))
        .map_err(|error| error.to_string())?;
    let answer = async {
        let failed = |error: String| format!("error: health rpc failed: {error}");
        let answer = sender.send_request(request).await.map_err(|error| failed(error.to_string()))?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, ANSWER_LIMIT).collect().await.map_err(|error| failed(error.to_string()))?;
        let status = body.trailers().and_then(|t| t.get("grpc-status")).or(head.headers.get("grpc-status"));
        match status.and_then(|status| status.to_str().ok()) {
            Some("0") if head.status.is_success() => {}
            Some("12") => return Err("error: this server does not implement the grpc health protocol".to_owned()),
            status => return Err(failed(format!("status {}, grpc-status {}", head.status, status.unwrap_or("none")))),
        }
        match body.to_bytes().get(5..) {
            Some(message) if message == SERVING => Ok(()),
            message => {
                let name = match message {
                    Some([0x08, 2]) => "NOT_SERVING",
                    Some([0x08, 3]) => "SERVICE_UNKNOWN",
                    _ => "UNKNOWN",
                };
                Err(format!("service unhealthy (responded with {name:?})"))
            }
        }
    };
    tokio::select! {
        answer = answer => answer,
        _ = connection => Err("error: health rpc failed: the connection ended".into()),
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
        assert_eq!(check("127.0.0.1", server().await, "db").await, Ok(()));
        let unhealthy = Err("service unhealthy (responded with \"NOT_SERVING\")".to_owned());
        assert_eq!(check("127.0.0.1", server().await, "").await, unhealthy);
    }
}
