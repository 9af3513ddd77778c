//! A connection whose server or credentials change while it is used: what is under way ends where it began.

use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use parking_lot::RwLock;

use crate::http_transport::HttpsTransport;
use crate::transport::{Body, Transport};
use crate::{Client, Error, HttpsConfig};

/// Gives a client's connections to come another server or other credentials.
#[derive(Clone)]
pub struct Replace {
    current: Arc<RwLock<Arc<HttpsTransport>>>,
}

impl Replace {
    /// Requests made from now on go by `config`.
    pub fn replace(&self, config: HttpsConfig) -> Result<(), Error> {
        let next = Arc::new(HttpsTransport::new(config)?);
        *self.current.write() = next;
        Ok(())
    }
}

struct Replaceable {
    current: Arc<RwLock<Arc<HttpsTransport>>>,
}

impl Replaceable {
    fn current(&self) -> Arc<HttpsTransport> {
        Arc::clone(&self.current.read())
    }
}

#[async_trait::async_trait]
impl Transport for Replaceable {
    async fn call(&self, request: Request<Bytes>) -> Result<Response<Body>, Error> {
        self.current().call(request).await
    }

    async fn upload(&self, request: Request<Body>) -> Result<Response<Body>, Error> {
        self.current().upload(request).await
    }
}

impl Client {
    /// As [`Client::https`], with what changes it later.
    pub fn replaceable(config: HttpsConfig) -> Result<(Self, Replace), Error> {
        let current = Arc::new(RwLock::new(Arc::new(HttpsTransport::new(config)?)));
        let replace = Replace { current: Arc::clone(&current) };
        Ok((Self::new(Arc::new(Replaceable { current })), replace))
    }
}
