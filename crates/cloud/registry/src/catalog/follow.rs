//! What changes, whichever server changes it.

use dhow_image::Digest;
use dhow_store::{EventKind, KeyRange, WatchMessage, WatchRequest};
use futures::StreamExt;
use futures::stream::BoxStream;

use super::Catalog;
use crate::{Error, Result};

/// A record that changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changed {
    /// It names another manifest than before, or none.
    Tag { repository: String, tag: String },
    /// Something refers to a manifest now.
    Referrer { repository: String, subject: Digest, digest: Digest },
}

impl Catalog {
    /// Tags and referrers that change from now on, on all servers. It ends when the store cannot tell any more.
    pub async fn follow(&self) -> Result<BoxStream<'static, Changed>> {
        let all = KeyRange::prefix(self.prefix.clone());
        let watch = self.kv.watch(WatchRequest { range: all, start_revision: 0 }).await;
        let watch = watch.map_err(Error::store("watch the registry's records"))?;
        let prefix = self.prefix.len();
        let changes = watch.take_while(|message| futures::future::ready(message.is_ok())).flat_map(move |message| {
            let events = match message {
                Ok(WatchMessage::Events { events, .. }) => events,
                _ => Vec::new(),
            };
            let changed = events.into_iter().filter_map(move |event| {
                let is_put = matches!(event.kind, EventKind::Put);
                read(std::str::from_utf8(event.kv.key.get(prefix..)?).ok()?, is_put)
            });
            futures::stream::iter(changed.collect::<Vec<_>>())
        });
        Ok(changes.boxed())
    }
}

fn read(key: &str, is_put: bool) -> Option<Changed> {
    let (kind, rest) = key.split_once('/')?;
    let (repository, rest) = rest.split_once(':')?;
    let repository = repository.to_owned();
    match kind {
        "t" => Some(Changed::Tag { repository, tag: rest.to_owned() }),
        "s" if is_put => {
            // `algorithm:hex:algorithm:hex`
            let middle = rest.match_indices(':').nth(1)?.0;
            let (subject, digest) = (Digest::parse(&rest[..middle]).ok()?, Digest::parse(&rest[middle + 1..]).ok()?);
            Some(Changed::Referrer { repository, subject, digest })
        }
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn tags_and_referrers_are_told_from_other_records() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let tag = Changed::Tag { repository: "x/y".to_owned(), tag: "1".to_owned() };
        assert_eq!(read("t/x/y:1", false), Some(tag));
        let referrer = Changed::Referrer { repository: "x".to_owned(), subject: a.clone(), digest: b.clone() };
        assert_eq!(read(&format!("s/x:{a}:{b}"), true), Some(referrer));
        assert_eq!(read(&format!("s/x:{a}:{b}"), false), None);
        assert_eq!(read(&format!("m/x:{a}"), true), None);
        assert_eq!(read("p/x", true), None);
    }
}
