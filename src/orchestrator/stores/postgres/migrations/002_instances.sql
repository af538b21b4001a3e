-- Agents may have several instances, and runs of a session may go beside each other.
-- serves: 1
-- To a program of schema 1 an agent has the endpoint that was registered last, and runs wait in line.
CREATE TABLE instances (
    tenant TEXT COLLATE "C" NOT NULL,
    agent_id TEXT COLLATE "C" NOT NULL,
    instance_id TEXT COLLATE "C" NOT NULL,
    endpoint TEXT NOT NULL,
    version TEXT,
    operator BOOLEAN NOT NULL,
    max_concurrency BIGINT,
    draining BOOLEAN NOT NULL,
    last_heartbeat BIGINT,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    PRIMARY KEY (tenant, agent_id, instance_id)
);
INSERT INTO instances (
    tenant, agent_id, instance_id, endpoint, version, operator, max_concurrency, draining,
    last_heartbeat, created_at, updated_at)
SELECT tenant, agent_id, coalesce(instance_id, 'default'), endpoint, version, operator,
    max_concurrency, draining, last_heartbeat, created_at, updated_at FROM agents;

ALTER TABLE runs ADD COLUMN parallel BOOLEAN NOT NULL DEFAULT false;
-- How many children a run has open is counted with each new one, however many it has had.
CREATE INDEX runs_of_parent_open ON runs (parent_run_id, key)
    WHERE parent_run_id IS NOT NULL
      AND status IN ('CREATED', 'RUNNING', 'PAUSED_WAITING_TOOL', 'PAUSED_WAITING_APPROVAL');
