//! Any store behind as much of etcd's wire protocol as the benchmarks need, so that one client measures them all.

use std::convert::Infallible;
use std::sync::Arc;

use dhow_base::pki::ClusterCa;
use dhow_store::etcd_proto as proto;
use dhow_store::{
    EtcdConfig, EventKind, KeyRange, KeyValue, Kv, Op, OpResult, RangeRequest, Txn, WatchMessage, WatchRequest,
};
use futures::{Stream, StreamExt};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tonic::body::Body;
use tonic::server::Grpc;
use tonic::{Status, Streaming};
use tonic_prost::ProstCodec;

/// Serves for as long as the process lives; gives what a client needs.
pub async fn serve(kv: Arc<dyn Kv>) -> EtcdConfig {
    let dir = tempfile::tempdir().unwrap();
    let ca = ClusterCa::load_or_create(dir.path()).unwrap();
    let cert = ca.issue_server("store", &["127.0.0.1".to_owned()]).unwrap();
    let tls = dhow_base::tls::server_config(&cert, Some(ca.cert_pem())).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(tls);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = stream.set_nodelay(true);
            let (kv, acceptor) = (Arc::clone(&kv), acceptor.clone());
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let service = hyper::service::service_fn(move |request| answer(Arc::clone(&kv), request));
                let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .max_concurrent_streams(10_000)
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    let client = ca.issue_client("dhow", &[]).unwrap();
    EtcdConfig {
        ca_pem: Some(ca.cert_pem().to_owned()),
        client_pem: Some((client.cert_pem, client.key_pem)),
        ..EtcdConfig::new([format!("https://{address}")])
    }
}

async fn answer(kv: Arc<dyn Kv>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    macro_rules! unary {
        ($question:ty, $answer:ty, $handler:expr) => {{
            let handler = $handler;
            let service = tower::service_fn(move |request: tonic::Request<$question>| {
                let (kv, handler) = (Arc::clone(&kv), handler);
                async move { handler(kv, request.into_inner()).await.map(tonic::Response::new) }
            });
            Grpc::new(ProstCodec::<$answer, $question>::default()).unary(service, request).await
        }};
    }
    Ok(match path.as_str() {
        "/etcdserverpb.Maintenance/Status" => unary!(proto::Empty, proto::StatusResponse, status),
        "/etcdserverpb.KV/Range" => unary!(proto::RangeRequest, proto::RangeResponse, range),
        "/etcdserverpb.KV/Txn" => unary!(proto::TxnRequest, proto::TxnResponse, txn),
        "/etcdserverpb.Watch/Watch" => {
            let service = tower::service_fn(move |request: tonic::Request<Streaming<proto::WatchRequest>>| {
                let kv = Arc::clone(&kv);
                async move { watch(kv, request.into_inner()).await.map(tonic::Response::new) }
            });
            Grpc::new(ProstCodec::<proto::WatchResponse, proto::WatchRequest>::default())
                .streaming(service, request)
                .await
        }
        _ => Status::unimplemented(path).into_http(),
    })
}

fn failed(error: dhow_store::Error) -> Status {
    Status::unavailable(error.to_string())
}

fn header(revision: u64) -> Option<proto::Header> {
    Some(proto::Header { revision: revision as i64, ..proto::Header::default() })
}

fn message(kv: KeyValue) -> proto::KeyValue {
    proto::KeyValue {
        key: kv.key,
        value: kv.value,
        create_revision: kv.create_revision as i64,
        mod_revision: kv.mod_revision as i64,
        version: kv.version as i64,
        lease: kv.lease,
    }
}

fn interval(key: bytes::Bytes, end: bytes::Bytes) -> KeyRange {
    KeyRange { start: key, end: (!end.is_empty()).then_some(end) }
}

