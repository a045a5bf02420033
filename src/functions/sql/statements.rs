//! Splits a text into statements, and finds those that a job cannot run.
//!
//! Pure. Knows as much SQL as psql does to find the semicolons that end a statement: quotes, dollar quotes, nested
//! comments, parentheses, and the bodies of functions in standard SQL. If it splits wrongly, the server refuses the
//! result, since each statement is sent alone.

use std::ops::Range;

use thiserror::Error;

/// A statement of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Statement {
    /// From its first word to its last character, without the semicolon.
    pub(crate) sql: String,
    /// The line of the text in which it begins, from 1.
    pub(crate) line: usize,
}

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

/// First words of statements whose rows are written, or may be.
const WRITES: [&str; 6] = ["INSERT", "UPDATE", "DELETE", "MERGE", "COPY", "WITH"];

/// First words of statements that begin or end a transaction, or a part of one.
const TRANSACTION: [&str; 9] = [
    "ABORT",
    "BEGIN",
    "COMMIT",
    "END",
    "RELEASE",
    "ROLLBACK",
    "SAVEPOINT",
    "START",
    "PREPARE TRANSACTION",
];

// === impl Statement ===

impl Statement {
    /// The line of a character of the statement in the text, and its place in that line. All count from 1.
    pub(super) fn place(&self, character: usize) -> (usize, usize) {
        let before = self.sql.chars().take(character.saturating_sub(1));
        before.fold((self.line, 1), |(line, place), c| match c {
            '\n' => (line + 1, 1),
            _ => (line, place + 1),
        })
    }
}

/// Splits a text into statements, in a time that grows with its length. A byte order mark at its beginning does not count.
pub(crate) fn split(text: &str) -> Result<Vec<Statement>, InvalidStatements> {
    if text.contains('\0') {
        return Err(InvalidStatements::Nul);
    }
    let mut scanner = Scanner::new(text.strip_prefix('\u{feff}').unwrap_or(text));
    let mut statements = Vec::new();
    while let Some(statement) = scanner.statement()? {
        // What follows may be rows, and no SQL.
        if let Some(direction) = copies_with_client(&statement.sql) {
            let line = statement.line;
            return Err(InvalidStatements::Copy { line, direction });
        }
        statements.push(statement);
    }
    if statements.is_empty() {
        return Err(InvalidStatements::Empty);
    }
    Ok(statements)
}

/// Refuses statements that would take the transaction out of bgworker's hands, and, if the job is one transaction, those
/// that cannot run in one.
pub(crate) fn check(
    statements: &[Statement],
    in_transaction: bool,
) -> Result<(), InvalidStatements> {
    for Statement { sql, line } in statements {
        let line = *line;
        let mut words = words(sql).map(str::to_ascii_uppercase);
        let first = words.next().unwrap_or_default();
        let both = words.next().map(|second| format!("{first} {second}"));
        let ends_it = |word: &String| TRANSACTION.contains(&&**word);
        if let Some(word) = Some(first).filter(ends_it).or_else(|| both.filter(ends_it)) {
            return Err(if in_transaction {
                InvalidStatements::Transaction { line, word }
            } else {
                InvalidStatements::EachItsOwn { line, word }
            });
        }
        if let Some(word) = alone(sql).filter(|_| in_transaction) {
            return Err(InvalidStatements::NoTransaction { line, word });
        }
    }
    Ok(())
}

