-- latest_time_seen --
-- The latest moment that this database has recorded as past.
SELECT greatest(
    (SELECT max(accessed_at) FROM tiles),
    (SELECT created_at FROM tiles ORDER BY id DESC LIMIT 1)
);

-- announce --
-- Sent last in a transaction: whoever hears it has heard of all its changes.
SELECT pg_notify('tilecache_changes', %(payload)s);

-- name_writer --
-- Changes of this transaction are this writer's own business.
SELECT set_config('tilecache.writer', %(writer)s, true);

-- limit_lock_wait --
-- The rest of the transaction waits for no lock longer than a moment.
SET LOCAL lock_timeout = '20ms';
