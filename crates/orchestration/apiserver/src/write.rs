//! create, update and patch: default, mutating admission, validate, validating admission, store.

use std::sync::Arc;

use dhow_api::apply::{self, Writer};
use dhow_api::registry::Kind;
use dhow_api::{Status, defaulting, names, patch as patches, strategy, time, validation};
use dhow_client::Body;
use http::Response;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use crate::admission::{Attributes, Operation};
use crate::encode::{self, Accept};
use crate::identity::UserInfo;
use crate::info::ResourceTarget;
use crate::object::{Stored, exact};
use crate::pipeline::{Authorized, Request};
use crate::read::existing;
use crate::store::{RETRIES, Written};
use crate::{ApiServer, admission, allocate, body, escalation, graft, offload, options};

pub async fn create(
    server: &Arc<ApiServer>,
    request: Request<Authorized>,
    accept: &Accept,
) -> Result<Response<Body>, Status> {
    let kind = &request.target.kind;
    for attempt in 1.. {
        let mut object = body::object(&request)?;
        if !kind.stored {
            return crate::review::answer(server, &request, object, accept).await;
        }
        let generated = generate_name(&mut object)?;
        match create_object(server, &request, object).await {
            Ok(stored) => return encode::object(kind, &stored, accept, 201),
            // The name was taken by chance: try another.
            Err(status) if generated && status.reason == "AlreadyExists" && attempt < NAMES_TRIED => {}
            Err(status) => return Err(status),
        }
    }
    Err(Status::internal("no name could be generated"))
}

/// Everything after decoding of a create. The object's name is settled.
async fn create_object(
    server: &Arc<ApiServer>,
    request: &Request<Authorized>,
    object: Value,
) -> Result<Arc<Stored>, Status> {
    let kind = &request.target.kind;
    let name = dhow_api::meta::name(&object).to_owned();
    // Only what something is chosen for can be too late.
    let spare = allocate::chooses(kind).then(|| object.clone());
    let mut next = Some(object);
    for _ in 0..RETRIES {
        let Some(object) = next.take().or_else(|| spare.clone()) else { break };
        if let Some(stored) = create_once(server, request, object).await? {
            return Ok(stored);
        }
    }
    Err(busy(kind, &name))
}

/// Others of the same namespace or range were always faster.
fn busy(kind: &Kind, name: &str) -> Status {
    let why = "what it is decided upon changed too often; please try again";
    Status::conflict_because(kind.group, kind.plural, name, why)
}

/// One attempt; `None` if what was chosen for the object was taken meanwhile.
async fn create_once(
    server: &Arc<ApiServer>,
    request: &Request<Authorized>,
    mut object: Value,
) -> Result<Option<Arc<Stored>>, Status> {
    let kind = &request.target.kind;
    let namespace = request.target.namespace.as_deref();
    let name = dhow_api::meta::name(&object).to_owned();
    if kind.custom.as_ref().is_some_and(|served| served.definition.terminating) {
        let why = "create not allowed while custom resource definition is terminating";
        return Err(Status::method_not_allowed_because(why));
    }
    defaulting::apply(kind, &mut object);
    strategy::prepare_create(kind, &mut object);
    if !is_apply(request) {
        managed(request, Part::Main, |writer| apply::update(writer, None, &mut object));
    }
    let mut admitted = Attributes::of(request, Operation::Create, &name, object, None);
    admission::mutate(server, &mut admitted).await?;
    let object = &mut admitted.object;
    // What admission made is prepared like what the client sent.
    strategy::prepare_create(kind, object);
    let uid = uuid::Uuid::new_v4().to_string();
    strategy::fill_metadata(object, &uid, &time::rfc3339(Timestamp::now()));
    strategy::finish_create(kind, object);
    if kind.kind == "CertificateSigningRequest" {
        set_requester(request.user(), object);
    }
    let choice = server.allocator.choose(kind, None, object)?;
    let errors = offload::evaluate(|pace| validation::validate_create(kind, object, pace));
    refuse_invalid(kind, object, &errors)?;
    escalation::check(&server.authorizer, request.user(), kind, object, None)?;
    admission::validate(server, &admitted).await?;
    for _ in 0..GUARDED_TRIES {
        let Some(claim) = server.allocator.claim(&server.store, &choice).await? else { return Ok(None) };
        let charged = admission::quota::charge(server, &admitted).await?;
        let object = &admitted.object;
        if request.dry_run() {
            let key = kind.storage_key(namespace, &name);
            if server.store.cache.get(kind, &key).is_some() {
                return Err(Status::already_exists(kind.group, kind.plural, &name));
            }
            return dry(kind, &key, object).map(Some);
        }
        let guards = [claim.guards, charged.guards].concat();
        match server.store.create(kind, namespace, &name, object, &guards).await? {
            Written::Done(stored) => {
                server.quotas.touch(server, kind, namespace);
                return Ok(Some(stored));
            }
            Written::Changed | Written::Moved => {}
        }
    }
    Err(busy(kind, &name))
}

