//! What the launcher reads from its socket is an order, or an error; and never takes more memory than an order may.
#![no_main]

use std::alloc::{GlobalAlloc, Layout, System};

use agentd::sandbox::order::{self, ORDER_BYTES, Order};
use libfuzzer_sys::fuzz_target;

/// The system's, for whoever asks for a reasonable amount at once.
struct Bounded;

// SAFETY: everything is passed on to the system's allocator as it came, or the process ends.
unsafe impl GlobalAlloc for Bounded {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        bounded(layout);
        // SAFETY: the caller's promises are the system's demands.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        bounded(layout);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(place, layout) }
    }
}

fn bounded(layout: Layout) {
    // Twice, since a vector may grow by doubling.
    if layout.size() > 2 * ORDER_BYTES {
        eprintln!("ERROR: libFuzzer target: {} bytes at once", layout.size());
        std::process::abort();
    }
}

#[global_allocator]
static ALLOCATOR: Bounded = Bounded;

fuzz_target!(|input: &[u8]| {
    let Ok(order) = order::read::<Order>(input) else { return };
    let text = serde_json::to_vec(&order).expect("an order can be written");
    let length = u32::try_from(text.len()).expect("an order is short").to_le_bytes();
    let again =
        order::read::<Order>([length.as_slice(), &text].concat().as_slice()).expect("and read again");
    assert_eq!(serde_json::to_vec(&again).unwrap(), text);
});