/// How a statement copies rows from or to the client, if it does.
fn copies_with_client(sql: &str) -> Option<&'static str> {
    if !words(sql).next()?.eq_ignore_ascii_case("COPY") {
        return None;
    }
    let mut scanner = Scanner::new(sql);
    let (mut parentheses, mut from) = (0_usize, None);
    while let Ok(Some(token)) = scanner.token() {
        match token {
            Token::Open => parentheses += 1,
            Token::Close => parentheses = parentheses.saturating_sub(1),
            Token::Word(word) if parentheses == 0 => {
                let word = &sql[word];
                let is = |other| word.eq_ignore_ascii_case(other);
                if let Some(from) = from {
                    let with_client = is("STDIN") || is("STDOUT");
                    return with_client.then_some(if from { "FROM STDIN" } else { "TO STDOUT" });
                }
                if is("FROM") || is("TO") {
                    from = Some(is("FROM"));
                }
            }
            // A file.
            Token::Other if parentheses == 0 && from.is_some() => return None,
            Token::Word(_) | Token::Blank | Token::Semicolon | Token::Other => {}
        }
    }
    None
}

/// The words that say that a statement cannot run in a transaction.
fn alone(sql: &str) -> Option<String> {
    let words: Vec<_> = outer_words(sql).map(str::to_ascii_uppercase).collect();
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    let length = match words[..] {
        ["VACUUM", ..] | ["CLUSTER"] | ["CLUSTER", "VERBOSE"] => 1,
        ["CREATE" | "DROP", "DATABASE" | "TABLESPACE", ..]
        | ["REINDEX", "DATABASE" | "SYSTEM" | "SCHEMA", ..]
        | ["ALTER", "SYSTEM", ..]
        | ["DISCARD", "ALL"] => 2,
        ["CREATE" | "DROP", "INDEX", "CONCURRENTLY", ..] | ["REINDEX", _, "CONCURRENTLY", ..] => 3,
        ["CREATE", "UNIQUE", "INDEX", "CONCURRENTLY", ..] => 4,
        ["ALTER", "TABLE", .., "CONCURRENTLY"] if words.contains(&"DETACH") => {
            return Some("DETACH PARTITION CONCURRENTLY".to_owned());
        }
        _ => return None,
    };
    Some(words[..length].join(" "))
}

/// The words of a statement that stand in no parentheses.
fn outer_words(sql: &str) -> impl Iterator<Item = &str> {
    let (mut scanner, mut depth) = (Scanner::new(sql), 0_usize);
    std::iter::from_fn(move || {
        loop {
            match scanner.token().ok()?? {
                Token::Word(word) if depth == 0 => return Some(&sql[word]),
                Token::Open => depth += 1,
                Token::Close => depth = depth.saturating_sub(1),
                Token::Word(_) | Token::Blank | Token::Semicolon | Token::Other => {}
            }
        }
    })
}

/// The words that a statement begins with. Comments between them do not count.
fn words(sql: &str) -> impl Iterator<Item = &str> {
    let mut scanner = Scanner::new(sql);
    std::iter::from_fn(move || {
        loop {
            match scanner.token().ok()?? {
                Token::Blank => {}
                Token::Word(word) => return Some(&sql[word]),
                Token::Semicolon | Token::Open | Token::Close | Token::Other => return None,
            }
        }
    })
}

/// Walks through a text.
struct Scanner<'t> {
    text: &'t str,
    at: usize,
    /// A place before which lines were counted, and its line: they are counted only once.
    counted: (usize, usize),
}

enum Token {
    /// White space, or a comment.
    Blank,
    Word(Range<usize>),
    Semicolon,
    Open,
    Close,
    /// A quoted text or name, a number, an operator.
    Other,
}

/// The words that decide whether a `BEGIN` opens the body of a function.
#[derive(Default)]
struct Head {
    words: Vec<String>,
    /// Nesting depth in such bodies, and in each `CASE` inside them.
    depth: usize,
}

// === impl Statement ===

impl Statement {
    /// `true` if its first word says that its rows are, or may be, rows that it writes.
    pub(crate) fn writes_rows(&self) -> bool {
        let first = words(&self.sql).next().map(str::to_ascii_uppercase);
        first.is_some_and(|first| WRITES.contains(&&*first))
    }

