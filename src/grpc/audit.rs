//! `AuditService`.

use std::pin::Pin;

use futures_util::Stream;
use tonic::{Request, Response, Status};

use crate::{
    domain::{
        head::{JournalDigest, KeptHead},
        hex::unhex,
        ids::Position,
    },
    engine::{Engine, EngineError},
    grpc::{
        caller, convert,
        outlet::{Gone, Outlet, outlet},
        page::{self, List},
        prune,
    },
    jsonl,
    ports::{AuditFilter, EntryView, JournalError, PageLimit},
    proto::v1::{self, audit_service_server::AuditService},
};

/// Entries of a page, if the caller does not say.
const PAGE: usize = 100;
/// What a page may hold before it ends, in bytes: clients accept answers of 4 MiB.
const PAGE_BYTES: usize = 1700 << 10;
/// What is read for a subscriber at once, when it wants something; no more is kept for it.
const STREAM_PAGE: PageLimit = PageLimit { entries: 64, bytes: 16 << 10 };
/// The same of an export, which is done as fast as it is read.
const EXPORT_PAGE: PageLimit = PageLimit { entries: 64, bytes: CHUNK };
/// Bytes of lines in one message, unless one line alone is longer.
const CHUNK: usize = 256 << 10;
/// Most kinds of one filter.
const KINDS: usize = 64;
/// Longest text of a filter, in bytes.
const TEXT_BYTES: usize = 256;
/// Heads that a verification compares.
const MOST_KEPT_HEADS: usize = 10_000;

type Entries = Pin<Box<dyn Stream<Item = Result<v1::StreamAuditEntriesResponse, Status>> + Send>>;
type Lines = Pin<Box<dyn Stream<Item = Result<v1::ExportAuditResponse, Status>> + Send>>;

#[derive(Debug)]
pub(super) struct Audit {
    engine: Engine,
}

impl Audit {
    pub(super) fn new(engine: Engine) -> Self {
        Self { engine }
    }
}

fn filter(wanted: Option<v1::AuditFilter>) -> Result<AuditFilter, Status> {
    let wanted = wanted.unwrap_or_default();
    let texts = [&wanted.tool, &wanted.decision, &wanted.rule, &wanted.caller];
    let is_long = texts.into_iter().chain(&wanted.kinds).any(|text| text.len() > TEXT_BYTES);
    if is_long || wanted.kinds.len() > KINDS {
        let message =
            format!("takes texts of at most {TEXT_BYTES} bytes, and at most {KINDS} kinds");
        return Err(convert::invalid("filter", message));
    }
    let given = |text: String| Some(text).filter(|text| !text.is_empty());
    Ok(AuditFilter {
        run: match wanted.run_id.as_str() {
            "" => None,
            id => Some(convert::run_id(id)?),
        },
        kinds: wanted.kinds,
        tool: given(wanted.tool),
        decision: given(wanted.decision),
        rule: given(wanted.rule),
        caller: given(wanted.caller),
        since: wanted.since_time.map(convert::from_timestamp),
        until: wanted.until_time.map(convert::from_timestamp),
    })
}

/// Whether more is waited for once all is sent.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Follow {
    No,
    ForEver,
}

/// One subscriber's way through the whole journal, a page at a time.
struct Feed<T> {
    engine: Engine,
    filter: AuditFilter,
    after: Position,
    follow: Follow,
    page: PageLimit,
    out: Outlet<T>,
}

impl<T> Feed<T> {
    async fn send(mut self, shown: impl Fn(Vec<EntryView>) -> Vec<Result<T, Status>>) {
        let (engine, out) = (self.engine.clone(), self.out.clone());
        let stopping = engine.stopping();
        tokio::select! {
            () = out.closed() => return,
            _ = self.send_pages(&shown) => return,
            () = stopping.cancelled() => {}
        }
        out.say_farewell(convert::status(engine.farewell()));
    }

    async fn send_pages(
        &mut self,
        shown: &impl Fn(Vec<EntryView>) -> Vec<Result<T, Status>>,
    ) -> Result<(), Gone> {
        // Subscribed before the first read: what is written meanwhile wakes us.
        let mut heads = self.engine.watch_head();
        // What is beyond the end begins there.
        self.after = self.after.min(*heads.borrow_and_update());
        loop {
            self.out.wanted().await;
            let page = match self.engine.audit(self.filter.clone(), self.after, self.page).await {
                Ok(page) => page,
                Err(error) => {
                    let _ = self.out.send(Err(convert::status(error))).await;
                    return Err(Gone);
                }
            };
            self.after = page.looked;
            for item in shown(page.entries) {
                self.out.send(item).await?;
            }
            match (page.next, self.follow) {
                (Some(_), _) => {}
                (None, Follow::No) => return Ok(()),
                (None, Follow::ForEver) => heads.changed().await.map_err(|_| Gone)?,
            }
        }
    }
}

/// The lines of a page, in pieces.
fn lines(page: Vec<EntryView>) -> Vec<Result<v1::ExportAuditResponse, Status>> {
    let (mut chunks, mut chunk) = (Vec::new(), String::new());
    let whole = |chunk: &mut String| {
        let chunk = std::mem::take(chunk).into_bytes();
        Ok(v1::ExportAuditResponse { chunk })
    };
    for view in page {
        if chunk.len() > CHUNK {
            chunks.push(whole(&mut chunk));
        }
        match jsonl::line(&view) {
            Ok(line) => chunk.push_str(&(line + "\n")),
            Err(error) => {
                let what = format!("entry {} of the journal: {error}", view.position);
                let error = EngineError::Journal(JournalError::Unreadable { what });
                return vec![Err(convert::status(error))];
            }
        }
    }
    if !chunk.is_empty() {
        chunks.push(whole(&mut chunk));
    }
    chunks
}

