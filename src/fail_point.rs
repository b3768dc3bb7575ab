//! Places at which the daemon can be made to die, for tests of what is left then. Builds for people have none: there
//! [`reach`] is empty, and no variable is read.

/// Every place, in the order in which one call passes them; then those of the mirror, which follows in its own time.
pub const POINTS: [&str; 12] = [
    "intent.before",
    "intent.after",
    "ask.before",
    "ask.after",
    "effect.before",
    "effect.after",
    "result.before",
    "commit.before",
    "commit.after",
    "reply.before",
    "mirror.before",
    "mirror.after",
];

/// Names the place and how often it is passed alive: `commit.before:3`.
pub const VARIABLE: &str = "AGENTD_FAIL_POINT";

/// Dies here, as by SIGKILL, if that was asked for.
#[cfg(not(debug_assertions))]
#[inline]
pub fn reach(_point: &'static str) {}

/// Dies here, as by SIGKILL, if that was asked for.
#[cfg(debug_assertions)]
pub fn reach(point: &'static str) {
    use std::sync::{
        LazyLock,
        atomic::{AtomicI64, Ordering},
    };

    static WANTED: LazyLock<Option<(String, AtomicI64)>> = LazyLock::new(|| {
        let wanted = std::env::var(VARIABLE).ok()?;
        let (point, passed) = wanted.split_once(':')?;
        Some((point.to_owned(), AtomicI64::new(passed.parse().ok()?)))
    });

    debug_assert!(POINTS.contains(&point), "{point} is not in the list");
    if let Some((wanted, left)) = &*WANTED
        && wanted == point
        && left.fetch_sub(1, Ordering::Relaxed) <= 0
    {
        let _ =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        // The signal comes at once to whichever thread; nothing more is done by this one.
        loop {
            std::thread::park();
        }
    }
}
