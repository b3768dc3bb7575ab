//! Reads a stream to its end and keeps its head and its tail.

use std::{collections::VecDeque, io};

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio_util::sync::CancellationToken;

use crate::domain::effect::Captured;

/// Reads until the stream ends; keeps at most `keep` bytes, half from the head and half from the tail, and counts
/// the rest. `heard` hears it all. When more than `most` bytes have come, `flooded` is cancelled.
pub(super) async fn capture(
    mut stream: impl AsyncRead + Unpin,
    keep: usize,
    most: u64,
    flooded: &CancellationToken,
    heard: &(dyn Fn(&[u8]) + Send + Sync),
) -> io::Result<Captured> {
    let half = keep / 2;
    let mut buffer = vec![0; 8192];
    let mut head: Vec<u8> = Vec::new();
    let mut tail: VecDeque<u8> = VecDeque::new();
    let (mut dropped, mut all) = (0, 0);
    loop {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return Ok(Captured { head, tail: tail.into(), dropped });
        }
        all += count as u64;
        if all > most {
            flooded.cancel();
        }
        heard(&buffer[..count]);
        let (to_head, to_tail) = buffer[..count].split_at(count.min(half - head.len()));
        head.extend_from_slice(to_head);
        tail.extend(to_tail);
        let excess = tail.len().saturating_sub(half);
        tail.drain(..excess);
        dropped += excess as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_short_stream_is_kept_whole_and_a_long_one_keeps_its_ends() {
        let flooded = CancellationToken::new();
        let short = capture(&b"hello"[..], 32, 5, &flooded, &|_| {}).await.unwrap();
        assert_eq!((short.head.as_slice(), short.tail.len(), short.dropped), (&b"hello"[..], 0, 0));
        let bytes: Vec<u8> = (0..100_000u32).map(|n| (n % 251) as u8).collect();
        let half = 16 << 10;
        let heard = std::sync::Mutex::new(0);
        let hear = |bytes: &[u8]| *heard.lock().unwrap() += bytes.len();
        let long = capture(bytes.as_slice(), 2 * half, 99_999, &flooded, &hear).await.unwrap();
        assert_eq!(*heard.lock().unwrap(), bytes.len());
        assert_eq!(long.head, bytes[..half]);
        assert_eq!(long.tail, bytes[bytes.len() - half..]);
        assert_eq!(long.dropped, (bytes.len() - 2 * half) as u64);
    }
}
