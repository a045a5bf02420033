//! Connections to real servers, and to peers that are not servers.

use std::io::Write as _;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use bgworker::WorkerError;
use bgworker::database::{self, ConnInfo, Database, ServerState};
use bgworker::embedded::{Cluster, ClusterSettings};

use crate::support::database::{TestDatabase, database};
use crate::support::proxy::free_port;
use crate::support::{busy, eventually, within};

fn impatient(conninfo: &str) -> Database {
    let conninfo = ConnInfo::parse(conninfo, |_| None).unwrap();
    let settings = database::Settings::default()
        .connect_timeout(Duration::from_millis(300))
        .statement_timeout(Duration::from_millis(300));
    Database::new(conninfo, settings).unwrap()
}

#[actix::test]
async fn a_server_that_accepts_and_says_nothing_is_given_up_within_the_deadline() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let begin = Instant::now();
    let database = impatient(&format!("host=127.0.0.1 port={port} user=u dbname=d"));
    let error = database.connect("test", None).await.unwrap_err();
    assert!(begin.elapsed() < busy(Duration::from_secs(2)));
    assert_eq!(
        error.to_string(),
        format!("could not connect to database \"d\" at 127.0.0.1:{port} within 300ms")
    );
    assert!(error.is_away());
}

#[actix::test]
async fn a_host_that_is_silent_leaves_time_for_the_next_one() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = silent.local_addr().unwrap().port();
    let port = free_port();
    let settings = ClusterSettings::temporary()
        .option("fsync", "off")
        .option("listen_addresses", "127.0.0.1")
        .option("port", port.to_string());
    let _cluster = Cluster::start(settings).unwrap();
    let hosts = "host=127.0.0.1,127.0.0.1";
    let conninfo = format!("{hosts} port={silent},{port} user=postgres");
    let conninfo = ConnInfo::parse(&conninfo, |_| None).unwrap();
    // Each host has half of it, and a busy server takes its time to begin a session and to say what it is.
    let settings = database::Settings::default().connect_timeout(Duration::from_secs(3));
    let database = Database::new(conninfo, settings).unwrap();
    database.connect("test", None).await.unwrap();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let other = other.local_addr().unwrap().port();
    let database = impatient(&format!("{hosts} port={silent},{other}"));
    let error = database.connect("test", None).await.unwrap_err();
    assert!(error.is_away());
    assert_eq!(
        error.to_string().matches("could not connect").count(),
        2,
        "{error}"
    );
}

#[actix::test]
async fn a_socket_closed_during_the_tls_handshake_counts_as_database_away() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for peer in listener.incoming() {
            let mut peer = peer.unwrap();
            let mut request = [0; 8];
            std::io::Read::read_exact(&mut peer, &mut request).unwrap();
            peer.write_all(b"S").unwrap();
        }
    });
    let database = impatient(&format!("host=127.0.0.1 port={port} user=u"));
    let error = database.connect("test", None).await.unwrap_err();
    assert!(error.is_away(), "{error}");
    assert_eq!(database.server_state().await.0, ServerState::Away);
}

#[actix::test]
async fn a_dropped_connection_is_closed_even_while_its_statement_runs() {
    let db = TestDatabase::new().await;
    let connection = db.database.connect("dropped", None).await.unwrap();
    let sleeping =
        actix_rt::spawn(async move { connection.query("sleep", "SELECT pg_sleep(60)", &[]).await });
    let is_there = "SELECT EXISTS (SELECT FROM pg_stat_activity \
                    WHERE application_name = 'dropped' AND state = 'active')";
    eventually("it sleeps", || async { db.value::<bool>(is_there).await }).await;
    sleeping.abort();
    // The server checks every five seconds whether its client is still there.
    within(Duration::from_secs(10), "it is gone", || async {
        !db.value::<bool>(is_there).await
    })
    .await;
}

#[actix::test]
async fn a_peer_that_is_not_a_server_is_reported_as_such() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let (mut peer, _) = listener.accept().unwrap();
        peer.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
    });
    let conninfo = format!("host=127.0.0.1 port={port} user=u password=hunter2 sslmode=disable");
    let error = impatient(&conninfo)
        .connect("test", None)
        .await
        .unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with(&format!(
            "could not connect to the server at 127.0.0.1:{port}"
        )),
        "{text}"
    );
    assert!(!text.contains("hunter2"));
}

#[actix::test]
async fn a_refused_connection_and_an_unresolvable_name_count_as_database_away() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    for (conninfo, cause) in [
        (format!("host=127.0.0.1 port={port}"), "refused"),
        ("host=no-such-host.invalid".to_owned(), "lookup"),
        ("host=/no/such/directory".to_owned(), "No such file"),
    ] {
        let error = database(&conninfo).connect("test", None).await.unwrap_err();
        assert!(error.is_away(), "{error}");
        assert!(error.to_string().contains(cause), "{error}");
        assert!(matches!(
            WorkerError::from(error),
            WorkerError::DatabaseAway(_)
        ));
        assert_eq!(
            database(&conninfo).server_state().await.0,
            ServerState::Away
        );
    }
}

#[actix::test]
async fn a_database_that_does_not_exist_fails_the_worker_but_the_server_is_not_away() {
    let db = TestDatabase::new().await;
    let error = db
        .database
        .connect("test", Some("nowhere"))
        .await
        .unwrap_err();
    assert_eq!(error.sqlstate(), Some("3D000"));
    assert!(!error.is_away());
    assert!(
        error
            .to_string()
            .contains("FATAL: database \"nowhere\" does not exist"),
        "{error}"
    );
    let nowhere = database(&db.conninfo_with("dbname", "nowhere"));
    assert_eq!(nowhere.server_state().await.0, ServerState::Unknown);
}

