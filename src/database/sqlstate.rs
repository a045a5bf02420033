//! What an error of a server or a pooler means for the worker that meets it: the only table of error classes.
//!
//! Pure: an SQLSTATE and a sentence in, an [`ErrorClass`] out. Nothing here decides how long to wait, or what to say;
//! and no SQLSTATE may appear anywhere else.

use std::io;

/// The class of a database error, which says what follows from it.
///
/// Ordered by weight: of several attempts, the heaviest class counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ErrorClass {
    /// The server, or the connection to it, is gone. The worker is not at fault, and comes back when the server
    /// does.
    Away,
    /// The server, a pooler or this process has no room for another connection. Connections that exist are not
    /// affected.
    Full,
    /// A setting or a file on bgworker's side prevents asking. This says nothing about the server.
    Ours,
    /// The server is there, but refuses bgworker.
    Refused,
    /// Another client is in the way: the next attempt may succeed at once.
    InTheWay,
    /// What was prepared no longer fits what it was prepared for.
    OutOfDate,
    /// The session can only read: a standby, or a setting of the session.
    ReadOnly,
    /// The statement took longer than it may, or an administrator cancelled it.
    Cancelled,
    /// The server ran out of something: disk, memory, the range of a number.
    Exhausted,
    /// A person has to mend something first: a privilege, a constraint, a trigger.
    ToBeMended,
}

/// What is known of the reason for which a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SessionEnd {
    /// It was terminated, by its own statement or by an administrator, or its transaction or statement took longer than
    /// the server or a pooler allows.
    Terminated,
    /// Another process crashed, the server is starting up or shutting down, or the session was idle for too long.
    Unrelated,
    /// Its process or its network ended without a word.
    Silent,
}

/// The server's code for a statement that undid itself: a text that is not a number (`invalid_text_representation`).
pub(crate) const UNDONE: &str = "22P02";

/// The server's code for a statement that took longer than it may, or that an administrator cancelled (`query_canceled`).
pub(crate) const CANCELLED: &str = "57014";

/// The word and the sentence with which a statement undid itself: `bgworker[word]: sentence`. `None` if this code and message say
/// something else.
pub(crate) fn undone<'m>(code: &str, message: &'m str) -> Option<(&'m str, &'m str)> {
    let (_, said) = message.split_once("bgworker[")?;
    let (word, why) = said.split_once("]: ")?;
    (code == UNDONE).then(|| (word, why.trim_end_matches('"')))
}

/// The code for a connection that ended without sending one (`connection_failure`).
pub(super) const LOST: &str = "08006";

/// What poolers say under the few codes that they have: part of a message in lower case, and its class.
///
/// If a pooler passes on what its server said, as PgBouncer does in `server login has been failing, cached error: …`,
/// the server's own sentence decides. The first match counts.
const SENTENCES: [(&str, ErrorClass); 43] = [
    // The server's own, passed on by any of them
    ("too many clients already", ErrorClass::Full),
    ("too many connections", ErrorClass::Full),
    ("remaining connection slots are reserved", ErrorClass::Full),
    ("authentication failed", ErrorClass::Refused),
    ("\" does not exist", ErrorClass::Refused),
    ("no pg_hba.conf entry", ErrorClass::Refused),
    ("pg_hba.conf rejects connection", ErrorClass::Refused),
    ("is not permitted to log in", ErrorClass::Refused),
    (
        "is not currently accepting connections",
        ErrorClass::Refused,
    ),
    ("permission denied for database", ErrorClass::Refused),
    // PgBouncer
    ("no more connections allowed", ErrorClass::Full),
    ("client connections exceeded", ErrorClass::Full),
    ("query_wait_timeout", ErrorClass::Full),
    ("no such database", ErrorClass::Refused),
    ("no such user", ErrorClass::Refused),
    ("no authentication method is found", ErrorClass::Refused),
    ("bouncer config error", ErrorClass::Refused),
    ("auth failed", ErrorClass::Refused),
    ("login rejected", ErrorClass::Refused),
    ("does not allow connections", ErrorClass::Refused),
    ("\" is disabled", ErrorClass::Refused),
    ("ssl required", ErrorClass::Refused),
    ("server login failed", ErrorClass::Refused),
    ("server login has been failing", ErrorClass::Away),
    ("server conn crashed", ErrorClass::Away),
    // Supavisor, which says the same with and without a code in parentheses
    ("max client connections reached", ErrorClass::Full),
    ("max clients reached", ErrorClass::Full),
    ("unable to check out", ErrorClass::Full),
    ("pool checkout failed", ErrorClass::Full),
    ("max pools count reached", ErrorClass::Full),
    ("too many authentication failures", ErrorClass::Refused),
    ("too many failed attempts", ErrorClass::Away),
    ("not found", ErrorClass::Refused),
    ("ssl connection is required", ErrorClass::Refused),
    ("allow_list", ErrorClass::Refused),
    ("authentication error, reason", ErrorClass::Refused),
    ("dbhandler exited", ErrorClass::Away),
    ("connect to database", ErrorClass::Away),
    // Odyssey, pgcat, PgDog, Neon
    ("too many", ErrorClass::Full),
    ("checkout timeout", ErrorClass::Full),
    ("no pool configured", ErrorClass::Refused),
    ("endpoint is disabled", ErrorClass::Refused),
    ("is not allowed to connect", ErrorClass::Refused),
];

