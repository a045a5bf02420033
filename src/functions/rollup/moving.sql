BEGIN
            -- No client can give the table another owner, a trigger or a rule from here on.
            LOCK TABLE {rejected} IN ROW EXCLUSIVE MODE;
            SELECT CASE
                WHEN {doubted_owner} <> ALL ({trusted_owners}) THEN 'it belongs to a role that is not trusted'
                WHEN EXISTS (SELECT FROM pg_catalog.pg_rewrite AS w WHERE w.ev_class = {rejected_class}::pg_catalog.oid)
                    THEN 'it has a rule'
                WHEN EXISTS (
                    SELECT FROM pg_catalog.pg_trigger AS g JOIN pg_catalog.pg_proc AS p ON p.oid = g.tgfoid
                    WHERE (NOT g.tgisinternal OR p.pronamespace <> 'pg_catalog'::pg_catalog.regnamespace::pg_catalog.oid)
                    AND (g.tgrelid = {rejected_class}::pg_catalog.oid OR g.tgrelid = ANY (
                        SELECT relid::pg_catalog.oid FROM pg_catalog.pg_partition_tree({rejected_class})
                    ))
                ) THEN 'it has a trigger'
                ELSE (
                    SELECT 'it has ' OPERATOR(pg_catalog.||) pg_catalog.string_agg(pg_catalog.format('no column %I of the type %s', a.attname,
                        pg_catalog.format_type(a.atttypid, a.atttypmod)), ', ' ORDER BY a.attnum)
                    FROM pg_catalog.pg_attribute AS a
                    WHERE a.attrelid = {queue_class}::pg_catalog.oid AND a.attnum > 0 AND NOT a.attisdropped
                    AND NOT EXISTS (
                        SELECT FROM pg_catalog.pg_attribute AS r
                        WHERE r.attrelid = {rejected_class}::pg_catalog.oid AND r.attname = a.attname
                        AND r.atttypid = a.atttypid AND r.atttypmod = a.atttypmod AND NOT r.attisdropped
                    )
                )
            END INTO refusal;
            SELECT pg_catalog.string_agg(pg_catalog.quote_ident(a.attname), ', ' ORDER BY a.attnum) INTO columns
            FROM pg_catalog.pg_attribute AS a
            WHERE a.attrelid = {queue_class}::pg_catalog.oid AND a.attnum > 0 AND NOT a.attisdropped;
            moving := pg_catalog.format('%s%s%s%s) SELECT %s%s', {delete}, columns, {insert}, columns, columns, {check});
        EXCEPTION WHEN OTHERS OR assert_failure THEN
            GET STACKED DIAGNOSTICS refusal := MESSAGE_TEXT;
        END;
