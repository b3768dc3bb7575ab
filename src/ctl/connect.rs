//! Finds the daemon.

use std::path::PathBuf;

use crate::{
    client::{Address, Client, ConnectError},
    config::{self, Process, Surroundings as _},
    ctl::Global,
};

/// Connects to the daemon that the flags name, or to the default one.
pub(super) async fn connect(global: &Global) -> Result<Client, ConnectError> {
    Client::connect(&address(global)).await
}

fn address(global: &Global) -> Address {
    let state = config::default_state(&Process);
    let socket = state.as_ref().map(|directory| directory.join("agentd.sock"));
    let uri = global.addr.clone().unwrap_or_else(|| match socket {
        Some(socket) if Process.exists(&socket) => format!("unix:{}", socket.display()),
        Some(_) | None => "http://127.0.0.1:7080".into(),
    });
    let default_token =
        || state.map(|directory| directory.join("token")).filter(|path| Process.exists(path));
    let token_file: Option<PathBuf> = match uri.starts_with("unix:") {
        true => None,
        false => global.token_file.clone().or_else(default_token),
    };
    Address { uri, token_file }
}
