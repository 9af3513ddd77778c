//! `/backup`: the whole store as one stream, for whoever may do everything.

use std::io::{self, BufWriter, Write};

use bytes::Bytes;
use dhow_api::Status;
use dhow_client::Body;
use futures::StreamExt;
use http::{Response, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::ApiServer;

const CHUNK: usize = 256 << 10;
/// Chunks that wait for a slow reader; then the writer waits.
const AHEAD: usize = 4;

type Chunk = Result<Frame<Bytes>, dhow_client::Error>;

/// A backup of this moment. Its end is marked in it, so that a stream that was cut off is found out.
pub fn stream(server: &ApiServer) -> Result<Response<Body>, Status> {
    let Some(backup) = server.backup.clone() else {
        return Err(Status::bad_request(
            "the state is kept in etcd, which makes its own backups: use `etcdctl snapshot save`",
        ));
    };
    let (sender, receiver) = mpsc::channel::<Chunk>(AHEAD);
    tokio::task::spawn_blocking(move || {
        let mut out = BufWriter::with_capacity(CHUNK, Chunks(sender.clone()));
        let written = backup(&mut out).and_then(|()| out.flush());
        if let Err(error) = written {
            tracing::warn!(%error, "a backup was not finished");
            let _ = sender.blocking_send(Err(dhow_client::Error::connection("write the backup", error)));
        }
    });
    let body = BodyExt::boxed_unsync(StreamBody::new(ReceiverStream::new(receiver).fuse()));
    let response = Response::builder().header(header::CONTENT_TYPE, "application/octet-stream").body(body);
    response.map_err(|error| Status::internal(error.to_string()))
}

struct Chunks(mpsc::Sender<Chunk>);

impl Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let gone = |_| io::Error::new(io::ErrorKind::BrokenPipe, "the reader went away");
        self.0.blocking_send(Ok(Frame::data(Bytes::copy_from_slice(bytes)))).map_err(gone)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
