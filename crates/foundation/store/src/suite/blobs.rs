//! What every [`Blob`] backend must do. A failed expectation panics.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};

use crate::{Blob, BlobUpload, Error};

/// Runs every case. `factory` gives a store, fresh or shared; each case keeps to keys of its own.
pub async fn run<F, Fut>(factory: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = Arc<dyn Blob>>,
{
    macro_rules! cases {
        ($($case:ident),* $(,)?) => {
            $( $case(&Store::new(factory().await, stringify!($case))).await; )*
        };
    }
    cases!(
        is_there_whole_after_its_commit_only,
        the_last_commit_wins,
        ranges_are_cut_to_what_there_is,
        large_ones_come_back_as_they_were,
        whole_blocks_and_what_is_left_of_them_come_back_as_they_were,
        lists_what_begins_with_a_prefix,
        deletes_once,
        uploads_go_on_where_they_stopped,
        parked_uploads_go_on_in_pieces,
        aborted_uploads_are_gone,
        begun_again_begins_anew,
        many_commit_the_same_at_once,
        readers_never_see_a_mixture,
        many_are_put_at_once,
        nonsense_is_refused,
    );
}

struct Store {
    blobs: Arc<dyn Blob>,
    case: String,
}

impl Store {
    fn new(blobs: Arc<dyn Blob>, case: &str) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let case = format!("{case}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        Self { blobs, case }
    }

    fn key(&self, name: &str) -> String {
        format!("suite/{}/{name}", self.case)
    }

    fn id(&self, name: &str) -> String {
        format!("{}-{name}", self.case)
    }

    async fn begin(&self, name: &str, bytes: &[u8]) -> Box<dyn BlobUpload> {
        let mut upload = self.blobs.begin(&self.id(name)).await.unwrap();
        upload.write(vec![Bytes::copy_from_slice(bytes)]).await.unwrap();
        upload
    }

    async fn put(&self, name: &str, bytes: &[u8]) {
        self.begin(name, bytes).await.commit(&self.key(name)).await.unwrap();
    }

    async fn get(&self, name: &str) -> Option<Vec<u8>> {
        self.part(name, 0..u64::MAX).await
    }

    async fn part(&self, name: &str, range: std::ops::Range<u64>) -> Option<Vec<u8>> {
        let stream = self.blobs.get(&self.key(name), range).await.unwrap()?;
        let pieces: Vec<Bytes> = stream.try_collect().await.unwrap();
        Some(pieces.concat())
    }

    async fn names(&self, prefix: &str) -> Vec<String> {
        let start = self.key("");
        let found = self.blobs.list(&self.key(prefix)).await.unwrap();
        let mut names: Vec<String> = found.map(|meta| meta.unwrap().key[start.len()..].to_owned()).collect().await;
        names.sort();
        names
    }

    async fn pending(&self) -> Vec<u64> {
        let uploads = self.blobs.uploads().await.unwrap();
        uploads.iter().filter(|upload| upload.id.starts_with(&self.case)).map(|upload| upload.size).collect()
    }
}

fn noise(length: usize) -> Vec<u8> {
    (0..length as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 11) as u8).collect()
}

async fn is_there_whole_after_its_commit_only(store: &Store) {
    assert_eq!(store.get("a").await, None);
    let mut upload = store.begin("a", b"one ").await;
    upload.write(vec![Bytes::new(), Bytes::from_static(b"two "), Bytes::from_static(b"three")]).await.unwrap();
    assert_eq!(upload.written(), 13);
    assert_eq!(store.get("a").await, None);
    assert!(store.names("").await.is_empty());
    assert_eq!(store.pending().await, [13]);
    upload.sync().await.unwrap();
    assert_eq!(store.get("a").await, None);
    upload.commit(&store.key("a")).await.unwrap();
    assert_eq!(store.get("a").await.unwrap(), b"one two three");
    assert_eq!(store.blobs.head(&store.key("a")).await.unwrap().unwrap().size, 13);
    assert!(store.pending().await.is_empty());
    store.put("empty", b"").await;
    assert_eq!(store.get("empty").await.unwrap(), b"");
    if let Some(file) = store.blobs.file(&store.key("a")) {
        assert_eq!(std::fs::read(file).unwrap(), b"one two three");
    }
    assert_eq!(store.blobs.file(&store.key("none")), None);
}

async fn the_last_commit_wins(store: &Store) {
    store.put("a", b"first").await;
    store.put("a", b"second and longer").await;
    assert_eq!(store.get("a").await.unwrap(), b"second and longer");
    assert_eq!(store.names("").await, ["a"]);
}

