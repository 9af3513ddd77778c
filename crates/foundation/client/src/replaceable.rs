//! A connection whose server or credentials change while it is used: what is under way ends where it began.

use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use parking_lot::RwLock;

use crate::http_transport::HttpsTransport;
use crate::servers::Servers;
use crate::transport::{Body, Transport};
use crate::{Client, Error, HttpsConfig};

/// Gives a client's connections to come another server or other credentials.
#[derive(Clone)]
pub struct Replace {
    current: Arc<RwLock<Arc<HttpsTransport>>>,
    /// What is used in place of the configuration's own server.
    servers: Option<Arc<Servers>>,
}

impl Replace {
    /// Requests made from now on go by `config`.
    pub fn replace(&self, config: HttpsConfig) -> Result<(), Error> {
        let next = Arc::new(match &self.servers {
            Some(servers) => HttpsTransport::among(Arc::clone(servers), config)?,
            None => HttpsTransport::new(config)?,
        });
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
        let replace = Replace { current: Arc::clone(&current), servers: None };
        Ok((Self::new(Arc::new(Replaceable { current })), replace))
    }

    /// The same, to whichever of several servers answers, in place of the one that `config` names.
    pub fn replaceable_among(servers: Arc<Servers>, config: HttpsConfig) -> Result<(Self, Replace), Error> {
        let first = HttpsTransport::among(Arc::clone(&servers), config)?;
        let current = Arc::new(RwLock::new(Arc::new(first)));
        let replace = Replace { current: Arc::clone(&current), servers: Some(servers) };
        Ok((Self::new(Arc::new(Replaceable { current })), replace))
    }
}
