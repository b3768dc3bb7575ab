//! `agentctl audit`: is the journal what was written? With a daemon, or on a database file alone.

use std::path::PathBuf;

use clap::Subcommand;
use serde_json::json;

use crate::{
    ctl::{
        Exit, Failure, Global, connect,
        output::{self, Colour, Format, Paint, hex},
    },
    ports::AuditReport,
    proto::v1,
    sqlite,
};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Recomputes every hash and says where the journal was altered, if it was
    Verify {
        /// A database file, a copy of agentd.db for example; needs no daemon
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
}

pub(super) async fn run(global: &Global, verb: Verb) -> Result<Exit, Failure> {
    let Verb::Verify { file } = verb;
    let report = match file {
        Some(path) => from_file(
            sqlite::verify_file(&path)
                .map_err(|error| Failure::new(Exit::Unsuccessful, error.to_string()))?,
        ),
        None => {
            let request = v1::VerifyAuditRequest {};
            connect::connect(global).await?.audit().verify_audit(request).await?.into_inner()
        }
    };
    match global.output {
        Format::Json => output::json_line(&as_json(&report))?,
        Format::Table => print(&report, Colour::of_stdout(global.no_color))?,
    }
    Ok(if report.intact { Exit::Done } else { Exit::Unsuccessful })
}

fn from_file(report: AuditReport) -> v1::VerifyAuditResponse {
    let faults: Vec<_> = report
        .faults
        .into_iter()
        .map(|fault| v1::AuditFault {
            position: fault.position.0,
            run_id: fault.run.map(|run| run.to_string()).unwrap_or_default(),
            sequence: fault.sequence.0,
            what: fault.what,
        })
        .collect();
    v1::VerifyAuditResponse {
        intact: faults.is_empty(),
        entries: report.entries,
        runs: report.runs,
        head_hash: report.head.0.to_vec(),
        faults,
    }
}

fn print(report: &v1::VerifyAuditResponse, colour: Colour) -> std::io::Result<()> {
    let verdict = match report.intact {
        true => colour.paint(Paint::Good, "intact"),
        false => colour.paint(Paint::Bad, "ALTERED"),
    };
    let (entries, runs) = (report.entries, report.runs);
    output::line(&format!("journal {verdict}: {entries} entries, {runs} runs"))?;
    output::line(&format!("head of the daemon's chain: {}", hex(&report.head_hash)))?;
    for fault in &report.faults {
        let whose = match fault.run_id.as_str() {
            "" => "the daemon".to_owned(),
            run => format!("run {run}"),
        };
        output::line(&format!(
            "  position {}, {whose}, sequence {}: {}",
            fault.position, fault.sequence, fault.what
        ))?;
    }
    Ok(())
}

fn as_json(report: &v1::VerifyAuditResponse) -> serde_json::Value {
    let fault = |fault: &v1::AuditFault| {
        json!({"position": fault.position, "run_id": fault.run_id,
               "sequence": fault.sequence, "what": fault.what})
    };
    json!({
        "intact": report.intact,
        "entries": report.entries,
        "runs": report.runs,
        "head_hash": hex(&report.head_hash),
        "faults": report.faults.iter().map(fault).collect::<Vec<_>>(),
    })
}
