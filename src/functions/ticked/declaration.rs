//! A declaration as text: what a job does, for people and for instances that have it declared differently. Pure.
//!
//! It stands beside the digests that all versions compare, and holds only while it names them.

use super::job::Job;
use crate::schedule::Schedule;

/// The version of the text. What follows the schedule may be added to; what is there stays.
const VERSION: &str = "v2";

/// The text of a job's declaration.
pub(super) fn of(job: &Job) -> String {
    let (declared, schedule) = (&job.declared, job.schedule.text());
    let transaction = job.transaction.is_some();
    format!("{VERSION} {declared} {schedule} transaction={transaction}")
}

/// The schedule that a declaration names. `None` if it is not the text of these digests: a version that writes none has
/// declared the job since.
pub(super) fn schedule(declaration: &str, declared: &str) -> Option<Schedule> {
    let text = declaration.strip_prefix(VERSION)?.strip_prefix(' ')?;
    let text = text.strip_prefix(declared)?.strip_prefix(' ')?;
    Schedule::of_text(text)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::job::Isolation;
    use super::super::work::Tick;
    use super::*;

    #[test]
    fn a_declaration_is_written_as_every_version_reads_it() {
        let work = async |_: &Tick<'_>| Ok(0);
        let every = Schedule::every(Duration::from_secs(90)).unwrap();
        let nightly = Schedule::cron("15 2 * * *", "Europe/Berlin").unwrap();
        for (job, text) in [
            (
                Job::in_transaction(every, Isolation::Serializable, "1", work),
                "v2 DIGESTS every=\"90s\" transaction=true",
            ),
            (
                Job::outside(nightly, "1", work),
                "v2 DIGESTS cron=\"15 2 * * *\" zone=\"Europe/Berlin\" transaction=false",
            ),
        ] {
            let text = text.replace("DIGESTS", &job.declared);
            assert_eq!(of(&job), text);
            let read = schedule(&text, &job.declared).unwrap();
            assert_eq!(read.text(), job.schedule.text());
            assert!(schedule(&text, "another").is_none());
        }
    }
}
