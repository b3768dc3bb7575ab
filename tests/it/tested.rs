//! The tests that stand in the policy files: each is told with what came of it, whether or not the files could
//! come into force.

use std::fs;

use agentd::{policy_files::DEFAULT_PATHS, proto::v1};
use prost::Message as _;
use serde_json::Value;

use crate::{
    policy::{daemon, in_force, reload},
    support::{TestDaemon, refusal},
};

async fn tested(daemon: &TestDaemon) -> v1::TestPolicyResponse {
    let request = v1::TestPolicyRequest {};
    daemon.client().await.policy().test_policy(request).await.unwrap().into_inner()
}

/// Puts the default paths.yaml in place, changed.
fn write_paths(daemon: &TestDaemon, change: impl FnOnce(&str) -> String) {
    let path = daemon.home().join("policies/paths.yaml");
    let changed = change(DEFAULT_PATHS);
    assert_ne!(changed, DEFAULT_PATHS);
    fs::write(path, changed).unwrap();
}

/// Expects of `.env` what the rules do not say.
fn spoil(daemon: &TestDaemon) {
    write_paths(daemon, |text| {
        text.replace("path: .env, expect: deny", "path: .env, expect: allow")
    });
}

/// Where the line of paths.yaml that asks for `.env` begins.
fn place(daemon: &TestDaemon) -> String {
    let line = DEFAULT_PATHS.lines().position(|line| line.contains("path: .env,")).unwrap() + 1;
    format!("{}:{line}:5", daemon.home().join("policies/paths.yaml").display())
}

fn find<'a>(report: &'a v1::TestPolicyResponse, name: &str) -> &'a v1::PolicyTest {
    let found = report.tests.iter().find(|test| test.name == name);
    found.unwrap_or_else(|| panic!("{name} is not in {report:#?}"))
}

#[tokio::test]
async fn each_test_of_the_files_is_told_with_its_place_and_what_came_of_it() {
    let (_backend, daemon) = daemon().await;

    let report = tested(&daemon).await;

    let passed = u32::try_from(report.tests.len()).unwrap();
    assert_eq!((report.passed_count, report.failed_count), (passed, 0));
    assert_eq!(report.faults, Vec::<String>::new());
    let in_force = in_force(&daemon).await.revision;
    assert_eq!((&report.revision, &report.current_revision), (&in_force, &in_force));
    let path = v1::PolicyTest {
        name: "read .env".into(),
        place: place(&daemon),
        expected: "deny by secrets.env".into(),
        found: "deny by secrets.env".into(),
        why: find(&report, "read .env").why.clone(),
        passed: true,
    };
    assert_eq!(*find(&report, "read .env"), path);
    let example = find(&report, "git.log: git log -p");
    assert_eq!(
        (example.expected.as_str(), example.found.as_str(), example.why.as_str()),
        ("no match", "no match", "-p is not among its flags and options")
    );
    assert!(example.passed && example.place.contains("tools.yaml:"), "{example:?}");
    assert_eq!(find(&report, "git.log: git log --oneline -10").found, "match");
}

#[tokio::test]
async fn a_test_that_fails_is_told_beside_those_that_passed_and_changes_nothing() {
    let (_backend, daemon) = daemon().await;
    let before = in_force(&daemon).await;
    spoil(&daemon);

    let report = tested(&daemon).await;

    assert_eq!((report.failed_count, report.revision.as_str()), (1, ""));
    assert_eq!(report.current_revision, before.revision);
    let failed: Vec<_> = report.tests.iter().filter(|test| !test.passed).collect();
    assert_eq!(failed, [find(&report, "read .env")]);
    assert_eq!(
        (failed[0].expected.as_str(), failed[0].found.as_str()),
        ("allow by secrets.env", "deny by secrets.env")
    );
    assert!(find(&report, "git.log: git log -p").passed);
    assert_eq!(report.faults.len(), 1);
    assert!(report.faults[0].starts_with(&place(&daemon)), "{:?}", report.faults);
    // Whoever asks only whether the files are valid hears the same.
    let request = v1::ValidatePolicyRequest {};
    let valid = daemon.client().await.policy().validate_policy(request).await.unwrap();
    assert_eq!(valid.into_inner().faults, report.faults);
    assert_eq!(in_force(&daemon).await, before, "not even a fault is remembered");
    let refused = reload(&daemon, "").await.unwrap_err();
    assert_eq!(refusal(&refused).1, "POLICY_INVALID");
}

