//! What a wildcard gives away: names travel to name servers, so a wildcard is a channel.

use super::host::{HostName, HostPattern};

/// The longest label left of a wildcard's suffix: names are long enough, messages are not.
pub const MAX_WILDCARD_LABEL: usize = 40;

/// How many names under one wildcard a bottle may use, unless the rule says `max_names`.
///
/// Each tells the suffix's name servers something. Content networks and package mirrors use tens.
pub const DEFAULT_MAX_NAMES: u32 = 512;

impl HostPattern {
    /// Says whether whoever likes may own names under it: a wildcard over a public suffix, such as
    /// `*.github.io` (the list at `publicsuffix.org`, its private part included).
    ///
    /// # Security
    ///
    /// The list is the one that the program was built with; a suffix that is younger is not known.
    pub fn is_wide(&self) -> bool {
        match self {
            Self::Exact(_) => false,
            Self::Below(suffix) => psl::domain_str(suffix.as_str()).is_none(),
        }
    }

    /// Says whether the labels that the pattern leaves open are short enough for a name.
    pub fn leaves_short_labels(&self, name: &HostName) -> bool {
        match self {
            Self::Exact(_) => true,
            Self::Below(suffix) => {
                let left = name.as_str().len().saturating_sub(suffix.as_str().len());
                name.as_str()[..left]
                    .split('.')
                    .all(|label| label.len() <= MAX_WILDCARD_LABEL)
            }
        }
    }
}
