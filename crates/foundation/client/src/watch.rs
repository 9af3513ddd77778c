//! Decodes a watch: one JSON document after the other on an endless body.

use bytes::{Buf, Bytes, BytesMut};
use http_body_util::BodyExt;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::client::{ListParams, collection_path, status_error, with_query};
use crate::key::Object;
use crate::transport::Body;
use crate::{Client, Error};

/// What a watch delivers.
pub(crate) enum WatchEvent<K> {
    Added(K),
    Modified(K),
    Deleted(K),
    /// Everything up to this resource version has been delivered.
    Bookmark {
        resource_version: String,
    },
}

#[derive(Deserialize)]
struct Frame<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Deserialize)]
struct Marked {
    metadata: MarkedMeta,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct MarkedMeta {
    resource_version: String,
}

pub(crate) struct Watch<K> {
    body: Body,
    buffer: BytesMut,
    /// How far the buffer was searched for a line's end.
    searched: usize,
    kind: std::marker::PhantomData<fn() -> K>,
}

impl<K: Object> Watch<K> {
    pub(crate) async fn open(
        client: &Client,
        namespace: Option<&str>,
        params: &ListParams,
        resource_version: &str,
    ) -> Result<Self, Error> {
        let mut query = params.query();
        query.retain(|(name, _)| *name != "resourceVersion" && *name != "limit" && *name != "continue");
        query.push(("watch", "true".into()));
        query.push(("allowWatchBookmarks", "true".into()));
        query.push(("resourceVersion", resource_version.to_owned()));
        let body = client.open(&with_query(&collection_path::<K>(namespace), &query)).await?;
        Ok(Self { body, buffer: BytesMut::new(), searched: 0, kind: std::marker::PhantomData })
    }

    /// The next event; `None` when the server ended the watch.
    pub(crate) async fn next(&mut self) -> Option<Result<WatchEvent<K>, Error>> {
        loop {
            if let Some(line) = self.line() {
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                return Some(decode(&line));
            }
            match self.body.frame().await? {
                Ok(frame) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                Err(error) => return Some(Err(error)),
            }
        }
    }

    fn line(&mut self) -> Option<Bytes> {
        match self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') {
            Some(offset) => {
                let line = self.buffer.split_to(self.searched + offset).freeze();
                self.buffer.advance(1);
                self.searched = 0;
                Some(line)
            }
            None => {
                self.searched = self.buffer.len();
                None
            }
        }
    }
}

fn decode<K: Object>(line: &[u8]) -> Result<WatchEvent<K>, Error> {
    let bad = |source| Error::Decode { context: format!("read a watch event of {}", K::KIND), source };
    let frame: Frame<'_> = serde_json::from_slice(line).map_err(bad)?;
    let object = frame.object.get().as_bytes();
    match frame.kind {
        "ADDED" => K::decode(object).map(WatchEvent::Added).map_err(bad),
        "MODIFIED" => K::decode(object).map(WatchEvent::Modified).map_err(bad),
        "DELETED" => K::decode(object).map(WatchEvent::Deleted).map_err(bad),
        "BOOKMARK" => {
            let marked: Marked = serde_json::from_slice(object).map_err(bad)?;
            Ok(WatchEvent::Bookmark { resource_version: marked.metadata.resource_version })
        }
        _ => Err(status_error(500, object)),
    }
}