/// What is at fault when a fold of a single key has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Another client, which holds a row: the key may go through later.
    Client,
    /// A row to which the delta refers is not there, or not yet.
    Reference,
    /// A value of the delta.
    Value,
    /// The table: a partition or a default is missing, or a trigger takes too long.
    Table,
    /// The statement, the session or the server, unless others go through.
    Statement,
    /// A trigger, which may raise anything for any reason.
    Unclear,
}

// === impl Fault ===

impl Fault {
    /// What is at fault for an error that names a constraint or a column of the key, or neither.
    pub(crate) fn of(code: &str, has_constraint: bool, has_key: bool) -> Self {
        match code {
            "40001" | "40P01" | "55P03" => Self::Client,
            // Of several checks, only that for a partition has no name.
            "23514" if !has_constraint => Self::Table,
            "23502" if !has_key => Self::Table,
            CANCELLED => Self::Table,
            "23503" => Self::Reference,
            "22001" | "22003" | "54000" => Self::Value,
            code if code.starts_with("23") => Self::Value,
            code => match code.get(..2) {
                Some(
                    "08" | "0A" | "25" | "26" | "28" | "2D" | "3D" | "3F" | "42" | "53" | "55"
                    | "57" | "58" | "F0" | "HV" | "XX",
                ) => Self::Statement,
                _ => Self::Unclear,
            },
        }
    }
}

// === impl ErrorClass ===

impl ErrorClass {
    /// The class of an error with which a connection could not be made, or was ended.
    pub(super) fn of_connection(code: &str, message: &str) -> Self {
        match code {
            "53300" => Self::Full,
            code if is_vague(code) => Self::of_sentence(message).unwrap_or(Self::Away),
            code if code.starts_with("08") => Self::Away,
            "57P01" | "57P02" | "57P03" | "57P05" | "25P03" | "25P04" => Self::Away,
            _ => Self::Refused,
        }
    }

    /// The class of a statement's error. `routine` is the server's function that found the error.
    pub(super) fn of_statement(code: &str, message: &str, routine: Option<&str>) -> Self {
        match code {
            "40001" | "40P01" | "55P03" => Self::InTheWay,
            "26000" => Self::OutOfDate,
            // BEGIN READ WRITE during recovery: the sentence is translated, the function that refuses the value is not.
            "0A000" if routine == Some("call_bool_check_hook") => Self::ReadOnly,
            // Other unsupported features stay unsupported.
            "0A000" if routine == Some("RevalidateCachedQuery") => Self::OutOfDate,
            "25006" => Self::ReadOnly,
            "57014" => Self::Cancelled,
            // An error that ends a session means the same whenever it comes.
            code if code.starts_with("08") || code.starts_with("28") => {
                Self::of_connection(code, message)
            }
            "3D000" | "53300" | "57P01" | "57P02" | "57P03" | "57P05" | "25P03" | "25P04" => {
                Self::of_connection(code, message)
            }
            code if is_vague(code) => Self::of_sentence(message).unwrap_or(Self::ToBeMended),
            "22003" => Self::Exhausted,
            code if code.starts_with("53") => Self::Exhausted,
            _ => Self::ToBeMended,
        }
    }

