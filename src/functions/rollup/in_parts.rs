//! Folds a piece in parts, around keys that cannot be folded; and remembers these, and moves deltas away that are to be.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use super::ROWS_REJECTED;
use super::by_key::{ByKey, Keys, trusted_owners};
use super::halving::{Halving, KnownKeys, Part, Report, Treatment, What};
use super::judge::{Evidence, Fate, judge};
use super::settings::Settings;
use super::statement::{How, Statements};
use super::turn;
use crate::database::{DatabaseError, ErrorClass};
use crate::functions::folding::{At, Fold, Folder as _, Found, Piece};
use crate::functions::runner::CycleError;

/// How long one transaction folds in parts, or as long as it took to read the keys; and at most this part of what a statement
/// may take. Between two of them, neighbours on the connection get their turn.
const AT_ONCE: Duration = Duration::from_millis(250);
const OF_TIMEOUT: u32 = 4;

/// How long a cycle folds in parts; each piece may take half of what is left.
const IN_A_CYCLE: Duration = Duration::from_secs(4);

/// `true` for the error of a part that took longer than a statement may.
fn is_slow(error: &DatabaseError) -> bool {
    error.class() == ErrorClass::Cancelled
}

// === impl ByKey ===

impl ByKey {
    /// Folds a piece in parts. `why` is the error of a fold of the whole piece.
    pub(super) async fn fold_in_parts(
        &mut self,
        at: At<'_, Settings>,
        statements: &Statements<'_>,
        piece: Piece,
        why: Option<DatabaseError>,
    ) -> Result<Fold<Keys>, CycleError> {
        let mut first = self.first_part(why.as_ref());
        let at_once = AT_ONCE.min(turn::timeout(at) / OF_TIMEOUT);
        let mut left = IN_A_CYCLE.saturating_sub(self.spent) / 2;
        let mut fold = Fold::without(Found::Idle);
        loop {
            let begin = Instant::now();
            let known = self.poison.treatments(begin);
            let sql = self.part(at, statements, piece, &known, (first, at_once.min(left)));
            let rows = match at.session.simple_query("fold in parts", &sql).await {
                Err(error) if is_slow(&error) && !self.one_by_one => {
                    self.one_by_one = true;
                    first = Part::Keys(1);
                    continue;
                }
                rows => rows?,
            };
            let report = Report::read(&rows).unwrap_or_default();
            let took = begin.elapsed();
            self.spent += took;
            left = left.saturating_sub(took);
            fold.blocks = report.blocks;
            if !report.is_mine {
                let moves = self.turn.is_not_ours(at, statements, piece.from).await?;
                fold.found = fold.found.and(Found::Left { moves });
                return Ok(fold);
            }
            self.turn.is_ours();
            fold.found = fold.found.and(self.folded(at, report.rows, report.keys));
            // With failures, how long it takes says nothing about the size of the piece.
            if report.findings.is_empty() {
                fold.took = report.took;
            }
            if let Err(everywhere) = self.learn(at, &known, &report) {
                return Err(
                    why.map_or_else(|| CycleError::Unusable(everywhere.into()), CycleError::from)
                );
            }
            self.one_by_one &= !report.is_done && !report.was_cancelled();
            self.size = (!report.is_done).then_some(report.size);
            first = self.size.map_or(Part::Whole, Part::Keys);
            let has_more = !report.is_done || self.poison.moves();
            if !has_more || left.is_zero() || at.context.latch().is_stop_requested() {
                return Ok(fold);
            }
        }
    }

    /// The first part of a piece. `why` is the error of a fold of the whole piece.
    fn first_part(&mut self, why: Option<&DatabaseError>) -> Part {
        self.one_by_one |= why.is_some_and(is_slow);
        match (why, self.size) {
            _ if self.one_by_one => Part::Keys(1),
            (_, Some(size)) => Part::Keys(size),
            (Some(_), None) => Part::Little,
            (None, None) => Part::Whole,
        }
    }

    /// The statement that folds a part, and more of them within this time.
    fn part(
        &self,
        at: At<'_, Settings>,
        statements: &Statements<'_>,
        piece: Piece,
        known: &KnownKeys,
        (first, budget): (Part, Duration),
    ) -> String {
        let rejected = at.settings.rejected();
        let halving = Halving {
            statements,
            piece,
            how: self.how(),
            known,
            rejected: rejected.as_ref(),
            trusted_owners: trusted_owners(at),
            budget,
            seed: fastrand::i64(..),
            first,
            one_by_one: self.one_by_one,
        };
        halving.sql()
    }

    /// How parts are folded.
    fn how(&self) -> How {
        if self.goes_around() {
            How::Around
        } else {
            How::Wait
        }
    }

    /// Remembers what a fold in parts has found. Fails with the reason if no key is at fault, since none goes through.
    fn learn(
        &mut self,
        at: At<'_, Settings>,
        known: &KnownKeys,
        report: &Report,
    ) -> Result<(), String> {
        let (now, naptime) = (Instant::now(), at.settings.naptime);
        self.left |= report.around > 0;
        let evidence = Evidence {
            others_pass: self.passed,
            sets_aside: at.settings.rejected().is_some(),
            keys: &at.settings.keys,
        };
        let mut everywhere = None;
        let mut unfinished = HashSet::new();
        for finding in &report.findings {
            let mut why = finding.failure.reason(Self::at_fault);
            let fate = match finding.what {
                What::Folded => {
                    self.poison.is_folded(finding.hash);
                    continue;
                }
                What::Moved => {
                    self.moved.add(finding, why);
                    continue;
                }
                What::Stuck => {
                    let rejected = at.settings.rejected();
                    let to =
                        rejected.map_or_else(String::new, |rejected| format!(" to {rejected}"));
                    why = format!("they could not be moved{to} either: {why}");
                    Fate::Waits
                }
                What::Failed => {
                    let since = self.poison.since(finding.hash, now);
                    judge(&finding.failure, evidence, since)
                }
            };
            unfinished.insert(finding.hash);
            if fate == Fate::Everywhere {
                everywhere = everywhere.or(Some(why));
                continue;
            }
            if fate == Fate::Held {
                self.locked_since.get_or_insert(now);
            }
            self.poison.add(finding, fate, why, naptime, now);
        }
        let moving = known
            .0
            .iter()
            .filter(|one| one.treatment == Treatment::Move);
        for one in moving {
            if report.is_done && !unfinished.contains(&one.hash) {
                self.poison.forget(one.hash);
            }
        }
        everywhere.map_or(Ok(()), Err)
    }

    /// Says what this cycle has moved away.
    pub(super) fn tell_moved(&mut self, at: At<'_, Settings>) {
        let moved = std::mem::take(&mut self.moved);
        if let (Some(moved_away), Some(rejected)) =
            (moved.tell(&at.settings.queue), at.settings.rejected())
        {
            let (worker, moved, why) = (at.context.name(), moved.deltas(), moved.why());
            at.context.progress().count(ROWS_REJECTED, moved);
            warn!(
                worker,
                moved,
                "{worker}: {moved_away} cannot be added, and were moved to {rejected}: {why}"
            );
        }
    }
}