#[tonic::async_trait]
impl AuditService for Audit {
    async fn list_audit_entries(
        &self,
        request: Request<v1::ListAuditEntriesRequest>,
    ) -> Result<Response<v1::ListAuditEntriesResponse>, Status> {
        caller::of(&request)?;
        let request = request.into_inner();
        let size = page::size(request.page_size, PAGE)?;
        let wanted = filter(request.filter)?;
        let list = List::new("ListAuditEntries", [format!("{wanted:?}")]);
        let after = list.number(&request.page_token)?.map_or(Position(0), Position);
        let page = self
            .engine
            .audit(wanted, after, PageLimit::entries(size))
            .await
            .map_err(convert::status)?;
        let (mut entries, mut bytes, mut next) = (Vec::new(), 0, page.next);
        let mut last = after;
        for view in page.entries {
            if bytes > PAGE_BYTES {
                next = Some(last);
                break;
            }
            bytes += view.payload.len();
            last = view.position;
            entries.push(convert::entry(view));
        }
        let next_page_token = next.map(|next| list.token(&next.0.to_string())).unwrap_or_default();
        Ok(Response::new(v1::ListAuditEntriesResponse { entries, next_page_token }))
    }

    type StreamAuditEntriesStream = Entries;

    async fn stream_audit_entries(
        &self,
        request: Request<v1::StreamAuditEntriesRequest>,
    ) -> Result<Response<Entries>, Status> {
        caller::of(&request)?;
        let request = request.into_inner();
        let (out, stream) = outlet();
        let feed = Feed {
            engine: self.engine.clone(),
            filter: filter(request.filter)?,
            // No journal is that long; the store counts in 63 bits.
            after: Position(request.after_position.min(i64::MAX as u64)),
            follow: if request.follow { Follow::ForEver } else { Follow::No },
            page: STREAM_PAGE,
            out,
        };
        let entry = |view| Ok(v1::StreamAuditEntriesResponse { entry: Some(convert::entry(view)) });
        let shown = move |page: Vec<EntryView>| page.into_iter().map(entry).collect();
        self.engine.spawn_stream(feed.send(shown)).map_err(convert::status)?;
        Ok(Response::new(Box::pin(stream)))
    }

    type ExportAuditStream = Lines;

    async fn export_audit(
        &self,
        request: Request<v1::ExportAuditRequest>,
    ) -> Result<Response<Lines>, Status> {
        caller::of(&request)?;
        let (out, stream) = outlet();
        let feed = Feed {
            engine: self.engine.clone(),
            filter: filter(request.into_inner().filter)?,
            after: Position(0),
            follow: Follow::No,
            page: EXPORT_PAGE,
            out,
        };
        self.engine.spawn_stream(feed.send(lines)).map_err(convert::status)?;
        Ok(Response::new(Box::pin(stream)))
    }

    async fn prune_runs(
        &self,
        request: Request<v1::PruneRunsRequest>,
    ) -> Result<Response<v1::PruneRunsResponse>, Status> {
        let by = caller::of(&request)?.caller;
        let (wanted, mode) = prune::wanted(request.get_ref())?;
        let pruned = self.engine.prune(by, wanted, mode).await.map_err(convert::status)?;
        Ok(Response::new(prune::answer(pruned)))
    }

    async fn verify_audit(
        &self,
        request: Request<v1::VerifyAuditRequest>,
    ) -> Result<Response<v1::VerifyAuditResponse>, Status> {
        let v1::VerifyAuditRequest { deep, kept_heads } = request.into_inner();
        let kept = kept(kept_heads)?;
        let report = match deep {
            true => self.engine.verify_deep(kept).await,
            false => self.engine.verify(kept).await,
        };
        let report = report.map_err(convert::status)?;
        let faults = report.faults.into_iter().map(|fault| v1::AuditFault {
            position: fault.position.0,
            run_id: fault.run.map(|run| run.to_string()).unwrap_or_default(),
            sequence: fault.sequence.0,
            what: fault.what,
        });
        let faults: Vec<_> = faults.collect();
        Ok(Response::new(v1::VerifyAuditResponse {
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
        }))
    }
}

fn kept(heads: Vec<v1::KeptHead>) -> Result<Vec<KeptHead>, Status> {
    const FIELD: &str = "kept_heads";
    if heads.len() > MOST_KEPT_HEADS {
        let message =
            format!("{} heads are given; at most {MOST_KEPT_HEADS} are taken", heads.len());
        return Err(convert::invalid(FIELD, message));
    }
    let kept = heads.into_iter().map(|head| {
        let digest = head.digest.try_into().map_err(|digest: Vec<u8>| {
            let message = format!("a digest of {} bytes is given; it has 32", digest.len());
            convert::invalid(FIELD, message)
        })?;
        Ok(KeptHead { entries: Position(head.entries), digest: JournalDigest(digest) })
    });
    kept.collect()
}