    fn of_sentence(message: &str) -> Option<Self> {
        let message = message.to_ascii_lowercase();
        let said = SENTENCES.iter().find(|(part, _)| message.contains(part));
        said.map(|(_, class)| *class)
    }

    /// The class of an error of the operating system.
    pub(super) fn of_system(error: &io::Error) -> Self {
        // Numbers, since the standard library has no names for them: EAGAIN (the queue of a Unix socket is full),
        // ENOMEM, ENFILE, EMFILE, EADDRNOTAVAIL, ENOBUFS.
        match error.raw_os_error() {
            Some(11 | 12 | 23 | 24 | 99 | 105) if cfg!(target_os = "linux") => Self::Full,
            _ if error.kind() == io::ErrorKind::PermissionDenied => Self::Ours,
            _ => Self::Away,
        }
    }
}

/// Returns `true` for the codes under which poolers say anything: `protocol_violation`, `internal_error`,
/// `system_error`, and two of `connection_exception`.
fn is_vague(code: &str) -> bool {
    matches!(code, "08P01" | "08004" | "08006" | "XX000" | "58000")
}

/// The reason for which a session ended, from the code and the message with which it did.
pub(crate) fn session_end(code: &str, message: &str) -> SessionEnd {
    match code {
        "57P01" | "25P04" => SessionEnd::Terminated,
        "57P02" | "57P03" | "57P05" | "25P03" => SessionEnd::Unrelated,
        // PgBouncer's words for its own `query_timeout`.
        code if is_vague(code) && message.contains("query timeout") => SessionEnd::Terminated,
        _ => SessionEnd::Silent,
    }
}

/// Returns `true` for the code with which a server ends all sessions because one of its processes crashed.
pub(super) fn is_crash_of_another(code: &str) -> bool {
    code == "57P02"
}

/// Returns `true` if the same host may be reachable the other way, with or without encryption
/// (`invalid_authorization_specification`). A wrong password is wrong either way.
pub(super) fn is_about_encryption(code: &str) -> bool {
    code == "28000"
}

/// Returns `true` if a statement cannot run in a transaction block, or tried to end it.
pub(crate) fn is_for_no_transaction(code: &str) -> bool {
    matches!(code, "25001" | "2D000")
}

/// Returns `true` if another transaction held a row for longer than a statement waits (`lock_not_available`).
pub(crate) fn is_locked(code: &str) -> bool {
    code == "55P03"
}

/// Returns `true` if a value of some row is at fault: data exceptions, violations of constraints, what triggers raise,
/// and a row of an index that is too long.
pub(crate) fn is_of_a_row(code: &str) -> bool {
    code.starts_with("22") || code.starts_with("23") || matches!(code, "P0001" | "54000")
}

/// Returns `true` if a statement does not fit its tables: a column is missing, or has another type (`undefined_column`,
/// `undefined_function`, `datatype_mismatch`).
pub(crate) fn is_of_columns(code: &str) -> bool {
    matches!(code, "42703" | "42883" | "42804")
}

/// Returns `true` if a savepoint is not there, or no transaction is under way (`invalid_savepoint_specification`,
/// `no_active_sql_transaction`).
pub(crate) fn is_of_savepoint(code: &str) -> bool {
    matches!(code, "3B001" | "25P01")
}

/// Returns `true` if a prepared statement is not there, or another one has its name (`invalid_sql_statement_name`,
/// `duplicate_prepared_statement`).
pub(crate) fn is_of_prepared(code: &str) -> bool {
    matches!(code, "26000" | "42P05")
}

