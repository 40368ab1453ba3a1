-- read_blocks --
-- The tiles of a few blocks of a zoom, of each those in a rectangle of its cells: a row
-- a block, an array a column. Ranges of cells, which no index serves, keep the planner
-- at the blocks' index.
SELECT b.x, b.y, a.*
FROM unnest(
    %(x)s::int[], %(y)s::int[],
    %(x_from)s::int[], %(x_to)s::int[], %(y_from)s::int[], %(y_to)s::int[]
) AS b (x, y, x_from, x_to, y_from, y_to)
CROSS JOIN LATERAL (
    SELECT {tile_column_arrays}
    FROM tiles t
    WHERE t.zoom = %(zoom)s
      AND t.x >> 5 = b.x
      AND t.y >> 5 = b.y
      AND int4range(b.x_from, b.x_to, '[]') @> t.x
      AND int4range(b.y_from, b.y_to, '[]') @> t.y
) AS a;
