//! Connection settings mean what they mean to libpq; where psql can show it, it is the reference.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::net::TcpStream;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::process::Command;

use bgworker::database::{self, ConnInfo, Database, DatabaseError};
use tracing::Level;

use crate::support::database::TestDatabase;
use crate::support::files::give_to_the_server;
use crate::support::log::Log;
use crate::support::proxy::free_port;
use crate::support::server::TestServer;

/// Environment variables that both sides get.
type Environment = BTreeMap<String, String>;

fn environment(variables: &[(&str, &str)]) -> Environment {
    let variables = variables.iter();
    variables
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

async fn connect(
    conninfo: &str,
    environment: &Environment,
) -> Result<database::Connection, DatabaseError> {
    let conninfo = ConnInfo::parse(conninfo, |name| environment.get(name).cloned()).unwrap();
    let settings = database::Settings::default();
    Database::new(conninfo, settings)
        .unwrap()
        .connect("", None)
        .await
}

/// The query with which a session describes itself.
const ASK: &str = "SELECT concat_ws('|', current_user, current_database(), \
                   current_setting('application_name'), current_setting('work_mem'), \
                   coalesce(inet_server_port()::text, 'socket'))";

async fn ours(conninfo: &str, environment: &Environment) -> Result<String, DatabaseError> {
    let connection = connect(conninfo, environment).await?;
    let rows = connection.query("ask", ASK, &[]).await?;
    Ok(rows[0].get(0))
}

/// The answer of psql with the same string; `None` if psql fails.
fn psqls(conninfo: &str, environment: &Environment) -> Option<String> {
    let output = Command::new("psql")
        .args(["--no-psqlrc", "--no-password", "-Atc", ASK, "-d", conninfo])
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .envs(environment)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    output.status.success().then(|| text.trim_end().to_owned())
}

/// A server that trusts all roles except `app`, which needs the password `it's:a\secret`.
async fn server_with_a_password(directory: &Path) -> TestServer {
    let hba = directory.join("pg_hba.conf");
    fs::write(
        &hba,
        "local all all trust\nhost all app all scram-sha-256\nhost all all all trust\n",
    )
    .unwrap();
    fs::set_permissions(directory, Permissions::from_mode(0o755)).unwrap();
    give_to_the_server(&hba);
    let server = TestServer::start_with(&[("hba_file", hba.to_str().unwrap())]);
    let db = TestDatabase::at(&server.conninfo()).await;
    db.execute(r"CREATE ROLE app LOGIN PASSWORD E'it\'s:a\\secret'")
        .await;
    server
}

#[actix::test]
async fn a_connection_string_leads_where_it_leads_psql() {
    let server = TestServer::start();
    let db = TestDatabase::at(&server.conninfo()).await;
    db.execute("CREATE ROLE \"we ird@\" LOGIN").await;
    db.execute("CREATE DATABASE \"o'ther\"").await;
    let directory = tempfile::tempdir().unwrap();
    let service = directory.path().join("services");
    let port = server.port;
    fs::write(
        &service,
        format!(
            "# a comment\n[other]\nport=1\n\n[mine]\nhost=127.0.0.1\nport={port}\nport=1\nuser=postgres\n\
             application_name=from the file\n[last]\nport=2\n"
        ),
    )
    .unwrap();
    let empty = environment(&[]);
    let port_text = port.to_string();
    let from_variables = environment(&[
        ("PGHOST", "127.0.0.1"),
        ("PGPORT", &port_text),
        ("PGUSER", "postgres"),
        ("PGAPPNAME", "from a variable"),
        ("PGOPTIONS", "-c work_mem=5MB"),
    ]);
    let from_service = environment(&[
        ("PGSERVICEFILE", service.to_str().unwrap()),
        ("PGAPPNAME", "from a variable"),
    ]);
    let by_variable = environment(&[
        ("PGSERVICEFILE", service.to_str().unwrap()),
        ("PGSERVICE", "mine"),
        ("PGDATABASE", "template1"),
    ]);
    let table = [
        (format!("host=127.0.0.1 port={port} user=postgres"), &empty),
        (format!("postgresql://postgres@127.0.0.1:{port}"), &empty),
        (
            format!("postgres://postgres@127.0.0.1:{port}/template1"),
            &empty,
        ),
        (
            format!("postgresql://postgres@127.0.0.1:{port}/o%27ther"),
            &empty,
        ),
        (
            format!(r"host = '127.0.0.1' port={port} user=postgres dbname='o\'ther'"),
            &empty,
        ),
        (
            format!("postgresql://we%20ird%40@127.0.0.1:{port}/postgres"),
            &empty,
        ),
        (
            format!("postgresql://127.0.0.1:{port}/postgres?user=postgres&application_name=a%20b"),
            &empty,
        ),
        (
            format!(
                "hostaddr=127.0.0.1 port={port} user=postgres application_name=x application_name=y"
            ),
            &empty,
        ),
        (
            format!(
                "host=nowhere.invalid hostaddr=127.0.0.1 port={port} user=postgres sslmode=disable"
            ),
            &empty,
        ),
        (
            format!(
                "host=127.0.0.1,127.0.0.1 port={},{port} user=postgres",
                free_port()
            ),
            &empty,
        ),
        (
            format!(
                "host=127.0.0.1 port={port} user=postgres options='-c work_mem=7MB' connect_timeout=5"
            ),
            &empty,
        ),
        (
            format!(
                "host=127.0.0.1 port={port} user=postgres keepalives_idle=7 keepalives_interval=2 \
                 keepalives_count=4 tcp_user_timeout=9000 fallback_application_name=f"
            ),
            &empty,
        ),
        (format!("host=localhost port={port} user=postgres"), &empty),
        (
            format!("host=127.0.0.1 port={port} user=postgres target_session_attrs=read-write"),
            &empty,
        ),
        ("dbname=postgres".to_owned(), &from_variables),
        (
            "postgresql:///template1?application_name=mine".to_owned(),
            &from_variables,
        ),
        ("application_name=''".to_owned(), &from_variables),
        ("service=mine dbname=postgres".to_owned(), &from_service),
        (
            "service=mine dbname=postgres application_name=mine".to_owned(),
            &from_service,
        ),
        ("user=postgres".to_owned(), &by_variable),
    ];
    for (conninfo, environment) in &table {
        let mine = ours(conninfo, environment).await;
        let theirs = psqls(conninfo, environment);
        assert!(theirs.is_some(), "psql refuses {conninfo}");
        // Without an application name, psql calls itself psql.
        let theirs = theirs.unwrap().replace("|psql|", "||");
        let mine = mine.unwrap_or_else(|error| panic!("{conninfo}: {error}"));
        let mine = mine.replace("|f|", "||");
        assert_eq!(mine, theirs, "{conninfo}");
    }
}

#[actix::test]
async fn what_psql_refuses_is_refused() {
    let server = TestServer::start();
    let port = server.port;
    let base = format!("host=127.0.0.1 port={port} user=postgres");
    for wrong in [
        "sslmode=sometimes",
        "target_session_attrs=writer",
        "channel_binding=maybe",
        "connect_timeout=soon",
        "sslmode=require sslrootcert=system",
        "service=nobodys",
        "hst=x",
        "sslmode=require",
        "sslmode=verify-full",
        "sslmode=verify-full sslrootcert=/no/such/file",
        "target_session_attrs=standby",
        "channel_binding=require",
    ] {
        let conninfo = format!("{base} {wrong}");
        let empty = environment(&[("PGSERVICEFILE", "/dev/null")]);
        assert_eq!(psqls(&conninfo, &empty), None, "{wrong}");
        let parsed = ConnInfo::parse(&conninfo, |name| empty.get(name).cloned());
        let Ok(parsed) = parsed else { continue };
        let Ok(database) = Database::new(parsed, database::Settings::default()) else {
            continue;
        };
        assert!(database.connect("", None).await.is_err(), "{wrong}");
    }
}

#[actix::test]
async fn the_password_file_is_read_at_every_connect_as_psql_reads_it() {
    let directory = tempfile::tempdir().unwrap();
    let server = server_with_a_password(directory.path()).await;
    let file = directory.path().join("passwords");
    let port = server.port.to_string();
    let path = file.to_str().unwrap();
    let environment = environment(&[("PGPASSFILE", path)]);
    let conninfo = format!("host=127.0.0.1 port={port} user=app dbname=postgres");
    let secret = r"it's\:a\\secret";
    for (lines, mode, fits) in [
        (
            format!("127.0.0.1:{port}:postgres:app:{secret}"),
            0o600,
            true,
        ),
        (format!("*:*:*:*:{secret}"), 0o600, true),
        (format!("127.0.0.1:*:*:app:{secret}"), 0o400, true),
        (
            format!("# a comment\n\nother:*:*:*:wrong\n*:*:postgres:app:{secret}\n*:*:*:*:wrong"),
            0o600,
            true,
        ),
        (format!("*:*:*:app:wrong\n*:*:*:*:{secret}"), 0o600, false),
        (
            format!("127.0.0.1:{port}:post\\*:app:{secret}"),
            0o600,
            false,
        ),
        (format!("127.0.0.1:*:*:other:{secret}"), 0o600, false),
        (format!("localhost:*:*:*:{secret}"), 0o600, false),
        ("127.0.0.1:*".to_owned(), 0o600, false),
        (format!("*:*:*:*:{secret}"), 0o640, false),
        (format!("*:*:*:*:{secret}"), 0o604, false),
    ] {
        let _ = fs::remove_file(&file);
        fs::write(&file, &lines).unwrap();
        fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
        let theirs = psqls(&conninfo, &environment);
        assert_eq!(theirs.is_some(), fits, "psql: {lines} ({mode:o})");
        let mine = ours(&conninfo, &environment).await;
        assert_eq!(mine.is_ok(), fits, "{lines} ({mode:o}): {mine:?}");
        if let Err(error) = mine {
            let text = error.to_string();
            assert!(
                !text.contains("secret") && !text.contains("wrong"),
                "{text}"
            );
        }
    }
    // One password that is not UTF-8 does not hide the others.
    let lines = format!("\u{e9}:*:*:*:x\n127.0.0.1:{port}:*:app:{secret}\n");
    let lines: Vec<u8> = lines.chars().map(|c| u32::from(c) as u8).collect();
    fs::write(&file, lines).unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    assert!(psqls(&conninfo, &environment).is_some());
    ours(&conninfo, &environment).await.unwrap();
}

#[actix::test]
async fn a_password_file_that_is_not_used_is_reported_once_and_not_at_every_attempt() {
    let log = Log::capture();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("passwords");
    fs::write(&file, "*:*:*:*:secret").unwrap();
    let mode = |mode| fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
    let environment = environment(&[("PGPASSFILE", file.to_str().unwrap())]);
    let lookup = |name: &str| environment.get(name).cloned();
    let conninfo = ConnInfo::parse("host=127.0.0.1 port=1 user=app", lookup).unwrap();
    let database = Database::new(conninfo, database::Settings::default()).unwrap();
    let told = || log.with(Level::WARN, "password file").len();
    for (permissions, expected) in [(0o440, 1), (0o440, 1), (0o600, 1), (0o604, 2), (0o604, 2)] {
        mode(permissions);
        for _ in 0..3 {
            database.connect("", None).await.unwrap_err();
        }
        assert_eq!(told(), expected, "{permissions:o}: {}", log.text());
    }
}

/// An abstract socket that leads to a port of this machine.
fn lead_to(name: &str, port: u16) {
    let address = SocketAddr::from_abstract_name(name).unwrap();
    let listener = UnixListener::bind_addr(&address).unwrap();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let server = TcpStream::connect(("127.0.0.1", port)).unwrap();
            let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut from, &mut to));
            let (mut from, mut to) = (server, client);
            std::thread::spawn(move || std::io::copy(&mut from, &mut to));
        }
    });
}

