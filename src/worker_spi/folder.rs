//! One worker at work: a cycle, a nap, and what it says of them.

use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::watch;
use tracing::{debug, error, info, warn};

use super::initialize::{InitializeError, Known, initialize};
use super::remedy::{Patience, Remedy};
use super::session::{Repeated, Session};
use super::statement::{self, Piece};
use super::truncation::{Truncation, truncate};
use super::vacuum::Vacuum;
use super::{Fold, Settings};
use crate::context::{WorkerContext, WorkerError};
use crate::database::DatabaseError;
use crate::latch::Wake;

/// After so many retries in a row, somebody should know.
const RETRIES_UNTIL_WARNING: u32 = 8;

/// About how many deltas a block holds, in a table of our own.
const ROWS_PER_BLOCK: usize = 167;

/// After so many naps, and the longest statement, a worker without a success is late.
const NAPS_UNTIL_LATE: u32 = 3;

/// How long a cancelled cycle may take to say so.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(2);

/// A worker with its session.
pub(super) struct Folder {
    context: WorkerContext,
    settings: watch::Receiver<Settings>,
    session: Rc<Session>,
    /// The probe, once the table can be worked on; gone when it is out of date.
    probe: Option<Probe>,
    /// What is known of the table.
    known: Known,
    /// It said that it is initialized.
    initialized: bool,
    patience: Patience,
    /// What was reported last: the same again is not.
    reported: Condition,
    vacuum: Vacuum,
    /// Rows with NULL were reported, and are still there.
    nulls_reported: bool,
    /// It was reported that the table cannot be truncated, and it still cannot.
    impossible_reported: bool,
}

/// A probe that is ready to be run.
struct Probe {
    statement: Repeated,
    /// It looks for values that are NULL.
    may_be_null: bool,
}

/// What a cycle found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Folded { rows: u64, total: i64 },
    Idle,
    Skipped,
    NoTotal,
}

/// What somebody has to be told, once.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Condition {
    Well,
    NoTotal,
    Crowded,
    Failing { sqlstate: String },
}

// === impl Folder ===

impl Folder {
    pub(super) fn new(
        context: WorkerContext,
        settings: watch::Receiver<Settings>,
        session: Session,
        known: Known,
    ) -> Self {
        Self {
            context,
            settings,
            session: Rc::new(session),
            probe: None,
            known,
            initialized: false,
            patience: Patience::default(),
            reported: Condition::Well,
            vacuum: Vacuum::default(),
            nulls_reported: false,
            impossible_reported: false,
        }
    }

    /// Cycles and naps until it is asked to stop, or cannot go on; then closes its session.
    pub(super) async fn work(mut self) -> Result<(), WorkerError> {
        let end = self.cycle_and_nap().await;
        if let Some(session) = Rc::into_inner(self.session) {
            session.close().await;
        }
        end
    }

    async fn cycle_and_nap(&mut self) -> Result<(), WorkerError> {
        // Thousands that started together are not to march in step.
        let mut part_of_nap = fastrand::f64();
        loop {
            self.promise();
            let Some(cycle) = self.cycle_unless_stopped().await else {
                return Ok(());
            };
            let nap = match cycle {
                Ok(outcome) => {
                    let nap = self.found(outcome);
                    let nap = nap.mul_f64(std::mem::replace(&mut part_of_nap, 1.0));
                    self.session.in_company(nap)
                }
                Err(InitializeError::Database(error)) => self.failed(error).await?,
                Err(InitializeError::Unusable(table)) => return Err(table.into()),
            };
            match self.context.nap(nap).await {
                Wake::Timeout => {}
                Wake::Sighup => debug!(worker = self.context.name(), "got sighup!"),
                Wake::Sigterm | Wake::Sigint | Wake::PostmasterDeath => return Ok(()),
            }
        }
    }

    /// Says how old a success may become before somebody should know.
    fn promise(&self) {
        let naptime = self.settings.borrow().naptime;
        let statement_timeout = self.context.database().map_or(Duration::ZERO, |database| {
            database.settings().statement_timeout
        });
        let within = naptime
            .saturating_mul(NAPS_UNTIL_LATE)
            .saturating_add(statement_timeout);
        self.context.progress().promise_success_within(within);
    }