    /// `true` if it changes a setting, such as one of the transaction.
    pub(super) fn sets(&self) -> bool {
        let first = words(&self.sql).next();
        first.is_some_and(|first| first.eq_ignore_ascii_case("SET"))
    }
}

// === impl Scanner ===

impl<'t> Scanner<'t> {
    fn new(text: &'t str) -> Self {
        Self {
            text,
            at: 0,
            counted: (0, 1),
        }
    }

    /// The next statement that is more than a comment.
    fn statement(&mut self) -> Result<Option<Statement>, InvalidStatements> {
        let (mut start, mut end) = (None, self.at);
        let (mut head, mut parentheses) = (Head::default(), 0_usize);
        loop {
            let begin = self.at;
            let Some(token) = self.token()? else {
                break;
            };
            match token {
                Token::Blank => continue,
                Token::Semicolon if parentheses == 0 && head.depth == 0 => {
                    if start.is_some() {
                        break;
                    }
                    continue;
                }
                Token::Open => parentheses += 1,
                Token::Close => parentheses = parentheses.saturating_sub(1),
                Token::Word(ref word) if parentheses == 0 => head.word(&self.text[word.clone()]),
                Token::Word(_) | Token::Semicolon | Token::Other => {}
            }
            start.get_or_insert(begin);
            end = self.at;
        }
        Ok(start.map(|start| Statement {
            sql: self.text[start..end].to_owned(),
            line: self.line(start),
        }))
    }

    fn token(&mut self) -> Result<Option<Token>, InvalidStatements> {
        let rest = &self.text[self.at..];
        let Some(first) = rest.chars().next() else {
            return Ok(None);
        };
        let word = word_length(rest);
        let (length, token) = match first {
            _ if rest.starts_with("--") => (rest.find('\n').unwrap_or(rest.len()), Token::Blank),
            _ if rest.starts_with("/*") => (
                self.ended(comment_length(rest), "/* comment")?,
                Token::Blank,
            ),
            '\'' => (
                self.ended(quoted_length(rest, '\'', false), "quoted string")?,
                Token::Other,
            ),
            '"' => (
                self.ended(quoted_length(rest, '"', false), "quoted identifier")?,
                Token::Other,
            ),
            '$' => match dollar_quote(rest) {
                Some(quote) => {
                    let body = rest[quote.len()..].find(quote);
                    let length = body.map(|body| body + 2 * quote.len());
                    (self.ended(length, "dollar-quoted string")?, Token::Other)
                }
                None => (1, Token::Other),
            },
            'e' | 'E' if rest[1..].starts_with('\'') => {
                let length = quoted_length(&rest[1..], '\'', true).map(|length| length + 1);
                (self.ended(length, "quoted string")?, Token::Other)
            }
            '\\' => return Err(self.psql_command(rest)),
            ';' => (1, Token::Semicolon),
            '(' => (1, Token::Open),
            ')' => (1, Token::Close),
            _ if first.is_whitespace() => (first.len_utf8(), Token::Blank),
            _ if word > 0 => (word, Token::Word(self.at..self.at + word)),
            _ => (first.len_utf8(), Token::Other),
        };
        self.at += length;
        Ok(Some(token))
    }

    fn ended(
        &mut self,
        length: Option<usize>,
        what: &'static str,
    ) -> Result<usize, InvalidStatements> {
        length.ok_or_else(|| {
            let line = self.line(self.at);
            InvalidStatements::Unterminated { line, what }
        })
    }

    /// A backslash outside of quotes is no SQL: psql takes what follows for itself.
    fn psql_command(&mut self, rest: &str) -> InvalidStatements {
        let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
        let command: String = rest[..end].chars().take(20).collect();
        let line = self.line(self.at);
        InvalidStatements::Psql { line, command }
    }

    /// The line of a place that is not before the last one that was asked for.
    fn line(&mut self, at: usize) -> usize {
        let (from, line) = self.counted;
        let line = line + self.text[from..at].matches('\n').count();
        self.counted = (at, line);
        line
    }
}

