//! Looks at the row of a job, and declares the job where that is still to be done.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use super::{Listed, Scheduled, Seen};
use crate::context::WorkerContext;
use crate::database::{Database, DatabaseError, is_missing};
use crate::functions::session::Session;
use crate::functions::ticked::declare::{self, Declaring};
use crate::functions::ticked::job::Job;
use crate::functions::ticked::row::{self, JobRow, Look};
use crate::functions::ticked::tables::{self, Tables};
use crate::functions::ticked::{gap, instances, ring, surroundings};

/// How often it is said at most that other instances cannot be told.
const SAY_EVERY: Duration = Duration::from_secs(3_600);

// === impl Scheduled ===

impl Scheduled {
    /// Looks at the job, and declares it first if that is still to be done.
    pub(super) async fn look(
        &mut self,
        session: &Session,
        context: &WorkerContext,
        (whose, tables): ((&str, &Job), &Tables),
    ) -> Result<Look, DatabaseError> {
        let not_before = match std::mem::replace(&mut self.seen, Seen::Nothing) {
            Seen::AfterRun(look) => return Ok(*look),
            Seen::Idle(asked) => asked + Duration::from_nanos(1),
            Seen::Nothing => Instant::now(),
        };
        let (name, job) = whose;
        let mut look = row::look(session, name, not_before).await?;
        if look.row.is_none() || self.lasting.declared_as.get().is_none() {
            look = self
                .declare(session, context, (whose, tables), look)
                .await?;
        }
        let is_ours = |row: &JobRow| row.declared == job.declared;
        let history = Some(job.history);
        if *self.lasting.history() != history && look.row.as_ref().is_some_and(is_ours) {
            let whose = (context.name(), name);
            ring::fit(session, whose, &tables.seal, job.history).await?;
            *self.lasting.history() = history;
        }
        self.tell(session, context, (job, tables)).await?;
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
        ((name, job), tables): ((&str, &Job), &Tables),
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
        let by = &surroundings::instance(&own);
        let declaring = Declaring {
            name,
            job,
            by,
            tables,
        };
        let instance = context.database().map(Database::instance);
        let knew = instance.and_then(|instance| instance.knows(job.database.as_deref(), name));
        // A start does not bring back what was replaced; a reload does.
        let again = knew.is_some_and(|declared| declared != job.declared);
        declaring.declare(session, look.now, again).await?;
        let looked = row::look(session, name, Instant::now()).await?;
        let is_ours = (looked.row.as_ref()).is_some_and(|row| row.declared == job.declared);
        if !is_ours && !self.was_replaced(session, declaring, again).await? {
            // A run is under way, and the declaration waits for its end.
            return Ok(looked);
        }
        let theirs = looked.row.as_ref().map(|row| &*row.declared_by);
        let theirs = theirs.filter(|theirs| surroundings::of(theirs) != Some(&*own));
        if let Some(theirs) = theirs.filter(|_| is_ours) {
            if let Some(difference) = surroundings::difference(theirs, &own) {
                warn!(worker, "{worker}: {difference}");
            }
            declaring.sign(session).await?;
        }
        if known.is_none() {
            let was_there = look.row.is_some();
            say_gap(session, worker, (name, job), &looked, was_there).await?;
        }
        // A failure before this is tried again.
        let _ = self.lasting.declared_as.set(own);
        if let Some(database) = context.database() {
            let listed = || Listed::new(database, name, job);
            self.lasting.listed.get_or_init(listed);
        }
        Ok(looked)
    }

    /// `true` if the declaration was not made because another one replaced it before.
    async fn was_replaced(
        &self,
        session: &Session,
        Declaring {
            name, job, tables, ..
        }: Declaring<'_>,
        again: bool,
    ) -> Result<bool, DatabaseError> {
        let declared = declare::ask(session, tables, name).await?;
        Ok(!again && declared.before.contains(&job.declared))
    }

    /// Tells other instances which jobs this process has, if it is time to. Jobs run even if that fails.
    async fn tell(
        &self,
        session: &Session,
        context: &WorkerContext,
        (job, tables): (&Job, &Tables),
    ) -> Result<(), DatabaseError> {
        let Some(database) = context.database() else {
            return Ok(());
        };
        let (instance, dbname) = (database.instance(), job.database.as_deref());
        match instances::tell(session, tables, instance, dbname).await {
            Err(error) if error.is_away() || tables::are_changed(&error) => Err(error),
            Err(error) if error.sqlstate().is_some_and(is_missing) => Err(error),
            Err(error) if instance.is_due(dbname, "say that it cannot be told", SAY_EVERY) => {
                warn!(
                    "other instances cannot be told which jobs this one has, and may take them over: {error}"
                );
                Ok(())
            }
            _ => Ok(()),
        }
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

/// Says what a job leaves out that was just declared, or makes good all at once. `was_there` if it had a row before.
async fn say_gap(
    session: &Session,
    worker: &str,
    (name, job): (&str, &Job),
    looked: &Look,
    was_there: bool,
) -> Result<(), DatabaseError> {
    let said = match &looked.row {
        Some(row) if was_there => gap::away(name, row, looked.now, &job.schedule, job.missed),
        _ if !was_there && job.has_windows => {
            let others = declare::alike(session, name, &job.declared).await?;
            let mut others = others.iter().map(|(name, done)| (&**name, *done));
            others.find_map(|other| gap::renamed((worker, name), other))
        }
        _ => None,
    };
    if let Some(said) = said {
        warn!(worker, "{worker}: {said}");
    }
    Ok(())
}
