-- The first schema. Columns have the names of the records' fields, which are the wire's names.
CREATE TABLE sessions (
    tenant TEXT NOT NULL,
    session_id TEXT NOT NULL,
    user_id TEXT,
    pos INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (tenant, session_id)
) WITHOUT ROWID;
CREATE INDEX sessions_by_age ON sessions (tenant, created_at);

CREATE TABLE messages (
    message_id TEXT PRIMARY KEY,
    tenant TEXT NOT NULL,
    session_id TEXT NOT NULL,
    run_id TEXT,
    role TEXT NOT NULL,
    content TEXT NOT NULL,
    metadata TEXT,
    pos INTEGER NOT NULL,
    created_at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX messages_in_order ON messages (tenant, session_id, pos);
CREATE INDEX messages_of_run ON messages (run_id);

CREATE TABLE runs (
    key INTEGER PRIMARY KEY AUTOINCREMENT,
    run_id TEXT NOT NULL UNIQUE,
    tenant TEXT NOT NULL,
    session_id TEXT NOT NULL,
    agent_id TEXT NOT NULL,
    status TEXT NOT NULL CHECK (status IN (
        'CREATED', 'RUNNING', 'PAUSED_WAITING_TOOL', 'PAUSED_WAITING_APPROVAL',
        'DONE', 'FAILED', 'CANCELLED')),
    version INTEGER NOT NULL,
    head INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    owner TEXT,
    attempt INTEGER NOT NULL,
    attempt_seq INTEGER NOT NULL,
    forks TEXT NOT NULL,
    parent_run_id TEXT,
    depth INTEGER NOT NULL,
    request_id TEXT,
    labels TEXT NOT NULL,
    message_id TEXT NOT NULL,
    trimmed INTEGER NOT NULL,
    error_code TEXT,
    error_message TEXT,
    final_message TEXT,
    usage TEXT,
    created_at INTEGER NOT NULL,
    started_at INTEGER,
    ended_at INTEGER,
    deadline_at INTEGER NOT NULL
);
CREATE INDEX runs_of_tenant ON runs (tenant, key);
CREATE INDEX runs_of_session ON runs (tenant, session_id, key);
CREATE INDEX runs_of_parent ON runs (parent_run_id) WHERE parent_run_id IS NOT NULL;
CREATE INDEX runs_ready ON runs (key) WHERE status IN ('CREATED', 'RUNNING');
CREATE INDEX runs_holding ON runs (tenant, session_id, key)
    WHERE status IN ('CREATED', 'RUNNING') AND parent_run_id IS NULL;
CREATE INDEX runs_ended ON runs (ended_at) WHERE ended_at IS NOT NULL;

CREATE TABLE invocations (
    run_id TEXT PRIMARY KEY,
    role TEXT NOT NULL,
    content TEXT NOT NULL,
    context TEXT,
    traceparent TEXT,
    timeout_ms INTEGER
) WITHOUT ROWID;

-- One row holds n consecutive events of a run as a JSON array; its key is run key << 32 | first seq.
CREATE TABLE segments (
    key INTEGER PRIMARY KEY,
    n INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    ts INTEGER NOT NULL,
    data BLOB NOT NULL
);
CREATE VIEW events AS
SELECT
    json_extract(e.value, '$.event_id') AS event_id,
    json_extract(e.value, '$.run_id') AS run_id,
    json_extract(e.value, '$.seq') AS seq,
    json_extract(e.value, '$.ts') AS ts,
    json_extract(e.value, '$.type') AS type,
    json_extract(e.value, '$.payload') AS payload
FROM segments AS s, json_each(CAST(s.data AS TEXT)) AS e;

CREATE TABLE agents (
    tenant TEXT NOT NULL,
    agent_id TEXT NOT NULL,
    name TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    protocol TEXT NOT NULL,
    capabilities TEXT NOT NULL,
    status TEXT NOT NULL,
    auth BLOB,
    version TEXT,
    instance_id TEXT,
    timeouts TEXT NOT NULL,
    retry TEXT NOT NULL,
    on_lost TEXT NOT NULL,
    max_concurrency INTEGER,
    draining INTEGER NOT NULL,
    last_heartbeat INTEGER,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (tenant, agent_id)
) WITHOUT ROWID;

CREATE TABLE idempotency_keys (
    tenant TEXT NOT NULL,
    scope TEXT NOT NULL,
    key TEXT NOT NULL,
    digest BLOB NOT NULL,
    ref TEXT NOT NULL,
    run_id TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (tenant, scope, key)
) WITHOUT ROWID;
CREATE INDEX idempotency_keys_of_run ON idempotency_keys (run_id);

CREATE TABLE timers (
    run_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    due_at INTEGER NOT NULL,
    PRIMARY KEY (run_id, kind)
) WITHOUT ROWID;
CREATE INDEX timers_due ON timers (due_at);

CREATE TABLE leases (owner TEXT PRIMARY KEY, expires_at INTEGER NOT NULL) WITHOUT ROWID;

CREATE TABLE cursors (
    follower TEXT NOT NULL,
    run_id TEXT NOT NULL,
    seq INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (follower, run_id)
) WITHOUT ROWID;

CREATE TABLE blobs (name TEXT PRIMARY KEY, data BLOB NOT NULL, created_at INTEGER NOT NULL) WITHOUT ROWID;
