#variable_conflict use_column
-- What reads a table names variables with this label: of a bare name, a column of the table would take the place.
<<bgworker>>
DECLARE
    deadline pg_catalog.timestamptz;
    is_mine pg_catalog.bool := {claim};
    -- The deltas in the order of their keys: places, hashes of their keys, and what happens to these.
    places pg_catalog.tid[];
    hashes pg_catalog.int8[];
    treatments pg_catalog.int4[];
    codes pg_catalog.text[];
    -- The last delta of each unit, which is a key, or a delta that may be moved away; and the last unit of each treatment.
    ends pg_catalog.int4[] := '{}';
    bounds pg_catalog.int4[];
    -- The units under way, and how many were meant to be.
    low pg_catalog.int4 := 1;
    high pg_catalog.int4;
    size pg_catalog.int4;
    start pg_catalog.int4;
    part pg_catalog.tid[];
    bound pg_catalog.int4 := 0;
    -- A part up to this unit has failed; as many units in a row have not.
    failed pg_catalog.int4 := 0;
    passed pg_catalog.int4 := 0;
    attempts pg_catalog.int4 := 0;
    undone pg_catalog.int4 := 0;
    outcome pg_catalog.record;
    code pg_catalog.text;
    said pg_catalog.text;
    violated pg_catalog.text;
    field pg_catalog.text;
    what pg_catalog.text;
    name pg_catalog.text;
    named pg_catalog.int4 := 0;
    delta_count pg_catalog.int8 := 0;
    key_count pg_catalog.int8 := 0;
    around_count pg_catalog.int8 := 0;
    report pg_catalog.text[] := '{}';
    refusal pg_catalog.text;
    columns pg_catalog.text;
    moving pg_catalog.text;
    -- How many rows of the queue the session had deleted before it moved one away.
    deleted pg_catalog.int8;