/// How often a new object is charged and written anew because another server was faster.
const GUARDED_TRIES: usize = 64;

/// Who asks for a certificate is for the server to say.
fn set_requester(user: &UserInfo, request: &mut Value) {
    let spec = dhow_api::meta::child_mut(request, "spec");
    for field in ["username", "uid", "groups", "extra"] {
        spec.remove(field);
    }
    spec.insert("username".into(), json!(user.name));
    spec.insert("groups".into(), json!(user.groups));
    if !user.uid.is_empty() {
        spec.insert("uid".into(), json!(user.uid));
    }
    if !user.extra.is_empty() {
        spec.insert("extra".into(), json!(user.extra));
    }
}

/// The object as it would have been stored.
fn dry(kind: &Kind, key: &str, object: &Value) -> Result<Arc<Stored>, Status> {
    let bytes = serde_json::to_vec(object).map_err(|error| Status::internal(error.to_string()))?;
    Stored::decode(Some(kind), key.as_bytes(), &exact(bytes), 0).map(Arc::new)
}

/// Generated names that are tried before the client hears of the collision.
const NAMES_TRIED: usize = 8;

/// Returns whether a name was made.
fn generate_name(object: &mut Value) -> Result<bool, Status> {
    let metadata = dhow_api::meta::metadata_mut(object);
    let text = |field: &str| metadata.get(field).and_then(Value::as_str).unwrap_or_default();
    if !text("name").is_empty() {
        return Ok(false);
    }
    let prefix = text("generateName").to_owned();
    if prefix.is_empty() {
        // Validation says that a name is required.
        return Ok(false);
    }
    let random = uuid::Uuid::new_v4();
    let bytes: [u8; 5] = random.as_bytes()[..5].try_into().map_err(|_| Status::internal("no randomness"))?;
    metadata.insert("name".into(), names::generated(&prefix, bytes).into());
    Ok(true)
}

fn refuse_invalid(kind: &Kind, object: &Value, errors: &[validation::FieldError]) -> Result<(), Status> {
    if errors.is_empty() {
        return Ok(());
    }
    Err(Status::invalid(kind.group, kind.kind, dhow_api::meta::name(object), errors))
}

pub async fn update(
    server: &Arc<ApiServer>,
    request: Request<Authorized>,
    accept: &Accept,
) -> Result<Response<Body>, Status> {
    let object = body::object(&request)?;
    let kind = &request.target.kind;
    let wanted = dhow_api::meta::resource_version(&object).to_owned();
    match existing(server, &request.target).await {
        Err(status) if status.code == 404 && kind.create_on_update && wanted.is_empty() => {
            let stored = create_object(server, &request, object).await?;
            return encode::object(kind, &stored, accept, 201);
        }
        Err(status) => return Err(status),
        Ok(_) => {}
    }
    let stored = change(server, &request, Part::Main, |_| Ok(object.clone())).await?;
    encode::object(kind, &stored, accept, 200)
}

pub async fn patch(
    server: &Arc<ApiServer>,
    request: Request<Authorized>,
    accept: &Accept,
) -> Result<Response<Body>, Status> {
    if is_apply(&request) {
        return server_side_apply(server, &request, accept).await;
    }
    check_patch_type(&request)?;
    let stored = change(server, &request, Part::Main, |old| patched(&request, Part::Main, old)).await?;
    encode::object(&request.target.kind, &stored, accept, 200)
}

pub fn is_apply(request: &Request<Authorized>) -> bool {
    request.info.verb == "patch" && body::media_type(&request.headers) == APPLY
}

