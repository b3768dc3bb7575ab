//! The name that a TLS client asks for, read from its first words by the library that also serves TLS. Nothing is
//! decrypted.

use std::{io, time::Duration};

use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::domain::host::Host;

/// Longest first words that are read, in bytes.
const MOST: usize = 64 << 10;
/// How long a client may take to say them.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a client began with.
pub(super) struct Hello {
    /// All that was read, to be passed on.
    pub(super) bytes: Vec<u8>,
    /// The name asked for; none: the client named none.
    pub(super) name: Option<String>,
}

impl Hello {
    /// Whether it asks for this host. An address is not named in TLS.
    pub(super) fn is_for(&self, host: &Host) -> bool {
        match (host, &self.name) {
            (Host::Name(_), Some(name)) => Host::parse(name).as_ref() == Ok(host),
            (Host::Address(_), None) => true,
            (Host::Name(_), None) | (Host::Address(_), Some(_)) => false,
        }
    }
}

/// Reads a client's first words. Errors: they are not those of TLS, too long, or do not come.
pub(super) async fn hello(client: &mut (impl AsyncRead + Unpin)) -> io::Result<Hello> {
    let read = tokio::time::timeout(PATIENCE, read(client));
    read.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

async fn read(client: &mut (impl AsyncRead + Unpin)) -> io::Result<Hello> {
    let mut acceptor = Acceptor::default();
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    while bytes.len() < MOST {
        let count = client.read(&mut buffer).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        bytes.extend_from_slice(&buffer[..count]);
        let mut left = &buffer[..count];
        while !left.is_empty() {
            acceptor.read_tls(&mut left)?;
            match acceptor.accept() {
                Ok(None) => {}
                Ok(Some(accepted)) => {
                    let name = accepted.client_hello().server_name().map(str::to_owned);
                    return Ok(Hello { bytes, name });
                }
                Err((error, _)) => return Err(io::Error::other(error)),
            }
        }
    }
    Err(io::Error::other("its first words are too long"))
}