#[actix::test]
async fn an_abstract_socket_is_found_under_the_name_that_libpq_has_for_it() {
    let server = TestServer::start();
    let name = format!("bgworker-{}", std::process::id());
    lead_to(&format!("{name}/.s.PGSQL.{}", server.port), server.port);
    let conninfo = format!(
        "host=@{name} port={} user=postgres dbname=postgres",
        server.port
    );
    let environment = environment(&[]);
    assert!(psqls(&conninfo, &environment).is_some(), "psql");
    ours(&conninfo, &environment).await.unwrap();
    let url = format!("postgresql://postgres@%40{name}:{}/postgres", server.port);
    ours(&url, &environment).await.unwrap();
}

#[actix::test]
async fn a_password_in_a_file_of_its_own_can_change_between_connects() {
    let directory = tempfile::tempdir().unwrap();
    let server = server_with_a_password(directory.path()).await;
    let file = directory.path().join("password");
    let conninfo = format!(
        "host=127.0.0.1 port={} user=app dbname=postgres",
        server.port
    );
    let settings = database::Settings::default().password_file(file.clone());
    let conninfo = ConnInfo::parse(&conninfo, |_| None).unwrap();
    let database = Database::new(conninfo, settings).unwrap();
    let error = database.connect("", None).await.unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("could not read password file") && !error.is_away(),
        "{text}"
    );
    fs::write(&file, "it's:a\\secret\n").unwrap();
    database.connect("", None).await.unwrap();
    let db = TestDatabase::at(&server.conninfo()).await;
    db.execute("ALTER ROLE app PASSWORD 'another'").await;
    database.connect("", None).await.unwrap_err();
    fs::write(&file, "another").unwrap();
    database.connect("", None).await.unwrap();
}

