//! The one binary of integration tests: the house's rules, then one file per promise.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on should say so and end"
)]

mod access;
mod agents;
mod approvals;
mod audit;
mod backends;
mod backups;
mod bad_input;
mod budgets;
mod callers;
mod cancel;
mod ceilings;
mod checkpoints;
mod clients;
mod colleagues;
mod configuration;
mod confinement;
mod conformance;
mod contexts;
mod corpus;
mod ctl;
mod deaths;
mod declared;
mod demo;
mod drain;
mod egress;
mod forks;
mod golden;
mod heads;
mod health_port;
mod hosted;
mod kills;
mod launcher;
mod limits;
mod lists;
mod long_texts;
mod loops;
mod matrix;
mod mirror;
mod named_agents;
mod policy;
mod power_loss;
mod pruning;
mod ready;
mod real_parts;
mod refusals;
mod repository;
mod resolve;
mod restored;
mod resume;
mod revisions;
mod rpc_faults;
mod seeds;
mod servers;
mod shim;
mod slow_subscribers;
mod steering;
mod steps;
mod store_faults;
mod streams;
mod submissions;
mod support;
mod tested;
mod tidy;
mod tiers;
mod tools;
mod walls;
mod webhook;
mod work;
