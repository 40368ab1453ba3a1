-- find_tiles --
-- Tiles by id. Unknown ids are left out.
SELECT {tile_columns}
FROM tiles t
WHERE t.tile_uuid = ANY(%(tile_uuids)s::uuid[]);


-- copy_tiles --
-- Inserts new tiles in bulk. Fails as a whole if a key is stored already.
COPY tiles (
    tile_uuid, location_hash, zoom, x, y, tile_size_pixels, latitude, longitude,
    tile_size_meters, content_sha256, disk_bytes, captured_at, created_at, file_path,
    tile_quality_metadata, source, flight_id, freshness_status, uploaded_at
) FROM STDIN (FORMAT binary);

-- insert_tiles --
-- Inserts the tiles whose key is not stored yet, and returns their ids.
INSERT INTO tiles (
    tile_uuid, location_hash, zoom, x, y, source, flight_id, latitude, longitude,
    tile_size_meters, tile_size_pixels, file_path, content_sha256, disk_bytes, captured_at,
    tile_quality_metadata, uploaded_at, freshness_status, created_at
)
SELECT n.*, %(created_at)s
FROM unnest(
    %(tile_uuid)s::uuid[], %(location_hash)s::uuid[], %(zoom)s::int[], %(x)s::int[],
    %(y)s::int[], %(source)s::text[], %(flight_id)s::uuid[], %(latitude)s::float8[],
    %(longitude)s::float8[], %(tile_size_meters)s::float8[], %(tile_size_pixels)s::int[],
    %(file_path)s::text[], %(content_sha256)s::text[], %(disk_bytes)s::bigint[],
    %(captured_at)s::timestamptz[], %(quality_metadata)s::jsonb[],
    %(uploaded_at)s::timestamptz[], %(freshness_label)s::text[]
) AS n
ON CONFLICT DO NOTHING
RETURNING tile_uuid::text;

-- lock_conflict_resolution --
-- One writer at a time resolves conflicts, so that two of them cannot deadlock.
SELECT pg_advisory_xact_lock(%(key)s::bigint);

-- lock_tiles --
-- Tiles by id, locked in the order of their keys so that writers cannot deadlock.
SELECT {tile_columns}
FROM tiles t
WHERE t.tile_uuid = ANY(%(tile_uuids)s::uuid[])
ORDER BY t.zoom, t.x, t.y, t.source, t.flight_id
FOR UPDATE;

-- replace_tile --
-- Replaces the content of a stored tile. Different content waits for upload again, unless the new
-- tile was uploaded.
UPDATE tiles t
SET latitude = %(latitude)s,
    longitude = %(longitude)s,
    tile_size_meters = %(tile_size_meters)s,
    tile_size_pixels = %(tile_size_pixels)s,
    file_path = %(file_path)s,
    content_sha256 = %(content_sha256)s,
    disk_bytes = %(disk_bytes)s,
    captured_at = %(captured_at)s,
    tile_quality_metadata = %(quality_metadata)s::jsonb,
    freshness_status = %(freshness_label)s,
    uploaded_at = coalesce(
        CASE WHEN content_sha256 = %(content_sha256)s THEN uploaded_at END,
        %(uploaded_at)s::timestamptz
    )
WHERE t.tile_uuid = %(tile_uuid)s::uuid
RETURNING {tile_columns};

-- compare_updates --
-- Whether tiles have the given contents, and whether corrections would change them. NULL changes
-- nothing. The rows are locked in the order of their keys, as by `lock_tiles`.
SELECT t.tile_uuid::text,
       coalesce(t.content_sha256 = given.content_sha256, false),
       (t.captured_at, t.file_path, t.tile_quality_metadata) IS DISTINCT FROM (
           coalesce(given.captured_at, t.captured_at),
           coalesce(given.file_path, t.file_path),
           coalesce(given.quality_metadata, t.tile_quality_metadata)
       )
FROM tiles t
JOIN unnest(
    %(tile_uuid)s::uuid[], %(content_sha256)s::text[], %(captured_at)s::timestamptz[],
    %(file_path)s::text[], %(quality_metadata)s::jsonb[]
) AS given (tile_uuid, content_sha256, captured_at, file_path, quality_metadata) USING (tile_uuid)
ORDER BY t.zoom, t.x, t.y, t.source, t.flight_id
FOR UPDATE OF t;

