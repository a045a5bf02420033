//! libpq's keywords, and the environment variables that stand in for them. Nothing is read here.

/// A libpq keyword.
pub(super) struct Keyword {
    pub(super) name: &'static str,
    /// The environment variable that stands in for it.
    pub(super) variable: Option<&'static str>,
    pub(super) support: Support,
}

/// Whether a keyword has an effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Support {
    Yes,
    /// It has none, and is refused: ignoring it would mislead the user.
    No,
}

/// Every keyword of libpq up to version 17, and some of version 18.
pub(super) const KEYWORDS: [Keyword; 50] = {
    const fn yes(name: &'static str, variable: &'static str) -> Keyword {
        Keyword {
            name,
            variable: Some(variable),
            support: Support::Yes,
        }
    }
    const fn without_variable(name: &'static str) -> Keyword {
        Keyword {
            name,
            variable: None,
            support: Support::Yes,
        }
    }
    const fn no(name: &'static str, variable: Option<&'static str>) -> Keyword {
        Keyword {
            name,
            variable,
            support: Support::No,
        }
    }
    [
        yes("host", "PGHOST"),
        yes("hostaddr", "PGHOSTADDR"),
        yes("port", "PGPORT"),
        yes("dbname", "PGDATABASE"),
        yes("user", "PGUSER"),
        yes("password", "PGPASSWORD"),
        yes("passfile", "PGPASSFILE"),
        yes("service", "PGSERVICE"),
        yes("application_name", "PGAPPNAME"),
        without_variable("fallback_application_name"),
        yes("options", "PGOPTIONS"),
        yes("client_encoding", "PGCLIENTENCODING"),
        yes("connect_timeout", "PGCONNECT_TIMEOUT"),
        yes("target_session_attrs", "PGTARGETSESSIONATTRS"),
        yes("load_balance_hosts", "PGLOADBALANCEHOSTS"),
        yes("channel_binding", "PGCHANNELBINDING"),
        yes("sslmode", "PGSSLMODE"),
        yes("sslnegotiation", "PGSSLNEGOTIATION"),
        yes("sslrootcert", "PGSSLROOTCERT"),
        yes("sslcert", "PGSSLCERT"),
        yes("sslkey", "PGSSLKEY"),
        yes("gssencmode", "PGGSSENCMODE"),
        without_variable("keepalives"),
        without_variable("keepalives_idle"),
        without_variable("keepalives_interval"),
        without_variable("keepalives_count"),
        without_variable("tcp_user_timeout"),
        no("sslpassword", None),
        no("sslcrl", Some("PGSSLCRL")),
        no("sslcrldir", Some("PGSSLCRLDIR")),
        no("sslsni", Some("PGSSLSNI")),
        no("sslcertmode", Some("PGSSLCERTMODE")),
        no("sslcompression", Some("PGSSLCOMPRESSION")),
        no("ssl_min_protocol_version", Some("PGSSLMINPROTOCOLVERSION")),
        no("ssl_max_protocol_version", Some("PGSSLMAXPROTOCOLVERSION")),
        no("sslkeylogfile", None),
        no("requirepeer", Some("PGREQUIREPEER")),
        no("require_auth", Some("PGREQUIREAUTH")),
        no("requiressl", Some("PGREQUIRESSL")),
        no("krbsrvname", Some("PGKRBSRVNAME")),
        no("gsslib", Some("PGGSSLIB")),
        no("gssdelegation", Some("PGGSSDELEGATION")),
        no("replication", None),
        no("authtype", None),
        no("tty", None),
        no("scram_client_key", None),
        no("scram_server_key", None),
        no("min_protocol_version", Some("PGMINPROTOCOLVERSION")),
        no("max_protocol_version", Some("PGMAXPROTOCOLVERSION")),
        no("oauth_issuer", None),
    ]
};

/// Options that others put into URLs of PostgreSQL, and the tool that knows them.
pub(super) fn of_another_tool(keyword: &str) -> Option<&'static str> {
    Some(match keyword {
        "pool"
        | "max_connections"
        | "prepared_statements"
        | "reaping_frequency"
        | "checkout_timeout"
        | "idle_timeout"
        | "encoding"
        | "advisory_locks" => "Rails",
        "schema"
        | "connection_limit"
        | "pool_timeout"
        | "pgbouncer"
        | "socket_timeout"
        | "statement_cache_size"
        | "sslaccept"
        | "sslidentity" => "Prisma",
        "currentSchema"
        | "ssl"
        | "ApplicationName"
        | "loginTimeout"
        | "socketTimeout"
        | "prepareThreshold"
        | "stringtype"
        | "reWriteBatchedInserts" => "JDBC",
        "pool_size" | "max_overflow" | "pool_pre_ping" | "conn_max_age" => "Python's frameworks",
        _ => return None,
    })
}
