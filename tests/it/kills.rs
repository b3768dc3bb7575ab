//! The daemon is killed again and again, at every named place and at random times. The judge is in `deaths`: nothing
//! acknowledged is lost, and nothing is done twice without a person having said so.

use std::{fs, path::Path, time::Duration};

use agentd::fail_point::POINTS;

use crate::{
    deaths::{Death, JOBS, Lab},
    support::Dice,
};

/// Kills of each test unless AGENTD_KILLS says otherwise.
const KILLS: usize = 24;

fn kills() -> usize {
    let wanted = std::env::var("AGENTD_KILLS").ok();
    wanted.map_or(KILLS, |wanted| wanted.parse().expect("AGENTD_KILLS is a number"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_named_place_the_daemon_dies_at_nothing_is_lost_and_nothing_is_done_twice() {
    let mut lab = Lab::open().await;
    let mut dice = Dice(1);
    for number in 0..kills() {
        let point = POINTS[number % POINTS.len()];
        // Each call and each commit of the runs is passed alive sometimes. The mirror is written only a few times.
        let often = if point.starts_with("mirror") { 2 } else { 3 * JOBS as u64 };
        let passed = usize::try_from(dice.below(often)).unwrap();
        lab.round(number, &Death::At(point, passed)).await;
    }
    lab.close("at named places").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whenever_the_daemon_dies_nothing_is_lost_and_nothing_is_done_twice() {
    let mut lab = Lab::open().await;
    let mut dice = Dice(2);
    for number in 0..kills() {
        let delay = Duration::from_micros(dice.below(150_000));
        lab.round(number, &Death::After(delay)).await;
    }
    lab.close("at random times").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_callers_with_one_request_id_make_one_run_however_often_the_daemon_dies_meanwhile() {
    let mut lab = Lab::open().await.with_crowd(1, 50);
    let mut dice = Dice(3);
    // How many commits come before the submissions is not the same each time: go on until one death at least has fallen
    // into a run.
    let rounds = kills().div_ceil(4);
    for number in 0..10 * rounds {
        if number >= rounds && lab.in_the_middle() > 0 {
            break;
        }
        // While they submit, or while they are told.
        let point = ["commit.before", "commit.after", "reply.before"][number % 3];
        // Later ones, when the early ones all fell before the submissions.
        let most = if number < rounds { 4 } else { 24 };
        let passed = usize::try_from(dice.below(most)).unwrap();
        lab.round(number, &Death::At(point, passed)).await;
    }
    lab.close("while fifty submit").await;
}

#[test]
fn a_build_for_people_has_no_place_to_die_at() {
    let source =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/fail_point.rs"));
    let source = source.unwrap();
    let (without, with) = source.split_once("#[cfg(debug_assertions)]").unwrap();
    assert!(without.contains(
        "#[cfg(not(debug_assertions))]\n#[inline]\npub fn reach(_point: &'static str) {}"
    ));
    assert!(with.contains("std::env::var(VARIABLE)") && !without.contains("env::var"));
}
