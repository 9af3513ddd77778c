//! The rows, a file per group or family of groups. Order matters: it is the order of groups and of kinds in discovery.

mod access;
mod admission;
mod autoscaling;
mod core;
mod extension;
mod networking;
mod resource;
mod storage;
mod system;
mod workloads;

use super::{Conversion, Kind, Subresource as Sub};
use crate::names;
use crate::table::{self, Column};
use crate::validation::Errors;
use serde_json::Value;
use std::sync::LazyLock;

const CRUD: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
const NAMESPACE_VERBS: &[&str] = &["create", "delete", "get", "list", "patch", "update", "watch"];
const REVIEW: &[&str] = &["create"];

fn no_defaults(_: &mut Value) {}
fn no_rules(_: &Value, _: &mut Errors) {}
fn no_update_rules(_: &Value, _: &Value, _: &mut Errors) {}
fn no_update(_: &mut Value, _: &Value) {}

/// A namespaced kind with every verb and no rules of its own; the methods below say where it differs.
macro_rules! kind {
    ($group:literal, $version:literal, $kind:literal, $plural:literal, $singular:literal, $schema:literal) => {
        Kind::plain(
            ($group, $version, $kind),
            concat!($kind, "List"),
            $plural,
            $singular,
            concat!("io.k8s.api.", $schema, ".", $version, ".", $kind),
        )
    };
}

use kind;

impl Kind {
    /// A namespaced kind with every verb and no rules of its own.
    pub(crate) const fn plain(
        (group, version, kind): (&'static str, &'static str, &'static str),
        list_kind: &'static str,
        plural: &'static str,
        singular: &'static str,
        definition: &'static str,
    ) -> Self {
        Self {
            group,
            version,
            kind,
            list_kind,
            plural,
            singular,
            short_names: &[],
            categories: &[],
            namespaced: true,
            subresources: &[],
            verbs: CRUD,
            definition,
            storage: (group, plural),
            conversion: None,
            custom: None,
            stored: true,
            generation: false,
            graceful_delete: false,
            selectable_fields: &[],
            create_on_update: false,
            unconditional_update: true,
            columns: table::DEFAULT,
            name_format: names::dns1123_subdomain,
            defaults: no_defaults,
            validate: no_rules,
            validate_create: no_rules,
            validate_update: no_update_rules,
            prepare_create: no_defaults,
            finish_create: no_defaults,
            prepare_update: no_update,
            prepare_status: no_update,
            validate_status: no_update_rules,
        }
    }
    const fn short(mut self, short_names: &'static [&'static str]) -> Self {
        self.short_names = short_names;
        self
    }
    const fn all(mut self) -> Self {
        self.categories = &["all"];
        self
    }
    const fn category(mut self, categories: &'static [&'static str]) -> Self {
        self.categories = categories;
        self
    }
    const fn cluster(mut self) -> Self {
        self.namespaced = false;
        self
    }
    const fn subs(mut self, subresources: &'static [Sub]) -> Self {
        self.subresources = subresources;
        self
    }
    const fn counted(mut self) -> Self {
        self.generation = true;
        self
    }
    const fn fields(mut self, fields: &'static [&'static str]) -> Self {
        self.selectable_fields = fields;
        self
    }
    const fn named(mut self, format: fn(&str) -> Vec<String>) -> Self {
        self.name_format = format;
        self
    }
    const fn defaults(mut self, f: fn(&mut Value)) -> Self {
        self.defaults = f;
        self
    }
    const fn rules(mut self, f: fn(&Value, &mut Errors)) -> Self {
        self.validate = f;
        self
    }
    const fn new_rules(mut self, f: fn(&Value, &mut Errors)) -> Self {
        self.validate_create = f;
        self
    }
    const fn update_rules(mut self, f: fn(&Value, &Value, &mut Errors)) -> Self {
        self.validate_update = f;
        self
    }
    const fn creating(mut self, f: fn(&mut Value)) -> Self {
        self.prepare_create = f;
        self
    }
    const fn finishing(mut self, f: fn(&mut Value)) -> Self {
        self.finish_create = f;
        self
    }
    const fn updating(mut self, f: fn(&mut Value, &Value)) -> Self {
        self.prepare_update = f;
        self
    }
    const fn reporting(mut self, prepare: fn(&mut Value, &Value), rules: fn(&Value, &Value, &mut Errors)) -> Self {
        self.prepare_status = prepare;
        self.validate_status = rules;
        self
    }
    const fn verbs(mut self, verbs: &'static [&'static str]) -> Self {
        self.verbs = verbs;
        self
    }
    const fn review(mut self) -> Self {
        self.verbs = REVIEW;
        self.stored = false;
        self
    }
    /// Objects are kept in another row's form, under that row's key.
    const fn stored_as(mut self, group: &'static str, plural: &'static str, conversion: Conversion) -> Self {
        self.storage = (group, plural);
        self.conversion = Some(conversion);
        self
    }
    const fn schema(mut self, definition: &'static str) -> Self {
        self.definition = definition;
        self
    }
    const fn columns(mut self, columns: &'static [Column]) -> Self {
        self.columns = columns;
        self
    }
    const fn graceful(mut self) -> Self {
        self.graceful_delete = true;
        self
    }
    const fn upsert(mut self) -> Self {
        self.create_on_update = true;
        self
    }
    const fn conditional(mut self) -> Self {
        self.unconditional_update = false;
        self
    }
}

const SCALED: &[Sub] = &[Sub::Scale, Sub::Status];
const STATUS: &[Sub] = &[Sub::Status];

/// Groups in the order upstream's discovery lists them.
const PARTS: &[&[Kind]] = &[
    core::KINDS,
    extension::REGISTRATION,
    workloads::APPS,
    system::EVENTS,
    access::REVIEWS,
    autoscaling::KINDS,
    workloads::BATCH,
    access::CERTIFICATES,
    networking::KINDS,
    workloads::POLICY,
    access::RBAC,
    storage::KINDS,
    admission::KINDS,
    extension::DEFINITIONS,
    system::KINDS,
    resource::KINDS,
    system::FLOW_CONTROL,
    system::STORAGE_MIGRATION,
];

/// Every built-in kind.
pub static KINDS: LazyLock<Vec<Kind>> = LazyLock::new(|| PARTS.iter().copied().flatten().cloned().collect());
