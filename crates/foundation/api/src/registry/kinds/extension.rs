//! The groups that add other kinds: apiregistration.k8s.io and apiextensions.k8s.io.

use super::*;
use crate::defaulting::rows;
use crate::strategy;
use crate::table::admission as t;
use crate::validation::extension as rules;

pub(super) const REGISTRATION: &[Kind] =
    &[kind!("apiregistration.k8s.io", "v1", "APIService", "apiservices", "apiservice", "apiregistration")
        .schema("io.k8s.kube-aggregator.pkg.apis.apiregistration.v1.APIService")
        .cluster()
        .category(&["api-extensions"])
        .subs(STATUS)
        .conditional()
        .named(names::path_segment)
        .columns(t::API_SERVICE)
        .defaults(rows::api_service)
        .finishing(strategy::api_service_finish)
        .rules(rules::api_service)];

pub(super) const DEFINITIONS: &[Kind] = &[kind!(
    "apiextensions.k8s.io",
    "v1",
    "CustomResourceDefinition",
    "customresourcedefinitions",
    "customresourcedefinition",
    "apiextensions"
)
.schema("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinition")
.short(&["crd", "crds"])
.cluster()
.category(&["api-extensions"])
.subs(STATUS)
.counted()
.conditional()
.defaults(rows::definition)
.creating(strategy::definition_create)
.updating(strategy::definition_update)
.rules(rules::definition)
.new_rules(rules::definition_create)
.update_rules(rules::definition_update)];
