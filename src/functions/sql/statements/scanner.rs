//! Walks through a text of SQL, token by token, as far as psql does. Pure.

use std::ops::Range;

use super::invalid::InvalidStatements;

/// Walks through a text.
pub(super) struct Scanner<'t> {
    text: &'t str,
    at: usize,
    /// A place before which lines were counted, and its line: they are counted only once.
    counted: (usize, usize),
}

pub(super) enum Token {
    /// White space, or a comment.
    Blank,
    Word(Range<usize>),
    Semicolon,
    Open,
    Close,
    /// A quoted text or name, a number, an operator.
    Other,
}

// === impl Scanner ===

impl<'t> Scanner<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        Self {
            text,
            at: 0,
            counted: (0, 1),
        }
    }

    pub(super) fn text(&self) -> &'t str {
        self.text
    }

    /// The place that it has reached.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// The next token; `None` at the end of the text.
    pub(super) fn token(&mut self) -> Result<Option<Token>, InvalidStatements> {
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
    pub(super) fn line(&mut self, at: usize) -> usize {
        let (from, line) = self.counted;
        let line = line + self.text[from..at].matches('\n').count();
        self.counted = (at, line);
        line
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
