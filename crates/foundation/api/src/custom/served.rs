//! Rows of the registry that definitions make at run time.

use std::sync::Arc;

use super::definition::{Definition, Version};
use super::intern;
use crate::registry::{Kind, KindRef, Subresource};

/// What a row has whose kind a definition describes.
#[derive(Debug)]
pub struct Served {
    pub definition: Arc<Definition>,
    pub version: Arc<Version>,
    /// `example.com/v1`.
    pub api_version: String,
}

const BOTH: &[Subresource] = &[Subresource::Status, Subresource::Scale];

/// The rows of a definition: one for each version that is served, and for the one that is stored.
pub fn rows(definition: &Arc<Definition>) -> Vec<KindRef> {
    definition.versions.iter().map(|version| KindRef::Custom(Arc::new(row(definition, version)))).collect()
}

fn row(definition: &Arc<Definition>, version: &Arc<Version>) -> Kind {
    let subresources = match (version.status, version.scale.is_some()) {
        (false, false) => &[],
        (true, false) => &BOTH[..1],
        (false, true) => &BOTH[1..],
        (true, true) => BOTH,
    };
    let (group, plural) = (intern::name(&definition.group), intern::name(&definition.plural));
    let (name, kind) = (intern::name(&version.name), intern::name(&definition.kind));
    let reversed: Vec<&str> = group.rsplit('.').collect();
    let selectable: Vec<&str> = version.selectable.iter().map(|field| field.name.as_str()).collect();
    Kind {
        short_names: intern::names(definition.short_names.iter().map(String::as_str)),
        categories: intern::names(definition.categories.iter().map(String::as_str)),
        namespaced: definition.namespaced,
        subresources,
        generation: true,
        selectable_fields: intern::names(selectable),
        unconditional_update: false,
        custom: Some(Arc::new(Served {
            definition: definition.clone(),
            version: version.clone(),
            api_version: format!("{group}/{name}"),
        })),
        ..Kind::plain(
            (group, name, kind),
            intern::name(&definition.list_kind),
            plural,
            intern::name(&definition.singular),
            intern::name(&format!("{}.{name}.{kind}", reversed.join("."))),
        )
    }
}