async fn ranges_are_cut_to_what_there_is(store: &Store) {
    store.put("a", b"0123456789").await;
    for (range, expected) in
        [(0..3, "012"), (3..10, "3456789"), (9..500, "9"), (10..20, ""), (5..5, ""), (400..500, "")]
    {
        assert_eq!(store.part("a", range.clone()).await.unwrap(), expected.as_bytes(), "{range:?}");
    }
}

async fn large_ones_come_back_as_they_were(store: &Store) {
    let bytes = noise((9 << 20) + 17);
    let mut upload = store.blobs.begin(&store.id("large")).await.unwrap();
    for piece in bytes.chunks(700_001) {
        upload.write(piece.chunks(65_537).map(Bytes::copy_from_slice).collect()).await.unwrap();
    }
    let back: Vec<Bytes> = upload.read_back().await.unwrap().try_collect().await.unwrap();
    assert!(back.concat() == bytes);
    upload.commit(&store.key("large")).await.unwrap();
    assert!(store.get("large").await.unwrap() == bytes);
    assert!(store.part("large", 1_000_000..3_000_001).await.unwrap() == bytes[1_000_000..3_000_001]);
}

async fn whole_blocks_and_what_is_left_of_them_come_back_as_they_were(store: &Store) {
    const MIB: usize = 1 << 20;
    let bytes = noise(7 * MIB + 5);
    let piece = |from: usize, to: usize| bytes[from..to].chunks(300_000).map(Bytes::copy_from_slice).collect();
    let mut upload = store.blobs.begin(&store.id("blocks")).await.unwrap();
    for (from, to) in [(0, MIB), (MIB, 3 * MIB), (3 * MIB, 3 * MIB + 4096), (3 * MIB + 4096, 4 * MIB + 4096 + 7)] {
        upload.write(piece(from, to)).await.unwrap();
    }
    upload.park().await.unwrap();
    let mut upload = store.blobs.resume(&store.id("blocks")).await.unwrap().unwrap();
    assert_eq!(upload.written(), (4 * MIB + 4096 + 7) as u64);
    let back: Vec<Bytes> = upload.read_back().await.unwrap().try_collect().await.unwrap();
    assert!(back.concat() == bytes[..4 * MIB + 4096 + 7]);
    // Up to a block, and whole ones from there on.
    upload.write(piece(4 * MIB + 4096 + 7, 4 * MIB + 8192)).await.unwrap();
    upload.write(piece(4 * MIB + 8192, bytes.len())).await.unwrap();
    upload.sync().await.unwrap();
    upload.commit(&store.key("blocks")).await.unwrap();
    assert!(store.get("blocks").await.unwrap() == bytes);
    // Once more, from memory.
    assert!(store.get("blocks").await.unwrap() == bytes);
}

async fn lists_what_begins_with_a_prefix(store: &Store) {
    for name in ["x/1", "x/2", "x/deep/3", "xy", "z"] {
        store.put(name.replace('/', "-").as_str(), b"other").await;
        store.begin(&name.replace('/', "-"), name.as_bytes()).await.commit(&store.key(name)).await.unwrap();
    }
    assert_eq!(store.names("x/").await, ["x/1", "x/2", "x/deep/3"]);
    assert_eq!(store.names("x/d").await, ["x/deep/3"]);
    assert_eq!(store.names("z").await, ["z"]);
    assert!(store.names("none").await.is_empty());
}

async fn deletes_once(store: &Store) {
    store.put("a", b"x").await;
    assert!(store.blobs.delete(&store.key("a")).await.unwrap());
    assert!(!store.blobs.delete(&store.key("a")).await.unwrap());
    assert_eq!(store.get("a").await, None);
    assert_eq!(store.blobs.head(&store.key("a")).await.unwrap(), None);
}

async fn uploads_go_on_where_they_stopped(store: &Store) {
    assert!(store.blobs.resume(&store.id("a")).await.unwrap().is_none());
    drop(store.begin("a", b"begin").await);
    let mut upload = store.blobs.resume(&store.id("a")).await.unwrap().unwrap();
    assert_eq!(upload.written(), 5);
    upload.write(vec![Bytes::from_static(b" and end")]).await.unwrap();
    let back: Vec<Bytes> = upload.read_back().await.unwrap().try_collect().await.unwrap();
    assert_eq!(back.concat(), b"begin and end");
    upload.write(vec![Bytes::from_static(b".")]).await.unwrap();
    upload.commit(&store.key("a")).await.unwrap();
    assert_eq!(store.get("a").await.unwrap(), b"begin and end.");
    assert!(store.blobs.resume(&store.id("a")).await.unwrap().is_none());
}

