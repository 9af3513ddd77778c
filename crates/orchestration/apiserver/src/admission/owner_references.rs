//! OwnerReferencesPermissionEnforcement: who makes an object go with another could have deleted it anyway. Off unless
//! it is asked for.

use dhow_api::header::split_api_version;
use dhow_api::{Status, meta};
use serde_json::Value;

use super::{Attributes, Operation};
use crate::{ApiServer, rbac};

pub fn validate(server: &ApiServer, attributes: &Attributes<'_>) -> Result<(), Status> {
    let writes = matches!(attributes.operation, Operation::Create | Operation::Update);
    // Owners are not written through subresources.
    if !server.access.owner_references || !writes || attributes.subresource.is_some() {
        return Ok(());
    }
    let before = attributes.old.map(owners).unwrap_or_default();
    let after = owners(&attributes.object);
    if before == after {
        return Ok(());
    }
    let kind = attributes.kind;
    // What somebody makes is theirs to let go.
    if attributes.old.is_some() && !may(server, attributes, "delete", (kind.group, kind.plural, ""), attributes.name) {
        return Err(attributes.forbidden("cannot set an ownerRef on a resource you can't delete: , <nil>"));
    }
    let known = |owner: &Value| before.iter().any(|old| old["uid"] == owner["uid"] && blocks(old));
    for owner in after.iter().filter(|owner| blocks(owner) && !known(owner)) {
        let (version, kind) = (meta::text(owner, &["apiVersion"]), meta::text(owner, &["kind"]));
        let Some(row) = server.definitions.catalog().by_api_version(version, kind) else {
            let (_, short) = split_api_version(version);
            return Err(attributes.forbidden(&format!(
                "cannot set blockOwnerDeletion in this case because cannot find RESTMapping for APIVersion {version} Kind \
                 {kind}: no matches for kind {kind:?} in version {short:?}"
            )));
        };
        let name = meta::text(owner, &["name"]);
        if !may(server, attributes, "update", (row.group, row.plural, "finalizers"), name) {
            return Err(attributes.forbidden(
                "cannot set blockOwnerDeletion if an ownerReference refers to a resource you can't set finalizers on: , \
                 <nil>",
            ));
        }
    }
    Ok(())
}

fn owners(object: &Value) -> &[Value] {
    meta::items(object, &["metadata", "ownerReferences"])
}

fn blocks(owner: &Value) -> bool {
    owner["blockOwnerDeletion"] == true
}

fn may(
    server: &ApiServer,
    attributes: &Attributes<'_>,
    verb: &str,
    (group, resource, subresource): (&str, &str, &str),
    name: &str,
) -> bool {
    let question = rbac::Attributes::Resource {
        verb: verb.into(),
        group: group.into(),
        resource: resource.into(),
        subresource: subresource.into(),
        namespace: attributes.namespace.unwrap_or_default().into(),
        name: name.into(),
    };
    server.authorizer.allows(attributes.user, &question)
}
