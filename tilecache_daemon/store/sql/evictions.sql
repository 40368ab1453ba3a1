-- lock_eviction --
-- One eviction at a time selects candidates.
SELECT pg_advisory_xact_lock(%(key)s::bigint);

-- lock_files_for_naming --
-- Keeps files that tiles name off the list of removals until the transaction ends. Writers that
-- name files do not wait for each other. Taken before any row is locked.
SELECT pg_advisory_xact_lock_shared(%(key)s::bigint);

-- lock_files_for_listing --
-- The same for a writer that lists files: it is alone.
SELECT pg_advisory_xact_lock(%(key)s::bigint);

-- list_evictable --
-- Tiles in the order of use after a position, the least recently used first, without those that
-- wait for upload, those that free nothing and those that pins hold.
SELECT {tile_columns}, t.id, t.access_order
FROM tiles t
WHERE (t.access_order, t.id) > (%(after_order)s, %(after_id)s)
  AND (t.source <> 'onboard_ingest' OR t.uploaded_at IS NOT NULL)
  AND t.disk_bytes > 0
  AND (%(include_pinned)s OR ({pinned}) IS NULL)
ORDER BY t.access_order, t.id
LIMIT %(limit)s;

-- list_evictable_with_pending --
-- The same with those that wait for upload; each half reads an index of its own.
(
    SELECT {tile_columns}, t.id, t.access_order
    FROM tiles t
    WHERE (t.access_order, t.id) > (%(after_order)s, %(after_id)s)
      AND (t.source <> 'onboard_ingest' OR t.uploaded_at IS NOT NULL)
      AND t.disk_bytes > 0
      AND (%(include_pinned)s OR ({pinned}) IS NULL)
    ORDER BY t.access_order, t.id
    LIMIT %(limit)s
) UNION ALL (
    SELECT {tile_columns}, t.id, t.access_order
    FROM tiles t
    WHERE (t.access_order, t.id) > (%(after_order)s, %(after_id)s)
      AND t.source = 'onboard_ingest' AND t.uploaded_at IS NULL
      AND t.disk_bytes > 0
      AND (%(include_pinned)s OR ({pinned}) IS NULL)
    ORDER BY t.access_order, t.id
    LIMIT %(limit)s
)
ORDER BY access_order, id
LIMIT %(limit)s;

-- last_evictable --
-- The position of the most recently used of the tiles that `list_evictable` reads.
SELECT t.access_order, t.id
FROM tiles t
WHERE (t.source <> 'onboard_ingest' OR t.uploaded_at IS NOT NULL)
  AND t.disk_bytes > 0
ORDER BY t.access_order DESC, t.id DESC
LIMIT 1;

-- evict_tiles --
-- Deletes tiles and lists their files for removal, in one statement. Skips tiles that were used
-- since they were chosen, that wait for upload or are pinned by now, or that another writer has
-- locked. A file that another tile names is not listed: its eviction has the id 0.
WITH locked AS (
    SELECT t.id
    FROM tiles t
    JOIN unnest(%(ids)s::bigint[], %(orders)s::bigint[]) AS chosen (id, access_order)
      USING (id, access_order)
    WHERE (%(include_pending)s OR t.source <> 'onboard_ingest' OR t.uploaded_at IS NOT NULL)
      AND (%(include_pinned)s OR ({pinned}) IS NULL)
    FOR UPDATE OF t SKIP LOCKED
), deleted AS (
    DELETE FROM tiles t USING locked WHERE t.id = locked.id RETURNING t.*
), named AS (
    SELECT t.file_path
    FROM deleted
    JOIN tiles t USING (file_path)
    WHERE t.id NOT IN (SELECT id FROM deleted)
), files AS (
    SELECT DISTINCT ON (file_path) *
    FROM deleted
    WHERE file_path NOT IN (SELECT file_path FROM named)
    ORDER BY file_path, access_order, id
), listed AS (
    INSERT INTO tile_evictions (
        tile_uuid, zoom, x, y, source, flight_id, file_path, content_sha256, disk_bytes,
        accessed_at, evicted_at, reason
    )
    SELECT tile_uuid, zoom, x, y, source, flight_id, file_path, content_sha256, disk_bytes,
           accessed_at, %(now)s, %(reason)s
    FROM files
    ORDER BY access_order, id
    RETURNING id, tile_uuid
)
SELECT coalesce(listed.id, 0), tile_uuid::text, e.zoom, e.x, e.y, e.source, e.flight_id::text,
       e.file_path, e.content_sha256, e.disk_bytes, %(now)s::timestamptz, e.accessed_at,
       %(reason)s
