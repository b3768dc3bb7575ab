//! When a request to the model is tried again. Pure: the jitter comes in as a number.

/// Requests to the model for one turn, the first included, before the run fails.
pub const MAX_ATTEMPTS: u32 = 5;
/// Longest wait a server may ask for that is honoured, in milliseconds.
pub const LONGEST_WAIT_MS: u64 = 120_000;

const FIRST_DELAY_MS: u64 = 500;
const LAST_DELAY_MS: u64 = 8_000;

/// Milliseconds to wait after failed attempt `attempt` (1 = the first).
///
/// Doubles from 500 ms to 8 s, less up to a quarter by `jitter` in `[0, 1)`. What the server asked
/// for (`retry_after_ms`) wins when it is longer, up to [`LONGEST_WAIT_MS`].
/// Source: the official client's schedule, see docs/adr/0006-model-requests.md.
pub fn delay_ms(attempt: u32, retry_after_ms: Option<u64>, jitter: f64) -> u64 {
    let doubled = FIRST_DELAY_MS.saturating_mul(1 << attempt.saturating_sub(1).min(16));
    let capped = doubled.min(LAST_DELAY_MS) as f64;
    let own = (capped * (1.0 - 0.25 * jitter.clamp(0.0, 1.0))) as u64;
    own.max(retry_after_ms.unwrap_or(0).min(LONGEST_WAIT_MS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_cap_and_jitter_only_shortens_them() {
        let plain: Vec<u64> = (1..=6).map(|attempt| delay_ms(attempt, None, 0.0)).collect();
        assert_eq!(plain, [500, 1_000, 2_000, 4_000, 8_000, 8_000]);
        assert_eq!(delay_ms(1, None, 1.0), 375);
    }

    #[test]
    fn the_server_s_wish_wins_when_it_is_longer_but_not_without_bound() {
        assert_eq!(delay_ms(1, Some(3_000), 0.0), 3_000);
        assert_eq!(delay_ms(5, Some(3_000), 0.0), 8_000);
        assert_eq!(delay_ms(1, Some(u64::MAX), 0.0), LONGEST_WAIT_MS);
    }
}
