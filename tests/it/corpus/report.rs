//! The corpus as a page for people: what is tried, and which layer stops it. Says nothing that the cases do not say.

use super::cases::Case;

/// The page.
pub(super) fn told(cases: &[Case]) -> String {
    let count = |is_one: fn(&Case) -> bool| cases.iter().filter(|case| is_one(case)).count();
    let calls = count(|case| case.call.is_some());
    let scripts = count(|case| case.attack.is_some());
    let reaching = count(|case| case.reach.is_some());
    let files = count(|case| case.broken.is_some() || case.swapped.is_some());
    let uncontrolled = count(|case| case.no_control.is_some());
    let elsewhere = count(|case| case.shown_by.is_some());
    let rows: Vec<String> = cases.iter().map(row).collect();
    format!(
        "# Attacks\n\n\
         {} cases of `tests/corpus`, run by `tests/it/corpus.rs`, which also writes this page.\n\n\
         - {calls} are calls that a model would make; the policy that comes with agentd decides about them.\n\
         - {scripts} are scripts that the sandbox holds alone, with the policy out of the way; each gets through where \
         there are no walls. Calls of agentd's own file tools that are denied by more than a rule are denied then, too.\n\
         - {reaching} reach for something, in an internet of the test's own, under a policy that opens a part of it; what \
         they want gets through without sandbox and proxy.\n\
         - {files} are policy files that do not come into force.\n\
         - {uncontrolled} have no positive control, and say why; {elsewhere} take more than a call, and name the test that \
         shows them.\n\n\
         What a machine cannot run, the tests name (`NOT CHECKED`).\n\n\
         | | what is tried | the policy | behind the walls | |\n|---|---|---|---|---|\n{}\n",
        cases.len(),
        rows.join("\n")
    )
}

fn row(case: &Case) -> String {
    let held = case.held_by.as_deref().unwrap_or("-");
    format!("| {} | {} | {} | {held} | {} |", case.id, case.what, policy(case), note(case))
}

/// What the policy says to it.
fn policy(case: &Case) -> String {
    let decisions: Vec<_> =
        case.expected().iter().map(|one| format!("{} by `{}`", one.decision, one.rule)).collect();
    let decided = case.reach.as_ref().and_then(|reach| reach.decided.last());
    match (decisions.as_slice(), decided) {
        ([], Some(decided)) => {
            let mut words = decided.rsplit(' ');
            let (rule, decision) = (words.next().unwrap_or("-"), words.next().unwrap_or("-"));
            format!("{decision} by `{rule}`")
        }
        ([], None) if case.broken.is_some() || case.swapped.is_some() => "is not taken".into(),
        ([], None) if case.submit.is_some() => "the run is not taken".into(),
        ([], None) => "-".into(),
        (decisions, _) => decisions.join(", or "),
    }
}

fn note(case: &Case) -> String {
    let notes = [
        case.note.clone(),
        case.reach
            .as_ref()
            .and_then(|reach| reach.gets_through.clone())
            .map(|why| format!("not held: {why}")),
        case.no_control.as_ref().map(|why| format!("no control: {why}")),
        case.shown_by.as_ref().map(|test| format!("shown by `{test}`")),
    ];
    notes.into_iter().flatten().collect::<Vec<_>>().join("; ")
}
