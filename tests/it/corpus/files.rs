//! Cases of policy files that must not come into force, and of runs that must not be taken; how a case changes the
//! files.

use std::{
    fs,
    path::{Path, PathBuf},
};

use agentd::proto::v1;

use super::{
    cases::{Change, cases},
    meanwhile::Exchange,
    stage::Stage,
    words::Words,
};
use crate::support::{Settings, TestDaemon};

/// Changes a policy file as a case says. Gives what it was.
fn change(policies: &Path, words: &Words, id: &str, change: &Change) -> Option<String> {
    let path = policies.join(&change.file);
    let text = fs::read_to_string(&path).ok();
    let by = words.text(id, &change.by);
    let changed = match change.replace.as_str() {
        "" => by,
        part => text.as_ref().unwrap().replacen(part, &by, 1),
    };
    assert_ne!(Some(&changed), text.as_ref(), "{id}: control: it changes the file");
    fs::write(&path, changed).unwrap();
    text
}

fn put_back(policies: &Path, change: &Change, before: Option<String>) {
    let path = policies.join(&change.file);
    match before {
        Some(text) => fs::write(&path, text).unwrap(),
        None => fs::remove_file(&path).unwrap(),
    }
}

async fn reload(daemon: &TestDaemon) -> Result<String, tonic::Status> {
    let request = v1::ReloadPolicyRequest::default();
    let answer = daemon.client().await.policy().reload_policy(request).await;
    answer.map(|answer| answer.into_inner().revision)
}

/// Has a change of a policy file come into force. Gives what the file was.
pub(super) async fn changed(
    daemon: &TestDaemon,
    words: &Words,
    id: &str,
    wanted: &Change,
) -> Option<String> {
    let before = change(&daemon.home().join("policies"), words, id, wanted);
    reload(daemon).await.unwrap();
    before
}

pub(super) async fn restored(daemon: &TestDaemon, change: &Change, before: Option<String>) {
    put_back(&daemon.home().join("policies"), change, before);
    reload(daemon).await.unwrap();
}

async fn in_force(daemon: &TestDaemon) -> String {
    let request = v1::GetPolicyRequest {};
    let answer = daemon.client().await.policy().get_policy(request).await.unwrap();
    answer.into_inner().policy.unwrap().revision
}

#[tokio::test]
async fn no_broken_policy_of_the_corpus_comes_into_force_or_takes_anything_out_of_it() {
    let cases = cases(|case| case.broken.is_some());
    let stage = Stage::open(&[], Settings::default(), |_| Vec::new()).await;
    let daemon = &stage.daemon;
    let policies = daemon.home().join("policies");
    let before = in_force(daemon).await;
    let mut otherwise = Vec::new();
    for case in &cases {
        let broken = case.broken.as_ref().unwrap();
        let text = change(&policies, &stage.words(), &case.id, broken);

        match reload(daemon).await {
            Err(refused) if refused.message().contains(&broken.says) => {}
            answer => otherwise.push(format!("{}: {answer:?}", case.id)),
        }
        assert_eq!(in_force(daemon).await, before, "{}", case.id);
        put_back(&policies, broken, text);
    }
    assert!(otherwise.is_empty(), "{}", otherwise.join("\n"));
    assert_eq!(reload(daemon).await.unwrap(), before, "control: as they were, they are fine");
}

#[tokio::test]
async fn of_files_that_change_while_they_are_read_no_mixture_comes_into_force() {
    for case in cases(|case| case.swapped.is_some()) {
        let swapped = case.swapped.as_ref().unwrap();
        let stage = Stage::open(&[], Settings::default(), |_| Vec::new()).await;
        let daemon = &stage.daemon;
        let (policies, others) = (daemon.home().join("policies"), daemon.home().join("others"));
        fs::create_dir(&others).unwrap();
        for entry in fs::read_dir(&policies).unwrap().flatten() {
            fs::copy(entry.path(), others.join(entry.file_name())).unwrap();
        }
        let old = in_force(daemon).await;
        let append = |place: &PathBuf, name: &String| {
            let text = fs::read_to_string(place.join(name)).unwrap();
            fs::write(place.join(name), format!("{text}{}", swapped.append)).unwrap();
        };
        swapped.files.iter().for_each(|name| append(&others, name));
        let turn = || {
            use rustix::fs::{CWD, RenameFlags, renameat_with};
            renameat_with(CWD, &policies, CWD, &others, RenameFlags::EXCHANGE).unwrap();
        };
        turn();
        let new = reload(daemon).await.unwrap();
        assert_ne!(old, new, "{}: control: they say other things", case.id);
        turn();

        let exchange = Exchange::start(policies.clone(), others.clone());
        for _ in 0..swapped.reloads {
            // To be refused is fine: they do not stand still.
            let _ = reload(daemon).await;
            let found = in_force(daemon).await;
            assert!(found == old || found == new, "{}: a mixture is in force", case.id);
        }
        assert!(exchange.times() > 100, "{}: control: {} times", case.id, exchange.times());
        drop(exchange);

        let last = reload(daemon).await.unwrap();
        assert!(last == old || last == new, "{}: and now that they stand still", case.id);
    }
}

#[tokio::test]
async fn no_run_of_the_corpus_is_taken_that_would_work_on_what_is_agentd_s_own() {
    let cases = cases(|case| case.submit.is_some());
    let stage = Stage::open(&[], Settings::default(), |_| Vec::new()).await;
    for case in &cases {
        let submit = case.submit.as_ref().unwrap();
        let scene = stage.set(case, "cases");
        let workspace = match stage.words().text(&case.id, &submit.workspace) {
            path if path.starts_with('/') => path,
            name => scene.workspace.join(name).display().to_string(),
        };

        let request = v1::CreateRunRequest { workspace, ..stage.daemon.request("take it") };
        let refused = stage.daemon.create(request).await.unwrap_err();

        assert!(refused.message().contains(&submit.says), "{}: {refused:?}", case.id);
    }
    assert_eq!(stage.daemon.runs().await, []);
}