-- update_tiles --
-- Corrects tiles, and labels them by the rules of now. NULL changes nothing. Labels of revision 0001
-- stay. While the clock is not trusted, a tile in a sector with a rule becomes `downgraded` rather
-- than `fresh`, as when it is inserted, unless its capture time stays.
WITH corrected AS (
    SELECT s.id, s.latitude, s.longitude, s.freshness_status AS old_label,
           coalesce(given.captured_at, s.captured_at) AS captured_at,
           coalesce(given.file_path, s.file_path) AS file_path,
           coalesce(given.quality_metadata, s.tile_quality_metadata) AS quality_metadata,
           coalesce(given.captured_at, s.captured_at) <> s.captured_at AS recaptured
    FROM tiles s
    JOIN unnest(
        %(tile_uuid)s::uuid[], %(captured_at)s::timestamptz[], %(file_path)s::text[],
        %(quality_metadata)s::jsonb[]
    ) AS given (tile_uuid, captured_at, file_path, quality_metadata) USING (tile_uuid)
), verdict AS (
    SELECT t.*, coalesce(rule.label, 'fresh') AS new_label, rule.label IS NOT NULL AS aged
    FROM corrected AS t
    LEFT JOIN LATERAL ({rule_label}) AS rule (label) ON true
)
UPDATE tiles t
SET captured_at = verdict.captured_at,
    file_path = verdict.file_path,
    tile_quality_metadata = verdict.quality_metadata,
    freshness_status = CASE
        WHEN verdict.old_label NOT IN ('fresh', 'downgraded', 'rejected') THEN verdict.old_label
        WHEN %(clock_trusted)s OR NOT verdict.aged OR verdict.new_label <> 'fresh'
            THEN verdict.new_label
        WHEN verdict.recaptured THEN 'downgraded'
        ELSE verdict.old_label
    END
FROM verdict
WHERE t.id = verdict.id;

-- list_tiles --
-- A page of the tiles that pass a filter, by row id after a position: their records in one row and
-- their ids. Where the page is not full, also the last id and the number of the rows that were
-- looked at, which are limited: a filter that few tiles pass would otherwise read the whole table.
WITH scanned AS NOT MATERIALIZED (
    SELECT * FROM tiles WHERE id > %(after)s ORDER BY id LIMIT %(scan_limit)s
)
SELECT {tile_records}, coalesce(array_agg(t.id), '{}'),
       CASE WHEN count(*) < %(limit)s::int
           THEN (SELECT ARRAY[coalesce(max(id), %(after)s::bigint), count(*)] FROM scanned)
       END
FROM (
    SELECT *
    FROM scanned s
    WHERE (%(zooms)s::int[] IS NULL OR s.zoom = ANY(%(zooms)s::int[]))
      AND (%(sources)s::text[] IS NULL OR s.source = ANY(%(sources)s::text[]))
      AND (%(flight_id)s::uuid IS NULL OR s.flight_id = %(flight_id)s::uuid)
      AND (%(captured_after)s::timestamptz IS NULL
           OR s.captured_at > %(captured_after)s::timestamptz)
      AND (%(captured_before)s::timestamptz IS NULL
           OR s.captured_at < %(captured_before)s::timestamptz)
      AND (%(labels)s::text[] IS NULL OR s.freshness_status = ANY(%(labels)s::text[]))
      AND (NOT %(pending_upload)s OR (s.source = 'onboard_ingest' AND s.uploaded_at IS NULL))
    ORDER BY s.id
    LIMIT %(limit)s::int
) AS t;

-- list_tiles_of_files --
-- A page of the tiles that name one of these files, as `list_tiles`. The files are found first, by
-- their index, however few tiles a page may have.
WITH named AS MATERIALIZED (
    SELECT * FROM tiles WHERE file_path = ANY(%(file_paths)s::text[])
)
SELECT {tile_records}, coalesce(array_agg(t.id), '{}')
FROM (
    SELECT * FROM named n WHERE n.id > %(after)s ORDER BY n.id LIMIT %(limit)s
) AS t;

-- number_accesses --
-- Assigns positions in the order of use to accesses, in the order in which they were made.
-- Skips tiles whose last written access is recent, but not those of a clock that was ahead.
SELECT due.id, due.tile_uuid::text, due.accessed_at, nextval('tile_access_order_seq')
FROM (
    SELECT t.id, access.tile_uuid, access.accessed_at
    FROM unnest(%(tile_uuids)s::uuid[], %(accessed_at)s::timestamptz[])
             WITH ORDINALITY AS access (tile_uuid, accessed_at, position)
    JOIN tiles t USING (tile_uuid)
    WHERE t.accessed_at IS NULL
       OR t.accessed_at <= access.accessed_at - %(recent)s::interval
       OR t.accessed_at > access.accessed_at + interval '1 day'
    ORDER BY access.position
) AS due;

-- write_accesses --
-- Writes accesses and their positions, and returns the ids of the updated rows. Skips rows
-- that another writer has locked, and rows with a later access.
WITH locked AS (
    SELECT t.id, access.accessed_at, access.access_order
    FROM tiles t
    JOIN unnest(%(ids)s::bigint[], %(accessed_at)s::timestamptz[], %(orders)s::bigint[])
             AS access (id, accessed_at, access_order) USING (id)
    WHERE t.access_order < access.access_order
    FOR UPDATE OF t SKIP LOCKED
)
UPDATE tiles t
SET accessed_at = locked.accessed_at, access_order = locked.access_order
FROM locked
WHERE t.id = locked.id
RETURNING t.id;
