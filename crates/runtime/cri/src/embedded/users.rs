//! Which of the host's user and group ids a pod with a user namespace has: a range that no other pod has.

use std::sync::Arc;

use dhow_oci::spec::IdRange;

use super::Inner;
use crate::Error;
use crate::runtime::UserNamespace;

/// As many as the kubelet gives each pod.
const SIZE: u32 = 65_536;
/// Ranges begin here and at each multiple: below are the machine's own users.
const FIRST: u32 = 65_536;
/// No range reaches ids with a meaning of their own at the top.
const LAST: u32 = 0x7fff_0000;

/// A range that is being given to a sandbox; until that is recorded nobody else gets it.
pub struct Claim {
    inner: Arc<Inner>,
    pub range: Option<IdRange>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut claimed = self.inner.claimed_users.lock();
        if let Some(place) = claimed.iter().position(|range| Some(*range) == self.range) {
            claimed.swap_remove(place);
        }
    }
}

/// The ids of the sandbox `id`, claimed until they are recorded.
pub fn claim(inner: &Arc<Inner>, id: &str, wanted: UserNamespace) -> Result<Claim, Error> {
    let mut claimed = inner.claimed_users.lock();
    let mut taken = claimed.clone();
    taken.extend(inner.sandboxes.lock().values().filter(|s| s.meta.id != id).filter_map(|s| s.meta.users));
    let range = match wanted {
        UserNamespace::Node => None,
        UserNamespace::Pod => Some(
            free(&taken)
                .ok_or_else(|| Error::FailedPrecondition("all ranges of user ids are taken by other pods".into()))?,
        ),
        UserNamespace::Range { host, size } => Some(given(host, size)?),
    };
    claimed.extend(range);
    Ok(Claim { inner: Arc::clone(inner), range })
}

fn given(host: u32, size: u32) -> Result<IdRange, Error> {
    if size == 0 || host.checked_add(size).is_none() {
        return Err(Error::InvalidArgument(format!("user ids {host} and {size} more are no range")));
    }
    Ok(IdRange { host, size })
}

/// The lowest range that touches none of those taken.
fn free(taken: &[IdRange]) -> Option<IdRange> {
    (FIRST..LAST).step_by(SIZE as usize).map(|host| IdRange { host, size: SIZE }).find(|range| {
        let (begin, end) = (u64::from(range.host), u64::from(range.host) + u64::from(range.size));
        !taken.iter().any(|t| u64::from(t.host) < end && begin < u64::from(t.host) + u64::from(t.size))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn ranges_do_not_meet() {
        let range = |host, size| IdRange { host, size };
        assert_eq!(free(&[]), Some(range(65_536, 65_536)));
        assert_eq!(free(&[range(65_536, 65_536), range(196_608, 1)]), Some(range(131_072, 65_536)));
        assert_eq!(free(&[range(131_071, 2)]), Some(range(196_608, 65_536)));
        assert!(given(5, 0).is_err() && given(u32::MAX, 2).is_err());
    }
}
