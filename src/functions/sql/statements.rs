//! Splits a text into statements, and finds those that a job cannot run.
//!
//! Pure. Knows as much SQL as psql does to find the semicolons that end a statement: quotes, dollar quotes, nested
//! comments, parentheses, and the bodies of functions in standard SQL. If it splits wrongly, the server refuses the
//! result, since each statement is sent alone.

mod invalid;
mod scanner;

pub use self::invalid::InvalidStatements;
use self::scanner::{Scanner, Token};

/// A statement of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Statement {
    /// From its first word to its last character, without the semicolon.
    pub(crate) sql: String,
    /// The line of the text in which it begins, from 1.
    pub(crate) line: usize,
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

/// Splits a text into statements, in a time that grows with its length. A byte order mark at its beginning does not count.
pub(crate) fn split(text: &str) -> Result<Vec<Statement>, InvalidStatements> {
    if text.contains('\0') {
        return Err(InvalidStatements::Nul);
    }
    let mut scanner = Scanner::new(text.strip_prefix('\u{feff}').unwrap_or(text));
    let mut statements = Vec::new();
    while let Some(statement) = next_statement(&mut scanner)? {
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

/// The next statement that is more than a comment.
fn next_statement(scanner: &mut Scanner<'_>) -> Result<Option<Statement>, InvalidStatements> {
    let (mut start, mut end) = (None, scanner.at());
    let (mut head, mut parentheses) = (Head::default(), 0_usize);
    loop {
        let begin = scanner.at();
        let Some(token) = scanner.token()? else {
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
            Token::Word(ref word) if parentheses == 0 => head.word(&scanner.text()[word.clone()]),
            Token::Word(_) | Token::Semicolon | Token::Other => {}
        }
        start.get_or_insert(begin);
        end = scanner.at();
    }
    Ok(start.map(|start| Statement {
        sql: scanner.text()[start..end].to_owned(),
        line: scanner.line(start),
    }))
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

/// The words that decide whether a `BEGIN` opens the body of a function.
#[derive(Default)]
struct Head {
    words: Vec<String>,
    /// Nesting depth in such bodies, and in each `CASE` inside them.
    depth: usize,
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
