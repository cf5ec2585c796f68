//! Synthetic addresses: which name each of them stands for.
//!
//! ```text
//! 198.18.0.1       the gateway itself
//! 198.18.0.0/16    names that a rule lists: pinned for the life of the bottle
//! 198.19.0.0/16    names that no rule lists: shared, the one unused for longest goes first
//! ```
//!
//! An address never passes from a name to one under another rule: pinned ones do not change hands,
//! and the names of the shared ones have no rule.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bottle_core::policy::{HostName, HostPattern, Policy};

/// The network of the pinned addresses, as its first sixteen bits.
const PINNED: u32 = 0xc612_0000;

/// The network of the shared addresses.
const SHARED: u32 = 0xc613_0000;

/// The first host number that is handed out: 0 is the network, 1 the gateway.
const FIRST: u32 = 2;

/// The last one: 65535 is the broadcast address.
const LAST: u32 = 0xfffe;

/// The most names without a rule that have an address at the same time.
pub(crate) const SHARED_NAMES: usize = 8192;

/// The one table of a bottle's synthetic addresses, in both directions.
#[derive(Debug)]
pub(crate) struct NameTable {
    policy: Policy,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    pinned: HashMap<HostName, Ipv4Addr>,
    pinned_names: Vec<HostName>,
    /// How many names under each wildcard have an address.
    wildcard_names: HashMap<HostPattern, u32>,
    /// Each name with its slot and its last use.
    shared: HashMap<HostName, (usize, u64)>,
    shared_names: Vec<HostName>,
    /// Slots by last use.
    by_use: BTreeMap<u64, usize>,
    clock: u64,
}

impl NameTable {
    /// Pins an address for every exact name of the policy.
    pub(crate) fn new(policy: &Policy) -> Self {
        let mut state = State::default();
        for rule in policy.rules() {
            match rule.host() {
                HostPattern::Below(_) => {}
                HostPattern::Exact(name) if policy.lists(name).is_some() => {
                    state.pin(name);
                }
                HostPattern::Exact(_) => {}
            }
        }
        Self {
            policy: policy.clone(),
            state: Mutex::new(state),
        }
    }

    /// Returns the name that the address was handed out for.
    pub(crate) fn name_of(&self, address: Ipv4Addr) -> Option<HostName> {
        let bits = address.to_bits();
        let slot = usize::try_from((bits & 0xffff).checked_sub(FIRST)?).ok()?;
        let state = self.lock();
        match bits & 0xffff_0000 {
            PINNED => state.pinned_names.get(slot).cloned(),
            SHARED => state.shared_names.get(slot).cloned(),
            _ => None,
        }
    }

    /// Returns the address of the name, handing out one if it has none yet.
    ///
    /// `None` if the quota of names under the wildcard is spent: each tells an upstream something.
    pub(crate) fn address_of(&self, name: &HostName) -> Option<Ipv4Addr> {
        let mut state = self.lock();
        if let Some(address) = state.pinned.get(name) {
            return Some(*address);
        }
        let Some(rule) = self.policy.lists(name) else {
            return Some(state.share(name));
        };
        let pattern = rule.host();
        let used = state.wildcard_names.get(pattern).copied().unwrap_or(0);
        if used >= self.quota(pattern) {
            return None;
        }
        let address = state.pin(name)?;
        state.wildcard_names.insert(pattern.clone(), used + 1);
        Some(address)
    }

    /// Returns how many names a wildcard may have: what the most generous rule with it says.
    fn quota(&self, pattern: &HostPattern) -> u32 {
        let rules = self.policy.rules().iter();
        let same = rules.filter(|rule| rule.host() == pattern);
        same.filter_map(|rule| Some(rule.grant()?.max_names()))
            .max()
            .unwrap_or(0)
    }

    /// A panic elsewhere leaves no half-done change here worth refusing to go on for.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn pin(&mut self, name: &HostName) -> Option<Ipv4Addr> {
        if let Some(address) = self.pinned.get(name) {
            return Some(*address);
        }
        let address = address(PINNED, self.pinned_names.len())?;
        self.pinned.insert(name.clone(), address);
        self.pinned_names.push(name.clone());
        Some(address)
    }

    fn share(&mut self, name: &HostName) -> Ipv4Addr {
        self.clock += 1;
        let slot = match self.shared.get(name) {
            Some((slot, used)) => {
                self.by_use.remove(used);
                *slot
            }
            None if self.shared_names.len() < SHARED_NAMES => {
                self.shared_names.push(name.clone());
                self.shared_names.len() - 1
            }
            None => {
                let oldest = self.by_use.pop_first().map_or(0, |(_, slot)| slot);
                if let Some(holder) = self.shared_names.get_mut(oldest) {
                    self.shared.remove(holder);
                    *holder = name.clone();
                }
                oldest
            }
        };
        self.shared.insert(name.clone(), (slot, self.clock));
        self.by_use.insert(self.clock, slot);
        // There are fewer slots than host numbers.
        address(SHARED, slot).unwrap_or(Ipv4Addr::from_bits(SHARED | LAST))
    }
}

