//! The groups apps, batch and policy.

use super::*;
use crate::table::workloads as t;
use crate::{defaulting, strategy, validation};

pub(super) const APPS: &[Kind] = &[
    kind!("apps", "v1", "Deployment", "deployments", "deployment", "apps")
        .short(&["deploy"])
        .all()
        .subs(SCALED)
        .counted()
        .columns(t::DEPLOYMENT)
        .defaults(defaulting::workload::deployment)
        .rules(validation::workload::deployment)
        .update_rules(validation::workload::selector_immutable),
    kind!("apps", "v1", "ReplicaSet", "replicasets", "replicaset", "apps")
        .short(&["rs"])
        .all()
        .subs(SCALED)
        .counted()
        .fields(&["status.replicas"])
        .columns(t::REPLICA_SET)
        .defaults(defaulting::workload::replica_set)
        .rules(validation::workload::replica_set)
        .update_rules(validation::workload::selector_immutable),
    kind!("apps", "v1", "StatefulSet", "statefulsets", "statefulset", "apps")
        .short(&["sts"])
        .all()
        .subs(SCALED)
        .counted()
        .named(names::dns1123_label)
        .columns(t::STATEFUL_SET)
        .defaults(defaulting::workload::stateful_set)
        .rules(validation::workload::stateful_set)
        .update_rules(validation::workload::stateful_set_update),
    kind!("apps", "v1", "DaemonSet", "daemonsets", "daemonset", "apps")
        .short(&["ds"])
        .all()
        .subs(STATUS)
        .counted()
        .columns(t::DAEMON_SET)
        .defaults(defaulting::workload::daemon_set)
        .rules(validation::workload::daemon_set)
        .update_rules(validation::workload::selector_immutable),
    kind!("apps", "v1", "ControllerRevision", "controllerrevisions", "controllerrevision", "apps")
        .columns(t::CONTROLLER_REVISION)
        .rules(validation::workload::controller_revision)
        .update_rules(validation::workload::controller_revision_update),
];

pub(super) const BATCH: &[Kind] = &[
    kind!("batch", "v1", "Job", "jobs", "job", "batch")
        .all()
        .subs(STATUS)
        .counted()
        .fields(&["status.successful"])
        .columns(t::JOB)
        .defaults(defaulting::workload::job)
        .finishing(strategy::job_finish)
        .rules(validation::batch::job)
        .update_rules(validation::batch::job_update),
    kind!("batch", "v1", "CronJob", "cronjobs", "cronjob", "batch")
        .short(&["cj"])
        .all()
        .subs(STATUS)
        .counted()
        .columns(t::CRON_JOB)
        .defaults(defaulting::workload::cron_job)
        .named(validation::batch::cron_job_name)
        .rules(validation::batch::cron_job),
];

pub(super) const POLICY: &[Kind] =
    &[kind!("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets", "poddisruptionbudget", "policy")
        .short(&["pdb"])
        .subs(STATUS)
        .counted()
        .conditional()
        .columns(t::DISRUPTION_BUDGET)
        .defaults(defaulting::rows::disruption_budget)
        .rules(validation::workload::disruption_budget)];
