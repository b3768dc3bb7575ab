//! What a launcher says of its work: a socket for the way out, where there is one, and how it all ended.

use std::{io, os::fd::OwnedFd};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, Interest},
    net::{UnixStream, unix::ReadHalf},
};
use tokio_util::sync::CancellationToken;

use crate::{
    ports::SandboxError,
    sandbox::{
        egress::Egress,
        launcher::lost,
        order::{LISTENING, Report},
        wire::receive_one,
    },
};

/// Longest report that is read, in bytes.
const REPORT_BYTES: u64 = 64 << 10;

/// Reads the launcher's report, and lets its work out meanwhile, where it may be; asks it to stop when `stop` is
/// cancelled.
pub(super) async fn report(
    mut control: UnixStream,
    stop: &CancellationToken,
    egress: Option<&Egress<'_>>,
) -> Result<Report, SandboxError> {
    let mut text = Vec::new();
    {
        let (reader, mut writer) = control.split();
        let mut reading = std::pin::pin!(heard_out(reader, egress, &mut text));
        let read = tokio::select! {
            read = &mut reading => read,
            () = stop.cancelled() => {
                // No more will be said: to the launcher this means that all must die.
                let _ = writer.shutdown().await;
                reading.await
            }
        };
        read.map_err(|error| match error.kind() {
            io::ErrorKind::ConnectionReset => lost("it was killed before it read its order".into()),
            _ => SandboxError::Io { what: "reading the launcher's report", source: error },
        })?;
    }
    first(&text).map_err(|error| match text.is_empty() {
        true => lost("it was killed from outside, or crashed".into()),
        false => lost(format!("its report cannot be read: {error}")),
    })
}

/// Who saw the end first is right: the launcher itself may tell of it too.
fn first(text: &[u8]) -> serde_json::Result<Report> {
    let mut reports = serde_json::Deserializer::from_slice(text).into_iter();
    reports.next().unwrap_or_else(|| serde_json::from_slice(text))
}

/// All that the launcher says, but for the socket that may come before it.
async fn heard_out(
    mut reader: ReadHalf<'_>,
    egress: Option<&Egress<'_>>,
    text: &mut Vec<u8>,
) -> io::Result<()> {
    let listener = match egress {
        Some(_) => first_words(&mut reader, text).await?,
        None => None,
    };
    let mut reader = reader.take(REPORT_BYTES);
    let mut reading = std::pin::pin!(reader.read_to_end(text));
    if let (Some(egress), Some(listener)) = (egress, listener) {
        tokio::select! {
            read = &mut reading => return read.map(drop),
            error = egress.serve(listener) => {
                tracing::warn!(%error, "a program's way out is closed");
            }
        }
    }
    reading.await.map(drop)
}

/// The listening socket; or, where the launcher could not begin, the first byte of its report.
async fn first_words(reader: &mut ReadHalf<'_>, text: &mut Vec<u8>) -> io::Result<Option<OwnedFd>> {
    loop {
        reader.readable().await?;
        let socket: &UnixStream = reader.as_ref();
        let received = socket.try_io(Interest::READABLE, || receive_one(socket));
        let (word, listener) = match received {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            received => received?,
        };
        match word {
            Some(LISTENING) => return Ok(listener),
            Some(other) => text.push(other),
            None => {}
        }
        return Ok(None);
    }
}
