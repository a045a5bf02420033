//! A sample of the deltas of a backlog, and the ranges of a key into which it parts them. Pure.

use super::statement::Statements;
use crate::functions::folding::{Piece, comment};
use crate::functions::quote::{identifier, literal};

/// How many blocks are looked at, and how many of the first rows of each.
const BLOCKS: u32 = 512;
const ROWS: u32 = 16;

/// Into how many parts of about as many deltas a sample parts the backlog.
const SLOTS: usize = 128;

/// The bounds between parts of a sample, as text in the order of a key, by the key that has most values.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sample {
    /// Which part of the rows that were looked for was there: others are dead.
    pub(super) share: f64,
    /// The place of the key among those of the roll-up.
    pub(super) key: usize,
    bounds: Vec<String>,
}

/// Some values of a key: those from one bound on, up to but without another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Range {
    /// Where the next one begins.
    pub(super) next: usize,
    /// How many parts of the sample it has.
    parts: usize,
    condition: String,
}

/// SQL that takes a sample of a piece. For each key it returns how many rows it has found, how many values of the key, and the
/// bounds.
pub(super) fn sample(statements: &Statements<'_>, piece: Piece) -> String {
    let step = piece.blocks.div_ceil(BLOCKS).max(1);
    let keys = statements.shape.keys.iter().map(|key| {
        let key = identifier(key);
        format!(
            "SELECT s.rows, s.distinct, ARRAY(SELECT pg_catalog.concat(u.bound) FROM pg_catalog.unnest(s.bounds) \
             WITH ORDINALITY AS u (bound, n) ORDER BY u.n) AS bounds FROM (SELECT pg_catalog.count(*) AS rows, \
             pg_catalog.count(DISTINCT q.{key}) AS distinct, pg_catalog.percentile_disc(ARRAY(\
             SELECT n::pg_catalog.float8 OPERATOR(pg_catalog./) {SLOTS} FROM pg_catalog.generate_series(1, {}) AS n)) \
             WITHIN GROUP (ORDER BY q.{key}) AS bounds FROM ONLY {} AS q WHERE q.ctid OPERATOR(pg_catalog.=) ANY (ARRAY(\
             SELECT pg_catalog.format('(%s,%s)', block, line)::pg_catalog.tid FROM pg_catalog.generate_series(\
             {}::pg_catalog.int8, {}, {step}) AS block, pg_catalog.generate_series(1, {ROWS}) AS line))) AS s",
            SLOTS - 1,
            statements.queue.sql(),
            piece.from,
            i64::from(piece.from.saturating_add(piece.blocks)) - 1,
        )
    });
    let keys: Vec<_> = keys.collect();
    format!(
        "{} {}",
        comment(statements.worker),
        keys.join(" UNION ALL ")
    )
}

// === impl Sample ===

impl Sample {
    /// The sample by the key that has most values, from what was found for each key. `None` if even that one has each value so
    /// often that a piece has few keys anyway.
    pub(super) fn of(piece: Piece, found: Vec<(i64, i64, Vec<String>)>) -> Option<Self> {
        let found = found.into_iter().enumerate();
        let (key, (rows, distinct, bounds)) =
            found.max_by_key(|(_, (_, distinct, _))| *distinct)?;
        let is_of_many = distinct.saturating_mul(2) > rows && bounds.len() + 1 == SLOTS;
        let step = piece.blocks.div_ceil(BLOCKS).max(1);
        let looked_for = piece.blocks.div_ceil(step).max(1) * ROWS;
        #[expect(clippy::cast_precision_loss, reason = "there are few")]
        let share = rows as f64 / f64::from(looked_for);
        is_of_many.then_some(Self { share, key, bounds })
    }

    /// The range that begins here and has about this part of the deltas, or that of one value that has more. `None` at the end.
    pub(super) fn range(&self, key: &str, from: usize, part: f64) -> Option<Range> {
        if from >= SLOTS {
            return None;
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "it is positive, and saturates"
        )]
        let parts = ((SLOTS as f64 * part) as usize).max(1);
        let lower = from.checked_sub(1).map(|at| &self.bounds[at]);
        let mut next = from.saturating_add(parts).min(SLOTS);
        while next < SLOTS && lower == Some(&self.bounds[next - 1]) {
            next += 1;
        }
        let upper = self.bounds.get(next - 1).filter(|_| next < SLOTS);
        let key = format!("q.{}", identifier(key));
        let bound = |sign, bound: &str| {
            format!(" AND {key} OPERATOR(pg_catalog.{sign}) {}", literal(bound))
        };
        let lower = lower.map_or_else(String::new, |lower| bound(">=", lower));
        let upper = upper.map_or_else(String::new, |upper| bound("<", upper));
        Some(Range {
            next,
            parts: next - from,
            condition: lower + &upper,
        })
    }
}

// === impl Range ===

impl Range {
    /// The condition that a delta `q` is one of these and of others, as SQL.
    pub(super) fn among(&self, deltas: &str) -> String {
        format!("{deltas}{}", self.condition)
    }

    /// Which part of the deltas it has.
    #[expect(clippy::cast_precision_loss, reason = "there are few")]
    pub(super) fn part(&self) -> f64 {
        self.parts as f64 / SLOTS as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE: Piece = Piece {
        from: 0,
        blocks: 10,
    };

    fn sample(bound: impl Fn(usize) -> usize) -> Sample {
        let bounds = (1..SLOTS).map(|n| format!("{:03}", bound(n))).collect();
        Sample::of(PIECE, vec![(100, 51, bounds)]).unwrap()
    }

    fn ranges(sample: &Sample, part: f64) -> Vec<Range> {
        let first = sample.range("k", 0, part);
        std::iter::successors(first, |range| sample.range("k", range.next, part)).collect()
    }

    #[test]
    fn ranges_follow_one_another_without_a_gap_and_the_last_has_no_end() {
        let sample = sample(|n| n);
        let conditions: Vec<_> = ranges(&sample, 0.4)
            .iter()
            .map(|one| one.among("d"))
            .collect();
        assert_eq!(
            conditions,
            [
                "d AND q.\"k\" OPERATOR(pg_catalog.<) E'051'",
                "d AND q.\"k\" OPERATOR(pg_catalog.>=) E'051' AND q.\"k\" OPERATOR(pg_catalog.<) E'102'",
                "d AND q.\"k\" OPERATOR(pg_catalog.>=) E'102'",
            ]
        );
        let parts: f64 = ranges(&sample, 0.01).iter().map(Range::part).sum();
        assert!((parts - 1.0).abs() < 1e-9);
    }

    #[test]
    fn a_value_that_has_many_deltas_is_a_range_of_its_own() {
        // Half of all deltas have one key.
        let sample = sample(|n| if (32..96).contains(&n) { 32 } else { n });
        let widest = ranges(&sample, 0.01)
            .into_iter()
            .max_by(|a, b| a.part().total_cmp(&b.part()));
        assert!(widest.unwrap().part() >= 0.5);
    }

    #[test]
    fn few_keys_are_not_parted_and_of_several_the_one_with_most_values_is() {
        let bounds = || vec![String::new(); SLOTS - 1];
        assert_eq!(Sample::of(PIECE, vec![(100, 50, bounds())]), None);
        assert_eq!(Sample::of(PIECE, vec![(0, 0, Vec::new())]), None);
        let sample = Sample::of(PIECE, vec![(100, 2, bounds()), (80, 80, bounds())]);
        let sample = sample.unwrap();
        assert_eq!(sample.key, 1);
        // Of ten blocks, sixteen lines each.
        assert!((sample.share - 0.5).abs() < 1e-9);
    }
}
