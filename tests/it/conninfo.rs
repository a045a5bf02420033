//! Connection strings, in both of libpq's spellings.

use bgworker::database::{ConnInfo, ConnInfoError};

fn parse(text: &str) -> Result<ConnInfo, ConnInfoError> {
    ConnInfo::parse(text, |_| None)
}

/// Each URL parses to the same settings as its key-value string.
#[test]
fn a_url_means_what_its_key_value_string_means() {
    for (url, key_value) in [
        ("postgresql://h", "host=h"),
        ("postgres://h:5433/d", "host=h port=5433 dbname=d"),
        ("postgresql://u@h/", "user=u host=h"),
        (
            "postgresql://u:p%40ss%3A@h/d",
            "user=u password='p@ss:' host=h dbname=d",
        ),
        (
            "postgresql:///d?host=/var/run/x&port=6",
            "dbname=d host=/var/run/x port=6",
        ),
        ("postgresql://%2Fvar%2Frun/d", "host=/var/run dbname=d"),
        ("postgresql://[::1]:5433/d", "host=::1 port=5433 dbname=d"),
        ("postgresql://a:1,b:2/d", "host=a,b port=1,2 dbname=d"),
        (
            "postgresql://h/d?application_name=x%20y&options=-c%20a%3Db",
            "host=h dbname=d application_name='x y' options='-c a=b'",
        ),
        (
            "postgresql://h/d?sslmode=require",
            "host = h dbname = 'd' sslmode=require",
        ),
        (
            "postgresql://u:pa?ss=w@h/d",
            "user=u password='pa?ss=w' host=h dbname=d",
        ),
        (
            "postgresql://u:it%27s%5C@h",
            r"user=u password='it\'s\\' host=h",
        ),
    ] {
        assert_eq!(parse(url), parse(key_value), "{url}");
        assert!(parse(url).is_ok(), "{url}: {:?}", parse(url));
    }
}

#[test]
fn what_is_left_out_comes_from_the_environment() {
    let environment = |variable: &str| match variable {
        "PGHOST" => Some("h".to_owned()),
        "PGDATABASE" => Some("d".to_owned()),
        "PGPORT" => Some("1234".to_owned()),
        _ => None,
    };
    let conninfo = ConnInfo::parse("dbname=other", environment).unwrap();
    assert_eq!(conninfo.target(None), "database \"other\" at h:1234");
}

#[test]
fn a_mistake_is_named_without_its_value() {
    for (text, expected) in [
        (
            "hst=h password=hunter2",
            "invalid connection option \"hst\": did you mean \"host\"?",
        ),
        (
            "host=h password=hunter2 sslmode=verify",
            "\"sslmode\": it must be one of disable, allow, prefer, require, verify-ca, verify-full",
        ),
        (
            "port=hunter2",
            "\"port\": it must be a number from 1 to 65535",
        ),
        ("port=0", "\"port\": it must be a number from 1 to 65535"),
        (
            "host=a,b,c port=1,2",
            "\"port\": 2 ports do not match 3 hosts",
        ),
        (
            "host=a,b hostaddr=1.1.1.1",
            "\"hostaddr\": 1 addresses do not match 2 hosts",
        ),
        ("postgresql://u:p@hunter2@h/d", "must be written as %40"),
        ("postgresql://u:1/hunter2@h/d", "must be written as %40"),
        (
            "postgresql://u:pa/ss?hunter2=x@h/d",
            "must be written as %40",
        ),
        ("postgresql://u@[::1]6543/d", "a port lacks its \":\""),
        ("host=h;password=hunter2", "\"host\": a name must not hold"),
        ("host=u:hunter2@h", "\"host\": a name must not hold"),
        ("hostaddr=hunter2", "\"hostaddr\": it must be an IP address"),
        (
            "mysql://u:hunter2@h/d",
            "a URL must begin with \"postgresql://\"",
        ),
        ("password=hunter2 host", "a keyword lacks its \"=\""),
        (
            "password='hunter2",
            "a quoted value lacks its closing quote",
        ),
        (
            "postgresql://u:hunter2@[::1/d",
            "an IPv6 address lacks its \"]\"",
        ),
        ("postgresql://u:%ff@h", "not UTF-8"),
        (
            "postgresql://u:hunter2%@h",
            "two hexadecimal digits must follow",
        ),
        (
            "postgresql://u:hunter2%sx@h",
            "write %25 for the character itself",
        ),
        (
            "postgresql://h/d?options=a%2",
            "two hexadecimal digits must follow",
        ),
        ("password=hunter2\0", "must not contain NUL"),
        // Pasted twice, or in the wrong place.
        (
            "postgresql://h/d?postgresql://u:hunter2%40h/d?sslmode=require",
            "invalid connection option: the options are",
        ),
        (
            "postgresql://h/d?service=postgresql://u:hunter2%40h/d",
            "definition of service not found",
        ),
        (
            "dbname=postgresql%3A//u:hunter2 host=h password=hunter2 service=u:hunter2",
            "definition of service not found",
        ),
        (
            "postgresql://h/d?dbname=postgresql://u:hunter2%40h/d",
            "it must be a database name",
        ),
        ("host=@a@hunter2", "\"host\": a name must not hold"),
    ] {
        let error = parse(text).unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
        assert!(!error.contains("hunter2"), "{text}: {error}");
    }
}

#[test]
fn a_password_is_shown_nowhere() {
    let conninfo = parse("postgresql://u:hunter2@h/d").unwrap();
    assert!(!format!("{conninfo:?}{}", conninfo.target(None)).contains("hunter2"));
}

#[test]
fn any_text_at_all_is_read_without_a_panic() {
    use proptest::prelude::*;
    proptest!(|(text in "(postgresql://)?[a-z:/?&=@%\\[\\]' \\\\0-9,.]{0,40}")| {
        let _ = parse(&text);
    });
}
