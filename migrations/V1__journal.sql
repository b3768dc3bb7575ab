-- The journal, and what is derived from it. See docs/journal.md.

-- One row a run. Everything but the first block is derived from the journal.
CREATE TABLE runs (
    place      INTEGER PRIMARY KEY,          -- order of submission, from 1
    id         TEXT    NOT NULL UNIQUE,
    caller     TEXT    NOT NULL,
    request_id TEXT,
    digest     BLOB    NOT NULL,             -- SHA-256 of the submission
    spec       TEXT    NOT NULL,             -- what was submitted, JSON, redacted, shortened
    created_us INTEGER NOT NULL,             -- microseconds since 1970, UTC

    state      TEXT    NOT NULL,
    status     TEXT    NOT NULL,             -- usage, answer and error, JSON, redacted
    head       INTEGER NOT NULL,             -- sequence of the last entry
    head_hash  BLOB    NOT NULL,
    updated_us INTEGER NOT NULL
) STRICT;

CREATE UNIQUE INDEX runs_by_request ON runs (caller, request_id) WHERE request_id IS NOT NULL;
CREATE INDEX runs_unended ON runs (place) WHERE state NOT IN ('SUCCEEDED', 'FAILED', 'CANCELLED');

-- The journal: append-only, gapless in position, gapless in sequence within a run.
CREATE TABLE entries (
    position        INTEGER PRIMARY KEY,
    run             INTEGER NOT NULL,        -- runs.place; 0 is the daemon's own chain
    sequence        INTEGER NOT NULL,
    time_us         INTEGER NOT NULL,
    kind            TEXT    NOT NULL,
    version         INTEGER NOT NULL,
    view            TEXT    NOT NULL,        -- JSON, redacted
    body            BLOB,                    -- the whole record, sealed; none when the view is all
    body_digest     BLOB,                    -- SHA-256 of body
    policy_revision TEXT,
    previous        BLOB    NOT NULL,
    hash            BLOB    NOT NULL
) STRICT;

CREATE UNIQUE INDEX entries_by_run ON entries (run, sequence);

CREATE TRIGGER entries_are_not_updated BEFORE UPDATE ON entries
BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;

CREATE TRIGGER entries_are_not_deleted BEFORE DELETE ON entries
BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;

-- One row: which lifetime of the daemon owns the store.
CREATE TABLE owner (
    id    INTEGER PRIMARY KEY CHECK (id = 1),
    epoch INTEGER NOT NULL
) STRICT;

INSERT INTO owner (id, epoch) VALUES (1, 0);
