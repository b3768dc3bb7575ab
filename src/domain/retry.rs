//! When a request to the model is tried again. Pure: the jitter comes in as a number.

/// Requests to the model for one turn, the first included, before the run fails, unless the backend as a whole is down.
pub const MAX_ATTEMPTS: u32 = 5;
/// The same where the backend only asks for patience.
const MAX_LIMITED_ATTEMPTS: u32 = 20;
/// Longest wait a server may ask for that is honoured, in milliseconds: a day.
pub const LONGEST_WAIT_MS: u64 = 24 * 60 * 60 * 1000;

const FIRST_DELAY_MS: u64 = 500;
const LAST_DELAY_MS: u64 = 8_000;
const LAST_LIMITED_DELAY_MS: u64 = 60_000;

/// What a failed request was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Because {
    /// That too much is asked of the backend.
    Limited,
    Other,
}

/// Requests for one turn before the run fails.
pub fn most_attempts(because: Because) -> u32 {
    match because {
        Because::Limited => MAX_LIMITED_ATTEMPTS,
        Because::Other => MAX_ATTEMPTS,
    }
}

/// Milliseconds to wait after failed attempt `attempt` (1 = the first).
///
/// Doubles from 500 ms to 8 s, or to a minute where too much was asked of the backend, less up to a quarter by `jitter`
/// in `[0, 1)`. What the server asked for (`retry_after_ms`) wins when it is longer, up to [`LONGEST_WAIT_MS`].
/// Source: the official client's schedule, see docs/adr/0006-model-requests.md.
pub fn delay_ms(attempt: u32, because: Because, retry_after_ms: Option<u64>, jitter: f64) -> u64 {
    let doubled = FIRST_DELAY_MS.saturating_mul(1 << attempt.saturating_sub(1).min(16));
    let last = match because {
        Because::Limited => LAST_LIMITED_DELAY_MS,
        Because::Other => LAST_DELAY_MS,
    };
    let capped = doubled.min(last) as f64;
    let own = (capped * (1.0 - 0.25 * jitter.clamp(0.0, 1.0))) as u64;
    own.max(retry_after_ms.unwrap_or(0).min(LONGEST_WAIT_MS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_cap_and_jitter_only_shortens_them() {
        let delay = |attempt, because| delay_ms(attempt, because, None, 0.0);
        let plain: Vec<u64> = (1..=6).map(|attempt| delay(attempt, Because::Other)).collect();
        assert_eq!(plain, [500, 1_000, 2_000, 4_000, 8_000, 8_000]);
        assert_eq!(delay_ms(1, Because::Other, None, 1.0), 375);
        assert_eq!((delay(5, Because::Limited), delay(30, Because::Limited)), (8_000, 60_000));
    }

    #[test]
    fn the_server_s_wish_wins_when_it_is_longer_but_not_without_bound() {
        let delay = |attempt, asked| delay_ms(attempt, Because::Other, Some(asked), 0.0);
        assert_eq!(delay(1, 3_000), 3_000);
        assert_eq!(delay(5, 3_000), 8_000);
        assert_eq!(delay(1, u64::MAX), LONGEST_WAIT_MS);
    }
}
