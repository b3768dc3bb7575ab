//! SOCKS5 (RFC 1928) as far as it is served: CONNECT without a login, by name or by address.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    domain::{
        host::Host,
        policy::{Destination, Passing},
    },
    sandbox::egress::{Current, Egress, PATIENCE, exit::Refusal, tunnel},
};

/// First byte of everything that is said.
pub(super) const VERSION: u8 = 5;

const NO_LOGIN: u8 = 0;
const NO_METHOD: u8 = 0xff;
const CONNECT: u8 = 1;
const BY_V4: u8 = 1;
const BY_NAME: u8 = 3;
const BY_V6: u8 = 4;

/// What is answered.
#[derive(Debug, Clone, Copy)]
#[repr(u8)]
enum Reply {
    Done = 0,
    Failed = 1,
    NotAllowed = 2,
    Unreachable = 4,
    NoSuchCommand = 7,
    NoSuchAddress = 8,
}

/// Serves one connection.
pub(super) async fn attend(egress: &Egress<'_>, mut client: TcpStream, now: &Current) {
    let asked = tokio::time::timeout(PATIENCE, ask(&mut client)).await;
    let Ok(Ok(asked)) = asked else { return };
    let wanted = match asked {
        Ok(wanted) => wanted,
        Err(reply) => return drop(answer(&mut client, reply).await),
    };
    let reply = match egress.open(wanted, now).await {
        Ok(opened) => match answer(&mut client, Reply::Done).await {
            Ok(()) => return tunnel::carry(egress, client, opened).await,
            Err(_) => return,
        },
        Err(Refusal::Denied(_)) => Reply::NotAllowed,
        Err(Refusal::Unreachable(_)) => Reply::Unreachable,
        Err(Refusal::Unavailable(_)) => Reply::Failed,
    };
    let _ = answer(&mut client, reply).await;
}

/// Reads what is wanted. Errors: the client does not speak SOCKS5, or went away; within: it wants something
/// that there is not.
async fn ask(client: &mut TcpStream) -> io::Result<Result<Destination, Reply>> {
    let [version, count] = read(client).await?;
    let mut methods = vec![0; usize::from(count)];
    client.read_exact(&mut methods).await?;
    if version != VERSION || !methods.contains(&NO_LOGIN) {
        client.write_all(&[VERSION, NO_METHOD]).await?;
        return Err(io::ErrorKind::InvalidData.into());
    }
    client.write_all(&[VERSION, NO_LOGIN]).await?;
    let [version, command, _, kind] = read(client).await?;
    if version != VERSION {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let host = match kind {
        BY_V4 => Ok(Host::Address(Ipv4Addr::from(read::<4>(client).await?).into())),
        BY_V6 => Ok(Host::Address(Ipv6Addr::from(read::<16>(client).await?).into())),
        BY_NAME => {
            let [length] = read(client).await?;
            let mut name = vec![0; usize::from(length)];
            client.read_exact(&mut name).await?;
            let name = std::str::from_utf8(&name).ok().and_then(|name| Host::parse(name).ok());
            name.ok_or(Reply::NoSuchAddress)
        }
        _ => return Ok(Err(Reply::NoSuchAddress)),
    };
    let port = u16::from_be_bytes(read(client).await?);
    if command != CONNECT {
        return Ok(Err(Reply::NoSuchCommand));
    }
    Ok(host.map(|host| Destination { host, port, by: Passing::Tunnel }))
}

async fn read<const N: usize>(client: &mut TcpStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    client.read_exact(&mut bytes).await?;
    Ok(bytes)
}

/// Answers; from where we dial is nothing for the program.
async fn answer(client: &mut TcpStream, reply: Reply) -> io::Result<()> {
    let nowhere = [0, 0, 0, 0, 0, 0];
    client.write_all(&[[VERSION, reply as u8, 0, BY_V4].as_slice(), &nowhere].concat()).await
}
