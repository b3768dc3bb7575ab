//! Bytes both ways between a program and what it may reach, once their beginning has been looked at.

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, copy_bidirectional_with_sizes};

use crate::{
    domain::{ids::RuleId, policy::Tunnels},
    sandbox::egress::{
        Egress,
        exit::{Denial, Opened},
        tls,
    },
};

/// Bytes under way in each direction.
const BUFFER: usize = 64 << 10;

/// Carries bytes until both ends have said all.
pub(super) async fn carry(
    egress: &Egress<'_>,
    mut client: impl AsyncRead + AsyncWrite + Unpin,
    opened: Opened,
) {
    let Opened { passage, revision, mut stream } = opened;
    if passage.tunnels() == Tunnels::Tls {
        let wanted = passage.destination();
        let deny = async |why: &str| {
            let rule = &RuleId::new("builtin/tls-name");
            let denial = Denial { rule, why, revision: &revision, addresses: &[] };
            egress.deny(wanted, denial).await;
        };
        let hello = match tls::hello(&mut client).await {
            Ok(hello) => hello,
            // It went away without a word.
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return,
            Err(_) => return deny("a tunnel must begin with TLS").await,
        };
        if !hello.is_for(&wanted.host) {
            return deny("TLS must name the host for which the tunnel was asked").await;
        }
        if stream.write_all(&hello.bytes).await.is_err() {
            return;
        }
    }
    // How it broke off is for the two ends to say.
    let _ = copy_bidirectional_with_sizes(&mut client, &mut stream, BUFFER, BUFFER).await;
}