#[actix::test]
async fn a_wrong_password_fails_the_worker_and_is_never_shown() {
    let directory = tempfile::tempdir().unwrap();
    let server = server_with_a_password(directory.path()).await;
    let conninfo = format!(
        "postgresql://app:hunter2@127.0.0.1:{}/postgres",
        server.port
    );
    let error = connect(&conninfo, &environment(&[])).await.unwrap_err();
    let text = format!("{error} {error:?}");
    assert!(text.contains("28P01") && !error.is_away(), "{text}");
    assert!(!text.contains("hunter2"), "{text}");
    let parsed = ConnInfo::parse(&conninfo, |_| None).unwrap();
    assert!(!format!("{parsed:?}{parsed:#?}").contains("hunter2"));
}

#[actix::test]
async fn a_missing_password_is_not_an_outage_and_the_error_says_where_to_give_one() {
    let directory = tempfile::tempdir().unwrap();
    let server = server_with_a_password(directory.path()).await;
    let conninfo = format!("postgresql://app@127.0.0.1:{}/postgres", server.port);
    let error = connect(&conninfo, &environment(&[])).await.unwrap_err();
    let text = error.to_string();
    assert!(!error.is_away(), "{text}");
    for part in ["no password supplied", "PGPASSWORD", "password file"] {
        assert!(text.contains(part), "{text}");
    }
    let conninfo = ConnInfo::parse(&conninfo, |_| None).unwrap();
    let database = Database::new(conninfo, database::Settings::default()).unwrap();
    let (state, reason) = database.server_state().await;
    assert_eq!(state, database::ServerState::Unknown, "{reason:?}");
}

