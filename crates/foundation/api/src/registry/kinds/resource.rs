//! The group resource.k8s.io: devices, and claims on them.

use super::*;
use crate::defaulting::rows;
use crate::table::resource as t;
use crate::validation::resource as rules;

pub(super) const KINDS: &[Kind] = &[
    kind!("resource.k8s.io", "v1", "DeviceClass", "deviceclasses", "deviceclass", "resource")
        .cluster()
        .counted()
        .columns(table::NAME_AND_AGE)
        .rules(rules::class),
    kind!("resource.k8s.io", "v1", "ResourceClaim", "resourceclaims", "resourceclaim", "resource")
        .subs(STATUS)
        .columns(t::CLAIM)
        .defaults(rows::resource_claim)
        .rules(rules::claim)
        .update_rules(rules::claim_update),
    kind!(
        "resource.k8s.io",
        "v1",
        "ResourceClaimTemplate",
        "resourceclaimtemplates",
        "resourceclaimtemplate",
        "resource"
    )
    .columns(table::NAME_AND_AGE)
    .defaults(rows::resource_claim_template)
    .rules(rules::claim_template)
    .update_rules(rules::spec_immutable),
    kind!("resource.k8s.io", "v1", "ResourceSlice", "resourceslices", "resourceslice", "resource")
        .cluster()
        .counted()
        .fields(&["spec.nodeName", "spec.driver"])
        .columns(t::SLICE)
        .finishing(crate::strategy::slice_finish)
        .updating(crate::strategy::slice_update)
        .rules(rules::slice)
        .update_rules(rules::slice_update),
    kind!("resource.k8s.io", "v1alpha3", "DeviceTaintRule", "devicetaintrules", "devicetaintrule", "resource")
        .cluster()
        .counted()
        .subs(STATUS)
        .columns(table::NAME_AND_AGE)
        .finishing(crate::strategy::taint_rule_finish)
        .updating(crate::strategy::taint_rule_update)
        .rules(rules::taint_rule),
];
