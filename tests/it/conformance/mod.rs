//! One suite for every store behind `ports::Journal`: what each of them promises, a test a promise, and whatever is
//! done at random answered as the [`memory`] model answers it. How to judge another store: docs/howto/add-a-store.md.
//!
//! Nothing here looks behind the port. What only one store has (its file, its key) is tested beside that store.

mod approvals;
mod chains;
mod comparison;
mod daemon;
mod lists;
mod memory;
mod operations;
mod questions;
mod records;
mod sqlite;
mod submissions;
mod watching;
mod writing;

use agentd::{
    domain::{
        ids::{Epoch, RunId, Sequence},
        status::StateName,
    },
    ports::{Append, Created, Journal, JournalError},
};

use memory::MemoryStore;
use records::{Said, Submission, appended};
use sqlite::SqliteStore;

/// A store as the suite needs it: a journal, and what the port leaves to whoever opens it.
trait Store: Sized {
    /// An empty one in a place of its own. Its views hide what `records::redactor` knows.
    async fn new() -> Self;

    fn journal(&self) -> &dyn Journal;

    /// This lifetime's, from 1.
    fn epoch(&self) -> Epoch;

    /// Ends this lifetime in order, and begins the next in the same place.
    async fn reopened(self) -> Self;

    // What the tests say often.

    /// What makes a run of this submission.
    fn creation(&self, run: RunId, submission: &Submission) -> Append {
        submission.creation(self.epoch(), run)
    }

    /// Submits what may be refused.
    async fn submit(&self, run: RunId, submission: &Submission) -> Result<Created, JournalError> {
        let append = self.creation(run, submission);
        self.journal().create(submission.admission(), append).await
    }

    /// Makes a run.
    async fn make(&self, run: RunId, submission: &Submission) {
        assert_eq!(self.submit(run, submission).await.unwrap(), Created::New);
    }

    /// Sequence of a run's last entry.
    async fn head(&self, run: RunId) -> Sequence {
        self.journal().run(run).await.unwrap().unwrap().head
    }

    /// What follows a run's last entry, and leaves the run in this state unless it ends it.
    async fn following(&self, run: RunId, state: StateName, said: &[Said]) -> Append {
        appended(self.epoch(), run, self.head(run).await, state, said)
    }

    /// Writes to a run that goes on.
    async fn write(&self, run: RunId, said: &[Said]) {
        let append = self.following(run, StateName::Executing, said).await;
        self.journal().append(append).await.unwrap();
    }
}

/// The suite for one store. A promise that is missing here is dead code, and clippy says so.
macro_rules! suite {
    ($name:ident: $store:ident) => {
        suite! { $name: $store;
            approvals::a_question_is_listed_until_somebody_decides,
            approvals::a_question_is_listed_until_its_call_has_an_output,
            approvals::a_question_is_listed_until_its_run_ends,
            approvals::a_question_that_is_asked_anew_is_listed_once_in_its_new_place,
            approvals::questions_are_listed_in_the_order_of_asking_page_by_page,
            approvals::questions_are_listed_by_run_by_submitter_and_by_expiry,
            approvals::a_listed_question_says_who_wants_what_without_secrets,
            chains::every_entry_is_chained_to_the_one_before_it,
            chains::the_end_of_an_ended_run_is_anchored_in_the_chain_of_the_daemon,
            chains::views_hide_secrets_and_entries_do_not,
            chains::lists_hide_secrets_also_where_they_shorten_a_text,
            chains::verifying_counts_everything_and_finds_nothing_wrong,
            chains::a_head_that_was_kept_fits_the_journal_it_was_kept_of_and_no_other,
            daemon::entries_of_the_daemon_have_a_chain_of_their_own,
            daemon::entries_of_the_daemon_are_listed_newest_first_by_kind_page_by_page,
            lists::a_run_stands_as_its_last_append_says,
            writing::a_checkpoint_is_that_of_the_last_append_that_had_one_with_all_that_was_said,
            lists::a_run_that_nobody_made_is_not_there,
            lists::runs_are_listed_newest_first_page_by_page,
            lists::runs_are_listed_by_state_by_submitter_and_by_labels,
            lists::labels_are_compared_whole_whatever_their_characters,
            lists::runs_that_have_not_ended_are_listed_oldest_first,
            submissions::a_repeated_submission_makes_no_other_run_also_after_a_restart,
            submissions::submissions_that_come_together_under_one_id_make_one_run,
            submissions::another_body_under_a_known_id_is_refused_and_writes_nothing,
            submissions::an_id_is_known_only_of_the_caller_who_used_it,
            submissions::submissions_without_an_id_are_never_the_same,
            submissions::a_run_that_does_not_begin_with_its_creation_is_refused,
            watching::who_watches_a_run_is_told_of_each_new_head_and_state,
            watching::what_those_who_watch_are_told_of_is_there_to_be_read,
            watching::a_refused_append_tells_those_who_watch_nothing,
            watching::who_watches_a_run_hears_nothing_of_others,
            writing::what_is_acknowledged_is_read_back_in_order_without_a_gap,
            writing::a_page_begins_after_its_cursor_and_ends_at_its_limit,
            writing::a_page_ends_with_the_entry_that_reaches_its_bytes,
            writing::an_append_after_any_other_entry_than_the_last_is_refused_whole,
            writing::an_append_of_another_epoch_is_refused_whole,
            writing::an_append_to_a_run_that_nobody_made_is_refused_whole,
            writing::nothing_is_written_after_the_end_of_a_run,
            writing::an_append_of_nothing_changes_nothing,
            writing::a_run_is_made_once_at_its_beginning_and_by_the_owner_alone,
            writing::of_writers_who_follow_the_same_entry_one_is_let_through,
            writing::a_refused_job_leaves_the_others_of_its_batch_alone,
            writing::after_a_restart_everything_is_the_same_and_the_earlier_owner_is_refused,
        }
    };
    ($name:ident: $store:ident; $($room:ident::$promise:ident,)+) => {
        mod $name {
            use super::*;

            $(#[tokio::test]
            async fn $promise() {
                $room::$promise::<$store>().await;
            })+

            #[test]
            fn whatever_is_done_is_answered_as_the_model_answers_it() {
                comparison::check::<$store>();
            }
        }
    };
}

suite!(in_memory: MemoryStore);
suite!(in_sqlite: SqliteStore);
