//! What the fork server and a launcher read from their sockets is what they expect, a frame and then an order say, or
//! an error; and never takes more memory than an order may.
#![no_main]

use std::alloc::{GlobalAlloc, Layout, System};

use agentd::sandbox::order::{self, Frame, Launch, Launched, Message, ORDER_BYTES, Order, Terms};
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
    let mut stream = input;
    if read::<Frame>(&mut stream) {
        read::<Order>(&mut stream);
    }
    read::<Order>(&mut &*input);
    read::<Terms>(&mut &*input);
    read::<Launch>(&mut &*input);
    read::<Launched>(&mut &*input);
});

/// Whether the stream begins with such a message. If so, it is taken off the stream, and nothing more than it.
fn read<T: Message>(stream: &mut &[u8]) -> bool {
    let before = *stream;
    let Ok(message) = order::read::<T>(&mut *stream) else { return false };
    let length = u32::from_le_bytes(before[..4].try_into().expect("four bytes")) as usize;
    assert_eq!(stream.len(), before.len() - 4 - length, "it took what is the next message's");
    let text = serde_json::to_vec(&message).expect("a message can be written");
    let length = u32::try_from(text.len()).expect("a message is short").to_le_bytes();
    let again = order::read::<T>([length.as_slice(), &text].concat().as_slice());
    assert_eq!(serde_json::to_vec(&again.expect("and read again")).unwrap(), text);
    true
}
