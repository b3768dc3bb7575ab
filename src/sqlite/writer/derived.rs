//! What the writer keeps beside the journal, in the same transaction: the list of what people are asked, and how runs
//! stood. All of it can be made anew from the journal; `verify` compares.

use rusqlite::params;

use crate::{
    domain::{
        ids::{Position, RunId},
        journal::Record,
    },
    ports::NewCheckpoint,
    sqlite::{
        seal::Place,
        writer::batch::{Batch, Chain, WriteError},
    },
};

impl Batch<'_> {
    /// Keeps how a run stands at the end of its chain.
    pub(super) fn keep(
        &self,
        chain: &Chain,
        run: RunId,
        checkpoint: &NewCheckpoint,
    ) -> Result<(), WriteError> {
        let NewCheckpoint { state, piece } = checkpoint;
        let state = self.seal.seal(Some(run), Place::State(chain.head), state)?;
        self.transaction
            .prepare_cached(
                "INSERT OR REPLACE INTO checkpoints (run, sequence, state) VALUES (?1, ?2, ?3)",
            )?
            .execute(params![chain.place, chain.head.0, state])?;
        let items = self.seal.seal(Some(run), Place::Piece(piece.first), &piece.items)?;
        self.transaction
            .prepare_cached("DELETE FROM checkpoint_items WHERE run = ?1 AND first >= ?2")?
            .execute(params![chain.place, piece.first])?;
        self.transaction
            .prepare_cached("INSERT INTO checkpoint_items (run, first, items) VALUES (?1, ?2, ?3)")?
            .execute(params![chain.place, piece.first, items])?;
        Ok(())
    }

    /// Keeps the list of what people are asked about.
    pub(super) fn note_question(
        &mut self,
        run: i64,
        position: Position,
        record: &Record,
    ) -> Result<(), WriteError> {
        let call = match record {
            Record::ApprovalRequested(asked) => {
                self.heads.questions += 1;
                let values = params![position.0, run, asked.call.to_string(), asked.expires.0];
                let asked = "INSERT OR REPLACE INTO approvals (position, run, call, expires_us)
                             VALUES (?1, ?2, ?3, ?4)";
                self.transaction.prepare_cached(asked)?.execute(values)?;
                return Ok(());
            }
            // Most runs never ask.
            _ if self.heads.questions == 0 => return Ok(()),
            Record::RunFinished(_) => None,
            // Decided by leave for the whole run; or about to be asked again.
            Record::Decided(decided) => Some(decided.call),
            Record::ApprovalDecided(decided) => Some(decided.call),
            Record::ToolOutput(output) => Some(output.call),
            _ => return Ok(()),
        };
        let call = call.map(|call| call.to_string());
        let answered = "DELETE FROM approvals WHERE run = ?1 AND (?2 IS NULL OR call = ?2)";
        let gone = self.transaction.prepare_cached(answered)?.execute(params![run, call])?;
        self.heads.questions = self.heads.questions.saturating_sub(gone as u64);
        Ok(())
    }
}