BEGIN
    IF is_mine THEN
        PERFORM {patience};
        PERFORM {take_turn};
        -- A total that another client holds is not waited for: its key has its turn later.
        PERFORM pg_catalog.set_config('lock_timeout', '20ms', true);
        {moving}
        SELECT pg_catalog.array_agg(s.place ORDER BY s.n), pg_catalog.array_agg(s.hash ORDER BY s.n),
            pg_catalog.array_agg(s.treatment ORDER BY s.n), pg_catalog.array_agg(s.code ORDER BY s.n),
            coalesce(pg_catalog.array_agg(s.n ORDER BY s.n) FILTER (WHERE s.is_last), '{}'::pg_catalog.int4[]),
            ARRAY[pg_catalog.count(*) FILTER (WHERE s.is_last AND s.treatment < 1),
            pg_catalog.count(*) FILTER (WHERE s.is_last AND s.treatment < 2),
            pg_catalog.count(*) FILTER (WHERE s.is_last)]::pg_catalog.int4[]
        INTO places, hashes, treatments, codes, ends, bounds
        FROM (
            SELECT k.*, (pg_catalog.row_number() OVER w)::pg_catalog.int4 AS n,
                k.treatment = 2 OR coalesce(k.hash <> pg_catalog.lead(k.hash) OVER w, true) AS is_last
            FROM (
                SELECT d.place, d.hash, coalesce(known.treatment, 0) AS treatment, known.code
                FROM (
                    SELECT q.ctid AS place, {hash} AS hash
                    FROM ONLY {queue} AS q WHERE {deltas} OFFSET 0
                ) AS d
                LEFT JOIN {known} AS known (hash, treatment, code) ON known.hash = d.hash
            ) AS k
            WHERE k.treatment < 3
            WINDOW w AS (ORDER BY k.treatment, k.hash # '{seed}'::pg_catalog.int8, k.place)
        ) AS s;
        -- At least half of the time is for the parts, however long it took to find out what there is.
        deadline := pg_catalog.clock_timestamp() + greatest('{milliseconds} ms'::pg_catalog.interval,
            pg_catalog.clock_timestamp() - pg_catalog.statement_timestamp());
    END IF;
    WHILE low <= pg_catalog.cardinality(ends) LOOP
        EXIT WHEN attempts > 0 AND pg_catalog.clock_timestamp() >= deadline;
        IF low > bound THEN
            size := CASE WHEN low <= bounds[1] THEN {size} ELSE 1 END;
            bound := CASE WHEN low <= bounds[1] THEN bounds[1] WHEN low <= bounds[2] THEN bounds[2] ELSE bounds[3] END;
            failed := 0;
            passed := 0;
        END IF;
        high := least(low + size - 1, bound);
        start := coalesce(ends[low - 1], 0) + 1;
        part := places[start : ends[high]];
        attempts := attempts + 1;
        code := NULL;
        BEGIN
            IF undone > 0 THEN
                -- The next statement sees what is locked now, whatever another client has replaced.
                PERFORM FROM {totals} AS t WHERE EXISTS (
                    SELECT FROM ONLY {queue} AS q WHERE q.ctid = ANY (bgworker.part) AND {is_key}
                ) FOR NO KEY UPDATE;
            END IF;
            IF pg_catalog.cardinality(part) <= {few} THEN
                {fold_few} INTO outcome;
            ELSE
                EXECUTE {fold_many} INTO outcome USING part;
            END IF;
            PERFORM {miscounted};
        EXCEPTION WHEN OTHERS OR assert_failure OR query_canceled THEN
            GET STACKED DIAGNOSTICS code := RETURNED_SQLSTATE, said := MESSAGE_TEXT,
                violated := CONSTRAINT_NAME, field := COLUMN_NAME;
            IF code = {undone} AND (pg_catalog.strpos(said, {changed}) > 0 OR pg_catalog.strpos(said, {deleted_others}) > 0) THEN
                RAISE;
            END IF;
            -- The server cancels a statement once: from now on, nothing would end the next part.
            IF code = {cancelled} AND high > low THEN
                RAISE;
            END IF;
        END;
        IF code IS NULL THEN
            delta_count := delta_count + outcome.gone;
            key_count := key_count + outcome.keys;
            around_count := around_count + outcome.around;
            IF treatments[start] = 1 AND outcome.around = 0 THEN
                FOR one IN low .. high LOOP
                    report := pg_catalog.array_append(report, ARRAY['folded', hashes[ends[one]]::pg_catalog.text, '', '', '', '', '']::pg_catalog.text);
                END LOOP;
            END IF;
            passed := passed + high - low + 1;
            low := high + 1;
            undone := 0;
            size := CASE WHEN failed >= low THEN greatest((failed - low + 1) / 2, 1) ELSE least(size * 2, bound, {most}) END;
        ELSIF high > low THEN
            failed := high;
            size := (high - low + 1) / 2;
        ELSIF code = {undone} AND pg_catalog.strpos(said, 'bgworker[') > 0 AND undone < 2 THEN
            undone := undone + 1;
        ELSE
            name := '';
            IF named < 10 THEN
                SELECT pg_catalog.left({key}, 101) INTO name FROM ONLY {queue} AS q WHERE q.ctid = bgworker.part[1];
                named := named + 1;
            END IF;
            what := 'failed';
            IF treatments[start] = 2 AND code = codes[start] THEN
                BEGIN
                    what := 'moved';
                    IF refusal IS NULL THEN
                        deleted := {deleted};
                        EXECUTE moving USING part[1];
                        IF pg_catalog.current_setting('track_counts')::pg_catalog.bool AND {deleted} - deleted <> 1 THEN
                            RAISE EXCEPTION 'its deletion takes other deltas along';
                        END IF;
                    ELSE
                        what := 'stuck';
                        said := refusal;
                    END IF;
                EXCEPTION WHEN OTHERS OR assert_failure THEN
                    what := 'stuck';
                    GET STACKED DIAGNOSTICS code := RETURNED_SQLSTATE, said := MESSAGE_TEXT;
                END;
            END IF;
            report := pg_catalog.array_append(report, ARRAY[what, hashes[start]::pg_catalog.text, coalesce(name, ''), code,
                pg_catalog.left(said, 500), coalesce(violated, ''), coalesce(field, '')]::pg_catalog.text);
            low := low + 1;
            size := greatest(least(passed, bound, {most}), 1);
            failed := 0;
            passed := 0;
            undone := 0;
            EXIT WHEN code = {cancelled};
        END IF;
    END LOOP;
    PERFORM pg_catalog.set_config({report}, pg_catalog.array_prepend(ARRAY[
        CASE WHEN is_mine THEN 't' ELSE 'f' END, delta_count::pg_catalog.text, key_count::pg_catalog.text,
        around_count::pg_catalog.text, coalesce(size, 1)::pg_catalog.text, {blocks}::pg_catalog.text,
        CASE WHEN low > pg_catalog.cardinality(ends) THEN 't' ELSE 'f' END,
        pg_catalog.date_part('epoch', pg_catalog.clock_timestamp() - pg_catalog.statement_timestamp())::pg_catalog.text
    ]::pg_catalog.text, report)::pg_catalog.text, true);
END