// === impl Head ===

impl Head {
    fn word(&mut self, word: &str) {
        let word = word.to_ascii_uppercase();
        if self.makes_a_function() {
            match &*word {
                "BEGIN" => self.depth += 1,
                "CASE" if self.depth > 0 => self.depth += 1,
                "END" => self.depth = self.depth.saturating_sub(1),
                _ => {}
            }
        }
        if self.words.len() < 4 {
            self.words.push(word);
        }
    }

    fn makes_a_function(&self) -> bool {
        let words: Vec<_> = self.words.iter().map(String::as_str).collect();
        matches!(
            words[..],
            ["CREATE", "FUNCTION" | "PROCEDURE", ..]
                | ["CREATE", "OR", "REPLACE", "FUNCTION" | "PROCEDURE", ..]
        )
    }
}

/// The length of the word at the beginning of a text; 0 if there is none.
fn word_length(rest: &str) -> usize {
    let begins = |c: char| c.is_alphabetic() || c == '_';
    if !rest.starts_with(begins) {
        return 0;
    }
    let goes_on = |c: char| c.is_alphanumeric() || c == '_' || c == '$';
    rest.find(|c| !goes_on(c)).unwrap_or(rest.len())
}

/// The length of a quoted text with its quotes; a doubled quote is part of the text.
fn quoted_length(rest: &str, quote: char, has_escapes: bool) -> Option<usize> {
    let mut characters = rest.char_indices().skip(1).peekable();
    while let Some((at, c)) = characters.next() {
        if has_escapes && c == '\\' {
            characters.next();
        } else if c == quote && characters.next_if(|(_, next)| *next == quote).is_none() {
            return Some(at + 1);
        }
    }
    None
}

/// The length of a comment, including the comments nested in it.
fn comment_length(rest: &str) -> Option<usize> {
    let (mut depth, mut at) = (0_usize, 0);
    loop {
        let here = rest.get(at..).filter(|here| !here.is_empty());
        let here = here?;
        if here.starts_with("/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if here.starts_with("*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return Some(at);
            }
        } else {
            at += here.chars().next().map_or(1, char::len_utf8);
        }
    }
}

