//! The journal as lines of JSON: one entry a line, with all that its hash covers, so that whoever holds the lines can
//! recompute the chains without the database. Opens no file: see `mirror`.

use std::{
    collections::{BTreeMap, HashMap},
    io::BufRead,
};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{
    domain::{
        chain::{ChainHash, Linked},
        head::KeptHead,
        hex::unhex,
        ids::{Position, RunId, Sequence, Timestamp},
        journal::RunPruned,
        ranges::Ranges,
    },
    ports::{AuditFault, AuditReport, EntryView},
    signing::{Followed, HeadWalk, Scope},
};

/// Faults that are told; more are not looked for.
const MOST_FAULTS: usize = 100;
/// Gaps between lines that are remembered until it is known whether entries were pruned there.
const MOST_GAPS: usize = 100_000;

/// One line, in the order in which it is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    /// Empty: the daemon's own chain.
    run_id: String,
    sequence: u64,
    position: u64,
    time: String,
    kind: String,
    version: u32,
    /// The very bytes that were hashed.
    payload: Box<RawValue>,
    policy_revision: Option<String>,
    body_digest: Option<String>,
    previous_hash: String,
    hash: String,
}

/// An entry as one line, without its end.
///
/// Errors: it cannot be written as JSON.
pub fn line(view: &EntryView) -> Result<String, serde_json::Error> {
    serde_json::to_string(&Line {
        run_id: view.run.map(|run| run.to_string()).unwrap_or_default(),
        sequence: view.sequence.0,
        position: view.position.0,
        time: time(view.time),
        kind: view.kind.clone(),
        version: view.version,
        payload: match RawValue::from_string(view.payload.clone()) {
            Ok(payload) => payload,
            // Altered, or redacted where that leaves no JSON: then its text, as a string.
            Err(_) => RawValue::from_string(serde_json::to_string(&view.payload)?)?,
        },
        policy_revision: view.policy_revision.clone(),
        body_digest: view.body_digest.map(|digest| ChainHash(digest).to_string()),
        previous_hash: view.previous.to_string(),
        hash: view.hash.to_string(),
    })
}

/// What a line says; none where it is not written as [`line()`] writes it, to the byte.
pub fn read(text: &str) -> Option<EntryView> {
    let parsed: Line = serde_json::from_str(text).ok()?;
    let view = EntryView {
        run: match parsed.run_id.as_str() {
            "" => None,
            run => Some(run.parse().ok()?),
        },
        sequence: Sequence(parsed.sequence),
        position: Position(parsed.position),
        time: Timestamp(parsed.time.parse::<jiff::Timestamp>().ok()?.as_microsecond()),
        kind: parsed.kind,
        version: parsed.version,
        payload: match parsed.payload.get() {
            text if text.starts_with('"') => serde_json::from_str(text).ok()?,
            payload => payload.to_owned(),
        },
        policy_revision: parsed.policy_revision,
        body_digest: match &parsed.body_digest {
            Some(digest) => Some(hash(digest)?.0),
            None => None,
        },
        previous: hash(&parsed.previous_hash)?,
        hash: hash(&parsed.hash)?,
    };
    (line(&view).ok()? == text).then_some(view)
}

/// RFC 3339 in UTC with microseconds.
fn time(at: Timestamp) -> String {
    at.to_string()
}

fn hash(text: &str) -> Option<ChainHash> {
    Some(ChainHash(unhex(text)?.try_into().ok()?))
}

/// Recomputes every hash of the lines, and looks whether each follows those before it. Where a chain begins before the
/// first line, that is taken for granted.
///
/// Errors: the lines cannot be read.
pub fn verify(lines: impl BufRead, kept: Vec<KeptHead>) -> std::io::Result<AuditReport> {
    let mut walk = Walk {
        ends: HashMap::new(),
        last: None,
        gaps: Vec::new(),
        pruned: BTreeMap::new(),
        heads: HeadWalk::new(kept, Scope::Part),
        report: AuditReport::default(),
    };
    for (number, text) in (1_u64..).zip(lines.split(b'\n')) {
        walk.step(number, &text?);
        if walk.report.faults.len() >= MOST_FAULTS {
            break;
        }
    }
    // Of one chain alone it is no wonder that others lie between.
    if walk.ends.len() > 1 {
        let unsaid = walk.gaps.into_iter().filter(|gap| !gap.is_within(&walk.pruned));
        walk.report.faults.extend(unsaid.map(|gap| gap.fault));
        walk.report.faults.sort_by_key(|fault| fault.position);
        walk.report.faults.truncate(MOST_FAULTS);
    }
    walk.report.runs = walk.ends.keys().filter(|run| run.is_some()).count() as u64;
    let (signed, missing) = walk.heads.finish(walk.last.unwrap_or_default());
    let position = walk.last.unwrap_or_default();
    let fault = |what| AuditFault { position, run: None, sequence: Sequence(0), what };
    walk.report.faults.extend(missing.into_iter().map(fault));
    walk.report.signed = signed;
    walk.report.head = walk.ends.get(&None).map_or(ChainHash::START, |(_, hash)| *hash);
    Ok(walk.report)
}