#[actix::test]
async fn every_session_is_read_committed_and_has_its_timeouts() {
    let db = TestDatabase::new().await;
    let name: String = db.value("SELECT current_database()::text").await;
    db.execute(&format!(
        "ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'"
    ))
    .await;
    let conninfo = db.conninfo_with("options", "-c work_mem=1234kB");
    let connection = database(&conninfo).connect("me", None).await.unwrap();
    for (parameter, value) in [
        ("default_transaction_isolation", "read committed"),
        ("statement_timeout", "1min"),
        ("lock_timeout", "100ms"),
        ("client_connection_check_interval", "5s"),
        ("jit", "off"),
        ("application_name", "me"),
        ("work_mem", "1234kB"),
    ] {
        let rows = connection
            .query("show", &format!("SHOW {parameter}"), &[])
            .await
            .unwrap();
        assert_eq!(rows[0].get::<_, String>(0), value, "{parameter}");
    }
    let named = db.conninfo_with("application_name", "ours");
    let connection = database(&named).connect("me", None).await.unwrap();
    let rows = connection
        .query("show", "SHOW application_name", &[])
        .await
        .unwrap();
    assert_eq!(rows[0].get::<_, String>(0), "ours");
}

#[actix::test]
async fn a_statement_that_takes_too_long_is_ended_by_the_server() {
    let db = TestDatabase::new().await;
    let connection = impatient(db.conninfo())
        .connect("test", None)
        .await
        .unwrap();
    let error = connection
        .query("sleep", "SELECT pg_sleep(60)", &[])
        .await
        .unwrap_err();
    assert_eq!(error.sqlstate(), Some("57014"));
    assert!(!error.is_away());
}

#[actix::test]
async fn a_statement_that_the_server_does_not_end_is_cancelled_and_its_connection_given_up() {
    let db = TestDatabase::new().await;
    let connection = impatient(db.conninfo())
        .connect("slow", None)
        .await
        .unwrap();
    connection
        .batch_execute("set", "SET statement_timeout = 0")
        .await
        .unwrap();
    let begin = Instant::now();
    let error = connection
        .query("sleep", "SELECT pg_sleep(60)", &[])
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "sleep: no answer within 1s 300ms");
    assert!(error.is_away() && begin.elapsed() < busy(Duration::from_secs(5)));
    let is_over = "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'slow' \
                   AND state = 'active')";
    eventually("it is cancelled on the server", || {
        db.value::<bool>(is_over)
    })
    .await;
    let again = connection
        .query("again", "SELECT 1", &[])
        .await
        .unwrap_err();
    assert!(
        again.to_string().contains("connection to server was lost"),
        "{again}"
    );
}

#[actix::test]
async fn a_lost_connection_says_what_ended_it() {
    let db = TestDatabase::new().await;
    let connection = db.database.connect("victim", None).await.unwrap();
    db.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'victim'",
    )
    .await;
    eventually("the loss is noticed", || async {
        let Err(error) = connection.query("ask", "SELECT 1", &[]).await else {
            return false;
        };
        assert_eq!(error.sqlstate(), Some("57P01"), "{error}");
        assert!(
            error
                .to_string()
                .contains("terminating connection due to administrator command")
        );
        error.is_away()
    })
    .await;
}

#[actix::test]
async fn sslmode_require_encrypts_and_refuses_a_server_without_tls() {
    let key = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    // The certificates must belong to the server's user, which reads them as its own files.
    let directory = tempfile::tempdir().unwrap();
    let (cert_file, key_file) = (
        directory.path().join("c.pem"),
        directory.path().join("k.pem"),
    );
    std::fs::write(&cert_file, key.cert.pem()).unwrap();
    std::fs::write(&key_file, key.signing_key.serialize_pem()).unwrap();
    give_to_the_server(directory.path(), &[&cert_file, &key_file]);
    let port = free_port();
    let plain = ClusterSettings::temporary()
        .option("fsync", "off")
        .option("listen_addresses", "127.0.0.1")
        .option("port", port.to_string());
    let encrypted = plain
        .clone()
        .option("ssl", "on")
        .option("ssl_cert_file", cert_file.to_str().unwrap())
        .option("ssl_key_file", key_file.to_str().unwrap());
    let is_encrypted = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    let tcp = |sslmode: &str| {
        let conninfo = format!("host=127.0.0.1 port={port} user=postgres sslmode={sslmode}");
        database(&conninfo)
    };
    let cluster = Cluster::start(encrypted).unwrap();
    for (sslmode, expected) in [("require", true), ("prefer", true), ("disable", false)] {
        let connection = tcp(sslmode).connect("test", None).await.unwrap();
        let rows = connection.query("ask", is_encrypted, &[]).await.unwrap();
        assert_eq!(rows[0].get::<_, bool>(0), expected, "{sslmode}");
    }
    let address = database(&format!("hostaddr=127.0.0.1 port={port} user=postgres"));
    address.connect("test", None).await.unwrap();
    cluster.stop().unwrap();
    let _cluster = Cluster::start(plain).unwrap();
    let error = tcp("require").connect("test", None).await.unwrap_err();
    assert!(
        error.to_string().contains("server does not support TLS"),
        "{error}"
    );
    tcp("prefer").connect("test", None).await.unwrap();
}

/// Makes files readable by the server only, whichever user it runs as.
fn give_to_the_server(directory: &std::path::Path, files: &[&std::path::Path]) {
    use std::os::unix::fs::{PermissionsExt as _, chown};
    let user = nix::unistd::User::from_name("postgres").unwrap();
    for file in files {
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600)).unwrap();
        if let (true, Some(user)) = (nix::unistd::Uid::effective().is_root(), &user) {
            chown(file, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
        }
    }
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o755)).unwrap();
}
