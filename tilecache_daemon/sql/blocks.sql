-- read_blocks --
-- The tiles of a few blocks of a zoom, of each those in a rectangle of its cells.
SELECT {tile_columns}
FROM unnest(
    %(x)s::int[], %(y)s::int[],
    %(x_from)s::int[], %(x_to)s::int[], %(y_from)s::int[], %(y_to)s::int[]
) AS b (x, y, x_from, x_to, y_from, y_to)
JOIN tiles t
  ON t.zoom = %(zoom)s
 AND t.x >> 5 = b.x
 AND t.y >> 5 = b.y
 AND t.x BETWEEN b.x_from AND b.x_to
 AND t.y BETWEEN b.y_from AND b.y_to;