struct Walk {
    /// Of each chain: sequence and hash of its last line.
    ends: HashMap<Option<RunId>, (Sequence, ChainHash)>,
    last: Option<Position>,
    /// Lines that do not follow by position.
    gaps: Vec<Gap>,
    /// Positions of entries that were pruned, as lines say: first and last of each range.
    pruned: BTreeMap<u64, u64>,
    heads: HeadWalk,
    report: AuditReport,
}

/// Positions that are missing before a line.
struct Gap {
    first: u64,
    last: u64,
    fault: AuditFault,
}

impl Gap {
    /// Whether each of them is in one of these ranges.
    fn is_within(&self, ranges: &BTreeMap<u64, u64>) -> bool {
        let mut next = self.first;
        while next <= self.last {
            match ranges.range(..=next).next_back() {
                Some((_, last)) if *last >= next && *last < u64::MAX => next = last + 1,
                _ => return false,
            }
        }
        true
    }
}

impl Walk {
    fn note_pruned(&mut self, view: &EntryView) {
        if let Ok(said) = serde_json::from_str::<RunPruned>(&view.payload)
            && let Ok(ranges) = said.positions.parse::<Ranges>()
        {
            self.pruned.extend(ranges.iter());
        }
    }

    fn step(&mut self, number: u64, text: &[u8]) {
        self.report.entries += 1;
        let expected = self.last.map(|last| Position(last.0 + 1));
        let Some(view) = std::str::from_utf8(text).ok().and_then(read) else {
            self.last = expected;
            self.heads.skip();
            let fault = |what| AuditFault {
                position: expected.unwrap_or_default(),
                run: None,
                sequence: Sequence(0),
                what,
            };
            let what = format!("line {number} was altered: it is not as agentd writes lines");
            return self.report.faults.push(fault(what));
        };
        let mut faults: Vec<String> = Vec::new();
        if self.gaps.len() == MOST_GAPS {
            faults.push("so much is missing between the lines that no more can be told".into());
        }
        if expected.is_some_and(|expected| expected != view.position) && self.gaps.len() < MOST_GAPS
        {
            let what = format!(
                "line {number}: the line before it is not the one before it in the journal"
            );
            let (position, run, sequence) = (view.position, view.run, view.sequence);
            let fault = AuditFault { position, run, sequence, what };
            self.heads.skip();
            let first = expected.unwrap_or_default().0;
            // Backwards, nothing is missing, and nothing explains it.
            let last = if first < position.0 { position.0 - 1 } else { u64::MAX };
            self.gaps.push(Gap { first, last, fault });
        }
        if expected.is_none() && view.position > Position(1) {
            self.heads.begin_at(view.position);
        }
        if view.kind == "run_pruned" {
            self.note_pruned(&view);
        }
        let linked = Linked {
            run: view.run,
            sequence: view.sequence,
            position: view.position,
            time: view.time,
            kind: &view.kind,
            version: view.version,
            view: &view.payload,
            body_digest: view.body_digest.as_ref().map(|digest| digest.as_slice()),
            policy_revision: view.policy_revision.as_deref(),
        };
        if linked.hash(view.previous) != view.hash {
            faults.push("was altered: its hash does not fit".into());
        }
        let follows = |(sequence, hash): &(Sequence, ChainHash)| {
            sequence.next() == view.sequence && *hash == view.previous
        };
        if self.ends.get(&view.run).is_some_and(|end| !follows(end)) {
            faults.push("does not follow the entry before it in its chain".into());
        }
        let signed = self.heads.follow(&Followed {
            position: view.position,
            time: view.time,
            kind: &view.kind,
            view: &view.payload,
            hash: view.hash,
        });
        self.last = Some(view.position);
        self.ends.insert(view.run, (view.sequence, view.hash));
        faults.extend(signed);
        let fault = |what: String| AuditFault {
            position: view.position,
            run: view.run,
            sequence: view.sequence,
            what: format!("line {number}: {what}"),
        };
        self.report.faults.extend(faults.into_iter().map(fault));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(run: Option<RunId>, place: (u64, u64), previous: ChainHash) -> EntryView {
        let (position, sequence) = place;
        let mut view = EntryView {
            run,
            sequence: Sequence(sequence),
            position: Position(position),
            time: Timestamp(1_700_000_000_000_000 + i64::try_from(position).unwrap()),
            kind: "daemon_stopped".into(),
            version: 1,
            payload: "{\"why\":\"a \\\"b\\\" \u{e9}\"}".into(),
            policy_revision: Some("sha256:00".into()).filter(|_| position % 2 == 0),
            body_digest: Some([7; 32]).filter(|_| position % 3 == 0),
            previous,
            hash: ChainHash::START,
        };
        view.hash = Linked {
            run,
            sequence: view.sequence,
            position: view.position,
            time: view.time,
            kind: &view.kind,
            version: 1,
            view: &view.payload,
            body_digest: view.body_digest.as_ref().map(|digest| digest.as_slice()),
            policy_revision: view.policy_revision.as_deref(),
        }
        .hash(previous);
        view
    }

    fn lines() -> Vec<String> {
        let run = Some(RunId::new(uuid::Uuid::nil()));
        let first = entry(None, (4, 2), ChainHash([9; 32]));
        let second = entry(run, (5, 1), ChainHash::START);
        let third = entry(run, (6, 2), second.hash);
        let fourth = entry(None, (7, 3), first.hash);
        [first, second, third, fourth].iter().map(|view| line(view).unwrap()).collect()
    }

    fn found(text: &[u8]) -> Vec<String> {
        verify(text, Vec::new()).unwrap().faults.into_iter().map(|fault| fault.what).collect()
    }

    #[test]
    fn a_line_reads_back_as_it_was_written() {
        for text in lines() {
            let view = read(&text).unwrap();
            assert_eq!(line(&view).unwrap(), text);
            assert!(view.time.0 % 1_000_000 != 0, "microseconds are kept");
        }
    }

    #[test]
    fn a_payload_that_is_no_json_reads_back_as_it_was() {
        let mut view = entry(None, (4, 2), ChainHash([9; 32]));
        view.payload = "{\"expires\":[redacted]\"".into();
        assert_eq!(read(&line(&view).unwrap()).unwrap().payload, view.payload);
    }

    #[test]
    fn lines_of_one_run_alone_are_whole_without_those_between() {
        let run = Some(RunId::new(uuid::Uuid::nil()));
        let first = entry(run, (5, 1), ChainHash::START);
        let second = entry(run, (9, 2), first.hash);
        let text = [&first, &second].map(|view| line(view).unwrap()).join("\n");
        assert_eq!(found(text.as_bytes()), Vec::<String>::new());
    }

    #[test]
    fn one_byte_that_was_changed_anywhere_is_found_in_its_line() {
        let whole = lines().join("\n").into_bytes();
        assert_eq!(found(&whole), Vec::<String>::new(), "control");
        let mut number = 1;
        for at in 0..whole.len() {
            for by in [0x01, 0x20] {
                let mut altered = whole.clone();
                altered[at] ^= by;
                let found = found(&altered);
                // A line's end belongs to it: without it, it runs into the next one.
                let there = [format!("line {number}:"), format!("line {number} was")];
                let first = found.first().unwrap_or_else(|| panic!("byte {at} ^ {by}"));
                assert!(there.iter().any(|there| first.starts_with(there)), "byte {at}: {found:?}");
            }
            number += usize::from(whole[at] == b'\n');
        }
    }

    #[test]
    fn lines_that_are_missing_doubled_or_change_places_are_found() {
        let all = lines();
        let told = |order: &[usize]| {
            let text: Vec<&str> = order.iter().map(|place| all[*place].as_str()).collect();
            found(text.join("\n").as_bytes())
        };
        assert!(told(&[0, 1, 2, 3]).is_empty());
        for order in [&[0, 2, 3][..], &[0, 1, 1, 2, 3], &[0, 2, 1, 3], &[0, 1, 3, 2]] {
            assert!(!told(order).is_empty(), "{order:?}");
        }
    }
}
