//! Proofs that an entry is in a log: RFC 9162's (2.1.3.2), in a tree whose head the log signed as a note (C2SP's
//! tlog-checkpoint and signed-note).

use ring::digest::{Context, SHA256};
use serde::Deserialize;

use super::keys::{Key, base64};

/// Before what is hashed, so that no leaf can be taken for a branch.
const LEAF: u8 = 0;
const BRANCH: u8 = 1;
/// Of a key's hash, before a note's signature.
const HINT: usize = 4;

/// `inclusionProof` of a bundle.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Proof {
    /// Within the tree, which may be one of several that the log has.
    #[serde(default)]
    log_index: String,
    /// From the leaf's neighbour up.
    #[serde(default)]
    hashes: Vec<String>,
    #[serde(default)]
    checkpoint: Checkpoint,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Checkpoint {
    envelope: String,
}

/// What a log has signed of its tree.
pub(super) struct Head<'a> {
    /// The log's name.
    pub origin: &'a str,
    size: u64,
    root: Vec<u8>,
    /// What is signed.
    text: &'a str,
    signatures: &'a str,
}

impl Proof {
    /// Whether it says of which tree it is: in the first version of bundles it need not.
    pub fn is_of_a_tree(&self) -> bool {
        !self.checkpoint.envelope.is_empty()
    }

    /// # Errors
    /// When it is malformed.
    pub fn head(&self) -> Result<Head<'_>, String> {
        let head = || {
            let at = self.checkpoint.envelope.find("\n\n")?;
            // The line before the empty one ends in what is signed.
            let (text, signatures) = self.checkpoint.envelope.split_at(at + 1);
            let mut lines = text.lines();
            let origin = lines.next().filter(|origin| !origin.is_empty())?;
            let size = lines.next()?.parse().ok()?;
            let root = lines.next().and_then(base64)?;
            Some(Head { origin, size, root, text, signatures })
        };
        head().ok_or_else(|| "the head of a log's tree is malformed".to_owned())
    }

    /// Whether this leaf is in a tree that the log with this key signed. `id` is what bundles call the key.
    ///
    /// # Errors
    /// When it is not.
    pub fn verify(&self, head: &Head<'_>, leaf: &[u8], id: &[u8], key: &Key) -> Result<(), String> {
        // Signatures of witnesses, who have other keys, may be among them.
        let signed = head.signatures.lines().filter_map(|line| line.strip_prefix("— ")?.split_once(' ')).any(
            |(_, signature)| {
                let signature = base64(signature).unwrap_or_default();
                signature.split_at_checked(HINT).is_some_and(|(hint, signature)| {
                    id.starts_with(hint) && key.verify(head.text.as_bytes(), signature)
                })
            },
        );
        if !signed {
            return Err("the head of a log's tree is not signed by the log".to_owned());
        }
        let index = if self.log_index.is_empty() { Ok(0) } else { self.log_index.parse() };
        let index: u64 = index.map_err(|_| "a log's entry has no place in its tree")?;
        let path: Option<Vec<_>> = self.hashes.iter().map(|hash| base64(hash)).collect();
        let root = path.and_then(|path| root(index, head.size, hash(&[&[LEAF], leaf]), &path));
        if root.is_some_and(|root| root == head.root) {
            Ok(())
        } else {
            Err("a log's entry is not proven to be in its tree".to_owned())
        }
    }
}

fn hash(parts: &[&[u8]]) -> Vec<u8> {
    let mut context = Context::new(&SHA256);
    parts.iter().for_each(|part| context.update(part));
    context.finish().as_ref().to_vec()
}

/// The root to which a leaf's path leads; `None` if a tree of this size has no such path.
fn root(index: u64, size: u64, leaf: Vec<u8>, path: &[Vec<u8>]) -> Option<Vec<u8>> {
    let mut last = size.checked_sub(1)?;
    let mut at = index;
    if at > last {
        return None;
    }
    let mut root = leaf;
    for beside in path {
        if last == 0 {
            return None;
        }
        if at % 2 == 1 || at == last {
            root = hash(&[&[BRANCH], beside, &root]);
            // The last leaf may be without a neighbour for some levels.
            while at.is_multiple_of(2) && at != 0 {
                at /= 2;
                last /= 2;
            }
        } else {
            root = hash(&[&[BRANCH], &root, beside]);
        }
        at /= 2;
        last /= 2;
    }
    (last == 0).then_some(root)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The root of a tree, and the path from one of its leaves, as RFC 9162 defines them (2.1.1 and 2.1.3.1).
    fn tree(leaves: &[Vec<u8>], index: usize) -> (Vec<u8>, Vec<Vec<u8>>) {
        if let [only] = leaves {
            return (only.clone(), Vec::new());
        }
        let half = leaves.len().next_power_of_two() / 2;
        let (left, right) = leaves.split_at(half);
        let inner = |part: &[Vec<u8>], index: usize| tree(part, index.min(part.len() - 1));
        let ((left, of_left), (right, of_right)) = (inner(left, index), inner(right, index.saturating_sub(half)));
        let whole = hash(&[&[BRANCH], &left, &right]);
        let path = if index < half { [of_left, vec![right]] } else { [of_right, vec![left]] };
        (whole, path.concat())
    }

    #[test]
    fn every_leaf_of_every_tree_leads_to_its_root() {
        for size in 1..40u64 {
            let leaves: Vec<_> = (0..size).map(|n| hash(&[&[LEAF], &n.to_be_bytes()])).collect();
            for (index, leaf) in leaves.iter().enumerate() {
                let (whole, path) = tree(&leaves, index);
                let at = index as u64;
                assert_eq!(root(at, size, leaf.clone(), &path), Some(whole.clone()), "{index} of {size}");
                // Neither another place, nor a shorter or longer path.
                for other in (0..size).filter(|other| *other != at) {
                    assert_ne!(root(other, size, leaf.clone(), &path).as_ref(), Some(&whole), "{other} of {size}");
                }
                assert_ne!(
                    root(at, size, leaf.clone(), &[path.clone(), vec![whole.clone()]].concat()),
                    Some(whole.clone())
                );
                if let Some((_, shorter)) = path.split_last() {
                    assert_ne!(root(at, size, leaf.clone(), shorter), Some(whole));
                }
            }
        }
        assert_eq!(root(3, 3, vec![1], &[]), None);
        assert_eq!(root(0, 0, vec![1], &[]), None);
    }
}
