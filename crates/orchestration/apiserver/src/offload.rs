//! Evaluation that could take long, away from the threads that serve everybody.
//!
//! Most expressions end at once, so each begins where the request is. One that has used up its pace is begun anew as
//! work that may block: the runtime then gives the thread's other tasks to another one.

use dhow_api::cel::Pace;
use tokio::runtime::{Handle, RuntimeFlavor};

/// Cost that all expressions about one request may have together on a thread that others wait for: about a millisecond.
pub const INLINE: u64 = 20_000;

/// Evaluates with a pace; if that does not do, without one, where it may take its time. Nothing that `evaluate` does
/// may be seen before it returns.
pub fn evaluate<T>(evaluate: impl Fn(Option<&Pace>) -> T) -> T {
    let pace = Pace::new(INLINE);
    let result = evaluate(Some(&pace));
    if !pace.is_over() {
        return result;
    }
    blocking(|| evaluate(None))
}

/// Runs what takes long.
pub fn blocking<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        // There is one thread, and nobody to give its tasks to.
        _ => work(),
    }
}
