//! `agentctl audit`: what the journal holds over all runs; and is it what was written? That also on a file alone.

use std::{
    fs::{self, File},
    io::{self, BufReader, BufWriter, Write},
    path::{Path, PathBuf},
};

use clap::Subcommand;
use serde_json::json;

use crate::{
    ctl::{
        Exit, Failure, Global, connect,
        output::{self, Colour, Format, Paint},
        prune,
        timeline::printable,
    },
    domain::{
        head::{HeadSigned, KeptHead},
        hex::{hex, unhex},
    },
    jsonl,
    ports::AuditReport,
    proto::v1,
    signing, sqlite,
};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Lists entries of the journal over all runs, oldest first
    #[command(after_help = EXAMPLES)]
    List {
        #[command(flatten)]
        filter: Filter,
        /// How many at most
        #[arg(long, default_value_t = 100, value_name = "N")]
        limit: usize,
    },
    /// Prints entries as they are written
    Tail {
        #[command(flatten)]
        filter: Filter,
        /// Begin after this position [default: now]
        #[arg(long, value_name = "POSITION")]
        after: Option<u64>,
    },
    /// Writes entries as lines of JSON, as the mirror has them
    Export {
        #[command(flatten)]
        filter: Filter,
        /// The file to write [default: standard output]
        #[arg(long, value_name = "FILE")]
        to: Option<PathBuf>,
    },
    /// Removes what ended runs held: entries but for their hashes, tasks, answers. Says what that is, unless --yes is given
    #[command(after_help = prune::EXAMPLES)]
    Prune(prune::Which),
    /// Recomputes every hash and says where the journal was altered, if it was
    Verify {
        /// A database file, a copy of agentd.db for example, or a mirror (.jsonl); needs no daemon
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// Also folds every run anew, and compares it with its last checkpoint and with how it is listed
        #[arg(long, conflicts_with = "file")]
        deep: bool,
        /// Heads that were kept of this journal, as `audit export --kind head_signed` wrote them: what they sign must
        /// be there
        #[arg(long, value_name = "FILE")]
        heads: Option<PathBuf>,
    },
}

/// Heads that a daemon compares at once.
const MOST_SENT: usize = 10_000;

const EXAMPLES: &str = "\
Examples:
  agentctl audit list --kind decision --decision deny          what was refused, and by which rule
  agentctl audit list --kind approval_decided --caller caller:ann
  agentctl audit tail --kind approval_requested                what waits for a person, as it comes up
  agentctl audit export --run RUN --to run.jsonl";

/// Which entries.
#[derive(Debug, clap::Args)]
pub(super) struct Filter {
    /// Only entries of this run
    #[arg(long, default_value = "", hide_default_value = true, value_name = "RUN")]
    run: String,
    /// Only of this kind; may be given several times
    #[arg(long, value_name = "KIND")]
    kind: Vec<String>,
    /// Only entries that name this tool
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TOOL")]
    tool: String,
    /// Only with this decision: allow, deny, require_approval, approved, denied, expired
    #[arg(long, default_value = "", hide_default_value = true, value_name = "DECISION")]
    decision: String,
    /// Only by this rule
    #[arg(long, default_value = "", hide_default_value = true, value_name = "RULE")]
    rule: String,
    /// Only of this caller: who submitted, asked, said or reloaded
    #[arg(long, default_value = "", hide_default_value = true, value_name = "CALLER")]
    caller: String,
    /// Only from this time on, RFC 3339
    #[arg(long, value_parser = time, value_name = "TIME")]
    since: Option<prost_types::Timestamp>,
    /// Only before this time, RFC 3339
    #[arg(long, value_parser = time, value_name = "TIME")]
    until: Option<prost_types::Timestamp>,
}

fn time(text: &str) -> Result<prost_types::Timestamp, String> {
    let at: jiff::Timestamp = text.parse().map_err(|error: jiff::Error| error.to_string())?;
    Ok(prost_types::Timestamp { seconds: at.as_second(), nanos: at.subsec_nanosecond() })
}

impl From<Filter> for v1::AuditFilter {
    fn from(filter: Filter) -> Self {
        Self {
            run_id: filter.run,
            kinds: filter.kind,
            tool: filter.tool,
            decision: filter.decision,
            rule: filter.rule,
            caller: filter.caller,
            since_time: filter.since,
            until_time: filter.until,
        }
    }
}

