//! Who speaks to the model, and what it is told. Pure.

pub mod executor;
