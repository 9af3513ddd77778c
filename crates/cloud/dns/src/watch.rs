//! Keeps the names of the cluster as its objects are.

use std::sync::Arc;

use dhow_client::{Change, Client, Informer, Key, ListParams};
use tokio_util::sync::CancellationToken;

use crate::DnsConfig;
use crate::answer::View;
use crate::objects::{EndpointSlice, Namespace, Pod, Service, on_node};

const BY_SERVICE: &str = "service";

pub struct Watched {
    namespaces: Informer<Namespace>,
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    pods: Option<Informer<Pod>>,
}

impl Watched {
    /// Fills and follows the names of `view`.
    pub fn start(client: &Client, view: &Arc<View>, config: &DnsConfig, shutdown: &CancellationToken) -> Self {
        let all = ListParams::default;
        let namespaces = Informer::<Namespace>::start(client.clone(), all(), None, shutdown.clone());
        let services = Informer::<Service>::start(client.clone(), all(), None, shutdown.clone());
        let slices = Informer::<EndpointSlice>::start(client.clone(), all(), None, shutdown.clone());
        slices.add_index(BY_SERVICE, |slice: &EndpointSlice| {
            slice.service().map(|(namespace, name)| format!("{namespace}/{name}")).into_iter().collect()
        });

        let v = Arc::clone(view);
        namespaces.on_change(move |change| {
            let name = change.object().metadata.name.clone().unwrap_or_default();
            v.names.write().set_namespace(&name, !matches!(change, Change::Deleted(_)));
        });
        let rebuild = {
            let (view, services, slices) = (Arc::clone(view), services.clone(), slices.clone());
            move |namespace: &str, name: &str| {
                // Whoever writes last has read last.
                let mut names = view.names.write();
                let service = services.get(&Key::new(Some(namespace), name));
                let slices = slices.by_index(BY_SERVICE, &format!("{namespace}/{name}"));
                names.set_service(namespace, name, service.as_deref(), &slices);
            }
        };
        let again = rebuild.clone();
        services.on_change(move |change| {
            let meta = &change.object().metadata;
            again(meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default());
        });
        slices.on_change(move |change| {
            let of = |slice: &EndpointSlice| slice.service().map(|(ns, name)| (ns.to_owned(), name.to_owned()));
            let new = of(change.object());
            let old = if let Change::Updated { old, .. } = change { of(old) } else { None };
            for (namespace, name) in old.filter(|old| Some(old) != new.as_ref()).into_iter().chain(new) {
                rebuild(&namespace, &name);
            }
        });
        let pods = view.search.is_some().then(|| {
            let field_selector = config.node.as_deref().map(|node| on_node(node).into_owned());
            let scope = ListParams { field_selector, ..ListParams::default() };
            let pods = Informer::<Pod>::start(client.clone(), scope, None, shutdown.clone());
            let view = Arc::clone(view);
            pods.on_change(move |change| {
                let mut names = view.names.write();
                match change {
                    Change::Added(pod) => names.set_pod(pod, true),
                    Change::Updated { old, new } => {
                        names.set_pod(old, false);
                        names.set_pod(new, true);
                    }
                    Change::Deleted(pod) => names.set_pod(pod, false),
                }
            });
            pods
        });
        Self { namespaces, services, slices, pods }
    }

    /// Returns once every name is there. Without pods only searching takes longer, so nothing waits for them.
    pub async fn synced(&self) {
        self.namespaces.synced().await;
        self.services.synced().await;
        self.slices.synced().await;
        tracing::debug!(searching = self.pods.is_some(), "the cluster's names are known");
    }
}
