//! Who calls, and whether it may: the gate before every method. Callers are known by Unix peer
//! credentials on the socket, by bearer token on TCP; `roles.rs` says who may call what.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{Request, State},
    middleware::{self, Next},
    response::Response,
};
use ring::hmac;
use tonic::{Status, service::Routes, transport::server::UdsConnectInfo};

use crate::{
    domain::{
        access::{Access, Credential},
        ids::Caller,
    },
    grpc::{
        convert::{self, Denied},
        roles::{self, Admitted},
    },
    ports::Clock,
};

/// Which callers are let in, and how they are known.
#[derive(Debug, Clone)]
pub enum Door {
    /// The socket: only this user and root come this far.
    Socket { owner: u32 },
    /// TCP: whoever knows the token of a known caller is that caller.
    Token { known: Arc<[Credential]> },
}

impl Door {
    fn access(&self, request: &Request) -> Result<Access, Denied> {
        match self {
            Self::Socket { owner } => {
                let info = request.extensions().get::<UdsConnectInfo>();
                let uid = info.and_then(|info| info.peer_cred).map(|peer| peer.uid());
                match uid {
                    Some(uid) if uid == *owner || uid == 0 => Ok(Access::owner(named(uid))),
                    Some(_) | None => Err(Denied::OtherUser),
                }
            }
            Self::Token { known } => {
                let given = request.headers().get("authorization").map(|value| value.as_bytes());
                let given = given.and_then(|value| {
                    value.strip_prefix(b"Bearer ").or_else(|| value.strip_prefix(b"bearer "))
                });
                let given = given.ok_or(Denied::NoToken)?;
                // All are compared, whichever fits: the time must not tell which callers there are.
                let found = known.iter().fold(None, |found, one| {
                    if is_same(given, one.token.as_bytes()) { Some(one) } else { found }
                });
                found.map(|one| one.access.clone()).ok_or(Denied::WrongToken)
            }
        }
    }
}

/// How a user of this system is known.
pub fn named(uid: u32) -> Caller {
    Caller::new(format!("uid:{uid}"))
}

/// Compares without telling by its time how much was right.
fn is_same(given: &[u8], token: &[u8]) -> bool {
    let key = hmac::Key::new(hmac::HMAC_SHA256, token);
    let expected = hmac::sign(&key, token);
    hmac::verify(&key, given, expected.as_ref()).is_ok()
}

/// Stands before every method of a server, those it does not have included.
#[derive(Clone)]
struct Gate {
    door: Door,
    clock: Arc<dyn Clock>,
}

/// Puts the gate before all that `router` leads to.
pub(super) fn guard(router: Router, door: Door, clock: Arc<dyn Clock>) -> Routes {
    let gate = middleware::from_fn_with_state(Gate { door, clock }, pass);
    router.layer(gate).into()
}

/// How long a call may take: for what goes on after its first answer.
#[derive(Debug, Clone, Copy)]
struct TimeLeft(Duration);

async fn pass(State(gate): State<Gate>, mut request: Request, next: Next) -> Response {
    if let Err(status) = check(&gate.door, &mut request) {
        return status.into_http();
    }
    let Some(left) = time_left(&request) else { return spoken(next.run(request).await) };
    request.extensions_mut().insert(TimeLeft(left));
    tokio::select! {
        answer = next.run(request) => spoken(answer),
        () = gate.clock.sleep(left) => convert::deadline().into_http(),
    }
}

/// Lets the request through, with its caller, or says why not.
fn check(door: &Door, request: &mut Request) -> Result<(), Status> {
    let path = request.uri().path();
    let admitted = roles::admitted(path);
    if admitted == Admitted::Everyone {
        return Ok(());
    }
    let access = door.access(request).map_err(convert::denied)?;
    match admitted {
        Admitted::Roles(roles) if roles.contains(&access.role) => {
            request.extensions_mut().insert(access);
            Ok(())
        }
        Admitted::Roles(roles) => Err(convert::role_denied(access.role, path, roles)),
        Admitted::Nobody | Admitted::Everyone => Err(convert::unknown_method(path)),
    }
}

/// How long an answer may take, by the header `grpc-timeout`; none: as long as it takes.
///
/// A little less than the caller asked, or the answer would always come too late for it.
fn time_left(request: &Request) -> Option<Duration> {
    let text = request.headers().get("grpc-timeout")?.to_str().ok()?;
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let within = (1..=8).contains(&number.len()) && number.bytes().all(|b| b.is_ascii_digit());
    let number: u64 = number.parse().ok().filter(|_| within)?;
    let asked = match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    };
    Some(asked - (asked / 16).min(Duration::from_millis(100)))
}

/// An answer that the library made without our words is given them.
fn spoken(answer: Response) -> Response {
    match convert::of_transport(answer.headers()) {
        Some(status) => status.into_http(),
        None => answer,
    }
}

/// The caller of a request that came through the gate.
pub(super) fn of<T>(request: &tonic::Request<T>) -> Result<Access, Status> {
    let access = request.extensions().get::<Access>();
    access.cloned().ok_or_else(|| convert::denied(Denied::NoToken))
}

/// How long the call may take, where its caller said so.
pub(super) fn time_left_of<T>(request: &tonic::Request<T>) -> Option<Duration> {
    request.extensions().get::<TimeLeft>().map(|left| left.0)
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn left(header: &str) -> Option<Duration> {
        let request = Request::builder().header("grpc-timeout", header);
        time_left(&request.body(Body::empty()).unwrap())
    }

    #[test]
    fn a_deadline_is_read_in_every_unit_and_what_is_none_is_none() {
        assert_eq!(left("160u"), Some(Duration::from_micros(150)));
        assert_eq!(left("16m"), Some(Duration::from_millis(15)));
        assert_eq!(left("10S"), Some(Duration::from_millis(9900)));
        assert_eq!(left("99999999H"), Some(Duration::from_secs(359_999_996_400) - LEAST));
        for header in ["", "S", "1", "1x", "-1S", "+1S", "123456789S", "1é"] {
            assert_eq!(left(header), None, "{header}");
        }
    }

    const LEAST: Duration = Duration::from_millis(100);

    #[test]
    fn each_token_is_its_own_caller_and_any_other_is_nobody() {
        let credential = |name: &str, token: &str| Credential {
            access: Access::owner(Caller::new(name)),
            token: token.into(),
        };
        let known = [credential("a", "0123456789abcdef"), credential("b", "fedcba9876543210")];
        let door = Door::Token { known: known.into() };
        let ask = |token: &str| {
            let request = Request::builder().header("authorization", format!("Bearer {token}"));
            let access = door.access(&request.body(Body::empty()).unwrap());
            access.map(|access| access.caller.to_string())
        };
        assert_eq!(ask("0123456789abcdef"), Ok("a".into()));
        assert_eq!(ask("fedcba9876543210"), Ok("b".into()));
        assert_eq!(ask("0123456789abcdeF"), Err(Denied::WrongToken));
        assert_eq!(ask(""), Err(Denied::WrongToken));
    }
}