/// Calls with who writes, for the managed fields.
fn managed<T>(request: &Request<Authorized>, part: Part, with: impl FnOnce(&Writer<'_>) -> T) -> T {
    let kind = &request.target.kind;
    let (api_version, manager) = (kind.api_version(), options::manager(request));
    let reset: &[&str] = match part {
        Part::Status => &["spec"],
        Part::Main if kind.has_status() => &["status"],
        _ => &[],
    };
    with(&Writer {
        kind,
        api_version: &api_version,
        manager: &manager,
        subresource: request.target.subresource.map_or("", |subresource| subresource.name()),
        now: &time::rfc3339(Timestamp::now()),
        reset,
    })
}

/// Applies the request's configuration; what is not there yet is created.
async fn server_side_apply(
    server: &Arc<ApiServer>,
    request: &Request<Authorized>,
    accept: &Accept,
) -> Result<Response<Body>, Status> {
    let kind = &request.target.kind;
    for _ in 0..RETRIES {
        match change(server, request, Part::Main, |old| patched(request, Part::Main, old)).await {
            Ok(stored) => return encode::object(kind, &stored, accept, 200),
            Err(status) if status.code == 404 && kind.allows("create") => {}
            Err(status) => return Err(status),
        }
        let config = body::apply(request)?;
        let name = request.target.name.as_deref().unwrap_or_default();
        if !dhow_api::meta::uid(&config).is_empty() {
            let why = "uid mismatch: the provided object specified uid, and no existing object was found";
            return Err(Status::conflict_because(kind.group, kind.plural, name, why));
        }
        let mut object = managed(request, Part::Main, |writer| apply::apply(writer, None, &config, false))?;
        body::settle_patched(request, &mut object, Vec::new(), &config.to_string())?;
        match create_object(server, request, object).await {
            Ok(stored) => return encode::object(kind, &stored, accept, 201),
            // Somebody else was faster: apply to theirs.
            Err(status) if status.reason == "AlreadyExists" => {}
            Err(status) => return Err(status),
        }
    }
    Err(Status::conflict(kind.group, kind.plural, request.target.name.as_deref().unwrap_or_default()))
}

/// Refuses a patch of a type that the kind does not take.
fn check_patch_type(request: &Request<Authorized>) -> Result<(), Status> {
    let custom = request.target.kind.custom.is_some();
    let accepted: &[&str] = if custom { &CUSTOM_PATCHES } else { &PATCHES };
    let media_type = body::media_type(&request.headers);
    if accepted.contains(&media_type) { Ok(()) } else { Err(Status::unsupported_media_type(accepted)) }
}

/// The object with the request's patch applied.
pub fn patched(request: &Request<Authorized>, part: Part, old: &Value) -> Result<Value, Status> {
    if is_apply(request) {
        return applied(request, part, old, &body::apply(request)?);
    }
    check_patch_type(request)?;
    let (patch, duplicates) = dhow_api::strict_json::parse(&request.body)
        .map_err(|error| Status::bad_request(format!("error decoding patch: {error}")))?;
    let mut object = old.clone();
    match body::media_type(&request.headers) {
        "application/json-patch+json" => patches::json(&mut object, &patch)?,
        "application/merge-patch+json" => patches::merge(&mut object, &patch)?,
        _ => patches::strategic(&mut object, &patch, request.target.kind.definition)?,
    }
    body::check_type(&request.target.kind, &object)?;
    body::settle_patched(request, &mut object, duplicates, &String::from_utf8_lossy(&request.body))?;
    if dhow_api::meta::name(&object) != dhow_api::meta::name(old) {
        return Err(Status::bad_request("the name of the object cannot be changed by a patch"));
    }
    Ok(object)
}

/// The object with a configuration applied.
pub fn applied(request: &Request<Authorized>, part: Part, old: &Value, config: &Value) -> Result<Value, Status> {
    let force = request.info.query.flag("force");
    let mut object = managed(request, part, |writer| apply::apply(writer, Some(old), config, force))?;
    body::settle_patched(request, &mut object, Vec::new(), &config.to_string())?;
    Ok(object)
}

pub const APPLY: &str = "application/apply-patch+yaml";
const PATCHES: [&str; 4] =
    ["application/json-patch+json", "application/merge-patch+json", "application/strategic-merge-patch+json", APPLY];
/// What tells how lists merge strategically is not in a custom kind's schema.
const CUSTOM_PATCHES: [&str; 3] = ["application/json-patch+json", "application/merge-patch+json", APPLY];

/// Which part of the object a write may touch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Everything but status.
    Main,
    Status,
    EphemeralContainers,
    Resize,
    Approval,
    /// The finalizers of a namespace; the server sets them itself.
    Finalize,
    /// A pod's node; the server sets it itself, after the binding was admitted.
    Binding,
}

impl Part {
    /// Whether the server makes the new object, whatever else the client sent.
    fn is_the_servers(self) -> bool {
        matches!(self, Self::Finalize | Self::Binding)
    }
}

/// Changes an existing object: `edit` makes the new one from the old. When the client named no resource version, a
/// write that met another is tried again.
pub async fn change(
    server: &Arc<ApiServer>,
    request: &Request<Authorized>,
    part: Part,
    edit: impl Fn(&Value) -> Result<Value, Status>,
) -> Result<Arc<Stored>, Status> {
    let target = &request.target;
    for _ in 0..RETRIES {
        let old = existing(server, target).await?;
        let old_value = old.value()?;
        let new = edit(&old_value)?;
        check_preconditions(target, &old, &new)?;
        if let Some(done) = change_once(server, request, part, &old, &old_value, new).await? {
            return Ok(done);
        }
    }
    Err(Status::conflict(target.kind.group, target.kind.plural, target.name.as_deref().unwrap_or_default()))
}

