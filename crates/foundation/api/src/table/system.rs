//! Columns of the small groups: scheduling, coordination, node and flowcontrol.

use serde_json::{Value, json};

use super::cells::Cell::{Age, Flag, Int, Name, Of, Or, Text};
use super::cells::scalar;
use super::{Column, column};
use crate::meta::{at, items, text};

pub(crate) const LEASE: &[Column] =
    &[column("Name", Name), column("Holder", Text(&["spec", "holderIdentity"])), column("Age", Age)];

pub(crate) const PRIORITY_CLASS: &[Column] = &[
    column("Name", Name),
    column("Value", Int(&["value"])),
    column("Global-Default", Flag(&["globalDefault"], false)),
    column("Age", Age),
    column("PreemptionPolicy", Text(&["preemptionPolicy"])),
];

pub(crate) const RUNTIME_CLASS: &[Column] =
    &[column("Name", Name), column("Handler", Text(&["handler"])), column("Age", Age)];

pub(crate) const FLOW_SCHEMA: &[Column] = &[
    column("Name", Name),
    column("PriorityLevel", Text(&["spec", "priorityLevelConfiguration", "name"])),
    column("MatchingPrecedence", Int(&["spec", "matchingPrecedence"])),
    column("DistinguisherMethod", Or(&["spec", "distinguisherMethod", "type"], "<none>")),
    column("Age", Age),
    column(
        "MissingPL",
        Of(|schema| {
            let conditions = items(schema, &["status", "conditions"]);
            let dangling = conditions.iter().find(|condition| condition["type"] == "Dangling");
            json!(dangling.map_or("?", |condition| text(condition, &["status"])))
        }),
    ),
];

fn limited(level: &Value, path: &[&str]) -> Value {
    json!(scalar(at(&level["spec"]["limited"], path), "<none>"))
}

pub(crate) const PRIORITY_LEVEL: &[Column] = &[
    column("Name", Name),
    column("Type", Text(&["spec", "type"])),
    column("NominalConcurrencyShares", Of(|l| limited(l, &["nominalConcurrencyShares"]))),
    column("Queues", Of(|l| limited(l, &["limitResponse", "queuing", "queues"]))),
    column("HandSize", Of(|l| limited(l, &["limitResponse", "queuing", "handSize"]))),
    column("QueueLengthLimit", Of(|l| limited(l, &["limitResponse", "queuing", "queueLengthLimit"]))),
    column("Age", Age),
];
