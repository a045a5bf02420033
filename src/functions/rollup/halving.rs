//! Finds what cannot be added: halves a piece of the queue until one key is left, and, if deltas are to be set aside,
//! the deltas of that key until one is left.

use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use super::by_key::{ByKey, Failure, Keys};
use super::settings::Settings;
use super::statement::{Share, Statements, Which};
use crate::database::DatabaseError;
use crate::functions::folding::Isolation::ReadCommitted;
use crate::functions::folding::{At, Fold, Found, Piece};
use crate::functions::relation::Relation;
use crate::functions::runner::CycleError;

// === impl ByKey ===

impl ByKey {
    /// Folds a piece in halves, and each half that fails in halves again, until it fails for a single key. The deltas
    /// of that key then wait, or those at fault are set aside.
    pub(super) async fn halve(
        &mut self,
        at: At<'_, Settings>,
        statements: &Statements<'_>,
        piece: Piece,
    ) -> Result<Fold<Keys>, CycleError> {
        let (mut found, mut blocks) = (Found::Idle, u32::MAX);
        let mut shares = vec![Share::WHOLE];
        while let Some(share) = shares.pop() {
            if at.context.latch().is_stop_requested() {
                break;
            }
            let left_out = self.poison.keys();
            let which = Which::Share(share, &left_out);
            let error = match self.run(at, statements, piece, which, ReadCommitted).await {
                Ok(fold) => {
                    found = found.and(fold.found);
                    blocks = fold.blocks;
                    continue;
                }
                Err(Failure::Other(error)) => return Err(error.into()),
                Err(Failure::Poison(error)) => error,
            };
            let sql = statements.two_keys(piece, which);
            let keys = at.session.query("look for the key", &sql, Vec::new());
            let keys = keys.await?;
            match (&*keys, share.halves()) {
                ([], _) => {}
                ([key], _) => {
                    let more = self.is_poisoned(at, statements, piece, key.get(0), error);
                    found = found.and(more.await?);
                }
                (_, Some(halves)) => shares.extend(halves),
                (_, None) => return Err(error.into()),
            }
        }
        Ok(Fold {
            found,
            blocks,
            took: Duration::ZERO,
        })
    }

    /// Handles a key that cannot be folded: its deltas wait, or those at fault are moved away and the rest is folded.
    async fn is_poisoned(
        &mut self,
        at: At<'_, Settings>,
        statements: &Statements<'_>,
        piece: Piece,
        key: String,
        why: DatabaseError,
    ) -> Result<Found<Keys>, CycleError> {
        if let Some(rejected) = at.settings.rejected() {
            let set_aside = self.set_aside(at, statements, piece, &key, &rejected);
            return Box::pin(set_aside).await;
        }
        if self.poison.is_full() {
            return Err(why.into());
        }
        // It is reported at the end of the cycle.
        self.poison
            .add(key, reason(&why), at.settings.naptime, Instant::now());
        Ok(Found::Idle)
    }

    /// Folds the deltas of one key in halves, and moves each delta that cannot be added to `rejected`.
    async fn set_aside(
        &mut self,
        at: At<'_, Settings>,
        statements: &Statements<'_>,
        piece: Piece,
        key: &str,
        rejected: &Relation,
    ) -> Result<Found<Keys>, CycleError> {
        let sql = statements.places(piece, key);
        let places = at.session.query("look for the deltas", &sql, Vec::new());
        let places: Vec<String> = places.await?.iter().map(|row| row.get(0)).collect();
        let (mut found, mut moved) = (Found::Idle, 0_u64);
        let mut parts = vec![&*places];
        let mut last = None;
        while let Some(part) = parts.pop() {
            if part.is_empty() || at.context.latch().is_stop_requested() {
                continue;
            }
            match self
                .run(at, statements, piece, Which::Rows(key, part), ReadCommitted)
                .await
            {
                Ok(fold) => found = found.and(fold.found),
                Err(Failure::Other(error)) => return Err(error.into()),
                Err(Failure::Poison(error)) => match part {
                    [place] => {
                        let sql = statements.set_aside(place, key, rejected);
                        at.session
                            .query("set a delta aside", &sql, Vec::new())
                            .await?;
                        moved += 1;
                        last = Some(error);
                    }
                    _ => parts.extend(<[_; 2]>::from(part.split_at(part.len() / 2))),
                },
            }
        }
        if let Some(why) = last {
            let (worker, queue) = (at.context.name(), &at.settings.queue);
            let why = reason(&why);
            warn!(
                worker,
                moved,
                "{worker}: {moved} deltas of {queue} with the key {key} cannot be added, and were moved to {rejected}: {why}"
            );
        }
        Ok(found)
    }

    /// Tries the keys again whose retry time has come.
    pub(super) async fn try_again(
        &mut self,
        at: At<'_, Settings>,
        statements: &Statements<'_>,
        piece: Piece,
    ) -> Result<Found<Keys>, CycleError> {
        let mut found = Found::Idle;
        for key in self.poison.due(Instant::now()) {
            match self
                .run(at, statements, piece, Which::Key(&key), ReadCommitted)
                .await
            {
                Ok(fold) => {
                    match fold.found {
                        Found::Folded(_) => self.poison.forget(&key),
                        Found::Idle | Found::Busy(_) => self.poison.found_none(&key),
                    }
                    found = found.and(fold.found);
                }
                Err(Failure::Poison(error)) => {
                    let naptime = at.settings.naptime;
                    self.poison
                        .add(key, reason(&error), naptime, Instant::now());
                }
                Err(Failure::Other(error)) => return Err(error.into()),
            }
        }
        Ok(found)
    }
}

/// Says why deltas cannot be added, for the log.
fn reason(error: &DatabaseError) -> String {
    match error.undone() {
        Some(undone) => undone.to_owned(),
        None => error.to_string(),
    }
}
