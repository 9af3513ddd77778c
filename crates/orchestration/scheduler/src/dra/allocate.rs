//! The search: claims one after the other, their requests, and for each device that is asked for all that may be had, until
//! everything is fulfilled or nothing is left to try. The first way found is taken.
//!
//! The devices of one request are chosen in their order, and a device is not tried where one just like it has failed: so
//! equal devices do not multiply the work. What is still too much is given up, with a reason.

use std::collections::{BTreeMap, HashMap};

use dhow_api::quantity::Quantity;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::resource::v1::{AllocationResult, Device, DeviceAttribute, ResourceClaim};

use super::capacity::{self, amount, counters_of};
use super::known::Devices;
use super::pools::{Candidate, Pool, gather};
use super::requests::{Ask, Asked, MOST_RESULTS, asked, constraints};
use super::result;

/// So many choices are tried at most for one node.
const MOST_STEPS: usize = 100_000;

/// One way of one request of one claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct At {
    pub claim: usize,
    request: usize,
    way: usize,
}

pub(crate) struct Chosen {
    pub at: At,
    pub candidate: usize,
    /// What of a shared device it takes.
    pub consumed: BTreeMap<String, Quantity>,
}

/// What does not change while searching.
pub(crate) struct Problem<'a> {
    known: &'a Devices,
    pub asked: Vec<Asked<'a>>,
    pools: Vec<Pool<'a>>,
    pub candidates: Vec<Candidate<'a>>,
}

impl<'a> Problem<'a> {
    pub fn ask(&self, at: At) -> &Ask<'a> {
        &self.asked[at.claim].requests[at.request][at.way]
    }
}

/// What each claim gets on the node; `None` if they cannot have it all there.
///
/// # Errors
/// Says what is wrong with a claim, a class or a pool, which no node can help.
pub(crate) fn allocate(
    known: &Devices,
    node: &Node,
    claims: &[&ResourceClaim],
) -> Result<Option<Vec<AllocationResult>>, String> {
    let mut all = Vec::new();
    for claim in claims {
        all.push(asked(known, claim)?);
    }
    let (pools, candidates) = gather(known, node);
    let problem = Problem { known, asked: all, pools, candidates };
    let mut search =
        Search { problem: &problem, all: HashMap::new(), selected: HashMap::new(), chosen: Vec::new(), steps: 0 };
    search.begin()?;
    if !search.requests(0, 0)? {
        return Ok(None);
    }
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let chosen = search.chosen;
    Ok(Some((0..claims.len()).map(|claim| result::of(&problem, claim, &chosen, name)).collect()))
}

struct Search<'p, 'a> {
    problem: &'p Problem<'a>,
    /// The devices of requests that want all there are.
    all: HashMap<At, Vec<usize>>,
    /// Whether a device is one that is asked for.
    selected: HashMap<(At, usize), bool>,
    chosen: Vec<Chosen>,
    steps: usize,
}

impl Search<'_, '_> {
    /// Finds out how much each request wants.
    fn begin(&mut self) -> Result<(), String> {
        let problem = self.problem;
        for (claim, asked) in problem.asked.iter().enumerate() {
            let mut fewest = 0_usize;
            for (request, ways) in asked.requests.iter().enumerate() {
                let mut least = usize::MAX;
                for (way, ask) in ways.iter().enumerate() {
                    let at = At { claim, request, way };
                    if ask.all {
                        let found = self.everything(at)?;
                        self.all.insert(at, found);
                    }
                    least = least.min(self.wanted(at));
                }
                fewest = fewest.saturating_add(if ways.is_empty() { 0 } else { least });
            }
            if fewest > MOST_RESULTS {
                let claim = full_name(asked.claim);
                return Err(format!(
                    "claim {claim}: number of requested devices {fewest} exceeds the claim limit of {MOST_RESULTS}"
                ));
            }
        }
        Ok(())
    }

    fn everything(&mut self, at: At) -> Result<Vec<usize>, String> {
        let problem = self.problem;
        for pool in &problem.pools {
            let state = match (pool.incomplete, &pool.invalid) {
                (true, _) => "being updated",
                (false, Some(_)) => "invalid",
                (false, None) => continue,
            };
            let (claim, request) = (full_name(problem.asked[at.claim].claim), &problem.ask(at).name);
            let (driver, pool) = pool.id;
            return Err(format!(
                "claim {claim}, request {request}: asks for all devices, but resource pool {driver}/{pool} is currently {state}"
            ));
        }
        let mut found = Vec::new();
        for candidate in 0..problem.candidates.len() {
            if self.selects(at, candidate)? {
                found.push(candidate);
            }
        }
        Ok(found)
    }

