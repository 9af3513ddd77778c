//! What admission is told of a write.

use dhow_api::Status;
use dhow_api::registry::{Kind, Subresource};
use serde_json::{Value, json};

use crate::audit::Trail;
use crate::delete::DeleteOptions;
use crate::encode::Warnings;
use crate::identity::UserInfo;
use crate::info::{Query, ResourceTarget};
use crate::pipeline::{Authorized, Request};

/// What is done to the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
    /// A stream opens: exec, attach, port-forward, proxy.
    Connect,
}

impl Operation {
    pub fn name(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
        }
    }
}

/// One write, as all plugins, policies and webhooks see it.
pub struct Attributes<'a> {
    pub operation: Operation,
    /// The resource's row; the object of some subresources is of another kind, see [`Self::speaks_otherwise`].
    pub kind: &'a Kind,
    pub subresource: Option<Subresource>,
    pub namespace: Option<&'a str>,
    /// The object's name as the path or the object has it.
    pub name: &'a str,
    pub user: &'a UserInfo,
    /// The object to be; null for a delete.
    pub object: Value,
    /// The object that is; for a create there is none.
    pub old: Option<&'a Value>,
    pub dry_run: bool,
    pub warnings: &'a Warnings,
    /// What is recorded of the request, if anything is.
    pub trail: Option<Trail>,
    /// Whether something beyond the built-in plugins changed the object, so that it must be prepared again.
    pub mutated: bool,
    verb: &'static str,
    query: &'a Query,
    delete_options: Option<&'a DeleteOptions>,
}

impl<'a> Attributes<'a> {
    /// A write that the request asks for.
    pub fn of(
        request: &'a Request<Authorized>,
        operation: Operation,
        name: &'a str,
        object: Value,
        old: Option<&'a Value>,
    ) -> Self {
        Self {
            operation,
            kind: &request.target.kind,
            subresource: request.target.subresource,
            namespace: request.target.namespace.as_deref(),
            name,
            user: request.user(),
            object,
            old,
            dry_run: request.dry_run(),
            warnings: &request.warnings,
            trail: request.trail.clone(),
            mutated: false,
            verb: request.info.verb,
            query: &request.info.query,
            delete_options: None,
        }
    }

    /// A delete of one object, also of many that a request names together.
    pub fn delete(
        request: &'a Request<Authorized>,
        target: &'a ResourceTarget,
        name: &'a str,
        old: &'a Value,
        options: &'a DeleteOptions,
    ) -> Self {
        Self {
            namespace: target.namespace.as_deref(),
            dry_run: !options.dry_run.is_empty(),
            delete_options: Some(options),
            ..Self::of(request, Operation::Delete, name, Value::Null, Some(old))
        }
    }

    /// A stream that is about to open.
    pub fn connect(target: &'a ResourceTarget, query: &'a Query, user: &'a UserInfo, warnings: &'a Warnings) -> Self {
        Self {
            operation: Operation::Connect,
            kind: &target.kind,
            subresource: target.subresource,
            namespace: target.namespace.as_deref(),
            name: target.name.as_deref().unwrap_or_default(),
            user,
            object: connect_options(target, query),
            old: None,
            dry_run: false,
            warnings,
            trail: None,
            mutated: false,
            verb: "connect",
            query,
            delete_options: None,
        }
    }

    pub fn is(&self, group: &str, kind: &str) -> bool {
        self.kind.group == group && self.kind.kind == kind
    }

    /// Whether the object is of another kind than the resource, as the Eviction posted to a pod.
    pub fn speaks_otherwise(&self) -> bool {
        self.subresource.is_some_and(|subresource| subresource.response_kind().is_some())
            || self.operation == Operation::Connect
    }

    /// Adds an annotation to the request's audit event. The first of a name stays.
    pub fn record(&self, key: &str, value: &str) {
        if let Some(trail) = &self.trail {
            trail.annotate(key, value);
        }
    }

    /// The refusal of a built-in plugin.
    pub fn forbidden(&self, why: &str) -> Status {
        Status::forbidden(self.kind.group, self.kind.plural, self.name, why)
    }

    /// The options document of the write, as clients send it.
    pub fn options(&self) -> Value {
        let kind = match self.verb {
            "create" => "CreateOptions",
            "update" => "UpdateOptions",
            "patch" => "PatchOptions",
            "delete" | "deletecollection" => "DeleteOptions",
            _ => return Value::Null,
        };
        let mut options = json!({"kind": kind, "apiVersion": "meta.k8s.io/v1"});
        if self.dry_run {
            options["dryRun"] = json!(["All"]);
        }
        for field in ["fieldManager", "fieldValidation"] {
            if let Some(value) = self.query.get(field) {
                options[field] = json!(value);
            }
        }
        if let Some(given) = self.delete_options {
            given.describe(&mut options);
        }
        options
    }
}

/// The options of a stream, as the kind of its subresource has them.
fn connect_options(target: &ResourceTarget, query: &Query) -> Value {
    let Some(subresource) = target.subresource else { return Value::Null };
    let (_, version, kind) = target.kind.response_kind(subresource);
    let mut options = json!({"kind": kind, "apiVersion": version});
    for flag in ["stdin", "stdout", "stderr", "tty"] {
        if query.has(flag) {
            options[flag] = json!(query.flag(flag));
        }
    }
    if let Some(container) = query.get("container") {
        options["container"] = json!(container);
    }
    let command: Vec<&str> = query.all("command").collect();
    if !command.is_empty() {
        options["command"] = json!(command);
    }
    let ports: Vec<u16> = query.all("ports").filter_map(|port| port.parse().ok()).collect();
    if !ports.is_empty() {
        options["ports"] = json!(ports);
    }
    if matches!(subresource, Subresource::Proxy) {
        options["path"] = json!(format!("/{}", target.rest));
    }
    options
}
