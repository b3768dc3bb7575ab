//! What a receiver's answer means for a notice: told, refused, or to be told again and when. Pure: the jitter comes in as
//! a number.

use std::time::Duration;

use crate::ports::{NotAnswered, Receipt};

const FIRST_DELAY_MS: u64 = 500;
const LAST_DELAY_MS: u64 = 5 * 60_000;
/// Longest wait a receiver may ask for that is honoured, in milliseconds.
const LONGEST_WAIT_MS: u64 = 15 * 60_000;

/// What an attempt came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The receiver has it.
    Delivered { http_status: u16 },
    /// The receiver does not want it, and will not.
    Refused { http_status: u16, reason: String },
    /// The receiver was not reached, or could not take it now.
    Again { after: Duration, why: String },
}

/// What attempt `number` (1 = the first) came to.
///
/// 2xx is told, and 410 is final. Everything else may be the receiver's deployment, its proxy or a secret that is about
/// to be changed: it is told again for as long as the question waits. Redirects are not followed. Source:
/// docs/adr/0020-approvals-webhook.md.
pub(super) fn outcome(answered: Result<Receipt, NotAnswered>, number: u32, jitter: f64) -> Outcome {
    let Receipt { http_status, retry_after_ms } = match answered {
        Ok(receipt) => receipt,
        Err(NotAnswered { message }) => {
            return Outcome::Again { after: delay(number, None, jitter), why: message };
        }
    };
    let said = format!("the receiver answered with HTTP status {http_status}");
    match http_status {
        200..=299 => Outcome::Delivered { http_status },
        429 | 503 => Outcome::Again { after: delay(number, retry_after_ms, jitter), why: said },
        410 => Outcome::Refused { http_status, reason: said },
        _ => Outcome::Again { after: delay(number, None, jitter), why: said },
    }
}

/// How long to wait after failed attempt `number` (1 = the first).
///
/// Doubles from 500 ms to 5 min, less up to a half by `jitter` in `[0, 1)`, so that many questions do not come back
/// together. What the receiver asked for wins when it is longer, up to 15 min.
fn delay(number: u32, retry_after_ms: Option<u64>, jitter: f64) -> Duration {
    let doubled = FIRST_DELAY_MS.saturating_mul(1 << number.saturating_sub(1).min(16));
    let capped = doubled.min(LAST_DELAY_MS) as f64;
    let own = (capped * (1.0 - 0.5 * jitter.clamp(0.0, 1.0))) as u64;
    Duration::from_millis(own.max(retry_after_ms.unwrap_or(0).min(LONGEST_WAIT_MS)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(http_status: u16, retry_after_ms: Option<u64>) -> Outcome {
        outcome(Ok(Receipt { http_status, retry_after_ms }), 1, 0.0)
    }

    #[test]
    fn what_was_taken_is_told_and_what_was_refused_for_good_is_not_told_again() {
        for http_status in [200, 202, 204, 299] {
            assert_eq!(answered(http_status, None), Outcome::Delivered { http_status });
        }
        let reason = "the receiver answered with HTTP status 410".into();
        assert_eq!(answered(410, None), Outcome::Refused { http_status: 410, reason });
    }

    #[test]
    fn what_may_pass_is_told_again_and_only_429_and_503_say_when() {
        for (http_status, millis) in [
            (301, 500),
            (307, 500),
            (400, 500),
            (401, 500),
            (404, 500),
            (408, 500),
            (429, 7_000),
            (500, 500),
            (502, 500),
            (503, 7_000),
            (999, 500),
        ] {
            let why = format!("the receiver answered with HTTP status {http_status}");
            let after = Duration::from_millis(millis);
            assert_eq!(answered(http_status, Some(7_000)), Outcome::Again { after, why });
        }
        let unreached = Err(NotAnswered { message: "connection refused".into() });
        let after = Duration::from_secs(2);
        let why = "connection refused".into();
        assert_eq!(outcome(unreached, 3, 0.0), Outcome::Again { after, why });
    }

    #[test]
    fn delays_double_up_to_the_cap_and_jitter_only_shortens_them() {
        let plain = |number| delay(number, None, 0.0).as_millis();
        let delays: Vec<u128> = (1..=12).map(plain).collect();
        assert_eq!(
            delays,
            [
                500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 64_000, 128_000, 256_000, 300_000,
                300_000
            ]
        );
        assert_eq!(delay(u32::MAX, None, 1.0).as_millis(), 150_000);
    }

    #[test]
    fn the_receiver_s_wish_wins_when_it_is_longer_but_not_without_bound() {
        assert_eq!(delay(1, Some(3_000), 0.0).as_millis(), 3_000);
        assert_eq!(delay(5, Some(3_000), 0.0).as_millis(), 8_000);
        assert_eq!(delay(1, Some(u64::MAX), 0.0).as_millis(), u128::from(LONGEST_WAIT_MS));
    }
}
