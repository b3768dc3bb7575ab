//! The real clock and real chance behind the ports. Nothing else reads time or randomness.

use std::{
    fmt, io,
    path::PathBuf,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;
use ring::rand::{SecureRandom as _, SystemRandom};
use uuid::{Builder, Uuid};

use crate::{
    domain::ids::{RunId, Timestamp},
    ports::{Chance, Clock, Disk},
};

/// The disk that a directory is on.
#[derive(Debug)]
pub struct SystemDisk {
    pub directory: PathBuf,
}

impl Disk for SystemDisk {
    fn free_bytes(&self) -> io::Result<u64> {
        let found = rustix::fs::statvfs(&self.directory)?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }
}

/// The machine's clocks.
#[derive(Debug)]
pub struct SystemClock {
    started: Instant,
}

impl Default for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is where time enters")]
    fn default() -> Self {
        Self { started: Instant::now() }
    }
}

#[async_trait]
impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is where time enters")]
    fn now(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Timestamp(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
    }

    fn steady_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }
}

/// The kernel's randomness.
pub struct SystemChance {
    random: SystemRandom,
}

impl Default for SystemChance {
    fn default() -> Self {
        Self { random: SystemRandom::new() }
    }
}

impl fmt::Debug for SystemChance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SystemChance")
    }
}

impl SystemChance {
    /// Random bytes; where the kernel has none to give, the process cannot go on safely.
    pub fn bytes<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        if self.random.fill(&mut bytes).is_err() {
            tracing::error!("the kernel gives no randomness");
            std::process::abort();
        }
        bytes
    }
}

impl Chance for SystemChance {
    fn run_id(&self, now: Timestamp) -> RunId {
        let millis = u64::try_from(now.0 / 1000).unwrap_or(0);
        let uuid: Uuid = Builder::from_unix_timestamp_millis(millis, &self.bytes()).into_uuid();
        RunId::new(uuid)
    }

    fn fraction(&self) -> f64 {
        let bits = u64::from_le_bytes(self.bytes()) >> 11;
        bits as f64 / (1u64 << 53) as f64
    }
}