async fn parked_uploads_go_on_in_pieces(store: &Store) {
    let bytes = noise((23 << 20) + 5);
    store.blobs.begin(&store.id("a")).await.unwrap().park().await.unwrap();
    let mut at = 0;
    for length in [1, 700_000, 9 << 20, 3 << 20, 0, 4 << 20] {
        let mut upload = store.blobs.resume(&store.id("a")).await.unwrap().unwrap();
        assert_eq!(upload.written(), at as u64);
        for piece in bytes[at..at + length].chunks(1 << 20) {
            upload.write(vec![Bytes::copy_from_slice(piece)]).await.unwrap();
        }
        at += length;
        upload.park().await.unwrap();
        assert_eq!(store.pending().await, [at as u64]);
    }
    let mut upload = store.blobs.resume(&store.id("a")).await.unwrap().unwrap();
    let back: Vec<Bytes> = upload.read_back().await.unwrap().try_collect().await.unwrap();
    assert!(back.concat() == bytes[..at]);
    upload.write(vec![Bytes::copy_from_slice(&bytes[at..])]).await.unwrap();
    upload.commit(&store.key("a")).await.unwrap();
    assert!(store.get("a").await.unwrap() == bytes);
    assert!(store.pending().await.is_empty());
}

async fn aborted_uploads_are_gone(store: &Store) {
    store.begin("a", b"x").await.abort().await.unwrap();
    assert!(store.pending().await.is_empty());
    assert!(store.blobs.resume(&store.id("a")).await.unwrap().is_none());
}

async fn begun_again_begins_anew(store: &Store) {
    drop(store.begin("a", b"much that is old").await);
    store.begin("a", b"new").await.commit(&store.key("a")).await.unwrap();
    assert_eq!(store.get("a").await.unwrap(), b"new");
}

async fn many_commit_the_same_at_once(store: &Store) {
    let commits = (0..16)
        .map(|n| async move { store.begin(&format!("u{n}"), b"same").await.commit(&store.key("new/folder/a")).await });
    for result in futures::future::join_all(commits).await {
        result.unwrap();
    }
    assert_eq!(store.get("new/folder/a").await.unwrap(), b"same");
    assert!(store.pending().await.is_empty());
}

async fn readers_never_see_a_mixture(store: &Store) {
    let (one, two) = (vec![1u8; 3 << 20], vec![2u8; 3 << 20]);
    store.put("a", &one).await;
    let reading = store.blobs.get(&store.key("a"), 0..u64::MAX).await.unwrap().unwrap();
    store.put("a", &two).await;
    let read: Vec<Bytes> = reading.try_collect().await.unwrap();
    assert!(read.concat() == one);
    assert!(store.get("a").await.unwrap() == two);
}

async fn many_are_put_at_once(store: &Store) {
    let content = |n: u32| Bytes::from(noise(17).into_iter().map(|b| b.wrapping_add(n as u8)).collect::<Vec<u8>>());
    store.begin("old", b"old").await.commit(&store.key("new/3")).await.unwrap();
    let objects = (0..80).map(|n| (store.key(&format!("{}/{n}", if n % 2 == 0 { "even" } else { "new" })), content(n)));
    store.blobs.put_all(objects.collect()).await.unwrap();
    store.blobs.put_all(Vec::new()).await.unwrap();
    assert_eq!(store.get("even/2").await.unwrap(), content(2));
    assert_eq!(store.get("new/3").await.unwrap(), content(3));
    assert_eq!(store.names("").await.len(), 80);
    assert!(store.pending().await.is_empty());
    let bad = vec![(store.key("fine"), content(0)), ("..".to_owned(), content(0))];
    assert!(matches!(store.blobs.put_all(bad).await, Err(Error::Invalid(_))));
}

async fn nonsense_is_refused(store: &Store) {
    for key in ["", "/", "/a", "a/", "a//b", "..", "a/../b", ".uploads/x", "a/.b", "a\0b", "ä", "a b"] {
        assert!(matches!(store.blobs.head(key).await, Err(Error::Invalid(_))), "{key:?}");
        assert!(matches!(store.blobs.get(key, 0..1).await, Err(Error::Invalid(_))), "{key:?}");
        assert!(matches!(store.blobs.delete(key).await, Err(Error::Invalid(_))), "{key:?}");
        assert_eq!(store.blobs.file(key), None);
        let upload = store.begin("x", b"x").await;
        assert!(matches!(upload.commit(key).await, Err(Error::Invalid(_))), "{key:?}");
    }
    for id in ["", "a/b", "..", ".x"] {
        assert!(matches!(store.blobs.begin(id).await, Err(Error::Invalid(_))), "{id:?}");
        assert!(matches!(store.blobs.resume(id).await, Err(Error::Invalid(_))), "{id:?}");
    }
}
