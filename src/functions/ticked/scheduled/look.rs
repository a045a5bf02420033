//! Looks at the row of a job, and declares the job where that is still to be done.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use super::{Scheduled, Seen};
use crate::context::WorkerContext;
use crate::database::DatabaseError;
use crate::functions::session::Session;
use crate::functions::ticked::job::Job;
use crate::functions::ticked::row::{self, JobRow, Look};
use crate::functions::ticked::surroundings;
use crate::functions::ticked::{declaration, gap, ring};

// === impl Scheduled ===

impl Scheduled {
    /// Looks at the job, and declares it first if that is still to be done.
    pub(super) async fn look(
        &mut self,
        session: &Session,
        context: &WorkerContext,
        (whose, seal): ((&str, &Job), &str),
    ) -> Result<Look, DatabaseError> {
        let not_before = match std::mem::replace(&mut self.seen, Seen::Nothing) {
            Seen::AfterRun(look) => return Ok(*look),
            Seen::Idle(asked) => asked + Duration::from_nanos(1),
            Seen::Nothing => Instant::now(),
        };
        let (name, job) = whose;
        let mut look = row::look(session, name, not_before).await?;
        if look.row.is_none() || self.lasting.declared_as.get().is_none() {
            look = self.declare(session, context, (whose, seal), look).await?;
        }
        let is_ours = |row: &JobRow| row.declared == job.declared;
        let history = Some(job.history);
        if *self.lasting.history() != history && look.row.as_ref().is_some_and(is_ours) {
            let whose = (context.name(), name);
            ring::fit(session, whose, seal, job.history).await?;
            *self.lasting.history() = history;
        }
        // The look may be one that another worker made some time ago.
        let age = look.asked.elapsed();
        look.now = look.now.checked_add(age).unwrap_or(look.now);
        Ok(look)
    }

    /// Declares the job after this look, signs its row if it was already declared that way, and looks again.
    pub(super) async fn declare(
        &self,
        session: &Session,
        context: &WorkerContext,
        ((name, job), seal): ((&str, &Job), &str),
        look: Look,
    ) -> Result<Look, DatabaseError> {
        let (worker, known) = (context.name(), self.lasting.declared_as.get());
        if known.is_some() {
            warn!(
                worker,
                "{worker}: the row of the job in bgworker.job is gone, and with it which ticks were done: the job is \
                 declared again, and begins with its next tick"
            );
        }
        let own = match known {
            Some(own) => own.clone(),
            None => surroundings::ask(session, context.database()).await?,
        };
        let by = surroundings::instance(&own);
        declaration::declare(session, seal, (name, job, &by), look.now).await?;
        let looked = row::look(session, name, Instant::now()).await?;
        let theirs = looked.row.as_ref().map(|row| &*row.declared_by);
        if let Some(theirs) = theirs.filter(|theirs| surroundings::of(theirs) != Some(&*own)) {
            if let Some(difference) = surroundings::difference(theirs, &own) {
                warn!(worker, "{worker}: {difference}");
            }
            declaration::sign(session, seal, (name, job, &by)).await?;
        }
        if known.is_none() {
            let said = match (look.row, &looked.row) {
                (Some(_), Some(row)) => gap::away(name, row, looked.now, &job.schedule, job.missed),
                (None, _) if job.has_windows => {
                    let others = declaration::alike(session, name, &job.declared).await?;
                    let mut others = others.iter().map(|(name, done)| (&**name, *done));
                    others.find_map(|other| gap::renamed((worker, name), other))
                }
                _ => None,
            };
            if let Some(said) = said {
                warn!(worker, "{worker}: {said}");
            }
        }
        // A failure before this is tried again.
        let _ = self.lasting.declared_as.set(own);
        Ok(looked)
    }

    /// Notices whether another instance runs the job with other surroundings, and says so once.
    pub(super) fn notice(&mut self, context: &WorkerContext, row: &JobRow) {
        let own = self.lasting.declared_as.get();
        let difference = own.and_then(|own| surroundings::difference(&row.declared_by, own));
        let difference = difference.map(Arc::<str>::from);
        if let Some(difference) = difference.as_ref().filter(|_| difference != self.shared) {
            let worker = context.name();
            warn!(worker, "{worker}: {difference}");
        }
        self.shared = difference;
    }
}
