-- read_usage --
-- The usage by zoom, source, label and pending upload.
SELECT zoom, source, freshness_status, pending_upload,
       sum(tile_count)::bigint, sum(used_bytes),
       sum(unknown_size_count)::bigint
FROM tile_usage
GROUP BY zoom, source, freshness_status, pending_upload
HAVING sum(tile_count) <> 0;

-- read_used_bytes --
-- The total size of all tiles.
SELECT coalesce(sum(used_bytes), 0) FROM tile_usage;

-- read_pending_uploads --
-- How many tiles wait for upload.
SELECT coalesce(sum(tile_count), 0)::bigint FROM tile_usage WHERE pending_upload;

-- read_pending_removal --
-- The files that are listed for removal.
SELECT count(*), coalesce(sum(disk_bytes), 0)
FROM tile_evictions;

-- lock_ceiling --
-- One writer at a time checks the ceiling.
SELECT pg_advisory_xact_lock(%(key)s::bigint);

-- fold_usage --
-- Sums up the differences, unless another transaction is doing so.
WITH folded AS (
    DELETE FROM tile_usage
    WHERE pg_try_advisory_xact_lock(%(key)s::bigint)
    RETURNING *
)
INSERT INTO tile_usage
SELECT zoom, source, freshness_status, pending_upload,
       sum(tile_count), sum(used_bytes), sum(unknown_size_count)
FROM folded
GROUP BY zoom, source, freshness_status, pending_upload
HAVING sum(tile_count) <> 0 OR sum(used_bytes) <> 0 OR sum(unknown_size_count) <> 0;

-- count_usage_rows --
-- How many differences are not summed up yet.
SELECT count(*) FROM tile_usage;
