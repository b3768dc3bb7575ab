//! What agentd costs, as tables: steps a second, one run alone, a long history, memory, cold start, a long run opened,
//! many runs after a crash, long texts, submissions, streams, reading while others write, and other runtimes beside it.
//! `cargo bench --locked --bench performance` prints all of them; with names behind `--`, only those (throughput alone
//! history memory streams submitting start opening recovery texts reading spawn decision proxy peers). Other runtimes are
//! compared where AGENTD_REAL_PARTS says where they are: see `peers.rs`.
//!
//! The daemon is the real program as a process; the model is `backend.rs`, without latency, in this process:
//! both share the machine. Read ratios and medians, and the disk's figures beside them.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a benchmark measures time, prints, and ends where it cannot go on"
)]

mod backend;
mod callers;
mod daemon;
mod disk;
mod figures;
mod peers;
mod proxy;
mod rest;
mod sandbox;
mod steps;
mod stored;

fn main() {
    // Cargo passes flags of its own to every benchmark.
    let named: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(measure(&named));
}

async fn measure(named: &[String]) {
    let wanted = |name: &str| named.is_empty() || named.iter().any(|wanted| wanted == name);
    if wanted("throughput") {
        steps::throughput().await;
    }
    if wanted("alone") {
        steps::alone().await;
    }
    if wanted("history") {
        steps::history().await;
    }
    if wanted("memory") {
        rest::memory().await;
    }
    if wanted("streams") {
        callers::streams().await;
    }
    if wanted("submitting") {
        callers::submitting().await;
    }
    if wanted("start") {
        rest::cold_start();
    }
    if wanted("opening") {
        stored::opening().await;
    }
    if wanted("recovery") {
        stored::recovery().await;
    }
    if wanted("texts") {
        stored::texts().await;
    }
    if wanted("reading") {
        rest::reading().await;
    }
    if wanted("spawn") {
        sandbox::spawn().await;
    }
    if wanted("decision") {
        sandbox::decision();
    }
    if wanted("proxy") {
        tokio::task::block_in_place(proxy::proxy);
    }
    if wanted("peers") {
        peers::compare().await;
    }
}
