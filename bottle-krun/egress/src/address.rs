//! Which resolved addresses a bottle may never reach: one pure, total function.
//!
//! The list names what is *not* the public internet. An address inside another one (v4-mapped,
//! NAT64, 6to4, Teredo) is judged by what it carries, and refused if it is a translation at all,
//! since the host's network decides where such a packet ends.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Says whether a rule with `private = true` opens an address that is forbidden otherwise.
///
/// # Security
///
/// Metadata services, translations, multicast and what is not given out stay closed whatever a rule
/// says; who means one of these names it with `--resolve`.
pub(crate) fn is_near(address: IpAddr) -> bool {
    let is_metadata = forbidden(address) == Some(METADATA);
    !is_metadata
        && match address {
            IpAddr::V4(address) => matches!(
                address.octets(),
                [10 | 127, ..]
                    | [172, 16..=31, ..]
                    | [192, 168, ..]
                    | [100, 64..=127, ..]
                    | [169, 254, ..]
            ),
            IpAddr::V6(address) => {
                address.is_loopback()
                    || matches!(address.segments(), [0xfc00..=0xfdff | 0xfe80..=0xfebf, ..])
            }
        }
}

const METADATA: &str = "it is a metadata service";

/// Returns why an address may not be dialled, in words; `None` if it may.
pub(crate) fn forbidden(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(address) => forbidden_v4(address),
        IpAddr::V6(address) => forbidden_v6(address),
    }
}

fn forbidden_v4(address: Ipv4Addr) -> Option<&'static str> {
    Some(match address.octets() {
        [0, ..] => "it is unspecified",
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => "it is private",
        // Alibaba Cloud's stands in the shared space.
        [100, 100, 100, 200] => METADATA,
        [100, 64..=127, ..] => "it is shared address space (CGNAT)",
        [127, ..] => "it is loopback",
        // The link-local block holds the clouds' metadata service.
        [169, 254, 169, 254] | [169, 254, 170, 2] => METADATA,
        [169, 254, ..] => "it is link-local",
        [168, 63, 129, 16] => METADATA,
        [192, 0, 0, _] => "it is reserved for protocols",
        [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => "it is for documentation",
        [192, 88, 99, _] => "it is a 6to4 relay",
        [198, 18..=19, ..] => "it is for benchmarks (a bottle's synthetic addresses)",
        [224..=239, ..] => "it is multicast",
        [240..=255, ..] => "it is reserved",
        _ => return None,
    })
}

fn forbidden_v6(address: Ipv6Addr) -> Option<&'static str> {
    if address.to_ipv4_mapped().is_some() {
        return Some("it is an IPv4 address mapped into IPv6");
    }
    Some(match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0] => "it is unspecified",
        [0, 0, 0, 0, 0, 0, 0, 1] => "it is loopback",
        [0, ..] => "it is reserved",
        [0x64, 0xff9b, ..] => "it is translated to IPv4 (NAT64)",
        [0x100, ..] => "it is a discard prefix",
        [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254] => METADATA,
        [0x2001, 0, ..] => "it is a Teredo tunnel",
        [0x2001, 0x1..=0x1ff, ..] => "it is reserved for protocols",
        [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => "it is for documentation",
        [0x2002, ..] => "it is translated to IPv4 (6to4)",
        [0x2000..=0x3fff, ..] => return None,
        [0x5f00, ..] => "it is reserved for segment routing",
        [0xfc00..=0xfdff, ..] => "it is private (unique local)",
        [0xfe80..=0xfebf, ..] => "it is link-local",
        [0xfec0..=0xfeff, ..] => "it is private (site-local)",
        [0xff00..=0xffff, ..] => "it is multicast",
        // Everything outside 2000::/3 is not given out.
        _ => "it is reserved",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_that_is_not_public_is_refused() {
        let table = [
            ("0.0.0.0", "unspecified"),
            ("0.1.2.3", "unspecified"),
            ("10.0.0.1", "private"),
            ("100.64.0.1", "CGNAT"),
            ("100.127.255.255", "CGNAT"),
            ("127.0.0.1", "loopback"),
            ("127.255.0.1", "loopback"),
            ("169.254.1.1", "link-local"),
            ("169.254.169.254", "metadata"),
            ("168.63.129.16", "metadata"),
            ("100.100.100.200", "metadata"),
            ("172.16.0.1", "private"),
            ("172.31.255.255", "private"),
            ("192.0.0.192", "protocols"),
            ("192.0.2.1", "documentation"),
            ("192.88.99.1", "6to4"),
            ("192.168.1.1", "private"),
            ("198.18.0.1", "benchmarks"),
            ("198.19.255.255", "benchmarks"),
            ("198.51.100.7", "documentation"),
            ("203.0.113.7", "documentation"),
            ("224.0.0.1", "multicast"),
            ("240.0.0.1", "reserved"),
            ("255.255.255.255", "reserved"),
            ("::", "unspecified"),
            ("::1", "loopback"),
            ("::7f00:1", "reserved"),
            ("::ffff:127.0.0.1", "mapped"),
            ("::ffff:93.184.216.34", "mapped"),
            ("64:ff9b::7f00:1", "NAT64"),
            ("64:ff9b:1::1", "NAT64"),
            ("100::1", "discard"),
            ("2001::1", "Teredo"),
            ("2001:20::1", "protocols"),
            ("2001:db8::1", "documentation"),
            ("2002:7f00:1::", "6to4"),
            ("3fff::1", "documentation"),
            ("4000::1", "reserved"),
            ("fc00::1", "private"),
            ("fd00:ec2::254", "metadata"),
            ("fd12::1", "private"),
            ("fe80::1", "link-local"),
            ("fec0::1", "site-local"),
            ("ff02::1", "multicast"),
        ];
        for (address, word) in table {
            let found = forbidden(address.parse().unwrap());
            assert!(
                found.is_some_and(|why| why.contains(word)),
                "{address}: {found:?} does not say {word:?}"
            );
        }
    }

    #[test]
    fn public_addresses_pass() {
        for address in [
            "1.1.1.1",
            "93.184.216.34",
            "100.63.255.255",
            "100.128.0.0",
            "172.15.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "198.17.0.1",
            "198.20.0.1",
            "223.255.255.255",
            "2001:4860:4860::8888",
            "2606:4700::1111",
            "2a00:1450::1",
        ] {
            assert_eq!(forbidden(address.parse().unwrap()), None, "{address}");
        }
    }

    #[test]
    fn what_is_near_can_be_opened_and_nothing_else() {
        for address in [
            "10.0.0.1",
            "172.31.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "127.0.0.1",
            "169.254.1.1",
            "::1",
            "fd12::1",
            "fe80::1",
        ] {
            assert!(is_near(address.parse().unwrap()), "{address}");
        }
        for address in [
            "169.254.169.254",
            "169.254.170.2",
            "168.63.129.16",
            "100.100.100.200",
            "fd00:ec2::254",
            "0.0.0.0",
            "224.0.0.1",
            "240.0.0.1",
            "198.18.0.1",
            "::",
            "::ffff:10.0.0.1",
            "64:ff9b::a00:1",
            "2002:a00:1::",
            "ff02::1",
            "1.1.1.1",
        ] {
            assert!(!is_near(address.parse().unwrap()), "{address}");
        }
    }
}
