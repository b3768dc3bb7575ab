//! A copy of the store as a stream: the file in chunks, then what it is.

use sha2::{Digest as _, Sha256};
use tokio::{io::AsyncReadExt as _, sync::mpsc};
use tonic::Status;

use crate::{
    grpc::convert,
    ports::{JournalError, StoreCopy},
    proto::v1::{self, backup_database_response::Part},
};

/// Bytes of one message; clients accept 4 MiB.
const CHUNK: usize = 256 << 10;

type Sent = Result<v1::BackupDatabaseResponse, Status>;

/// Sends all of it, for as long as somebody listens.
pub(super) async fn send(copy: StoreCopy, out: mpsc::Sender<Sent>) {
    let told = match send_file(copy, &out).await {
        Ok(Some(summary)) => Ok(part(Part::Summary(summary))),
        Ok(None) => return,
        Err(error) => {
            let what = format!("the copy of it: {error}");
            Err(convert::status(JournalError::Unreadable { what }.into()))
        }
    };
    // Who asked may be gone.
    let _ = out.send(told).await;
}

fn part(part: Part) -> v1::BackupDatabaseResponse {
    v1::BackupDatabaseResponse { part: Some(part) }
}

/// None: nobody listens any more.
async fn send_file(
    copy: StoreCopy,
    out: &mpsc::Sender<Sent>,
) -> std::io::Result<Option<v1::BackupSummary>> {
    let StoreCopy { file, bytes, report } = copy;
    let mut file = tokio::fs::File::from_std(file);
    let mut digest = Sha256::new();
    loop {
        let mut chunk = Vec::with_capacity(CHUNK);
        if (&mut file).take(CHUNK as u64).read_to_end(&mut chunk).await? == 0 {
            break;
        }
        digest.update(&chunk);
        if out.send(Ok(part(Part::Chunk(chunk)))).await.is_err() {
            return Ok(None);
        }
    }
    Ok(Some(v1::BackupSummary {
        bytes,
        sha256: digest.finalize().to_vec(),
        entries: report.entries,
        runs: report.runs,
        head_hash: report.head.0.to_vec(),
        intact: report.faults.is_empty(),
    }))
}
