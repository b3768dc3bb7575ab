-- What people are asked about: one row for each approval_requested that nobody has answered. Derived from the journal.
CREATE TABLE approvals (
    position   INTEGER PRIMARY KEY,          -- of the entry that asks
    run        INTEGER NOT NULL,             -- runs.place
    call       TEXT    NOT NULL,             -- turn and place in its answer: 3.0
    expires_us INTEGER NOT NULL              -- microseconds since 1970, UTC
) STRICT;

CREATE UNIQUE INDEX approvals_by_call ON approvals (run, call);
CREATE INDEX approvals_by_expiry ON approvals (expires_us);

-- How runs stood at some of their entries, so that a long one can be opened without reading all of them. Derived from the
-- journal, and sealed, since it is whole.
CREATE TABLE checkpoints (
    run      INTEGER PRIMARY KEY,            -- runs.place
    sequence INTEGER NOT NULL,               -- of the last entry that is in it
    state    BLOB    NOT NULL                -- the state without its conversation, sealed
) STRICT;

-- The conversations, in pieces: a checkpoint adds only what was said since the one before it.
CREATE TABLE checkpoint_items (
    place INTEGER PRIMARY KEY,
    run   INTEGER NOT NULL,                  -- runs.place
    first INTEGER NOT NULL,                  -- place of its first item in the conversation, from 0
    items BLOB    NOT NULL                   -- sealed
) STRICT;

CREATE UNIQUE INDEX checkpoint_items_by_run ON checkpoint_items (run, first);

-- When the store was restored from a backup, until a daemon has made its runs stand still; microseconds since 1970, UTC.
ALTER TABLE owner ADD COLUMN restored_us INTEGER;

-- What is left of entries whose run was pruned: enough to follow the chains, and the digest of the whole journal, past them.
CREATE TABLE pruned_entries (
    position INTEGER PRIMARY KEY,
    run      INTEGER NOT NULL,               -- runs.place
    sequence INTEGER NOT NULL,
    hash     BLOB    NOT NULL
) STRICT;

CREATE TRIGGER pruned_entries_are_not_updated BEFORE UPDATE ON pruned_entries
BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;

CREATE TRIGGER pruned_entries_are_not_deleted BEFORE DELETE ON pruned_entries
BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;

DROP TRIGGER entries_are_not_deleted;

CREATE TRIGGER entries_are_not_deleted BEFORE DELETE ON entries
WHEN NOT EXISTS (SELECT 1 FROM pruned_entries WHERE position = OLD.position AND hash = OLD.hash)
BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;

-- When what the run held was pruned; microseconds since 1970, UTC. And whether that is still under way.
ALTER TABLE runs ADD COLUMN pruned_us INTEGER;
ALTER TABLE runs ADD COLUMN is_pruning INTEGER NOT NULL DEFAULT 0;

CREATE INDEX runs_ended ON runs (state, updated_us)
WHERE state IN ('SUCCEEDED', 'FAILED', 'CANCELLED') AND pruned_us IS NULL;
CREATE INDEX runs_pruning ON runs (place) WHERE is_pruning = 1;

-- Long texts that views hold, each once: what tools print and models write comes back in one entry after the other.
CREATE TABLE texts (
    id     INTEGER PRIMARY KEY,
    digest BLOB    NOT NULL UNIQUE,          -- SHA-256 of text
    text   TEXT    NOT NULL                  -- a JSON string with its quotes, as it stands in the view
) STRICT;

-- Which of them stand in which view.
CREATE TABLE entry_texts (
    position INTEGER NOT NULL,
    at       INTEGER NOT NULL,               -- byte of the view without its long texts that this one belongs to; "" is there
    text     INTEGER NOT NULL,               -- texts.id
    PRIMARY KEY (position, at)
) STRICT, WITHOUT ROWID;

CREATE INDEX entry_texts_by_text ON entry_texts (text);

-- How many long texts of the view stand beside it.
ALTER TABLE entries ADD COLUMN texts INTEGER NOT NULL DEFAULT 0;

CREATE TRIGGER texts_are_not_updated BEFORE UPDATE ON texts
BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;

CREATE TRIGGER texts_are_not_deleted BEFORE DELETE ON texts
WHEN EXISTS (SELECT 1 FROM entry_texts WHERE text = OLD.id)
BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;

CREATE TRIGGER entry_texts_are_not_updated BEFORE UPDATE ON entry_texts
BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;

CREATE TRIGGER entry_texts_are_not_deleted BEFORE DELETE ON entry_texts
WHEN EXISTS (SELECT 1 FROM entries WHERE position = OLD.position)
BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;