fn check_preconditions(target: &ResourceTarget, old: &Stored, new: &Value) -> Result<(), Status> {
    let kind = &target.kind;
    let name = &old.header.name;
    let version = dhow_api::meta::resource_version(new);
    if !version.is_empty() && version != old.revision.to_string() {
        return Err(Status::conflict(kind.group, kind.plural, name));
    }
    if version.is_empty() && !kind.unconditional_update {
        let error =
            validation::FieldError::invalid("metadata.resourceVersion", "0x0", "must be specified for an update");
        return Err(Status::invalid(kind.group, kind.kind, name, &[error]));
    }
    let uid = dhow_api::meta::uid(new);
    if !uid.is_empty() && uid != old.header.uid {
        return Err(Status::uid_precondition(kind.group, kind.plural, name, uid, &old.header.uid));
    }
    Ok(())
}

/// One attempt; `None` if the object changed meanwhile.
async fn change_once(
    server: &Arc<ApiServer>,
    request: &Request<Authorized>,
    part: Part,
    old: &Arc<Stored>,
    old_value: &Value,
    mut new: Value,
) -> Result<Option<Arc<Stored>>, Status> {
    let kind = &request.target.kind;
    prepare(kind, part, &mut new, old_value)?;
    if !part.is_the_servers() && !is_apply(request) {
        managed(request, part, |writer| apply::update(writer, Some(old_value), &mut new));
    }
    let mut admitted = Attributes::of(request, Operation::Update, &old.header.name, new, Some(old_value));
    if part != Part::Binding {
        admission::mutate(server, &mut admitted).await?;
        if admitted.mutated {
            prepare(kind, part, &mut admitted.object, old_value)?;
        }
    }
    let choice = server.allocator.choose(kind, Some(old_value), &mut admitted.object)?;
    if part == Part::Main || part == Part::Status && kind.custom.is_some() {
        let errors = offload::evaluate(|pace| validation::validate_update(kind, &admitted.object, old_value, pace));
        refuse_invalid(kind, &admitted.object, &errors)?;
    }
    if part == Part::Status {
        refuse_invalid(kind, &admitted.object, &validation::validate_status(kind, &admitted.object, old_value))?;
    }
    escalation::check(&server.authorizer, request.user(), kind, &admitted.object, Some(old_value))?;
    if part != Part::Binding {
        admission::validate(server, &admitted).await?;
    }
    if same(&admitted.object, old_value)
        && (request.dry_run() || server.store.is_current(kind, old, &admitted.object).await?)
    {
        // Nothing changes: no write, no new revision.
        return Ok(Some(old.clone()));
    }
    let Some(claim) = server.allocator.claim(&server.store, &choice).await? else { return Ok(None) };
    let charged = match part {
        Part::Binding => admission::quota::Charged::default(),
        _ => admission::quota::charge(server, &admitted).await?,
    };
    let new = admitted.object;
    if request.dry_run() {
        return dry(kind, &old.key, &new).map(Some);
    }
    // The last finalizer of an object that is being deleted lets it go.
    let ending = old.header.deletion_timestamp.is_some()
        && dhow_api::meta::items(&new, &["metadata", "finalizers"]).is_empty()
        && new["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0
        && crate::delete::namespace_is_final(kind, &new);
    let guards = [claim.guards, charged.guards].concat();
    let written = match ending {
        true => server.store.delete(kind, old).await?,
        false => server.store.update_with(kind, old, &new, &guards).await?,
    };
    match written {
        Written::Done(stored) => {
            server.quotas.touch(server, kind, request.target.namespace.as_deref());
            Ok(Some(stored))
        }
        Written::Changed | Written::Moved => Ok(None),
    }
}

/// Lets a write touch only its part of the object, defaulted.
fn prepare(kind: &Kind, part: Part, new: &mut Value, old: &Value) -> Result<(), Status> {
    match part {
        Part::Main => {
            defaulting::apply(kind, new);
            strategy::prepare_update(kind, new, old);
        }
        Part::Status => strategy::prepare_status_update(kind, new, old),
        Part::EphemeralContainers | Part::Resize => {
            defaulting::apply(kind, new);
            *new = match part {
                Part::Resize => graft::resize(new, old)?,
                _ => graft::ephemeral_containers(new, old)?,
            };
            strategy::prepare_update(kind, new, old);
        }
        Part::Approval => *new = graft::approval(new, old)?,
        Part::Finalize | Part::Binding => {}
    }
    Ok(())
}

/// Equal but for the resource version.
fn same(new: &Value, old: &Value) -> bool {
    let mut new = new.clone();
    dhow_api::meta::metadata_mut(&mut new).insert("resourceVersion".into(), old["metadata"]["resourceVersion"].clone());
    new == *old
}