/// The dollar quote at the beginning of a text, such as `$$` or `$body$`. `$1` is not a dollar quote.
fn dollar_quote(rest: &str) -> Option<&str> {
    let end = rest[1..].find('$')? + 1;
    let tag = &rest[1..end];
    (tag.is_empty() || word_length(tag) == tag.len() && !tag.contains('$')).then(|| &rest[..=end])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn texts(text: &str) -> Vec<String> {
        let statements = split(text).unwrap().into_iter();
        statements.map(|statement| statement.sql).collect()
    }

    #[test]
    fn statements_end_at_semicolons_that_end_them() {
        for (text, expected) in [
            ("SELECT 1", &["SELECT 1"][..]),
            (
                " SELECT 1 ;; SELECT 2; -- done;\n",
                &["SELECT 1", "SELECT 2"],
            ),
            (
                "SELECT ';', \";\", $$;$$, $b$;$$;$b$; SELECT 2",
                &["SELECT ';', \";\", $$;$$, $b$;$$;$b$", "SELECT 2"],
            ),
            (
                "SELECT 'it''s;'; SELECT E'\\';'",
                &["SELECT 'it''s;'", "SELECT E'\\';'"],
            ),
            ("/* a; /* b; */ c; */ SELECT 1 /* ; */", &["SELECT 1"]),
            ("SELECT (1;2); SELECT 3", &["SELECT (1;2)", "SELECT 3"]),
            ("SELECT a$b$c; SELECT $1", &["SELECT a$b$c", "SELECT $1"]),
            (
                "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT CASE WHEN true THEN 1 END; SELECT 2; END; SELECT 3",
                &[
                    "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT CASE WHEN true THEN 1 END; SELECT 2; END",
                    "SELECT 3",
                ],
            ),
            (
                "CREATE OR REPLACE PROCEDURE p() BEGIN ATOMIC; END; DELETE FROM t",
                &[
                    "CREATE OR REPLACE PROCEDURE p() BEGIN ATOMIC; END",
                    "DELETE FROM t",
                ],
            ),
            ("SELECT begin; SELECT 2", &["SELECT begin", "SELECT 2"]),
        ] {
            assert_eq!(texts(text), expected, "{text}");
        }
    }

    #[test]
    fn each_statement_has_the_line_in_which_its_first_word_stands() {
        let lines: Vec<_> = split("-- one\nSELECT 1;\n\n/* a\nb */ SELECT '\n';SELECT 3").unwrap();
        let lines: Vec<_> = lines.iter().map(|statement| statement.line).collect();
        assert_eq!(lines, [2, 5, 6]);
    }

    #[test]
    fn what_has_no_end_is_told_with_its_line() {
        for (text, what) in [
            ("SELECT\n'a", "quoted string"),
            ("SELECT\n\"a", "quoted identifier"),
            ("SELECT\n$x$ a $y$", "dollar-quoted string"),
            ("SELECT\n/* /* */", "/* comment"),
        ] {
            let refused = split(text).unwrap_err();
            assert_eq!(refused, InvalidStatements::Unterminated { line: 2, what });
        }
        assert_eq!(split(" ; -- nothing"), Err(InvalidStatements::Empty));
    }

    #[test]
    fn what_begins_or_ends_a_transaction_is_refused_whatever_comment_hides_it() {
        for (text, word) in [
            ("SELECT 1;\ncommit", "COMMIT"),
            ("SELECT 1;\n/* x */ BEGIN", "BEGIN"),
            (
                "SELECT 1;\nprepare /* x */ transaction 'x'",
                "PREPARE TRANSACTION",
            ),
            ("SELECT 1;\nROLLBACK TO SAVEPOINT s", "ROLLBACK"),
            ("SELECT 1;\nstart transaction", "START"),
        ] {
            let refused = check(&split(text).unwrap(), true).unwrap_err();
            let word = word.to_owned();
            assert_eq!(refused, InvalidStatements::Transaction { line: 2, word });
        }
        for text in [
            "PREPARE p AS SELECT 1",
            "SELECT 'commit'",
            "\"commit\"",
            "(SELECT 1)",
        ] {
            assert_eq!(check(&split(text).unwrap(), true), Ok(()), "{text}");
        }
    }

    #[test]
    fn a_copy_from_or_to_the_client_is_refused_and_one_of_the_server_is_not() {
        for (text, direction) in [
            ("SELECT 1;\ncopy t from stdin", "FROM STDIN"),
            (
                "SELECT 1;\nCOPY s.t (a, b) FROM STDIN WITH (FORMAT csv)",
                "FROM STDIN",
            ),
            (
                "SELECT 1;\nCOPY (SELECT a FROM t) TO /* x */ stdout",
                "TO STDOUT",
            ),
            ("SELECT 1;\nCOPY \"from\" TO STDOUT;", "TO STDOUT"),
        ] {
            let refused = split(text).unwrap_err();
            assert_eq!(refused, InvalidStatements::Copy { line: 2, direction });
        }
        for text in [
            "COPY t FROM '/tmp/stdin'",
            "COPY (SELECT stdin FROM stdout) TO PROGRAM 'cat'",
            "COPY stdin FROM 'x' WITH (NULL 'stdin')",
            "SELECT stdin FROM stdin",
        ] {
            assert_eq!(check(&split(text).unwrap(), true), Ok(()), "{text}");
        }
    }

    #[test]
    fn what_cannot_run_in_a_transaction_is_refused_unless_the_job_is_none() {
        for (text, word) in [
            ("SELECT 1;\nvacuum (analyze) t", "VACUUM"),
            (
                "\nCREATE UNIQUE INDEX concurrently ON t (a)",
                "CREATE UNIQUE INDEX CONCURRENTLY",
            ),
            (
                "\nDROP INDEX CONCURRENTLY IF EXISTS i",
                "DROP INDEX CONCURRENTLY",
            ),
            (
                "\nREINDEX (VERBOSE) TABLE CONCURRENTLY t",
                "REINDEX TABLE CONCURRENTLY",
            ),
            ("\nALTER SYSTEM SET work_mem = '1MB'", "ALTER SYSTEM"),
            (
                "\nALTER TABLE s.t DETACH PARTITION s.\"p\" CONCURRENTLY",
                "DETACH PARTITION CONCURRENTLY",
            ),
        ] {
            let statements = split(text).unwrap();
            let word = word.to_owned();
            let refused = InvalidStatements::NoTransaction { line: 2, word };
            assert_eq!(check(&statements, true), Err(refused), "{text}");
            assert_eq!(check(&statements, false), Ok(()), "{text}");
        }
        for text in [
            "REFRESH MATERIALIZED VIEW CONCURRENTLY v",
            "CREATE INDEX \"concurrently\" ON t (a)",
            "CLUSTER t",
            "REINDEX TABLE t",
        ] {
            assert_eq!(check(&split(text).unwrap(), true), Ok(()), "{text}");
        }
    }

    #[test]
    fn what_only_psql_understands_is_refused_with_its_line() {
        for (text, command) in [
            ("SELECT 1;\n\\set x 1", "\\set"),
            ("SELECT 1;\n\\i other.sql", "\\i"),
            ("SELECT 1;\n  \\copy t from 'x'", "\\copy"),
            ("SELECT 1\n\\gexec", "\\gexec"),
        ] {
            let command = command.to_owned();
            let refused = InvalidStatements::Psql { line: 2, command };
            assert_eq!(split(text), Err(refused), "{text}");
        }
        for (text, direction) in [
            ("\nCOPY t (a, b) from stdin;\n1\tit's\n\\.\n", "FROM STDIN"),
            ("\ncopy (SELECT 1) TO STDOUT (FORMAT csv)", "TO STDOUT"),
        ] {
            let refused = InvalidStatements::Copy { line: 2, direction };
            assert_eq!(split(text), Err(refused), "{text}");
        }
        let text = "COPY t FROM PROGRAM 'cat'; SELECT '\\set', \"stdin\" FROM stdin";
        assert_eq!(texts(text).len(), 2);
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_the_first_statement() {
        assert_eq!(texts("\u{feff}SELECT 1"), ["SELECT 1"]);
    }

    #[test]
    #[expect(
        clippy::disallowed_methods,
        reason = "two times are compared, and neither with a clock"
    )]
    fn eight_times_the_text_takes_nowhere_near_sixty_four_times_as_long() {
        let text =
            |statements: usize| "INSERT INTO t VALUES ('a', $1, $$b$$);\n".repeat(statements);
        let fastest = |text: &str| {
            let each = (0..3).map(|_| {
                let begin = std::time::Instant::now();
                assert!(split(text).is_ok());
                begin.elapsed()
            });
            each.min().unwrap()
        };
        let (small, large) = (fastest(&text(4_000)), fastest(&text(32_000)));
        assert!(large < 32 * small, "{small:?}, {large:?}");
    }

    proptest! {
        #[test]
        fn no_text_is_lost_but_semicolons_comments_and_blanks(text in "[a-z;'\"$/*\\- \n()é]{0,40}") {
            if let Ok(statements) = split(&text) {
                let mut rest = text.as_str();
                for Statement { sql, .. } in statements {
                    let at = rest.find(&sql);
                    prop_assert!(at.is_some(), "{sql:?} in {rest:?}");
                    rest = &rest[at.unwrap() + sql.len()..];
                }
            }
        }
    }
}
