//! Settings: from a file and the environment to checked values, or to every mistake at once.
//!
//! Nothing here reads a file or the environment by itself, or connects to anything: texts come in,
//! settings go out. Secrets are neither shown nor repeated in a problem.

mod check;
mod difference;
mod document;
mod problem;
mod schema;
mod sections;
mod settings;
mod sources;
mod worker;

pub use self::difference::{Change, difference};
pub use self::problem::{Origin, Problem, Problems};
pub use self::schema::schema;
pub use self::sections::Http;
pub use self::settings::{Server, Setting, Settings, WorkerSettings};
pub use self::sources::{ConfigFile, Sources};
pub use crate::functions::{Claim, Function, FunctionSettings, Functions, Mistake, Objects};
pub use crate::keys::duration;

/// Reads settings: flag over environment over file over `DATABASE_URL` over `PG*`. Each worker runs one of `functions`.
///
/// # Errors
///
/// Every mistake, those of the file first, in its order.
pub fn read(sources: &Sources, functions: &Functions) -> Result<Settings, Problems> {
    read_all(sources, functions, true)
}

/// Reads settings for what asks no server, such as `bgworker next`: it is no mistake if none is given.
///
/// # Errors
///
/// Every mistake, those of the file first, in its order.
pub fn read_without_server(sources: &Sources, functions: &Functions) -> Result<Settings, Problems> {
    read_all(sources, functions, false)
}

/// Reads where instances of this configuration are served over HTTP, whatever mistakes the rest of it has: an instance may
/// still run with what the file held before.
///
/// # Errors
///
/// Every mistake, if one of them may be about that.
pub fn read_http(sources: &Sources, functions: &Functions) -> Result<Http, Problems> {
    let (layered, mut problems) = sources.layer(functions);
    let http: Http = layered.section(sections::HTTP, &mut problems);
    let is_about_that = problems.concerns(sections::HTTP);
    if is_about_that || (http.listen.is_none() && !problems.is_empty()) {
        return problems.into_result(None);
    }
    Ok(http)
}

fn read_all(
    sources: &Sources,
    functions: &Functions,
    needs_server: bool,
) -> Result<Settings, Problems> {
    let (layered, mut problems) = sources.layer(functions);
    let settings = check::check(layered, sources, &mut problems, needs_server);
    problems.into_result(settings)
}
