//! The daemon dies and the power fails with it: of its state directory is left what was on disk, and of the rest what
//! chance has left. The judge is in `deaths`, and the same as for deaths of the daemon alone; a control shows that it
//! finds a loss where commits are not synced.

use std::time::Duration;

use agentd::{
    fail_point::POINTS,
    scripted::{Script, Turn},
};

use rustix::process::{Signal, kill_process};

use tokio::task::JoinSet;

use crate::{
    deaths::{Death, JOBS, Lab},
    shim::{
        Commits, Counter, Shim,
        disk::{Disk, Stays},
    },
    support::{Backend, Dice, Settings, TestDaemon, wait_until},
};

/// Power cuts of each test unless AGENTD_POWER_LOSSES says otherwise.
const LOSSES: usize = 12;
/// How often the control may be lucky.
const TRIES: usize = 10;
/// Long enough that deaths fall into syncs, and short beside a round.
const SYNC_MICROSECONDS: i64 = 8000;

/// As long as a round takes: deaths fall anywhere in it.
const LONGEST_MICROSECONDS: u64 = 300_000;

fn losses() -> usize {
    let wanted = std::env::var("AGENTD_POWER_LOSSES").ok();
    wanted.map_or(LOSSES, |wanted| wanted.parse().expect("AGENTD_POWER_LOSSES is a number"))
}

async fn lab(commits: Commits, dice: &Dice) -> Lab {
    let shim = Shim::of_power_cuts(commits);
    shim.set(Counter::SyncMicroseconds, SYNC_MICROSECONDS);
    Lab::open_on(shim, dice.clone()).await
}

async fn at_random(lab: &mut Lab, number: usize, dice: &mut Dice) {
    lab.round(number, &Death::After(Duration::from_micros(dice.below(LONGEST_MICROSECONDS)))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whenever_the_power_fails_nothing_is_lost_and_nothing_is_done_twice() {
    let mut dice = Dice::of_seed(3);
    let mut lab = lab(Commits::Synced, &dice).await;
    let mut number = 0;
    while lab.cuts() < losses() {
        at_random(&mut lab, number, &mut dice).await;
        number += 1;
    }
    lab.close("power cuts at random times").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_named_place_the_power_fails_at_nothing_is_lost_and_nothing_is_done_twice() {
    let mut dice = Dice::of_seed(4);
    let mut lab = lab(Commits::Synced, &dice).await;
    let mut number = 0;
    while lab.cuts() < losses() || number < POINTS.len() {
        let point = POINTS[number % POINTS.len()];
        let passed = usize::try_from(dice.below(3 * JOBS as u64)).unwrap();
        lab.round(number, &Death::At(point, passed)).await;
        number += 1;
    }
    lab.close("power cuts at named places").await;
}

/// The directory, the key, the database and its log are all new then, and each has a name that must last.
#[tokio::test]
async fn what_the_very_first_daemon_acknowledged_outlives_the_power() {
    let backend = Backend::start(Script { turns: vec![Turn::say("done")] }).await;
    let shim = Shim::of_power_cuts(Commits::Synced);
    let settings = Settings { base_url: backend.url(), ..Settings::default() };
    let mut daemon = TestDaemon::start_on(settings, &shim);
    let mut disk = Disk::new(&daemon.state(), Dice(1));
    let before = daemon.carry_out("first").await;
    daemon.kill();
    disk.take_in(&shim);
    disk.lose_power(Stays::Nothing);
    daemon.restart();
    let after = daemon.story(&before.run.id).await;
    assert_eq!(after.entries, before.entries);
    assert!(daemon.audit().await.intact);
}

/// What has been in the log alone goes into the database file when a daemon stops.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn power_that_fails_while_the_log_is_folded_into_the_database_takes_nothing_along() {
    const TIMES: usize = 6;
    let backend = Backend::start(Script { turns: vec![Turn::say("done")] }).await;
    let shim = Shim::of_power_cuts(Commits::Synced);
    let settings = Settings { base_url: backend.url(), ..Settings::default() };
    let mut daemon = TestDaemon::start_on(settings, &shim);
    let mut disk = Disk::new(&daemon.state(), Dice::of_seed(6));
    let mut told = Vec::new();
    for _ in 0..TIMES {
        told.push(daemon.carry_out("a run").await);
        let before = shim.get(Counter::Foldings);
        // The sync that ends the folding lasts until the daemon is dead.
        shim.set(Counter::SyncMicroseconds, 50_000);
        kill_process(daemon.pid(), Signal::TERM).unwrap();
        wait_until("the log is folded", || shim.get(Counter::Foldings) > before).await;
        daemon.kill();
        shim.set(Counter::SyncMicroseconds, 0);
        disk.take_in(&shim);
        assert!(disk.is_open("agentd.db"), "it was over already");
        disk.lose_power(Stays::ByChance);
        daemon.restart();
        for before in &told {
            assert_eq!(daemon.story(&before.run.id).await.entries, before.entries);
        }
        assert!(daemon.audit().await.intact);
    }
}

/// The control of the first two. The daemon has no such setting, and must have none: the shim leaves out of its syncs
/// what `PRAGMA synchronous=NORMAL` would, which is the sync of the log at each commit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_does_not_sync_its_commits_is_found_out() {
    const LOST: [&str; 6] = [
        "an acknowledged run is gone",
        "what a follower was told is gone, or another",
        "what was told is what any later caller is told",
        "one request id, one run",
        "neither a gap nor a repetition",
        "and a person said",
    ];
    let mut dice = Dice::of_seed(5);
    for _ in 0..TRIES {
        let mut own = dice.clone();
        dice.below(2);
        let mut judging = JoinSet::new();
        judging.spawn(async move {
            let mut lab = lab(Commits::Unsynced, &own).await;
            for number in 0..3 {
                at_random(&mut lab, number, &mut own).await;
            }
        });
        if let Some(Err(found)) = judging.join_next().await {
            let found = found.to_string();
            assert!(LOST.iter().any(|lost| found.contains(lost)), "something else fails: {found}");
            return;
        }
    }
    panic!("acknowledged commits were not on disk, and nobody has noticed");
}