FROM deleted AS e
-- All that is listed was deleted. A full join cannot compare each with each, which the planner
-- chooses otherwise, because it expects one row.
FULL JOIN listed USING (tile_uuid)
ORDER BY e.access_order, e.id;

-- list_replaced_file --
-- Lists the former file of a replaced tile for removal, unless a tile names it.
INSERT INTO tile_evictions (
    tile_uuid, zoom, x, y, source, flight_id, file_path, content_sha256, disk_bytes,
    accessed_at, evicted_at, reason
)
SELECT t.tile_uuid, t.zoom, t.x, t.y, t.source, t.flight_id, %(file_path)s,
       %(content_sha256)s::text, %(disk_bytes)s::bigint, t.accessed_at, %(now)s, 'replaced'
FROM tiles t
WHERE t.tile_uuid = %(tile_uuid)s::uuid
  AND NOT EXISTS (SELECT FROM tiles n WHERE n.file_path = %(file_path)s);

-- list_evictions --
-- Evictions after a position, oldest first.
SELECT {eviction_columns}
FROM tile_evictions e
WHERE e.id > %(after_id)s
ORDER BY e.id
LIMIT %(limit)s;

-- list_evictions_of_files --
-- The same, of some files.
WITH listed AS MATERIALIZED (
    SELECT * FROM tile_evictions WHERE file_path = ANY(%(file_paths)s::text[])
)
SELECT {eviction_columns}
FROM listed e
WHERE e.id > %(after_id)s
ORDER BY e.id
LIMIT %(limit)s;

-- confirm_evictions --
-- Removes evictions from the list; returns those whose file no tile names.
WITH confirmed AS (
    DELETE FROM tile_evictions WHERE id = ANY(%(ids)s::bigint[]) RETURNING id, file_path
)
SELECT id
FROM confirmed
WHERE NOT EXISTS (SELECT FROM tiles t WHERE t.file_path = confirmed.file_path);

-- is_any_file_listed --
-- Whether any file is listed for removal.
SELECT EXISTS (SELECT FROM tile_evictions);

-- find_listed_files --
-- Which of these files, one per line, are listed for removal.
SELECT DISTINCT file_path
FROM tile_evictions
WHERE file_path = ANY(string_to_array(%(file_paths)s, E'\n'));

-- list_deletable --
-- Tiles of a zoom in a rectangle of cells that match a purge, after a position.
SELECT {tile_columns}, t.id, t.access_order
FROM tiles t
WHERE t.zoom = %(zoom)s
  AND t.x BETWEEN %(x_from)s AND %(x_to)s
  AND t.y BETWEEN %(y_from)s AND %(y_to)s
  AND (t.x, t.y, t.id) > (%(after_x)s, %(after_y)s, %(after_id)s)
  AND (%(sources)s::text[] IS NULL OR t.source = ANY(%(sources)s::text[]))
  AND (%(captured_before)s::timestamptz IS NULL OR t.captured_at < %(captured_before)s)
  AND (%(flight_id)s::uuid IS NULL OR t.flight_id = %(flight_id)s::uuid)
ORDER BY t.x, t.y, t.id
LIMIT %(limit)s;

-- list_deletable_by_capture --
-- Tiles that match a purge, oldest capture first, after a position.
SELECT {tile_columns}, t.id, t.access_order
FROM tiles t
WHERE (t.captured_at, t.id) > ({after_captured_at}, %(after_id)s)
  AND (%(captured_before)s::timestamptz IS NULL OR t.captured_at < %(captured_before)s)
  AND t.zoom = ANY(%(zooms)s::int[])
  AND (%(sources)s::text[] IS NULL OR t.source = ANY(%(sources)s::text[]))
  AND (%(flight_id)s::uuid IS NULL OR t.flight_id = %(flight_id)s::uuid)
ORDER BY t.captured_at, t.id
LIMIT %(limit)s;

-- list_deletable_by_id --
-- Tiles by id. Unknown ids are left out.
SELECT {tile_columns}, t.id, t.access_order
FROM tiles t
WHERE t.tile_uuid = ANY(%(tile_uuids)s::uuid[])
ORDER BY t.zoom, t.x, t.y, t.source, t.flight_id;
