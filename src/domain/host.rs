//! Hosts as programs name them, read once by one strict grammar; and which addresses are nobody's own. What may
//! be reached: `policy::network`. No name is looked up here.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

/// A host: a name in lower case without a dot at its end, or an address.
///
/// Two texts that mean one host give one value, so that what is compared is what is dialled.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Host {
    Name(Arc<str>),
    Address(IpAddr),
}

/// Why a text is no host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadHost {
    #[error("a host has 1 to 253 characters")]
    Length,
    #[error(
        "a host has labels of 1 to 63 letters, digits and inner hyphens; other alphabets are written xn--"
    )]
    Label,
    #[error(
        "a host whose last label is a number must be an address of four decimal numbers from 0 to 255"
    )]
    Number,
    #[error("what stands in brackets is not an IPv6 address")]
    Bracket,
}

const LONGEST_NAME: usize = 253;
const LONGEST_LABEL: usize = 63;

impl Host {
    /// Reads a host as it stands in an authority: an IPv6 address in brackets, everything else bare.
    pub fn parse(text: &str) -> Result<Self, BadHost> {
        if let Some(inner) = text.strip_prefix('[') {
            let inner = inner.strip_suffix(']').ok_or(BadHost::Bracket)?;
            let address = inner.parse::<Ipv6Addr>().map_err(|_| BadHost::Bracket)?;
            return Ok(Self::Address(address.into()));
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        if name.is_empty() || name.len() > LONGEST_NAME {
            return Err(BadHost::Length);
        }
        if !name.split('.').all(is_label) {
            return Err(BadHost::Label);
        }
        // Resolvers take more forms of numbers for addresses than anyone would think of.
        match name.rsplit('.').next().is_some_and(is_number) {
            true => name
                .parse::<Ipv4Addr>()
                .map(|address| Self::Address(address.into()))
                .map_err(|_| BadHost::Number),
            false => Ok(Self::Name(name.to_ascii_lowercase().into())),
        }
    }
}

fn is_label(label: &str) -> bool {
    let bytes = label.as_bytes();
    (1..=LONGEST_LABEL).contains(&bytes.len())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-')
        && bytes.first() != Some(&b'-')
        && bytes.last() != Some(&b'-')
}

fn is_number(label: &str) -> bool {
    let hexadecimal = label.strip_prefix("0x").or(label.strip_prefix("0X"));
    label.bytes().all(|byte| byte.is_ascii_digit())
        || hexadecimal.is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Address(IpAddr::V4(address)) => address.fmt(f),
            Self::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
        }
    }
}

impl TryFrom<String> for Host {
    type Error = BadHost;

    fn try_from(text: String) -> Result<Self, BadHost> {
        Self::parse(&text)
    }
}

impl From<Host> for String {
    fn from(host: Host) -> Self {
        host.to_string()
    }
}

/// What an address is that is not one of the public internet; none: it is. Source: the IANA special-purpose
/// address registries, and the metadata services that clouds run at public addresses.
pub fn reserved(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(address) => reserved_v4(address),
        IpAddr::V6(address) => reserved_v6(address),
    }
}

/// By what an address begins with, and how many bits of it.
const RESERVED_V4: &[([u8; 4], u32, &str)] = &[
    ([0, 0, 0, 0], 8, "this network"),
    ([10, 0, 0, 0], 8, "private"),
    ([100, 64, 0, 0], 10, "shared by a carrier"),
    ([127, 0, 0, 0], 8, "loopback"),
    ([169, 254, 0, 0], 16, "link-local"),
    ([172, 16, 0, 0], 12, "private"),
    ([192, 0, 0, 0], 24, "reserved"),
    ([192, 0, 2, 0], 24, "documentation"),
    ([192, 31, 196, 0], 24, "reserved"),
    ([192, 52, 193, 0], 24, "reserved"),
    ([192, 88, 99, 0], 24, "a relay"),
    ([192, 168, 0, 0], 16, "private"),
    ([192, 175, 48, 0], 24, "reserved"),
    ([198, 18, 0, 0], 15, "benchmarking"),
    ([198, 51, 100, 0], 24, "documentation"),
    ([203, 0, 113, 0], 24, "documentation"),
    ([168, 63, 129, 16], 32, "a cloud's metadata"),
    ([224, 0, 0, 0], 4, "multicast"),
    ([240, 0, 0, 0], 4, "reserved"),
];

