//! Parses the two forms of connection settings into keywords and values.
//!
//! Only the form is checked: apart from JDBC's `ssl=true`, nothing here knows what a keyword means.

use percent_encoding::percent_decode_str;

use super::ConnInfoError;

const SCHEMES: [&str; 2] = ["postgresql://", "postgres://"];

/// Reads a URL or a `key=value` string. The order is kept: a later value of a keyword overrides an earlier one.
pub(super) fn parse(text: &str) -> Result<Vec<(String, String)>, ConnInfoError> {
    if text.contains('\0') {
        return Err(ConnInfoError::Syntax("it must not contain NUL"));
    }
    match SCHEMES.iter().find_map(|scheme| text.strip_prefix(scheme)) {
        Some(rest) => parse_url(rest),
        // Text that looks like another kind of URL may hold a password where a keyword is expected, and keywords are
        // shown.
        None if text.contains("://") => Err(ConnInfoError::Syntax(
            "a URL must begin with \"postgresql://\"",
        )),
        None => parse_key_value(text),
    }
}

/// `[user[:password]@][host[:port],…][/dbname][?keyword=value&…]`
fn parse_url(rest: &str) -> Result<Vec<(String, String)>, ConnInfoError> {
    let mut settings = Vec::new();
    // Credentials end at the first "@", unless a "/" comes before it. They may hold a "?".
    let (credentials, rest) = match rest.find(['@', '/']) {
        Some(end) if rest[end..].starts_with('@') => (Some(&rest[..end]), &rest[end + 1..]),
        Some(_) | None => (None, rest),
    };
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    // Otherwise part of a password would be taken for a host or a database, and shown.
    if rest.contains('@') || (credentials.is_none() && query.contains('@')) {
        return Err(ConnInfoError::Syntax(
            "in a user or a password, \"@\", \"/\" and \":\" must be written as %40, %2F and %3A",
        ));
    }
    let (servers, dbname) = rest.split_once('/').unwrap_or((rest, ""));
    if let Some(credentials) = credentials {
        let (user, password) = match credentials.split_once(':') {
            Some((user, password)) => (user, Some(password)),
            None => (credentials, None),
        };
        settings.push(("user".to_owned(), decode(user)?));
        if let Some(password) = password {
            settings.push(("password".to_owned(), decode(password)?));
        }
    }
    if !servers.is_empty() {
        let servers: Vec<_> = servers
            .split(',')
            .map(split_port)
            .collect::<Result<_, _>>()?;
        let hosts: Vec<_> = servers
            .iter()
            .map(|(host, _)| decode(host))
            .collect::<Result<_, _>>()?;
        settings.push(("host".to_owned(), hosts.join(",")));
        if servers.iter().any(|(_, port)| port.is_some()) {
            let ports: Vec<_> = servers
                .iter()
                .map(|(_, port)| port.unwrap_or("5432"))
                .collect();
            settings.push(("port".to_owned(), ports.join(",")));
        }
    }
    if !dbname.is_empty() {
        settings.push(("dbname".to_owned(), decode(dbname)?));
    }
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (keyword, value) = pair
            .split_once('=')
            .ok_or(ConnInfoError::Syntax("an option of a URL lacks its \"=\""))?;
        let (keyword, value) = (decode(keyword)?, decode(value)?);
        settings.push(match (keyword.as_str(), value.as_str()) {
            // JDBC's form, which libpq accepts too.
            ("ssl", "true") => ("sslmode".to_owned(), "require".to_owned()),
            _ => (keyword, value),
        });
    }
    Ok(settings)
}

/// Splits `host:port`, where the host may be an IPv6 address in brackets.
fn split_port(server: &str) -> Result<(&str, Option<&str>), ConnInfoError> {
    let (host, rest) = if let Some(bracketed) = server.strip_prefix('[') {
        bracketed
            .split_once(']')
            .ok_or(ConnInfoError::Syntax("an IPv6 address lacks its \"]\""))?
    } else {
        server.split_at(server.find(':').unwrap_or(server.len()))
    };
    match rest.strip_prefix(':') {
        Some(port) => Ok((host, Some(port).filter(|port| !port.is_empty()))),
        None if rest.is_empty() => Ok((host, None)),
        None => Err(ConnInfoError::Syntax("a port lacks its \":\"")),
    }
}

fn decode(text: &str) -> Result<String, ConnInfoError> {
    let mut escapes = text.split('%').skip(1).map(str::as_bytes);
    let is_escape = |escape: &[u8]| matches!(escape, [a, b, ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit());
    if !escapes.all(is_escape) {
        let what = "in a URL, two hexadecimal digits must follow a \"%\": write %25 for the character itself";
        return Err(ConnInfoError::Syntax(what));
    }
    let decoded = percent_decode_str(text).decode_utf8();
    let decoded = decoded.map_err(|_| ConnInfoError::Syntax("a URL is not UTF-8 when decoded"))?;
    if decoded.contains('\0') {
        return Err(ConnInfoError::Syntax("a URL must not contain NUL"));
    }
    Ok(decoded.into_owned())
}

/// Reads `keyword = value …`. A value may be in single quotes, and `\` escapes.
fn parse_key_value(text: &str) -> Result<Vec<(String, String)>, ConnInfoError> {
    let mut settings = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (keyword, after) = rest
            .split_once('=')
            .ok_or(ConnInfoError::Syntax("a keyword lacks its \"=\""))?;
        let keyword = keyword.trim_end();
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if keyword.is_empty() || !keyword.chars().all(is_word) {
            return Err(ConnInfoError::Syntax("a keyword must be a single word"));
        }
        let (value, after) = take_value(after.trim_start())?;
        settings.push((keyword.to_owned(), value));
        rest = after.trim_start();
    }
    Ok(settings)
}

fn take_value(text: &str) -> Result<(String, &str), ConnInfoError> {
    let (quoted, text) = match text.strip_prefix('\'') {
        Some(text) => (true, text),
        None => (false, text),
    };
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((index, c)) = chars.next() {
        match c {
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            '\'' if quoted => return Ok((value, &text[index + 1..])),
            c if c.is_whitespace() && !quoted => return Ok((value, &text[index..])),
            c => value.push(c),
        }
    }
    if quoted {
        return Err(ConnInfoError::Syntax(
            "a quoted value lacks its closing quote",
        ));
    }
    Ok((value, ""))
}
