//! An answer's body with something that lasts as long: a seat, a place in a record.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use dhow_client::Body;
use http_body::{Frame, SizeHint};

/// A body that lets go of what it holds when it ends or is given up.
pub struct Held<T> {
    body: Body,
    _until_end: T,
}

impl<T> Held<T> {
    pub fn new(body: Body, until_end: T) -> Self {
        Self { body, _until_end: until_end }
    }
}

impl<T: Unpin> http_body::Body for Held<T> {
    type Data = Bytes;
    type Error = dhow_client::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
