-- What PostgreSQL knows of a schema, one line per part, to be compared.

SELECT line FROM (
    SELECT 1 AS part, relname AS of, attnum AS position, concat_ws(
        ' ', relname || '.' || attname, format_type(atttypid, atttypmod),
        CASE WHEN attnotnull THEN 'NOT NULL' END,
        'DEFAULT ' || pg_get_expr(adbin, adrelid),
        'IDENTITY ' || nullif(attidentity::text, '')
    ) AS line
    FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid
    LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
    WHERE relkind = 'r' AND attnum > 0 AND NOT attisdropped
        AND relnamespace = 'public'::regnamespace
    UNION ALL
    -- NOT NULL, a constraint of its own since 18, is told with its column.
    SELECT 2, conrelid::regclass::text, 0,
        concat_ws(' ', conrelid::regclass, conname, pg_get_constraintdef(oid))
    FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND contype <> 'n'
    UNION ALL
    SELECT 3, tablename, 0, indexdef FROM pg_indexes WHERE schemaname = 'public'
    UNION ALL
    SELECT 4, seqrelid::regclass::text, 0, concat_ws(
        ' ', 'SEQUENCE', seqrelid::regclass, format_type(seqtypid, NULL),
        seqstart, seqincrement, 'OWNED BY', refobjid::regclass::text || '.' || attname
    )
    FROM pg_sequence
    LEFT JOIN pg_depend ON objid = seqrelid AND deptype IN ('a', 'i')
    LEFT JOIN pg_attribute ON attrelid = refobjid AND attnum = refobjsubid
    UNION ALL
    SELECT 5, tgrelid::regclass::text, 0, pg_get_triggerdef(oid) FROM pg_trigger
    WHERE NOT tgisinternal
    UNION ALL
    -- However its body is laid out.
    SELECT 6, proname, 0, regexp_replace(
        regexp_replace(pg_get_functiondef(oid), '\s+', ' ', 'g'), ' ?([(),]) ?', '\1', 'g'
    )
    FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND prokind = 'f'
) AS parts
WHERE of <> 'alembic_version'
ORDER BY part, of, position, line
