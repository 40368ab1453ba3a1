-- list_pending_uploads --
-- Onboard tiles that are not uploaded yet, oldest capture first, after a position.
SELECT {tile_columns}, t.id
FROM tiles t
WHERE t.source = 'onboard_ingest'
  AND t.uploaded_at IS NULL
  AND (t.captured_at, t.id) > ({after_captured_at}, %(after_id)s::bigint)
  AND (%(flight_id)s::uuid IS NULL OR t.flight_id = %(flight_id)s::uuid)
ORDER BY t.captured_at, t.id
LIMIT %(limit)s;

-- mark_uploaded --
-- Marks tiles as uploaded if they have the given content, and returns the previous state of
-- each.
WITH given AS (
    SELECT g.tile_uuid, g.content_sha256
    FROM unnest(%(tile_uuids)s::uuid[], %(content_sha256)s::text[])
             AS g (tile_uuid, content_sha256)
), before AS (
    SELECT t.id, t.tile_uuid, t.source, t.content_sha256, t.uploaded_at
    FROM tiles t
    WHERE t.tile_uuid = ANY(%(tile_uuids)s::uuid[])
    ORDER BY t.zoom, t.x, t.y, t.source, t.flight_id
    FOR UPDATE
), marked AS (
    UPDATE tiles t
    SET uploaded_at = %(now)s
    FROM before
    JOIN given USING (tile_uuid, content_sha256)
    WHERE t.id = before.id AND before.uploaded_at IS NULL AND before.source = 'onboard_ingest'
)
SELECT before.tile_uuid::text, before.source, before.content_sha256, before.uploaded_at
FROM before;
