//! Bytes to server-sent events, within bounds.

use std::time::Duration;

use crate::{
    backend::{failure, http::Http},
    ports::{ModelError, ModelFault},
};

/// Longest event that is accepted, in bytes: a whole answer may come as one.
const EVENT_BYTES: usize = 16 << 20;

/// Splits a stream of bytes into the data of its events.
#[derive(Debug, Default)]
pub(super) struct Parser {
    line: Vec<u8>,
    data: String,
    /// A CR ended the last line; an LF right after it belongs to it.
    after_cr: bool,
}

/// An event was longer than is accepted, or not UTF-8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum SseError {
    #[error("an event of the stream is longer than {EVENT_BYTES} bytes")]
    TooLong,
    #[error("the stream is not UTF-8")]
    NotUtf8,
}

impl Parser {
    /// Takes the next bytes, and gives the data of every event that they complete, in order.
    ///
    /// Comments, event names and ids are passed over: the data says what it is.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<Vec<String>, SseError> {
        let mut events = Vec::new();
        for &byte in bytes {
            let after_cr = std::mem::take(&mut self.after_cr);
            match byte {
                b'\n' if after_cr => {}
                b'\n' => self.end_line(&mut events)?,
                b'\r' => {
                    self.after_cr = true;
                    self.end_line(&mut events)?;
                }
                byte => self.line.push(byte),
            }
            if self.line.len() + self.data.len() > EVENT_BYTES {
                return Err(SseError::TooLong);
            }
        }
        Ok(events)
    }

    fn end_line(&mut self, events: &mut Vec<String>) -> Result<(), SseError> {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            if !self.data.is_empty() {
                events.push(std::mem::take(&mut self.data));
            }
            return Ok(());
        }
        if let Some(value) = line.strip_prefix(b"data:") {
            let value = value.strip_prefix(b" ").unwrap_or(value);
            if !self.data.is_empty() {
                self.data.push('\n');
            }
            self.data.push_str(std::str::from_utf8(value).map_err(|_| SseError::NotUtf8)?);
        }
        Ok(())
    }
}

/// The next events of a stream, at least one; none when it is over.
///
/// Comments that keep a connection alive are no events: a server that sends nothing else for `idle` has stopped
/// answering. `bytes` counts what came so far, of which there may be `most`.
pub(super) async fn next(
    http: &Http,
    answer: &mut reqwest::Response,
    parser: &mut Parser,
    (bytes, most): (&mut usize, usize),
    idle: Duration,
    api: &str,
) -> Result<Option<Vec<String>>, ModelError> {
    let next = async {
        while let Some(chunk) = answer.chunk().await.map_err(|error| http.transport(&error))? {
            *bytes += chunk.len();
            if *bytes > most {
                return Err(http.protocol(api, &format!("the stream is longer than {most} bytes")));
            }
            let events = parser.push(&chunk);
            let events = events.map_err(|error| http.protocol(api, &error.to_string()))?;
            if !events.is_empty() {
                return Ok(Some(events));
            }
        }
        Ok(None)
    };
    tokio::time::timeout(idle, next).await.unwrap_or_else(|_| {
        let url = http.url();
        let message =
            format!("the backend {url} said nothing for {idle:?} in the middle of an answer");
        Err(failure::plain(ModelFault::Timeout, message))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STREAM: &str =
        ": hello\n\nevent: a\ndata: {\"n\":1}\n\ndata:two\ndata: lines\r\n\r\ndata: ü\r\rdata: cut";

    fn events(chunks: &[&[u8]]) -> Vec<String> {
        let mut parser = Parser::default();
        chunks.iter().flat_map(|chunk| parser.push(chunk).unwrap()).collect()
    }

    #[test]
    fn events_end_at_an_empty_line_and_a_cut_one_is_not_given() {
        assert_eq!(events(&[STREAM.as_bytes()]), ["{\"n\":1}", "two\nlines", "ü"]);
    }

    #[test]
    fn an_endless_event_is_refused() {
        let mut parser = Parser::default();
        let megabyte = vec![b'x'; 1 << 20];
        let refused = (0..20).find_map(|_| parser.push(&megabyte).err());
        assert_eq!(refused, Some(SseError::TooLong));
    }

    proptest! {
        #[test]
        fn where_the_bytes_are_cut_makes_no_difference(cuts in proptest::collection::vec(0..STREAM.len(), 0..8)) {
            let mut cuts = cuts;
            cuts.extend([0, STREAM.len()]);
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> =
                cuts.windows(2).map(|pair| &STREAM.as_bytes()[pair[0]..pair[1]]).collect();
            prop_assert_eq!(events(&chunks), events(&[STREAM.as_bytes()]));
        }
    }
}
