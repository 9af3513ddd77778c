//! Names that are taken: a kubelet that asks again, because it did not hear the answer, must not get a second pod.

use std::collections::BTreeSet;

use parking_lot::Mutex;

/// Names of what is being made; what is there already is the runtime's to tell.
#[derive(Default)]
pub struct Names(Mutex<BTreeSet<String>>);

/// Keeps a name while it lives.
pub struct Reserved<'a> {
    names: &'a Names,
    name: String,
}

impl Names {
    /// `None` if somebody else is at it.
    pub fn reserve(&self, name: String) -> Option<Reserved<'_>> {
        let free = self.0.lock().insert(name.clone());
        // Made only when it is to be kept: its end gives the name back.
        free.then(|| Reserved { names: self, name })
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        self.names.0.lock().remove(&self.name);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_s_until_it_is_let_go() {
        let names = Names::default();
        let one = names.reserve("a".into()).unwrap();
        assert!(names.reserve("a".into()).is_none() && names.reserve("b".into()).is_some());
        drop(one);
        assert!(names.reserve("a".into()).is_some());
    }
}
