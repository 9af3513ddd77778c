//! The node agent where the machine is not as one wishes it: other runtimes by RuntimeClass, shutdowns, full disks.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod bad_images;
mod disk;
mod handlers;
mod leaks;
mod pod_certificates;
mod shutdown;
mod trust_bundles;
mod unkillable;

use anyhow::Result;
use dhow_e2e::{Host, run};

/// Starts a cloud with these settings and variables, and the image that pods use.
fn start(host: &Host, settings: &str, variables: &[(&str, &str)]) -> Result<()> {
    let file = host.folder().join("config.yaml");
    std::fs::write(&file, settings)?;
    run(host.dhow_command(&["up"]).env("DHOW_CONFIG", &file).envs(variables.iter().copied()))?;
    host.import(&["busybox"])?;
    Ok(())
}

#[test]
fn pods_run_in_programs_that_runtime_classes_name() {
    handlers::test().unwrap();
}

#[test]
fn pods_end_in_order_when_the_machine_shuts_down() {
    shutdown::test().unwrap();
}

#[test]
fn images_that_cannot_be_had_or_run_say_why() {
    bad_images::test().unwrap();
}

#[test]
fn trust_bundles_and_certificates_are_shown_in_volumes() {
    trust_bundles::test().unwrap();
}

#[test]
fn certificates_of_pods_are_renewed_while_they_run() {
    pod_certificates::renews().unwrap();
}

#[test]
fn a_full_disk_is_told_of_and_got_over() {
    disk::test().unwrap();
}

#[test]
fn a_process_that_cannot_be_killed_holds_up_its_own_pod_alone() {
    unkillable::test().unwrap();
}

#[test]
fn pods_leave_nothing_behind() {
    leaks::test().unwrap();
}
