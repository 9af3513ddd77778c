//! Builds asked for as a node is asked for them, with real registries, repositories, agents and sandboxes. The test binary is
//! also the shim that it starts.
#![allow(clippy::unwrap_used, dead_code)]

mod bench;
#[path = "../../../../runtime/image/tests/common/docker_registry.rs"]
mod docker_registry;
mod registries;
mod sources;
mod steps;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|first| first == dhow_oci::shim::COMMAND) {
        return dhow_oci::shim::main(args);
    }
    let trial = |name: &str, case: fn()| {
        Trial::test(name, move || {
            case();
            Ok(())
        })
    };
    let trials = vec![
        trial("what_is_elsewhere_is_taken", || run(sources::are_taken())),
        trial("contexts_are_fetched", || run(sources::contexts_are_fetched())),
        trial("images_are_pushed", || run(registries::images_are_pushed())),
        trial("steps_are_given_to_others", || run(registries::steps_are_given_to_others())),
        trial("several_platforms_make_an_index", || run(registries::several_platforms_make_an_index())),
        trial("an_agent_is_seen", || run(steps::an_agent_is_seen())),
        trial("limits_hold", || run(steps::limits_hold())),
        trial("what_is_in_an_image_is_stated", || run(steps::what_is_in_an_image_is_stated())),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn run(case: impl Future<Output = ()>) {
    tokio::runtime::Runtime::new().unwrap().block_on(case);
}
