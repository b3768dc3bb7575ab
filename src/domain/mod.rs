//! The centre: what a run is, what may be done, what is remembered. Pure: no async runtime, no I/O,
//! no clock, no randomness, no environment. Everything else depends on this; this depends on nothing.
//!
//! Read in this order: [`ids`], [`tool`], [`effect`], [`item`], [`journal`], [`run`], [`policy`].

pub mod access;
pub mod approval;
pub mod backend;
pub mod budget;
pub mod chain;
pub mod effect;
pub mod guardrail;
pub mod head;
pub mod hex;
pub mod host;
pub mod ids;
pub mod item;
pub mod journal;
pub mod origin;
pub mod output;
pub mod plan;
pub mod policy;
pub mod ranges;
pub mod redact;
pub mod retry;
pub mod run;
pub mod status;
pub mod tool;
pub mod tree;
