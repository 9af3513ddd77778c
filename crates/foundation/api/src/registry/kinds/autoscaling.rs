//! The group autoscaling. Objects are stored as v2; v1 keeps what it has no field for in annotations.

use super::*;
use crate::table::autoscaling as t;
use crate::{conversion, defaulting, validation};

macro_rules! autoscaler {
    ($version:literal) => {
        kind!(
            "autoscaling",
            $version,
            "HorizontalPodAutoscaler",
            "horizontalpodautoscalers",
            "horizontalpodautoscaler",
            "autoscaling"
        )
        .short(&["hpa"])
        .all()
        .subs(STATUS)
    };
}

pub(super) const KINDS: &[Kind] = &[
    autoscaler!("v2")
        .columns(t::AUTOSCALER)
        .defaults(defaulting::workload::autoscaler)
        .rules(validation::autoscaling::v2),
    autoscaler!("v1")
        .stored_as("autoscaling", "horizontalpodautoscalers", conversion::AUTOSCALER_V1)
        .columns(t::AUTOSCALER_V1)
        .defaults(defaulting::workload::autoscaler_v1)
        .rules(validation::autoscaling::v1),
];