#[tokio::test]
async fn files_that_do_not_come_as_far_as_to_their_tests_say_why() {
    let (_backend, daemon) = daemon().await;
    write_paths(&daemon, |text| format!("{text}surplus: 1\n"));

    let report = tested(&daemon).await;

    assert_eq!((report.passed_count, report.failed_count, report.tests.len()), (0, 0, 0));
    assert_eq!((report.faults.len(), report.revision.as_str()), (1, ""));
    let fault = &report.faults[0];
    assert!(fault.contains("paths.yaml:") && fault.contains("surplus"), "{fault}");

    fs::remove_file(daemon.home().join("policies/paths.yaml")).unwrap();
    let report = tested(&daemon).await;
    assert!(report.faults[0].contains("paths.yaml"), "{:?}", report.faults);
}

#[tokio::test]
async fn of_thousands_of_tests_those_that_failed_are_told_and_all_are_counted() {
    let (_backend, daemon) = daemon().await;
    let usual = tested(&daemon).await.passed_count;
    let ask = |path: &str, expect: &str| {
        format!("  - {{operation: read, path: {path}, expect: {expect}, rule: workspace}}\n")
    };
    write_paths(&daemon, |text| {
        let many: String = (0..3000).map(|n| ask(&format!("src/{n}"), "allow")).collect();
        text.to_owned() + &many + &ask("last", "deny") + &ask(&"é".repeat(5000), "deny")
    });

    let report = tested(&daemon).await;

    assert_eq!((report.passed_count, report.failed_count), (usual + 3000, 2));
    assert_eq!(report.tests.len(), 500);
    let failed: Vec<_> = report.tests.iter().filter(|test| !test.passed).collect();
    assert_eq!((failed.len(), failed[0].name.as_str()), (2, "read last"));
    assert_eq!(failed[1].name.chars().count(), 200, "shortened");
    assert!(report.encoded_len() < 4 << 20, "{}", report.encoded_len());
}

#[tokio::test]
async fn a_secret_in_a_test_is_not_told() {
    let (_backend, daemon) = daemon().await;
    let token = fs::read_to_string(daemon.state().join("token")).unwrap().trim().to_owned();
    write_paths(&daemon, |text| {
        let test = format!("{{operation: read, path: \"{token}\", expect: deny, rule: workspace}}");
        format!("{text}  - {test}\n")
    });

    let report = tested(&daemon).await;

    assert_eq!(report.failed_count, 1);
    let all = format!("{report:?}");
    assert!(all.contains("read [redacted]") && !all.contains(&token), "{all}");
}

#[tokio::test]
async fn agentctl_runs_the_tests_of_the_daemon_s_files_and_of_a_directory_alike() {
    let (_backend, daemon) = daemon().await;
    let directory = daemon.home().join("policies").display().to_string();
    let alone = ["policy", "test", &directory, "--addr", "unix:/nowhere"];
    let run = async |arguments: &[&str]| {
        let output = daemon.agentctl(arguments).await;
        let said = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        (output.status.code().unwrap(), said[0].clone(), said[1].clone())
    };
    for arguments in [&["policy", "test"][..], &alone] {
        let (code, said, _) = run(arguments).await;
        assert_eq!(code, 0, "{said}");
        for expected in
            ["git.log: git log -p", "deny by secrets.env", " 0 failed", "valid: sha256:"]
        {
            assert!(said.contains(expected), "{expected} is not in:\n{said}");
        }
        assert!(!said.contains("FAILED"), "{said}");
    }

    spoil(&daemon);

    for arguments in [&["policy", "test"][..], &alone] {
        let (code, said, complaint) = run(arguments).await;
        assert_eq!(code, 2, "{said}{complaint}");
        assert!(said.contains("FAILED") && said.contains(" 1 failed"), "{said}");
        assert!(complaint.contains(&place(&daemon)), "{complaint}");
        let (code, said, complaint) = run(&[arguments, &["-o", "json"]].concat()).await;
        assert_eq!((code, complaint.as_str()), (2, ""));
        let json: Value = serde_json::from_str(&said).unwrap();
        assert_eq!((&json["valid"], &json["failed_count"]), (&Value::from(false), &Value::from(1)));
        let failed =
            json["tests"].as_array().unwrap().iter().filter(|test| test["passed"] == false);
        assert_eq!(failed.map(|test| &test["name"]).collect::<Vec<_>>(), ["read .env"]);
    }
}
