//! agentd carries out agent runs and can be trusted with them. This page is the map; in reading order:
//!
//! - [`domain`]: what a run is. Pure. Start with [`domain::run`].
//! - [`ports`]: what the engine needs of the world.
//! - [`tools`], [`agents`]: what a model may call, and what it is told. Pure.
//! - [`engine`]: the loop, and one tool call from top to bottom.
//! - [`backend`], [`sandbox`], [`sqlite`], [`system`], [`webhook`]: the world behind the ports.
//! - [`policy_files`], [`tool_files`], [`yaml`]: rules and tools as people write them.
//!   [`secrets`], [`private_file`]: what nobody prints, and what only its owner reads.
//!   [`callers`]: who may call besides the owner.
//! - [`mirror`], [`jsonl`]: the journal as files of lines, for others.
//! - [`fail_point`]: where tests have the daemon die.
//! - [`http`]: health, for orchestrators.
//! - [`grpc`], [`proto`]: the API. [`daemon`] joins everything; [`check`] looks whether it could.
//! - [`client`], [`ctl`]: the other end. [`scripted`]: a model server whose words are scripted.
//!
//! Which module may use which: the table in `tests/it/tidy.rs`, which fails the build.

pub mod agents;
pub mod backend;
pub mod callers;
pub mod check;
pub mod client;
pub mod config;
pub mod ctl;
pub mod daemon;
pub mod domain;
pub mod engine;
pub mod fail_point;
pub mod grpc;
pub mod http;
pub mod jsonl;
pub mod mirror;
pub mod policy_files;
pub mod ports;
pub mod private_file;
pub mod proto;
pub mod sandbox;
pub mod scripted;
pub mod secrets;
pub mod signing;
pub mod sqlite;
pub mod system;
pub mod tasks;
pub mod telemetry;
pub mod tool_files;
pub mod tools;
pub mod webhook;
pub mod yaml;
