//! Objects that are watched only while somebody asks for them, and only while the API serves their kind.

use std::sync::Arc;

use dhow_client::{Client, CustomResourceDefinition, Informer, ListParams, Object};
use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, DropGuard};

/// What watches need, and whom they wake.
#[derive(Clone)]
pub(super) struct Watcher {
    pub client: Client,
    pub changed: Arc<Notify>,
    pub shutdown: CancellationToken,
}

impl Watcher {
    /// Watches these objects until `stop`; not listed yet when it returns.
    pub fn start<K: Object>(&self, scope: ListParams, stop: CancellationToken) -> Informer<K> {
        let informer = Informer::<K>::start(self.client.clone(), scope, None, stop);
        let wake = Arc::clone(&self.changed);
        informer.on_change(move |_| wake.notify_one());
        informer
    }
}

/// All objects of a kind, while they are wanted.
pub(super) struct OnDemand<K> {
    watcher: Watcher,
    /// The watch ends with the guard.
    watched: Option<(Informer<K>, DropGuard)>,
}

impl<K: Object> OnDemand<K> {
    pub fn new(watcher: &Watcher) -> Self {
        Self { watcher: watcher.clone(), watched: None }
    }

    /// What there is, complete; nothing, and no watch any more, unless it is wanted.
    pub async fn list(&mut self, wanted: bool) -> Vec<Arc<K>> {
        if !wanted {
            self.watched = None;
            return Vec::new();
        }
        let (informer, _) = self.start();
        informer.synced().await;
        informer.list()
    }

    fn start(&mut self) -> &(Informer<K>, DropGuard) {
        self.watched.get_or_insert_with(|| {
            let stop = self.watcher.shutdown.child_token();
            (self.watcher.start(ListParams::default(), stop.clone()), stop.drop_guard())
        })
    }
}

/// Objects of a custom kind, while the API serves it.
pub(super) struct Custom<K> {
    definition: Informer<CustomResourceDefinition>,
    objects: OnDemand<K>,
}

impl<K: Object> Custom<K> {
    pub fn follow(watcher: &Watcher) -> Self {
        let name = format!("{}.{}", K::URL_PATH_SEGMENT, K::GROUP);
        let scope = ListParams { field_selector: Some(format!("metadata.name={name}")), ..ListParams::default() };
        let definition = watcher.start(scope, watcher.shutdown.clone());
        Self { definition, objects: OnDemand::new(watcher) }
    }

    /// What there is, complete: an incomplete view would open what is only not listed yet.
    pub async fn list(&mut self) -> Vec<Arc<K>> {
        self.definition.synced().await;
        let definition = self.definition.clone();
        let served = move || definition.list().iter().any(|definition| definition.serves(K::VERSION));
        if served() {
            let changed = Arc::clone(&self.objects.watcher.changed);
            let (informer, _) = self.objects.start();
            let synced = informer.synced();
            tokio::pin!(synced);
            let mut woken = false;
            // The definition may go before the first list comes.
            while served() {
                tokio::select! {
                    () = &mut synced => break,
                    () = changed.notified() => woken = true,
                }
            }
            if woken {
                changed.notify_one();
            }
        }
        let served = served();
        self.objects.list(served).await
    }
}
