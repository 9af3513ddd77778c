//! What names an object, and which types are objects.

use std::fmt;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::ObjectList;

/// Namespace and name of an object of a known kind.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub namespace: Option<Arc<str>>,
    pub name: Arc<str>,
}

impl Key {
    pub fn new(namespace: Option<&str>, name: &str) -> Self {
        Self { namespace: namespace.map(Arc::from), name: Arc::from(name) }
    }

    pub fn of(metadata: &ObjectMeta) -> Self {
        Self::new(metadata.namespace.as_deref(), metadata.name.as_deref().unwrap_or_default())
    }

    pub fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{namespace}/{}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// A Kubernetes object with metadata, as k8s-openapi types them. [`crate::object`] implements it.
///
/// Reading and writing are methods, so that the code for a kind is made in one crate, and not again in each that uses it.
pub trait Object:
    k8s_openapi::Resource
    + k8s_openapi::Metadata<Ty = ObjectMeta>
    + Serialize
    + DeserializeOwned
    + Clone
    + Send
    + Sync
    + 'static
{
    /// Reads JSON.
    fn decode(json: &[u8]) -> serde_json::Result<Self>;

    /// Reads a list in JSON.
    fn decode_list(json: &[u8]) -> serde_json::Result<ObjectList<Self>>;

    /// Writes JSON.
    fn encode(&self) -> serde_json::Result<Vec<u8>>;
}

/// Implements [`Object`] for types that serde and k8s-openapi's traits describe.
#[macro_export]
macro_rules! object {
    ($($kind:ty),+ $(,)?) => {$(
        impl $crate::Object for $kind {
            fn decode(json: &[u8]) -> $crate::serde_json::Result<Self> {
                $crate::serde_json::from_slice(json)
            }

            fn decode_list(json: &[u8]) -> $crate::serde_json::Result<$crate::ObjectList<Self>> {
                $crate::serde_json::from_slice(json)
            }

            fn encode(&self) -> $crate::serde_json::Result<Vec<u8>> {
                $crate::serde_json::to_vec(self)
            }
        }
    )+};
}

/// Makes an object of a type of ours whose field `metadata` is an `ObjectMeta`: k8s-openapi's traits by these texts, and
/// [`Object`]. `scope` is `NamespaceResourceScope` or `ClusterResourceScope`.
#[macro_export]
macro_rules! kind {
    ($type:ident, $group:literal, $version:literal, $api_version:expr, $kind:expr, $plural:literal, $scope:ident) => {
        $crate::object!($type);

        impl $crate::k8s_openapi::Resource for $type {
            const API_VERSION: &'static str = $api_version;
            const GROUP: &'static str = $group;
            const KIND: &'static str = $kind;
            const VERSION: &'static str = $version;
            const URL_PATH_SEGMENT: &'static str = $plural;
            type Scope = $crate::k8s_openapi::$scope;
        }

        impl $crate::k8s_openapi::Metadata for $type {
            type Ty = $crate::k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

            fn metadata(&self) -> &Self::Ty {
                &self.metadata
            }

            fn metadata_mut(&mut self) -> &mut Self::Ty {
                &mut self.metadata
            }
        }
    };
    // Of a group that has a name, the type named like the kind.
    ($type:ident, $group:literal, $version:literal, $plural:literal, $scope:ident) => {
        $crate::kind!($type, $group, $version, concat!($group, "/", $version), stringify!($type), $plural, $scope);
    };
}