    /// One cycle. `None` if the worker is to end, and it was cancelled or had not begun.
    async fn cycle_unless_stopped(&mut self) -> Option<Result<Outcome, InitializeError>> {
        let latch = self.context.latch().clone();
        let session = Rc::clone(&self.session);
        let mut cycle = pin!(self.cycle());
        let stopped = async {
            latch.stop_requested().await;
            if session.is_at_work() {
                // What has begun is finished.
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            outcome = &mut cycle => return Some(outcome),
            () = latch.cancel_requested() => {}
            () = stopped => return None,
        }
        if !session.is_at_work() {
            return None;
        }
        session.cancel().await;
        // It may have committed before the cancellation arrived; both is well.
        let _ = tokio::time::timeout(CANCEL_TIMEOUT, cycle).await;
        None
    }

    /// One look, after the preparations that it needs, and if there is something to fold, the folds.
    async fn cycle(&mut self) -> Result<Outcome, InitializeError> {
        let probe = match &self.probe {
            Some(probe) => probe,
            None => &*self
                .probe
                .insert(prepare(&self.context, &self.settings, &self.session, &self.known).await?),
        };
        if !self.initialized {
            self.initialized = true;
            let table = self.settings.borrow().table.clone();
            let (worker, schema, name) = (self.context.name(), table.schema(), table.name());
            info!(
                worker,
                schema,
                table = name,
                "{worker} initialized with {schema}.{name}"
            );
            self.context.ready();
        }
        let rows = self
            .session
            .run("look for deltas", &probe.statement)
            .await?;
        self.known.set(probe.may_be_null);
        let Some(row) = rows.first() else {
            return Ok(Outcome::Skipped);
        };
        let nulls = row.get(1);
        self.report_nulls(nulls);
        match row.get::<_, Option<i64>>(0) {
            None => Ok(Outcome::Idle),
            Some(block) => {
                let first = u32::try_from(block).unwrap_or(0);
                match self.truncate(first).await? {
                    Some(outcome) => Ok(outcome),
                    None => self.fold(first).await,
                }
            }
        }
    }

    /// Folds everything at once, if that was asked for, can be done, and is worth it.
    async fn truncate(&mut self, first: u32) -> Result<Option<Outcome>, DatabaseError> {
        let Settings {
            table, batch, fold, ..
        } = self.settings.borrow().clone();
        if fold == Fold::Delete {
            return Ok(None);
        }
        let worker = self.context.name();
        let sql = table.count_blocks(worker);
        let rows = self.session.query("look at its size", &sql, Vec::new());
        let blocks = rows.await?.first().map_or(0, |row| row.get::<_, i64>(0));
        if blocks <= i64::from(first) + i64::from(blocks_of(batch)) {
            return Ok(None);
        }
        match truncate(&self.session, &table, worker).await? {
            Truncation::Folded { rows, total } => {
                self.impossible_reported = false;
                self.context.progress().folded(rows, total);
                return Ok(Some(Outcome::Folded { rows, total }));
            }
            Truncation::Busy => {}
            Truncation::Impossible(why) => {
                if !std::mem::replace(&mut self.impossible_reported, true) {
                    warn!(
                        worker,
                        "{worker}: {table} cannot be truncated, its deltas are deleted: {why}"
                    );
                }
            }
        }
        // Cancelled, it is not to begin anything else.
        let is_to_end = self.context.latch().is_stop_requested();
        Ok(is_to_end.then_some(Outcome::Idle))
    }

    /// Folds piece by piece, each a transaction of its own, from this block to the end of the table.
    /// Between two of them neighbours on the connection have their turn.
    async fn fold(&mut self, first: u32) -> Result<Outcome, InitializeError> {
        let Settings { table, batch, .. } = self.settings.borrow().clone();
        let mut piece = Piece {
            from: first,
            blocks: blocks_of(batch),
        };
        let mut folded: Option<(u64, i64)> = None;
        loop {
            let sql = table.fold(self.context.name(), piece);
            let rows = self.session.query("fold", &sql, Vec::new()).await?;
            let Some(row) = rows.first() else {
                return Ok(Outcome::Skipped);
            };
            let more: bool = row.get(3);
            match (row.get(2), row.get(0), row.get::<_, Option<i64>>(1)) {
                (statement::FOLDED, Some(total), Some(rows)) => {
                    let rows = rows.unsigned_abs();
                    self.context.progress().folded(rows, total);
                    folded = Some((rows + folded.map_or(0, |(rows, _)| rows), total));
                }
                (statement::IDLE, ..) => {}
                // What was folded before is told; the rest comes with the next cycle.
                (..) if folded.is_some() => break,
                (statement::NO_TOTAL, ..) => return Ok(Outcome::NoTotal),
                _ => return Ok(Outcome::Skipped),
            }
            if !more || self.context.latch().is_stop_requested() {
                break;
            }
            piece.from = piece.from.saturating_add(piece.blocks);
        }
        Ok(match folded {
            Some((rows, total)) => Outcome::Folded { rows, total },
            // Somebody else was first.
            None => Outcome::Idle,
        })
    }

    fn report_nulls(&mut self, nulls: bool) {
        if nulls && !self.nulls_reported {
            let worker = self.context.name();
            let table = &self.settings.borrow().table;
            warn!(
                worker,
                "{worker}: {table} has rows whose value is NULL: they are left alone"
            );
        }
        self.nulls_reported = nulls;
    }

    /// What follows from what a cycle found: how long to nap.
    fn found(&mut self, outcome: Outcome) -> Duration {
        let naptime = self.settings.borrow().naptime;
        match outcome {
            Outcome::Skipped => return self.retry("others hold its total"),
            Outcome::NoTotal => {
                let table = &self.settings.borrow().table.clone();
                let waits =
                    format!("{table} has deltas but no total: they wait until one is inserted");
                if self.is_news(Condition::NoTotal) {
                    let worker = self.context.name();
                    warn!(worker, "{worker}: {waits}");
                }
                self.context.progress().failed(waits);
            }
            Outcome::Idle => self.succeeded(),
            Outcome::Folded { rows, total } => {
                self.succeeded();
                self.vacuum_after(rows);
                let worker = self.context.name();
                let table = &self.settings.borrow().table;
                info!(
                    worker,
                    rows, total, "{worker}: count in {table} is now {total}"
                );
            }
        }
        self.patience = Patience::default();
        naptime
    }

    /// Has the table vacuumed if so many deltas have left their room behind.
    fn vacuum_after(&mut self, folded: u64) {
        let settings = self.settings.borrow();
        if !self.vacuum.is_due(folded, settings.vacuum_after) {
            return;
        }
        if let Some(database) = self.context.database().cloned() {
            let worker = self.context.name().to_owned();
            let sql = settings.table.vacuum(&worker);
            self.vacuum
                .begin(database, worker, settings.database.clone(), sql);
        }
    }

    /// What follows from a cycle that failed: how long to nap, or the worker's end.
    async fn failed(&mut self, error: DatabaseError) -> Result<Duration, WorkerError> {
        let latch = self.context.latch().clone();
        let remedy = tokio::select! {
            biased;
            () = latch.stop_requested() => return Ok(Duration::ZERO),
            remedy = Remedy::find(&error, &self.session, self.initialized) => remedy,
        };
        match remedy {
            Remedy::Again => {
                // What is prepared may be what is out of date.
                if is_out_of_date(&error) {
                    self.probe = None;
                    self.known.take();
                }
                self.context.progress().failed(error.to_string());
                Ok(self.retry(&error.to_string()))
            }
            Remedy::BackOff => {
                let sqlstate = error.sqlstate().unwrap_or_default().to_owned();
                self.context.progress().failed(error.to_string());
                if self.is_news(Condition::Failing { sqlstate }) {
                    let worker = self.context.name();
                    let sqlstate = error.sqlstate();
                    let why = match sqlstate {
                        Some(statement::UNDONE) => "something suppresses the update of the total",
                        Some("57014") => "the deltas are kept: give it a longer statement_timeout",
                        Some(_) | None => "the deltas are kept",
                    };
                    error!(worker, sqlstate, "{worker}: {error}: {why}");
                }
                let naptime = self.settings.borrow().naptime;
                Ok(self.patience.back_off(naptime))
            }
            Remedy::Away => match *self.session {
                Session::Own(_) => Err(WorkerError::DatabaseAway(Box::new(error))),
                // Others see to the connection, and the Postmaster to the server. Meanwhile this one
                // is as good as napping, and goes on as soon as it can.
                Session::Home(ref home) => {
                    if !is_lost(&error) {
                        home.give_up();
                    }
                    self.context.progress().failed(error.to_string());
                    Ok(self.retry(&error.to_string()))
                }
            },
            Remedy::Exit => {
                // Something is not as it was: the next incarnation looks for itself.
                self.known.take();
                Err(error.into())
            }
        }
    }

    fn retry(&mut self, why: &str) -> Duration {
        let naptime = self.settings.borrow().naptime;
        let wait = self.patience.retry(naptime);
        let is_due = self.patience.retries() == RETRIES_UNTIL_WARNING;
        if is_due && self.is_news(Condition::Crowded) {
            let worker = self.context.name();
            let table = &self.settings.borrow().table;
            warn!(
                worker,
                "{worker}: the deltas of {table} wait, after {RETRIES_UNTIL_WARNING} attempts: {why}"
            );
        }
        wait
    }

    fn succeeded(&mut self) {
        self.context.progress().succeeded();
        self.reported = Condition::Well;
    }

    /// Remembers a condition, and says whether it was another one before.
    fn is_news(&mut self, condition: Condition) -> bool {
        let is_news = self.reported != condition;
        self.reported = condition;
        is_news
    }
}

/// Sees to the table, and gets the probe of it ready.
async fn prepare(
    context: &WorkerContext,
    settings: &watch::Receiver<Settings>,
    session: &Session,
    known: &Known,
) -> Result<Probe, InitializeError> {
    let Settings {
        table,
        initial_total,
        ..
    } = settings.borrow().clone();
    let may_be_null = match known.take() {
        Some(may_be_null) => may_be_null,
        None => initialize(session, &table, initial_total).await?,
    };
    let sql = table.probe(context.name(), may_be_null);
    Ok(Probe {
        statement: session.prepare("prepare to look for deltas", sql).await?,
        may_be_null,
    })
}

/// How many blocks hold about so many deltas.
fn blocks_of(deltas: usize) -> u32 {
    let blocks = u32::try_from(deltas / ROWS_PER_BLOCK);
    blocks.unwrap_or(u32::MAX).max(1)
}

/// Whether the connection is gone with the error. Otherwise it leads to a server that will not do.
fn is_lost(error: &DatabaseError) -> bool {
    !matches!(error, DatabaseError::Statement { .. })
}

/// Whether the server has forgotten what was prepared, or cannot use it any more.
fn is_out_of_date(error: &DatabaseError) -> bool {
    matches!(error.sqlstate(), Some("26000" | "0A000"))
}