    fn wanted(&self, at: At) -> usize {
        self.all.get(&at).map_or(self.problem.ask(at).count, Vec::len)
    }

    fn selects(&mut self, at: At, candidate: usize) -> Result<bool, String> {
        if let Some(known) = self.selected.get(&(at, candidate)) {
            return Ok(*known);
        }
        let problem = self.problem;
        let one = &problem.candidates[candidate];
        let claim = problem.asked[at.claim].claim;
        let selects = problem.ask(at).selects(problem.known, claim, &one.id.driver, one.device)?;
        self.selected.insert((at, candidate), selects);
        Ok(selects)
    }

    /// Fulfils this request and all that come after it.
    fn requests(&mut self, claim: usize, request: usize) -> Result<bool, String> {
        let problem = self.problem;
        let Some(asked) = problem.asked.get(claim) else { return Ok(true) };
        let Some(ways) = asked.requests.get(request) else { return self.requests(claim + 1, 0) };
        for way in 0..ways.len() {
            if self.devices(At { claim, request, way }, 0, 0)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Finds the request's `nth` device, not before `from` in their order, and all that come after.
    fn devices(&mut self, at: At, nth: usize, from: usize) -> Result<bool, String> {
        let problem = self.problem;
        let wanted = self.wanted(at);
        if wanted == 0 && self.all.contains_key(&at) {
            return Ok(false);
        }
        if nth >= wanted {
            return self.requests(at.claim, at.request + 1);
        }
        let so_far = self.chosen.iter().filter(|chosen| chosen.at.claim == at.claim).count();
        if so_far.saturating_add(wanted - nth) > MOST_RESULTS {
            return Ok(false);
        }
        self.steps += 1;
        if self.steps > MOST_STEPS {
            let claim = full_name(problem.asked[at.claim].claim);
            return Err(format!("claim {claim}: too many ways to choose devices, gave up after {MOST_STEPS} steps"));
        }
        if let Some(candidate) = self.all.get(&at).map(|all| all[nth]) {
            return self.try_with(at, nth, candidate);
        }
        let mut failed: Vec<usize> = Vec::new();
        for candidate in from..problem.candidates.len() {
            let one = &problem.candidates[candidate];
            let pool = &problem.pools[one.pool];
            if pool.incomplete || pool.invalid.is_some() || !self.is_free(at, candidate) {
                continue;
            }
            if !self.selects(at, candidate)? || failed.iter().any(|other| self.are_alike(*other, candidate)) {
                continue;
            }
            if self.try_with(at, nth, candidate)? {
                return Ok(true);
            }
            if !one.is_shared() {
                failed.push(candidate);
            }
        }
        Ok(false)
    }

    fn try_with(&mut self, at: At, nth: usize, candidate: usize) -> Result<bool, String> {
        let Some(chosen) = self.choice(at, candidate) else { return Ok(false) };
        self.chosen.push(chosen);
        // A request may have several shares of one device.
        let next = if self.problem.candidates[candidate].is_shared() { candidate } else { candidate + 1 };
        if self.devices(at, nth + 1, next)? {
            return Ok(true);
        }
        self.chosen.pop();
        Ok(false)
    }

    /// The others that were chosen for the same device.
    fn rivals(&self, candidate: usize) -> impl Iterator<Item = &Chosen> {
        self.chosen.iter().filter(move |chosen| chosen.candidate == candidate)
    }

    /// Whether what comes after finds the same, whichever of the two is chosen now. One that somebody has already leaves more
    /// to others than a free one does, which matters to those who may look after either.
    fn are_alike(&self, one: usize, other: usize) -> bool {
        let problem = self.problem;
        let taken = |candidate: usize| {
            problem.known.used(&problem.candidates[candidate].id).is_some() || self.rivals(candidate).next().is_some()
        };
        problem.candidates[one].is_like(&problem.candidates[other]) && taken(one) == taken(other)
    }

    fn is_admin(&self, chosen: &Chosen) -> bool {
        self.problem.ask(chosen.at).admin
    }

    fn is_free(&self, at: At, candidate: usize) -> bool {
        let one = &self.problem.candidates[candidate];
        let used = self.problem.known.used(&one.id);
        let admin = self.problem.ask(at).admin;
        if one.is_shared() {
            return admin || used.is_none_or(|used| used.alone == 0);
        }
        let in_claim = self.rivals(candidate).any(|chosen| chosen.at.claim == at.claim);
        !in_claim && (admin || used.is_none() && self.rivals(candidate).all(|chosen| self.is_admin(chosen)))
    }

    /// What it would mean to have the device, if that is possible.
    fn choice(&self, at: At, candidate: usize) -> Option<Chosen> {
        let one = &self.problem.candidates[candidate];
        let ask = self.problem.ask(at);
        let consumed = capacity::consumption(&one.id.driver, one.device, ask.capacity)?;
        let possible = ask.tolerates(&one.taints)
            && self.is_free(at, candidate)
            && (ask.admin || self.has_room(candidate, &consumed) && self.has_counters(candidate))
            && self.keeps_constraints(at, one);
        let shares = one.is_shared() && !ask.admin;
        possible.then(|| Chosen { at, candidate, consumed: if shares { consumed } else { BTreeMap::new() } })
    }

    fn has_room(&self, candidate: usize, consumed: &BTreeMap<String, Quantity>) -> bool {
        let one = &self.problem.candidates[candidate];
        if !one.is_shared() {
            return true;
        }
        let used = self.problem.known.used(&one.id);
        consumed.iter().all(|(name, part)| {
            let total = one.device.capacity.as_ref().and_then(|all| amount(&all.get(name)?.value));
            let before = used.and_then(|used| used.consumed.get(name).copied()).unwrap_or(Quantity::ZERO);
            let rivals = self.rivals(candidate).filter_map(|chosen| chosen.consumed.get(name).copied());
            let sum = rivals.fold(before + *part, |sum, part| sum + part);
            total.is_some_and(|total| sum <= total)
        })
    }

    /// Whether the pool's counters have what the device takes of them; one in use has it already.
    fn has_counters(&self, candidate: usize) -> bool {
        let one = &self.problem.candidates[candidate];
        let counted = |candidate: usize| self.rivals(candidate).any(|chosen| !self.is_admin(chosen));
        if self.problem.known.used(&one.id).is_some() || counted(candidate) {
            return true;
        }
        let mut others: Vec<usize> =
            self.chosen.iter().filter(|chosen| !self.is_admin(chosen)).map(|chosen| chosen.candidate).collect();
        others.sort_unstable();
        others.dedup();
        let others: Vec<&Candidate<'_>> = others
            .into_iter()
            .map(|other| &self.problem.candidates[other])
            .filter(|other| other.pool == one.pool && self.problem.known.used(&other.id).is_none())
            .collect();
        counters_of(one.device).all(|(key, part)| {
            let Some(left) = self.problem.pools[one.pool].counters.get(&key) else { return false };
            let parts = others.iter().flat_map(|other| counters_of(other.device)).filter(|(other, _)| *other == key);
            parts.fold(part, |sum, (_, part)| sum + part) <= *left
        })
    }

    fn keeps_constraints(&self, at: At, one: &Candidate<'_>) -> bool {
        let problem = self.problem;
        let ask = problem.ask(at);
        constraints(problem.asked[at.claim].claim).iter().all(|constraint| {
            if !ask.is_among(constraint.requests.as_ref()) {
                return true;
            }
            let (name, same) = match (&constraint.match_attribute, &constraint.distinct_attribute) {
                (Some(name), _) => (name, true),
                (None, Some(name)) => (name, false),
                (None, None) => return false,
            };
            let Some(own) = attribute(&one.id.driver, one.device, name) else { return false };
            let others = self.chosen.iter().filter(|chosen| chosen.at.claim == at.claim);
            others.filter(|chosen| problem.ask(chosen.at).is_among(constraint.requests.as_ref())).all(|chosen| {
                let other = &problem.candidates[chosen.candidate];
                let other = attribute(&other.id.driver, other.device, name);
                other.is_some_and(|other| (other == own) == same)
            })
        })
    }
}

/// An attribute by its full name; the device may have it without its driver's domain.
fn attribute<'a>(driver: &str, device: &'a Device, name: &str) -> Option<&'a DeviceAttribute> {
    let all = device.attributes.as_ref()?;
    all.get(name).or_else(|| all.get(name.strip_prefix(driver)?.strip_prefix('/')?))
}

fn full_name(claim: &ResourceClaim) -> String {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    format!("{}/{}", text(&claim.metadata.namespace), text(&claim.metadata.name))
}
