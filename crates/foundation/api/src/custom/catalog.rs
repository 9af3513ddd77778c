//! All kinds the server has at a moment: the table's and those of definitions. Never changes; a new one takes its place.

use std::collections::HashMap;
use std::sync::OnceLock;

use super::definition::priority;
use crate::header::split_api_version;
use crate::registry::{Group, Kind, KindRef, builtin};

type Key = (&'static str, &'static str, &'static str);

/// The kinds there are.
pub struct Catalog {
    by_plural: HashMap<Key, KindRef>,
    by_kind: HashMap<Key, KindRef>,
    /// Rows of definitions, in the order of discovery.
    custom: Vec<KindRef>,
    groups: Vec<Group>,
    /// The documents about custom kinds, made when first asked for.
    pub(crate) documents: OnceLock<crate::openapi::Documents>,
}

impl Default for Catalog {
    fn default() -> Self {
        Self::new([])
    }
}

impl Catalog {
    /// The built-in kinds and these rows of definitions; those of versions that are not served are left out.
    pub fn new(rows: impl IntoIterator<Item = KindRef>) -> Self {
        let served = |row: &KindRef| {
            let own = builtin().get(row.group, row.version, row.plural).is_some();
            !own && row.custom.as_ref().is_some_and(|served| served.version.served)
        };
        let mut custom: Vec<KindRef> = rows.into_iter().filter(served).collect();
        custom.sort_by(|one, other| {
            let versions = || priority(one.version, other.version);
            one.group.cmp(other.group).then_with(versions).then_with(|| one.plural.cmp(other.plural))
        });
        let mut groups: Vec<Group> = builtin().groups().to_vec();
        for row in &custom {
            match groups.iter_mut().find(|group| group.name == row.group) {
                Some(group) if group.versions.contains(&row.version) => {}
                Some(group) => group.versions.push(row.version),
                None => groups.push(Group { name: row.group, versions: vec![row.version] }),
            }
        }
        Self {
            by_plural: custom.iter().map(|row| ((row.group, row.version, row.plural), row.clone())).collect(),
            by_kind: custom.iter().map(|row| ((row.group, row.version, row.kind), row.clone())).collect(),
            custom,
            groups,
            documents: OnceLock::new(),
        }
    }

    /// By the segments of a request path.
    pub fn get(&self, group: &str, version: &str, plural: &str) -> Option<KindRef> {
        let found = builtin().get(group, version, plural).map(KindRef::from);
        found.or_else(|| self.by_plural.get(&(group, version, plural)).cloned())
    }

    /// By `apiVersion` and `kind`.
    pub fn by_api_version(&self, api_version: &str, kind: &str) -> Option<KindRef> {
        let (group, version) = split_api_version(api_version);
        let found = builtin().by_kind(group, version, kind).map(KindRef::from);
        found.or_else(|| self.by_kind.get(&(group, version, kind)).cloned())
    }

    /// Groups in the order discovery lists them; the core group is named "".
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// Kinds of one group version.
    pub fn kinds_of<'a>(&'a self, group: &'a str, version: &'a str) -> impl Iterator<Item = &'a Kind> {
        let own = self.custom().filter(move |kind| kind.group == group && kind.version == version);
        builtin().kinds_of(group, version).map(|kind| -> &'a Kind { kind }).chain(own)
    }

    /// The rows of definitions.
    pub fn custom(&self) -> impl Iterator<Item = &Kind> {
        self.custom.iter().map(|row| &**row)
    }
}