fn address(network: u32, slot: usize) -> Option<Ipv4Addr> {
    let host = u32::try_from(slot).ok()?.checked_add(FIRST)?;
    (host <= LAST).then(|| Ipv4Addr::from_bits(network | host))
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use bottle_core::policy::{Action, DEFAULT_MAX_NAMES, Rule, WrittenRule};
    use proptest::prelude::{ProptestConfig, any, prop};
    use proptest::{prop_assert, prop_assert_eq, proptest};

    use super::*;

    fn name(text: &str) -> HostName {
        text.parse().unwrap()
    }

    fn table(rules: &[&str]) -> NameTable {
        let rules: Vec<Rule> = rules.iter().map(|rule| rule.parse().unwrap()).collect();
        NameTable::new(&Policy::new(rules))
    }

    fn network(address: Ipv4Addr) -> [u8; 2] {
        [address.octets()[0], address.octets()[1]]
    }

    #[test]
    fn exact_names_are_pinned_from_the_start_and_the_gateway_is_not_handed_out() {
        let table = table(&["a.test", "b.test:80", "b.test:443"]);
        let [first, second] = ["a.test", "b.test"].map(|text| table.address_of(&name(text)));
        assert_eq!(first, Some(Ipv4Addr::new(198, 18, 0, 2)));
        assert_eq!(second, Some(Ipv4Addr::new(198, 18, 0, 3)));
        assert_eq!(
            table.name_of(Ipv4Addr::new(198, 18, 0, 3)),
            Some(name("b.test"))
        );
        for free in [
            [198, 18, 0, 0],
            [198, 18, 0, 1],
            [198, 18, 0, 4],
            [198, 19, 0, 1],
            [10, 0, 0, 2],
        ] {
            assert_eq!(table.name_of(free.into()), None);
        }
    }

    #[test]
    fn names_under_a_wildcard_have_a_quota_and_keep_their_address() {
        let table = table(&["*.wild.test", "*.other.test", "exact.test"]);
        for index in 0..DEFAULT_MAX_NAMES {
            let address = table
                .address_of(&name(&format!("n{index}.wild.test")))
                .unwrap();
            assert_eq!(network(address), [198, 18]);
        }
        assert_eq!(table.address_of(&name("one-more.wild.test")), None);
        let old = table.address_of(&name("n7.wild.test")).unwrap();
        assert_eq!(table.name_of(old), Some(name("n7.wild.test")));
        assert!(table.address_of(&name("exact.test")).is_some());
        assert!(table.address_of(&name("a.other.test")).is_some());
    }

    #[test]
    fn a_rule_may_say_how_many_names_its_wildcard_has() {
        let rule = WrittenRule {
            host: "*.wild.test".to_owned(),
            max_names: Some(2),
            ..WrittenRule::default()
        };
        let table = NameTable::new(&Policy::new([rule.try_into().unwrap()]));
        let addresses = ["a", "b", "a", "c"]
            .map(|label| table.address_of(&name(&format!("{label}.wild.test"))));
        assert!(addresses[..3].iter().all(Option::is_some));
        assert_eq!(addresses[3], None);
    }

    #[test]
    fn a_name_that_is_denied_is_as_unlisted() {
        let written = |host: &str, action| WrittenRule {
            action,
            host: host.to_owned(),
            ..WrittenRule::default()
        };
        let rules = [
            written("*.wild.test", Action::Allow),
            written("x.wild.test", Action::Deny),
        ];
        let policy = Policy::new(rules.map(|rule| rule.try_into().unwrap()));
        let table = NameTable::new(&policy);
        assert_eq!(
            network(table.address_of(&name("x.wild.test")).unwrap()),
            [198, 19]
        );
        assert_eq!(
            network(table.address_of(&name("y.wild.test")).unwrap()),
            [198, 18]
        );
    }

    #[test]
    fn the_shared_address_unused_for_longest_is_handed_on() {
        let table = table(&[]);
        let nth = |index: usize| name(&format!("n{index}.unlisted.test"));
        let first = table.address_of(&nth(0)).unwrap();
        assert_eq!(network(first), [198, 19]);
        let second = table.address_of(&nth(1)).unwrap();
        for index in 2..SHARED_NAMES {
            table.address_of(&nth(index));
        }
        assert_eq!(
            table.address_of(&nth(0)),
            Some(first),
            "used again, so not the oldest"
        );
        assert_eq!(table.address_of(&nth(SHARED_NAMES)), Some(second));
        assert_eq!(table.name_of(second), Some(nth(SHARED_NAMES)));
        assert_eq!(table.name_of(first), Some(nth(0)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// The model is a list of names, the one unused for longest in front.
        #[test]
        fn both_directions_agree_with_a_list(
            asked in prop::collection::vec((any::<bool>(), 0..SHARED_NAMES + 40), 1..60),
            is_full in any::<bool>(),
        ) {
            let table = table(&["*.listed.test"]);
            let mut model = VecDeque::new();
            if is_full {
                for index in 0..SHARED_NAMES {
                    let name = name(&format!("n{index}.test"));
                    let address = table.address_of(&name).unwrap();
                    model.push_back((name, address));
                }
            }
            for (is_listed, index) in asked {
                if is_listed {
                    let name = name(&format!("n{index}.listed.test"));
                    let address = table.address_of(&name).unwrap();
                    prop_assert_eq!(network(address), [198, 18]);
                    prop_assert_eq!(table.name_of(address), Some(name));
                    continue;
                }
                let name = name(&format!("n{index}.test"));
                let address = table.address_of(&name).unwrap();
                let known = model.iter().position(|(known, _)| *known == name);
                let expected = match known {
                    Some(at) => model.remove(at).map(|(_, address)| address),
                    None if model.len() == SHARED_NAMES => model.pop_front().map(|(_, old)| old),
                    None => Some(address),
                };
                prop_assert_eq!(Some(address), expected);
                prop_assert!(model.iter().all(|(_, other)| *other != address));
                model.push_back((name, address));
            }
            for (name, address) in model {
                prop_assert_eq!(table.name_of(address), Some(name));
            }
        }
    }
}