/// Returns `true` if a row has changed since the snapshot of a transaction (`serialization_failure`).
pub(crate) fn is_stale(code: &str) -> bool {
    code == "40001"
}

/// Returns `true` if a statement met another transaction, and may succeed if it is run again.
pub(crate) fn is_conflict(code: &str) -> bool {
    is_stale(code) || code == "40P01"
}

/// Returns `true` if a table or its schema does not exist (`undefined_table`, `invalid_schema_name`).
pub(crate) fn is_missing(code: &str) -> bool {
    matches!(code, "42P01" | "3F000")
}

/// Returns `true` if the role lacks a privilege (`insufficient_privilege`).
pub(crate) fn is_denied(code: &str) -> bool {
    code == "42501"
}

/// Returns `true` if another session made the same thing at the same time (`duplicate_schema`, `duplicate_table`,
/// `duplicate_object`, `unique_violation`).
pub(crate) fn is_made_already(code: &str) -> bool {
    matches!(code, "42P06" | "42P07" | "42710" | "23505")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_server_is_not_away_whichever_side_reports_it() {
        for (code, message) in [
            ("53300", "sorry, too many clients already"),
            ("53300", "too many connections for role \"app\""),
            ("08P01", "no more connections allowed (max_client_conn)"),
            ("53300", "no more connections allowed (max_client_conn)"),
            ("08P01", "query_wait_timeout"),
            ("XX000", "Max client connections reached"),
            (
                "XX000",
                "MaxClientsInSessionMode: max clients reached - in Session mode max clients are limited to pool_size",
            ),
            (
                "08P01",
                "server login has been failing, cached error: sorry, too many clients already (server_login_retry)",
            ),
            (
                "XX000",
                "(ECHECKOUTTIMEOUT) unable to check out connection from the pool after 60000ms in Session mode",
            ),
            ("58000", "checkout timeout"),
        ] {
            let class = ErrorClass::of_connection(code, message);
            assert_eq!(class, ErrorClass::Full, "{code} {message}");
            let class = ErrorClass::of_statement(code, message, None);
            assert_eq!(class, ErrorClass::Full, "{code} {message}");
        }
    }

    #[test]
    fn what_a_pooler_says_of_a_password_or_a_database_is_a_refusal() {
        for (code, message) in [
            ("28P01", "password authentication failed for user \"app\""),
            ("3D000", "database \"d\" does not exist"),
            ("08P01", "no such database: d"),
            ("08P01", "SASL authentication failed"),
            ("XX000", "Tenant or user not found"),
            ("42501", "permission denied for database \"d\""),
            (
                "08P01",
                "server login has been failing, cached error: password authentication failed for user \"app\" (server_login_retry)",
            ),
            (
                "08P01",
                "server login has been failing, cached error: database \"d\" does not exist (server_lo",
            ),
            ("08P01", "password authentication failed"),
            ("XX000", "(ENOTFOUND) tenant/user postgres.x not found"),
        ] {
            let class = ErrorClass::of_connection(code, message);
            assert_eq!(class, ErrorClass::Refused, "{code} {message}");
        }
        for (code, message) in [
            ("08P01", "pgbouncer cannot connect to server"),
            (
                "08P01",
                "server login has been failing, cached error: connect failed (server_login_retry)",
            ),
            (
                "57P01",
                "terminating connection due to administrator command",
            ),
            (
                "57P05",
                "terminating connection due to idle-session timeout",
            ),
            ("57P03", "the database system is starting up"),
            ("XX000", "DbHandler exited"),
        ] {
            let class = ErrorClass::of_connection(code, message);
            assert_eq!(class, ErrorClass::Away, "{code} {message}");
        }
    }

    #[test]
    fn only_a_plan_that_no_longer_fits_is_out_of_date() {
        let of = |routine| ErrorClass::of_statement("0A000", "", routine);
        assert_eq!(of(Some("RevalidateCachedQuery")), ErrorClass::OutOfDate);
        assert_eq!(of(Some("call_bool_check_hook")), ErrorClass::ReadOnly);
        assert_eq!(of(Some("RewriteQuery")), ErrorClass::ToBeMended);
    }
}
