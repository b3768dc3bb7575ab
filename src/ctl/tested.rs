//! `agentctl policy test`: what came of each test that stands in policy files, with a daemon or on files alone.

use std::path::Path;

use serde_json::{Value, json};

use crate::{
    ctl::{
        Exit, Failure, Global, connect,
        output::{self, Format},
        policy::{compiled, told},
        timeline::printable,
    },
    domain::policy::{Compiled, PolicyTest},
    proto::v1,
};

/// The tests of the daemon's own files.
pub(super) async fn daemon(global: &Global) -> Result<Exit, Failure> {
    let mut client = connect::connect(global).await?.policy();
    let report = client.test_policy(v1::TestPolicyRequest {}).await?.into_inner();
    let current = Some(report.current_revision.clone());
    tell(global, report, current)
}

/// The tests of a directory's files; no daemon is asked.
pub(super) fn files(global: &Global, directory: &Path) -> Result<Exit, Failure> {
    tell(global, from_files(compiled(directory)), None)
}

fn from_files(compiled: Compiled) -> v1::TestPolicyResponse {
    let test = |test: &PolicyTest| v1::PolicyTest {
        name: test.name.clone(),
        place: test.place.to_string(),
        expected: test.expected.to_string(),
        found: test.found.to_string(),
        why: test.why.clone(),
        passed: test.has_passed(),
    };
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let Compiled { policy, tests } = compiled;
    let (revision, faults) = match policy {
        Ok(policy) => (policy.revision.to_string(), Vec::new()),
        Err(faults) => (String::new(), faults),
    };
    v1::TestPolicyResponse {
        tests: tests.shown().map(test).collect(),
        passed_count: count(tests.passed()),
        failed_count: count(tests.failed()),
        faults,
        revision,
        current_revision: String::new(),
    }
}

/// JSON is that of `policy validate` with the tests; for people, the tests come before what that says.
fn tell(
    global: &Global,
    report: v1::TestPolicyResponse,
    current: Option<String>,
) -> Result<Exit, Failure> {
    let is_valid = report.faults.is_empty();
    if global.output == Format::Json {
        output::json_line(&json!({
            "valid": is_valid, "revision": is_valid.then_some(&report.revision),
            "current_revision": current, "faults": report.faults,
            "passed_count": report.passed_count, "failed_count": report.failed_count,
            "tests": report.tests.iter().map(as_json).collect::<Vec<_>>(),
        }))?;
        return Ok(if is_valid { Exit::Done } else { Exit::BadUsage });
    }
    if !report.tests.is_empty() {
        let head = ["RESULT", "EXPECTED", "FOUND", "TEST", "PLACE"].map(str::to_owned).to_vec();
        let rows = report.tests.iter().map(row);
        output::table(&std::iter::once(head).chain(rows).collect::<Vec<_>>())?;
    }
    // Files that did not come as far as to their tests have nothing to count.
    if is_valid || !report.tests.is_empty() {
        let (passed, failed) = (report.passed_count, report.failed_count);
        output::line(&format!("{passed} passed, {failed} failed"))?;
    }
    told(global, &report.revision, report.faults, current)
}

fn row(test: &v1::PolicyTest) -> Vec<String> {
    vec![
        if test.passed { "passed" } else { "FAILED" }.to_owned(),
        test.expected.clone(),
        test.found.clone(),
        printable(&test.name),
        test.place.clone(),
    ]
}

fn as_json(test: &v1::PolicyTest) -> Value {
    json!({
        "name": test.name, "place": test.place, "passed": test.passed,
        "expected": test.expected, "found": test.found,
        "why": (!test.why.is_empty()).then_some(&test.why),
    })
}