fn reserved_v4(address: Ipv4Addr) -> Option<&'static str> {
    let bits = u32::from(address);
    let within =
        |base: [u8; 4], length: u32| (bits ^ u32::from_be_bytes(base)) >> (32 - length) == 0;
    RESERVED_V4.iter().find(|(base, length, _)| within(*base, *length)).map(|(_, _, what)| *what)
}

/// Within what is given out to the public, 2000::/3.
const RESERVED_V6: &[([u16; 2], u32, &str)] = &[
    // Teredo, benchmarking, identifiers and the like.
    ([0x2001, 0x0000], 23, "reserved"),
    ([0x2001, 0x0db8], 32, "documentation"),
    // Each holds an IPv4 address, which a relay would reach.
    ([0x2002, 0x0000], 16, "a relay"),
    ([0x2620, 0x004f], 32, "reserved"),
    ([0x3fff, 0x0000], 20, "documentation"),
];

fn reserved_v6(address: Ipv6Addr) -> Option<&'static str> {
    let [first, second, ..] = address.segments();
    if first >> 13 != 1 {
        return Some("not given out to the public");
    }
    let bits = u32::from(first) << 16 | u32::from(second);
    let within = |base: [u16; 2], length: u32| {
        (bits ^ (u32::from(base[0]) << 16 | u32::from(base[1]))) >> (32 - length) == 0
    };
    RESERVED_V6.iter().find(|(base, length, _)| within(*base, *length)).map(|(_, _, what)| *what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> String {
        Host::parse(text).map_or_else(|error| format!("{error:?}"), |host| format!("{host:?}"))
    }

    #[test]
    fn one_host_has_one_value_however_it_is_written() {
        let name = Host::parse("api.example.com").unwrap();
        for text in ["API.Example.COM", "api.example.com.", "aPi.example.com."] {
            assert_eq!(Host::parse(text), Ok(name.clone()), "{text}");
        }
        assert_eq!(Host::parse("[2606:0:0::1]"), Host::parse("[2606::1]"));
        assert_eq!(read("93.184.215.14"), "Address(93.184.215.14)");
    }

    #[test]
    fn what_two_readers_could_take_for_two_hosts_is_no_host() {
        for text in [
            "",
            ".",
            "a..b",
            "..",
            "-a.com",
            "a-.com",
            "a_b.com",
            "a b.com",
            "a\0.com",
            "a\r\n.com",
            "a/b",
            "user@host",
            "a:b",
            "b\u{fc}cher.example",
            "a%2e.com",
            "*.example.com",
            "[::1",
            "::1",
            "[fe80::1%eth0]",
            "[1.2.3.4]",
            "a.com..",
            "a\t",
            " a.com",
        ] {
            assert!(Host::parse(text).is_err(), "{text:?}: {}", read(text));
        }
        let long = "a.".repeat(127);
        assert!(Host::parse(&long[..253]).is_ok());
        assert_eq!(Host::parse(&format!("{long}aa")), Err(BadHost::Length));
        assert_eq!(Host::parse(&"a".repeat(64)), Err(BadHost::Label));
    }

    #[test]
    fn a_number_is_an_address_in_its_one_form_or_nothing() {
        for text in [
            "2130706433",
            "0x7f.1",
            "0x7f000001",
            "127.1",
            "0177.0.0.1",
            "1.2.3.4.5",
            "a.0x",
            "a.1",
        ] {
            assert_eq!(Host::parse(text), Err(BadHost::Number), "{text}");
        }
        assert_eq!(read("1a.2b"), "Name(\"1a.2b\")");
    }

    #[test]
    fn only_addresses_of_the_public_internet_are_not_reserved() {
        for text in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "100.100.100.200",
            "127.0.0.1",
            "169.254.169.254",
            "172.31.255.255",
            "192.0.0.1",
            "192.0.2.1",
            "192.168.0.1",
            "198.19.0.1",
            "203.0.113.9",
            "168.63.129.16",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:8.8.8.8",
            "::ffff:127.0.0.1",
            "64:ff9b::7f00:1",
            "fe80::1",
            "fc00::1",
            "fd00:ec2::254",
            "ff02::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "3fff::1",
            "4000::1",
        ] {
            assert!(reserved(text.parse().unwrap()).is_some(), "{text}");
        }
        for text in [
            "1.1.1.1",
            "93.184.215.14",
            "100.63.255.255",
            "172.32.0.1",
            "2606:4700::1",
            "2001:4860::1",
        ] {
            assert_eq!(reserved(text.parse().unwrap()), None, "{text}");
        }
    }
}
