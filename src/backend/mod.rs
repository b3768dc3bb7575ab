//! Talks to model servers. Implements `ports::Model`. One request an answer: retries are the engine's.

mod failure;
mod responses;
mod sse;
mod wire;

pub use responses::{ResponsesBackend, Settings, Streaming};