async fn status(kv: Arc<dyn Kv>, _: proto::Empty) -> Result<proto::StatusResponse, Status> {
    let revision = kv.current_revision().await.map_err(failed)?;
    Ok(proto::StatusResponse { header: header(revision), version: "3.6.0".to_owned() })
}

async fn range(kv: Arc<dyn Kv>, request: proto::RangeRequest) -> Result<proto::RangeResponse, Status> {
    let request = RangeRequest {
        range: interval(request.key, request.range_end),
        revision: request.revision as u64,
        limit: request.limit as usize,
        count_only: request.count_only,
        keys_only: request.keys_only,
    };
    let found = kv.range(request).await.map_err(failed)?;
    Ok(proto::RangeResponse {
        header: header(found.revision),
        more: found.more,
        count: found.count as i64,
        kvs: found.kvs.into_iter().map(message).collect(),
    })
}

async fn txn(kv: Arc<dyn Kv>, request: proto::TxnRequest) -> Result<proto::TxnResponse, Status> {
    if !request.compare.is_empty() || !request.failure.is_empty() {
        return Err(Status::unimplemented("only unconditional transactions are served"));
    }
    let ops = request.success.into_iter().map(|op| match op.request {
        Some(proto::Request::Put(put)) => Ok(Op::Put { key: put.key, value: put.value, lease: put.lease }),
        Some(proto::Request::Delete(delete)) => Ok(Op::Delete { range: interval(delete.key, delete.range_end) }),
        _ => Err(Status::unimplemented("only puts and deletes are served")),
    });
    let success = ops.collect::<Result<_, _>>()?;
    let done = kv.txn(Txn { success, ..Txn::default() }).await.map_err(failed)?;
    let responses = done.results.into_iter().map(|result| {
        let response = match result {
            OpResult::Put { previous } => proto::Response::Put(proto::PutResponse { prev_kv: previous.map(message) }),
            OpResult::Delete { previous } => proto::Response::Delete(proto::DeleteRangeResponse {
                deleted: previous.len() as i64,
                prev_kvs: previous.into_iter().map(message).collect(),
            }),
            OpResult::Range(_) => proto::Response::Range(proto::RangeResponse::default()),
        };
        proto::ResponseOp { response: Some(response) }
    });
    Ok(proto::TxnResponse { header: header(done.revision), succeeded: done.succeeded, responses: responses.collect() })
}

async fn watch(
    kv: Arc<dyn Kv>,
    mut requests: Streaming<proto::WatchRequest>,
) -> Result<impl Stream<Item = Result<proto::WatchResponse, Status>> + Send + 'static, Status> {
    let Some(proto::WatchRequest { request: Some(proto::Watch::Create(create)) }) = requests.message().await? else {
        return Err(Status::invalid_argument("a watch begins with its creation"));
    };
    let range = interval(create.key, create.range_end);
    let request = WatchRequest { range, start_revision: create.start_revision as u64 };
    let events = kv.watch(request).await.map_err(failed)?;
    let now = kv.current_revision().await.map_err(failed)?;
    let created = proto::WatchResponse { header: header(now), created: true, ..proto::WatchResponse::default() };
    let events = events.map(move |message| {
        let _as_long_as_the_client_may_ask = &requests;
        Ok(match message.map_err(failed)? {
            WatchMessage::Progress { revision } => {
                proto::WatchResponse { header: header(revision), ..proto::WatchResponse::default() }
            }
            WatchMessage::Events { revision, events } => proto::WatchResponse {
                header: header(revision),
                events: events.into_iter().map(event).collect(),
                ..proto::WatchResponse::default()
            },
        })
    });
    Ok(futures::stream::iter([Ok(created)]).chain(events))
}

fn event(event: dhow_store::Event) -> proto::Event {
    let kind = match event.kind {
        EventKind::Put => proto::EVENT_PUT,
        EventKind::Delete => proto::EVENT_DELETE,
    };
    proto::Event { kind, kv: Some(message(event.kv)), prev_kv: event.previous.map(message) }
}
