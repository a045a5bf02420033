//! Why a text cannot be the statements of a job.

use thiserror::Error;

/// Why a text cannot be the statements of a job.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum InvalidStatements {
    /// The text contains no statement.
    #[error("there is no statement in it")]
    Empty,
    /// A quote or a comment has no end. The sentences are PostgreSQL's.
    #[error("line {line}: unterminated {what}")]
    Unterminated {
        /// The line in which it begins, from 1.
        line: usize,
        /// A quoted string, a comment or similar.
        what: &'static str,
    },
    /// A statement would begin or end the transaction that claims the tick.
    #[error(
        "line {line}: {word} cannot be run: the statement and its tick are committed together, by bgworker"
    )]
    Transaction {
        /// The line in which it begins, from 1.
        line: usize,
        /// The word or words that it begins with.
        word: String,
    },
    /// A statement would begin or end a transaction where each statement is one of its own.
    #[error(
        "line {line}: {word} cannot be run: with \"transaction = false\" each statement is a transaction of its own: \
         leave it out, or use a procedure"
    )]
    EachItsOwn {
        /// The line in which it begins, from 1.
        line: usize,
        /// The word or words that it begins with.
        word: String,
    },
    /// A statement cannot run in a transaction, and the job is one.
    #[error("line {line}: {word} cannot run in a transaction: set \"transaction = false\"")]
    NoTransaction {
        /// The line in which it begins, from 1.
        line: usize,
        /// The words that say so.
        word: String,
    },
    /// A statement would exchange rows with the client, which has none and takes none.
    #[error(
        "line {line}: COPY {direction} exchanges rows with the client, and bgworker has none: name a file or a program of \
         the server, or use INSERT"
    )]
    Copy {
        /// The line in which it begins, from 1.
        line: usize,
        /// `FROM STDIN` or `TO STDOUT`.
        direction: &'static str,
    },
    /// A command of psql, which is not SQL.
    #[error(
        "line {line}: {command} is a command of psql, which the server does not know: write it in SQL, or leave it out"
    )]
    Psql {
        /// Its line, from 1.
        line: usize,
        /// The command.
        command: String,
    },
    /// The text contains NUL, which PostgreSQL accepts in no text.
    #[error("it must not contain NUL")]
    Nul,
}
