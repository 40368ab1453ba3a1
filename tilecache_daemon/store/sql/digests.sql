-- next_blocks --
-- The next blocks of a zoom that have tiles, after a position, in the order of the index of blocks:
-- a probe of it for each.
WITH RECURSIVE found AS (
    (SELECT t.x >> 5 AS x, t.y >> 5 AS y, 1 AS number
     FROM tiles t
     WHERE t.zoom = %(zoom)s AND (t.x >> 5, t.y >> 5) > (%(after_x)s::int, %(after_y)s::int)
     ORDER BY t.x >> 5, t.y >> 5
     LIMIT 1)
    UNION ALL
    SELECT following.x, following.y, f.number + 1
    FROM found f
    CROSS JOIN LATERAL (
        SELECT t.x >> 5 AS x, t.y >> 5 AS y
        FROM tiles t
        WHERE t.zoom = %(zoom)s AND (t.x >> 5, t.y >> 5) > (f.x, f.y)
        ORDER BY t.x >> 5, t.y >> 5
        LIMIT 1
    ) AS following
    WHERE f.number < %(limit)s::int
)
SELECT x, y FROM found ORDER BY number;

-- digest_blocks --
-- The number of tiles and the digest of some blocks of a zoom, in order. Blocks without tiles are
-- left out.
SELECT b.x, b.y, a.*, ''::bytea, ''::bytea
FROM unnest(%(block_x)s::int[], %(block_y)s::int[]) WITH ORDINALITY AS b (x, y, position)
CROSS JOIN LATERAL (
    SELECT count(*), sha256(string_agg({digested_record}, ''::bytea ORDER BY t.tile_uuid))
    FROM tiles t
    WHERE t.zoom = %(zoom)s AND t.x >> 5 = b.x AND t.y >> 5 = b.y
    HAVING count(*) > 0
) AS a
ORDER BY b.position;

-- digest_tiles --
-- The same, and the ids of the tiles and the first 8 bytes of their digests. OFFSET 0 has each record
-- computed once.
SELECT b.x, b.y, a.*
FROM unnest(%(block_x)s::int[], %(block_y)s::int[]) WITH ORDINALITY AS b (x, y, position)
CROSS JOIN LATERAL (
    SELECT count(*), sha256(string_agg(r.record, ''::bytea ORDER BY r.tile_uuid)),
           string_agg(uuid_send(r.tile_uuid), ''::bytea ORDER BY r.tile_uuid),
           string_agg(substr(sha256(r.record), 1, 8), ''::bytea ORDER BY r.tile_uuid)
    FROM (
        SELECT t.tile_uuid, {digested_record} AS record
        FROM tiles t
        WHERE t.zoom = %(zoom)s AND t.x >> 5 = b.x AND t.y >> 5 = b.y
        OFFSET 0
    ) AS r
    HAVING count(*) > 0
) AS a
ORDER BY b.position;