#[actix::test]
async fn a_keepalive_of_0_means_the_systems_default() {
    let server = TestServer::start();
    // libpq's documentation says so; psql itself fails to set it.
    let keepalives =
        "keepalives_idle=0 keepalives_interval=-1 keepalives_count=0 tcp_user_timeout=0";
    let conninfo = format!("{} {keepalives}", server.conninfo());
    ours(&conninfo, &environment(&[])).await.unwrap();
}

#[test]
fn a_service_that_cannot_be_found_or_read_says_which_and_where() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("services");
    let path = file.to_str().unwrap().to_owned();
    let parse = |service: &str| {
        ConnInfo::parse(&format!("service={service}"), |name| {
            (name == "PGSERVICEFILE").then(|| path.clone())
        })
        .unwrap_err()
        .to_string()
    };
    assert_eq!(parse("s"), format!("service file \"{path}\" not found"));
    fs::write(
        &file,
        "[a]\nhost=h\n[b]\nhost\n[c]\nhst=h\n[d]\nservice=a\n",
    )
    .unwrap();
    assert_eq!(parse("s"), "definition of service \"s\" not found");
    let at = |line| format!("syntax error in service file \"{path}\", line {line}: ");
    assert_eq!(parse("b"), at(4) + "a keyword lacks its \"=\"");
    assert!(parse("c").starts_with(&(at(6) + "invalid connection option \"hst\"")));
    assert_eq!(
        parse("d"),
        at(8) + "nested service specifications not supported"
    );
    // Another service's settings may have any encoding.
    fs::write(&file, b"[b]\nuser=\xe9\n[a]\nhst=h\n[c]\nuser=\xe9\n").unwrap();
    assert!(parse("a").starts_with(&(at(4) + "invalid connection option \"hst\"")));
    assert_eq!(parse("c"), at(6) + "it is not UTF-8");
}