pub(super) async fn run(global: &Global, verb: Verb) -> Result<Exit, Failure> {
    match verb {
        Verb::Verify { file, deep, heads } => {
            let kept = heads.as_deref().map(kept_heads).transpose()?.unwrap_or_default();
            verify(global, file, deep, kept).await
        }
        Verb::Prune(which) => prune::run(global, which).await,
        Verb::List { filter, limit } => list(global, filter, limit).await,
        Verb::Tail { filter, after } => tail(global, filter, after).await,
        Verb::Export { filter, to } => export(global, filter, to).await,
    }
}

async fn list(global: &Global, filter: Filter, limit: usize) -> Result<Exit, Failure> {
    let (mut client, filter) = (connect::connect(global).await?.audit(), Some(filter.into()));
    let (mut left, mut page_token) = (limit, String::new());
    while left > 0 {
        let page_size = i32::try_from(left).unwrap_or(i32::MAX);
        let filter: Option<v1::AuditFilter> = filter.clone();
        let request = v1::ListAuditEntriesRequest { filter, page_size, page_token };
        let page = client.list_audit_entries(request).await?.into_inner();
        for entry in &page.entries {
            show(global, entry)?;
        }
        left -= page.entries.len().min(left);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    Ok(Exit::Done)
}

async fn tail(global: &Global, filter: Filter, after: Option<u64>) -> Result<Exit, Failure> {
    let mut client = connect::connect(global).await?.audit();
    // Beyond the end: from now on.
    let after_position = after.unwrap_or(u64::MAX);
    let filter = Some(filter.into());
    let request = v1::StreamAuditEntriesRequest { filter, after_position, follow: true };
    let mut stream = client.stream_audit_entries(request).await?.into_inner();
    while let Some(message) = stream.message().await? {
        if let Some(entry) = &message.entry {
            show(global, entry)?;
        }
    }
    Ok(Exit::Done)
}

async fn export(global: &Global, filter: Filter, to: Option<PathBuf>) -> Result<Exit, Failure> {
    let mut client = connect::connect(global).await?.audit();
    let mut out: Box<dyn Write> = match &to {
        Some(path) => Box::new(BufWriter::new(File::create_new(path).map_err(|error| {
            Failure::new(Exit::BadUsage, format!("{}: {error}", path.display()))
        })?)),
        None => Box::new(io::stdout()),
    };
    let request = v1::ExportAuditRequest { filter: Some(filter.into()) };
    let mut stream = client.export_audit(request).await?.into_inner();
    while let Some(message) = stream.message().await? {
        out.write_all(&message.chunk)?;
    }
    out.flush()?;
    Ok(Exit::Done)
}

fn show(global: &Global, entry: &v1::JournalEntry) -> io::Result<()> {
    match global.output {
        Format::Json => output::json_line(&output::entry_json(entry)),
        Format::Table => {
            let time = entry.time.map(output::time).unwrap_or_default();
            let run = if entry.run_id.is_empty() { "daemon" } else { &entry.run_id };
            output::line(&format!(
                "{:>7}  {time}  {run:<36}  {:<18}  {}",
                entry.position,
                entry.kind,
                printable(&entry.payload)
            ))
        }
    }
}

async fn verify(
    global: &Global,
    file: Option<PathBuf>,
    deep: bool,
    kept: Vec<KeptHead>,
) -> Result<Exit, Failure> {
    let given = kept.len();
    let report = match file {
        Some(path) if path.extension().is_some_and(|extension| extension == "jsonl") => {
            let named = |error: io::Error| {
                Failure::new(Exit::BadUsage, format!("{}: {error}", path.display()))
            };
            let lines = BufReader::new(File::open(&path).map_err(named)?);
            from_file(jsonl::verify(lines, kept).map_err(named)?)
        }
        Some(path) => from_file(
            sqlite::verify_file(&path, kept)
                .map_err(|error| Failure::new(Exit::Unsuccessful, error.to_string()))?,
        ),
        None => {
            let head = |head: KeptHead| v1::KeptHead {
                entries: head.entries.0,
                digest: head.digest.0.to_vec(),
            };
            // The last one stands for all before it; where there are more than the daemon takes, some of them are left out.
            let step = kept.len().div_ceil(MOST_SENT).max(1);
            let kept_heads = kept.into_iter().rev().step_by(step).map(head).collect();
            let request = v1::VerifyAuditRequest { deep, kept_heads };
            connect::connect(global).await?.audit().verify_audit(request).await?.into_inner()
        }
    };
    match global.output {
        Format::Json => output::json_line(&as_json(&report))?,
        Format::Table => print(&report, given, Colour::of_stdout(global.no_color))?,
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
        checkpoints: report.checkpoints,
        signed_heads: report.signed.count,
        signed_entries: report.signed.entries.0,
        kept_heads_compared: report.signed.compared,
        keys: report.signed.keys.iter().filter_map(|key| unhex(key)).collect(),
    }
}

/// The heads of a file, each checked by the key that it names.
fn kept_heads(path: &Path) -> Result<Vec<KeptHead>, Failure> {
    let fault = |what: String| Failure::new(Exit::BadUsage, format!("{}: {what}", path.display()));
    let text = fs::read_to_string(path).map_err(|error| fault(error.to_string()))?;
    let kept = (1..).zip(text.lines()).map(|(number, line)| {
        let read = jsonl::read(line).filter(|entry| entry.kind == "head_signed");
        let entry = read.ok_or_else(|| {
            fault(format!(
                "line {number} is no signed head as `audit export --kind head_signed` writes it"
            ))
        })?;
        let head: Option<HeadSigned> = serde_json::from_str(&entry.payload).ok();
        let signed =
            head.and_then(|head| Some((head.entries, signing::verified(&head, entry.time)?)));
        let (entries, digest) = signed.ok_or_else(|| {
            fault(format!("line {number}: the signature does not fit what it signs"))
        })?;
        Ok(KeptHead { entries, digest })
    });
    let kept: Vec<KeptHead> = kept.collect::<Result<_, Failure>>()?;
    match kept.is_empty() {
        true => Err(fault("holds no signed head".into())),
        false => Ok(kept),
    }
}

fn print(report: &v1::VerifyAuditResponse, kept: usize, colour: Colour) -> std::io::Result<()> {
    let verdict = match report.intact {
        true => colour.paint(Paint::Good, "intact"),
        false => colour.paint(Paint::Bad, "ALTERED"),
    };
    let (entries, runs) = (report.entries, report.runs);
    let checkpoints = match report.checkpoints {
        0 => String::new(),
        kept => format!(", {kept} checkpoints"),
    };
    output::line(&format!("journal {verdict}: {entries} entries, {runs} runs{checkpoints}"))?;
    output::line(&format!("head of the daemon's chain: {}", hex(&report.head_hash)))?;
    if report.signed_heads > 0 {
        let keys = report.keys.iter().map(|key| hex(key)).collect::<Vec<_>>().join(", ");
        let v1::VerifyAuditResponse { signed_heads, signed_entries, .. } = report;
        output::line(&format!(
            "{signed_heads} signed heads, the last for {signed_entries} entries, by key {keys}"
        ))?;
    }
    if kept > 0 {
        let fit = report.kept_heads_compared;
        output::line(&format!("of {kept} kept heads {fit} could be compared, and fit"))?;
    }
    for fault in &report.faults {
        let whose = match fault.run_id.as_str() {
            "" => "the daemon".to_owned(),
            run => format!("run {run}"),
        };
        let position = match fault.position {
            0 => "derived".to_owned(),
            position => format!("position {position}"),
        };
        let v1::AuditFault { sequence, what, .. } = fault;
        output::line(&format!("  {position}, {whose}, sequence {sequence}: {what}"))?;
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
        "checkpoints": report.checkpoints,
        "head_hash": hex(&report.head_hash),
        "signed_heads": report.signed_heads,
        "kept_heads_compared": report.kept_heads_compared,
        "signed_entries": report.signed_entries,
        "keys": report.keys.iter().map(|key| hex(key)).collect::<Vec<_>>(),
        "faults": report.faults.iter().map(fault).collect::<Vec<_>>(),
    })
}
