//! Who calls: by Unix peer credentials on the socket, by bearer token on TCP.

use std::sync::Arc;

use ring::hmac;
use tonic::{
    Request, Status,
    service::{Interceptor, interceptor::InterceptedService},
    transport::server::UdsConnectInfo,
};

use crate::{
    domain::ids::Caller,
    grpc::convert::{Denied, denied},
};

/// Which callers are let in, and how they are known.
#[derive(Debug, Clone)]
pub enum Door {
    /// The socket: only this user and root come this far.
    Socket { owner: u32 },
    /// TCP: whoever knows the token is the owner.
    Token { owner: u32, token: Arc<str> },
}

impl Door {
    pub(super) fn guard<S>(&self, service: S) -> InterceptedService<S, Self> {
        InterceptedService::new(service, self.clone())
    }

    fn caller(&self, request: &Request<()>) -> Result<Caller, Denied> {
        match self {
            Self::Socket { owner } => {
                let info = request.extensions().get::<UdsConnectInfo>();
                let uid = info.and_then(|info| info.peer_cred).map(|peer| peer.uid());
                match uid {
                    Some(uid) if uid == *owner || uid == 0 => Ok(named(uid)),
                    Some(_) | None => Err(Denied::OtherUser),
                }
            }
            Self::Token { owner, token } => {
                let given = request.metadata().get("authorization").map(|value| value.as_bytes());
                let given = given.and_then(|value| {
                    value.strip_prefix(b"Bearer ").or_else(|| value.strip_prefix(b"bearer "))
                });
                match given {
                    Some(given) if is_same(given, token.as_bytes()) => Ok(named(*owner)),
                    Some(_) => Err(Denied::WrongToken),
                    None => Err(Denied::NoToken),
                }
            }
        }
    }
}

impl Interceptor for Door {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let caller = self.caller(&request).map_err(denied)?;
        request.extensions_mut().insert(caller);
        Ok(request)
    }
}

fn named(uid: u32) -> Caller {
    Caller::new(format!("uid:{uid}"))
}

/// Compares without telling by its time how much was right.
fn is_same(given: &[u8], token: &[u8]) -> bool {
    let key = hmac::Key::new(hmac::HMAC_SHA256, token);
    let expected = hmac::sign(&key, token);
    hmac::verify(&key, given, expected.as_ref()).is_ok()
}

/// The caller of a request that came through a door.
pub(super) fn of<T>(request: &Request<T>) -> Result<Caller, Status> {
    request.extensions().get::<Caller>().cloned().ok_or_else(|| denied(Denied::NoToken))
}
