-- latest_time_seen --
-- The latest time that this database has recorded, which must be past.
SELECT greatest(
    (SELECT max(accessed_at) FROM tiles),
    (SELECT created_at FROM tiles ORDER BY id DESC LIMIT 1)
);

-- announce --
-- The last notification of a transaction: those of all its changes precede it.
SELECT pg_notify('tilecache_changes', %(payload)s);

-- name_writer --
-- Adds the writer to the notifications of this transaction's changes.
SELECT set_config('tilecache.writer', %(writer)s, true);

-- limit_lock_wait --
-- Limits the wait for each lock for the rest of the transaction.
SET LOCAL lock_timeout = '20ms';