#[test]
fn settings_without_effect_are_refused_wherever_they_are_set() {
    let error = ConnInfo::parse("host=h requirepeer=postgres", |_| None).unwrap_err();
    assert_eq!(
        error.to_string(),
        "connection option \"requirepeer\" is not supported: leave it out, and unset PGREQUIREPEER"
    );
    let set = |name: &str| (name == "PGREQUIREAUTH").then(|| "scram-sha-256".to_owned());
    let error = ConnInfo::parse("host=h", set).unwrap_err();
    assert!(error.to_string().contains("unset PGREQUIREAUTH"), "{error}");
}

#[actix::test]
async fn the_primary_is_found_among_several_hosts_in_any_order() {
    let primary = TestServer::start();
    let standby = primary.standby().await;
    let ports = format!("{},{},{}", free_port(), standby.port, primary.port);
    let base = format!("host=127.0.0.1,127.0.0.1,127.0.0.1 port={ports} user=postgres");
    let empty = environment(&[]);
    for (attributes, expected) in [
        ("any", standby.port),
        ("read-write", primary.port),
        ("primary", primary.port),
        ("standby", standby.port),
        ("read-only", standby.port),
        ("prefer-standby", standby.port),
    ] {
        let conninfo = format!("{base} dbname=postgres target_session_attrs={attributes}");
        let mine = ours(&conninfo, &empty).await.unwrap();
        let theirs = psqls(&conninfo, &empty).unwrap();
        assert!(
            theirs.ends_with(&format!("|{expected}")),
            "psql: {attributes}: {theirs}"
        );
        assert!(
            mine.ends_with(&format!("|{expected}")),
            "{attributes}: {mine}"
        );
    }
    // After a look at all hosts, connections go to the one whose server has come furthest.
    let conninfo = ConnInfo::parse(&base, |_| None).unwrap();
    let database = Database::new(conninfo, database::Settings::default()).unwrap();
    let (state, error) = database.server_state().await;
    assert_eq!(state, database::ServerState::Primary, "{error:?}");
    let connection = database.connect("", None).await.unwrap();
    assert!(!connection.is_in_recovery().await.unwrap());
}

#[actix::test]
async fn a_primary_whose_sessions_can_only_read_is_told_apart_from_a_standby() {
    let db = TestDatabase::new().await;
    let name: String = db.value("SELECT current_database()::text").await;
    db.execute(&format!(
        "ALTER DATABASE {name} SET default_transaction_read_only = on"
    ))
    .await;
    let conninfo = db.conninfo_with("target_session_attrs", "read-write");
    let refused = crate::support::database::database(&conninfo);
    let refused = refused.connect("tests", None).await;
    let error = refused.unwrap_err().to_string();
    let expected = "session is read-only, since default_transaction_read_only is on";
    assert!(error.contains(expected), "{error}");
}
