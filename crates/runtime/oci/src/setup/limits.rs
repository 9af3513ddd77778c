//! Resource limits, scheduling and execution domain of a process.

use rustix::io::Errno;
use rustix::thread::CpuSet;

use crate::error::{Context, Result};
use crate::spec::{Process, Rlimit};
use crate::sys;

/// Takes everything of the specification that is about how the process runs.
pub fn apply(process: &Process) -> Result<()> {
    process.rlimits.iter().try_for_each(limit)?;
    if let Some(personality) = process.personality {
        sys::set_personality(personality).step("set the personality")?;
    }
    let Some(scheduling) = &process.scheduling else { return Ok(()) };
    if let Some(cpu) = &scheduling.cpu {
        sys::set_scheduling(cpu).step("set the scheduler")?;
    }
    if let Some(priority) = scheduling.io_priority {
        sys::set_io_priority(priority).step("set the I/O priority")?;
    }
    if let Some(processors) = &scheduling.affinity {
        let mut set = CpuSet::new();
        processors.iter().filter(|number| **number < CpuSet::MAX_CPU).for_each(|number| set.set(*number));
        rustix::thread::sched_setaffinity(None, &set).step("set the processors to run on")?;
    }
    Ok(())
}

/// A machine that does not let us raise a hard limit gives what it has: better a program with fewer files than none.
fn limit(wanted: &Rlimit) -> Result<()> {
    let step = || format!("set resource limit {}", wanted.resource);
    match sys::set_limit(wanted.resource, wanted.soft, wanted.hard) {
        Err(Errno::PERM) => {
            let hard = sys::hard_limit(wanted.resource).step(step())?.min(wanted.hard);
            sys::set_limit(wanted.resource, wanted.soft.min(hard), hard).step(step())
        }
        result => result.step(step()),
    }
}
