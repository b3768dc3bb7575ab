//! What the launcher reads from its socket is an order, or an error; never more than it may be long.
#![no_main]

use agentd::sandbox::order;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Ok(order) = order::read(input) else { return };
    let text = serde_json::to_vec(&order).expect("an order can be written");
    let length = u32::try_from(text.len()).expect("an order is short").to_le_bytes();
    let again = order::read([length.as_slice(), &text].concat().as_slice()).expect("and read again");
    assert_eq!(serde_json::to_vec(&again).unwrap(), text);
});
