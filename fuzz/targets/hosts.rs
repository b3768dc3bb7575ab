//! Whatever is taken for a host has one form, which means the same to every reader.
#![no_main]

use std::net::{IpAddr, Ipv4Addr};

use agentd::domain::{
    host::{Host, reserved},
    policy::HostPattern,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let _ = HostPattern::parse(text);
    let bare = text.strip_suffix('.').unwrap_or(text);
    let parsed = Host::parse(text);
    if let Ok(address) = bare.parse::<Ipv4Addr>() {
        assert_eq!(parsed, Ok(Host::Address(address.into())), "the system takes it for an address");
    }
    let Ok(host) = parsed else { return };
    assert_eq!(Host::parse(&host.to_string()), Ok(host.clone()), "its own form is another host");
    match &host {
        Host::Address(address) => {
            if let IpAddr::V6(v6) = address
                && v6.to_ipv4_mapped().is_some()
            {
                assert!(reserved(*address).is_some(), "an address within an address passes");
            }
        }
        Host::Name(name) => {
            let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
            assert!(name.bytes().all(|byte| plain(byte) || b"-.".contains(&byte)), "{name:?}");
            assert!(
                name.len() <= 253 && name.split('.').all(|label| (1..=63).contains(&label.len()))
            );
            let last = name.rsplit('.').next().unwrap();
            assert!(last.parse::<u64>().is_err(), "a resolver takes {name:?} for a number");
        }
    }
});
