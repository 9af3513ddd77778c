//! An S3 server over a folder, for tests of those who keep things in S3. It is another project's (s3s), verifies signatures,
//! and can be told to misbehave.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dhow_base::pki::CertPair;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use parking_lot::Mutex;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s_fs::FileSystem;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// Who may do everything.
pub const ACCESS_KEY: &str = "test-access";
pub const SECRET_KEY: &str = "test-secret-only-for-tests";
pub const BUCKET: &str = "dhow";

type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, BoxError>;
type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What happens to the next request that fits, in the place of what should.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// It is answered with this status and S3 error code.
    Refuse(u16, &'static str),
    /// No answer ever comes.
    Hang,
    /// The answer's body ends after so many bytes, with the connection.
    Cut(usize),
    /// It is done, but the answer is this status.
    Forget(u16),
}

/// What was asked for, and what is to go wrong.
#[derive(Clone, Default)]
pub struct Script(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    faults: VecDeque<(String, Fault)>,
    seen: Vec<String>,
}

impl Script {
    /// The next request whose line, `METHOD /path?query`, contains `what` meets this.
    pub fn next(&self, what: &str, fault: Fault) {
        self.0.lock().faults.push_back((what.to_owned(), fault));
    }

    /// The lines of all requests so far.
    pub fn seen(&self) -> Vec<String> {
        self.0.lock().seen.clone()
    }

    fn take(&self, line: &str) -> Option<Fault> {
        let mut state = self.0.lock();
        state.seen.push(line.to_owned());
        let at = state.faults.iter().position(|(what, _)| line.contains(what))?;
        state.faults.remove(at).map(|(_, fault)| fault)
    }
}

/// A server of this process; it ends with the runtime.
pub struct Server {
    pub address: SocketAddr,
    pub script: Script,
    /// Objects are the files below it.
    pub bucket: PathBuf,
    /// In the form that the tools of AWS have.
    pub credentials: PathBuf,
}

impl Server {
    /// Serves `folder` at a port of the loopback address.
    ///
    /// # Errors
    /// When the folder or the port cannot be used.
    pub async fn start(folder: &Path, tls: Option<&CertPair>) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (bucket, credentials) = prepare(folder)?;
        let script = Script::default();
        let tls = tls.map(|cert| dhow_base::tls::server_config(cert, None)).transpose().map_err(io::Error::other)?;
        tokio::spawn(serve(listener, folder.to_owned(), tls, script.clone()));
        Ok(Self { address, script, bucket, credentials })
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// Makes the bucket and the file of credentials in `folder`.
///
/// # Errors
/// When that cannot be written.
pub fn prepare(folder: &Path) -> io::Result<(PathBuf, PathBuf)> {
    let (bucket, credentials) = (folder.join(BUCKET), folder.join("credentials"));
    std::fs::create_dir_all(&bucket)?;
    let text = format!("[default]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n");
    std::fs::write(&credentials, text)?;
    Ok((bucket, credentials))
}

/// Serves the buckets in `folder` for ever.
///
/// # Errors
/// When the folder cannot be used.
pub async fn serve(
    listener: TcpListener,
    folder: PathBuf,
    tls: Option<Arc<rustls::ServerConfig>>,
    script: Script,
) -> io::Result<()> {
    let files = FileSystem::new(folder).map_err(|error| io::Error::other(format!("{error:?}")))?;
    let mut builder = S3ServiceBuilder::new(files);
    builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
    let service = builder.build();
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let (service, script, tls) = (service.clone(), script.clone(), tls.clone());
        tokio::spawn(async move {
            match tls {
                None => connection(stream, service, script).await,
                Some(tls) => {
                    if let Ok(stream) = TlsAcceptor::from(tls).accept(stream).await {
                        connection(stream, service, script).await;
                    }
                }
            }
        });
    }
}

async fn connection(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, service: S3Service, script: Script) {
    let answering = service_fn(move |request| answer(request, service.clone(), script.clone()));
    // A client that goes away is its own business.
    let _ = Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), answering).await;
}

async fn answer(request: Request<Incoming>, service: S3Service, script: Script) -> Result<Response<Body>, BoxError> {
    let fault = script.take(&format!("{} {}", request.method(), request.uri()));
    match fault {
        Some(Fault::Hang) => std::future::pending().await,
        Some(Fault::Refuse(status, code)) => {
            let text = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>as told</Message></Error>");
            let body = Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed_unsync();
            return Ok(Response::builder().status(status).body(body)?);
        }
        _ => {}
    }
    let answered = hyper::service::Service::call(&service, request).await.map_err(|error| format!("{error:?}"))?;
    match fault {
        Some(Fault::Cut(length)) => {
            let (parts, body) = answered.into_parts();
            let whole = body.collect().await.map_err(|error| format!("{error:?}"))?.to_bytes();
            let cut = whole.slice(..length.min(whole.len()));
            let frames: Vec<Result<Frame<Bytes>, BoxError>> = vec![Ok(Frame::data(cut)), Err("cut off".into())];
            let stream = slowly(frames);
            Ok(Response::from_parts(parts, BodyExt::boxed_unsync(StreamBody::new(stream))))
        }
        Some(Fault::Forget(status)) => {
            let _ = answered.into_body().collect().await;
            let mut response = Response::new(Full::default().map_err(|never| match never {}).boxed_unsync());
            *response.status_mut() = StatusCode::from_u16(status)?;
            Ok(response)
        }
        _ => Ok(answered.map(|body| body.map_err(|error| error.to_string().into()).boxed_unsync())),
    }
}

/// One frame at a time, with a pause in which what came before is sent.
fn slowly(frames: Vec<Result<Frame<Bytes>, BoxError>>) -> impl futures::Stream<Item = Result<Frame<Bytes>, BoxError>> {
    futures::stream::unfold(frames.into_iter(), |mut frames| async move {
        let frame = frames.next()?;
        if frame.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Some((frame, frames))
    })
}
