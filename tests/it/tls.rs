//! libpq's six sslmodes, against real servers with certificates of every kind.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bgworker::database::{self, ConnInfo, Connection, Database};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd,
};

use crate::support::database::TestDatabase;
use crate::support::files::give_to_the_server;
use crate::support::server::TestServer;
use crate::support::{busy, eventually};

/// A certificate authority, and the directory of the files it makes.
struct Authority {
    directory: tempfile::TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// The paths of a certificate and its key.
struct Files {
    certificate: PathBuf,
    key: PathBuf,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(DnType::CommonName, "an authority");
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
        fs::write(directory.path().join("root.crt"), issuer.pem()).unwrap();
        Self { directory, issuer }
    }

    fn root(&self) -> PathBuf {
        self.directory.path().join("root.crt")
    }

    /// Makes a certificate of this authority, or a self-signed one.
    fn certify(&self, name: &str, expired: bool, self_signed: bool) -> Files {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        if expired {
            params.not_before = date_time_ymd(2000, 1, 1);
            params.not_after = date_time_ymd(2001, 1, 1);
        }
        let key = KeyPair::generate().unwrap();
        let certificate = if self_signed {
            params.self_signed(&key).unwrap()
        } else {
            params.signed_by(&key, &self.issuer).unwrap()
        };
        let file = |kind: &str| {
            self.directory
                .path()
                .join(format!("{name}-{expired}.{kind}"))
        };
        let files = Files {
            certificate: file("crt"),
            key: file("key"),
        };
        fs::write(&files.certificate, certificate.pem()).unwrap();
        fs::write(&files.key, key.serialize_pem()).unwrap();
        fs::set_permissions(&files.key, Permissions::from_mode(0o600)).unwrap();
        files
    }
}

/// A server with a certificate. The role `certified` may connect only with TLS and a certificate of its own, `plain`
/// only without TLS.
fn server(authority: &Authority, files: &Files) -> TestServer {
    let hba = authority.directory.path().join("pg_hba.conf");
    fs::write(
        &hba,
        "local all all trust\nhostssl all certified all cert\nhostnossl all plain all trust\n\
         host all plain,certified all reject\nhost all all all trust\n",
    )
    .unwrap();
    for file in [&hba, &files.certificate, &files.key] {
        give_to_the_server(file);
    }
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    TestServer::start_with(&[
        ("ssl", "on"),
        ("hba_file", &text(&hba)),
        ("ssl_cert_file", &text(&files.certificate)),
        ("ssl_key_file", &text(&files.key)),
        ("ssl_ca_file", &text(&authority.root())),
    ])
}

async fn connect(conninfo: &str) -> Result<Connection, String> {
    let conninfo = ConnInfo::parse(conninfo, |_| None).map_err(|error| error.to_string())?;
    let database = Database::new(conninfo, database::Settings::default());
    let database = database.map_err(|error| error.to_string())?;
    let connected = database.connect("test", None).await;
    connected.map_err(|error| {
        assert!(!error.is_away(), "{error}");
        error.to_string()
    })
}

/// `true` if a session with this connection string is encrypted; the error if there is none.
async fn is_encrypted(conninfo: &str) -> Result<bool, String> {
    let sql = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    let rows = connect(conninfo).await?.query("ask", sql, &[]).await;
    Ok(rows.unwrap()[0].get(0))
}

#[actix::test]
async fn each_mode_encrypts_and_verifies_as_in_libpq() {
    let authority = Authority::new();
    let stranger = Authority::new();
    let good = authority.certify("localhost", false, false);
    let server = server(&authority, &good);
    let (root, other) = (authority.root(), stranger.root());
    let (root, other) = (root.display(), other.display());
    let port = server.port;
    let right = format!("host=localhost port={port} user=postgres");
    let wrong = format!("host=127.0.0.1 port={port} user=postgres");
    let untrusted = Err("certificate verify failed");
    for (conninfo, expected) in [
        (format!("{right} sslmode=disable"), Ok(false)),
        (format!("{right} sslmode=allow"), Ok(false)),
        (format!("{right} sslmode=prefer"), Ok(true)),
        (right.clone(), Ok(true)),
        (format!("{wrong} sslmode=require"), Ok(true)),
        (
            format!("{wrong} sslmode=require sslrootcert={root}"),
            Ok(true),
        ),
        (
            format!("{wrong} sslmode=require sslrootcert={other}"),
            untrusted,
        ),
        (
            format!("{wrong} sslmode=prefer sslrootcert={other}"),
            Ok(true),
        ),
        (
            format!("{wrong} sslmode=verify-ca sslrootcert={root}"),
            Ok(true),
        ),
        (
            format!("{wrong} sslmode=verify-ca sslrootcert={other}"),
            untrusted,
        ),
        (
            format!("{right} sslmode=verify-full sslrootcert={root}"),
            Ok(true),
        ),
        (
            format!("{wrong} sslmode=verify-full sslrootcert={root}"),
            untrusted,
        ),
        (
            format!("{right} sslmode=verify-full sslrootcert={other}"),
            untrusted,
        ),
        (format!("{right} sslrootcert=system"), untrusted),
        (
            format!("{right} sslmode=verify-full"),
            Err("name a file of trusted roots"),
        ),
        (
            format!("{right} sslmode=verify-ca sslrootcert=/no/such/file"),
            Err("root certificate file \"/no/such/file\" does not exist"),
        ),
        (
            format!("{right} sslmode=require channel_binding=require"),
            Err("channel binding"),
        ),
    ] {
        let found = is_encrypted(&conninfo).await;
        match (&found, expected) {
            (Ok(found), Ok(expected)) => assert_eq!(*found, expected, "{conninfo}"),
            (Err(error), Err(expected)) => {
                assert!(error.contains(expected), "{conninfo}: {error}");
            }
            (_, expected) => panic!("{conninfo}: {found:?}, not {expected:?}"),
        }
    }
}

#[actix::test]
async fn allow_and_prefer_connect_where_the_server_insists_on_one_or_the_other() {
    let authority = Authority::new();
    let good = authority.certify("localhost", false, false);
    let server = server(&authority, &good);
    let db = TestDatabase::at(&server.conninfo()).await;
    db.execute("CREATE ROLE certified LOGIN; CREATE ROLE plain LOGIN")
        .await;
    let ours = authority.certify("certified", false, false);
    let (certificate, key) = (ours.certificate.display(), ours.key.display());
    let port = server.port;
    let certified = format!(
        "host=localhost port={port} user=certified dbname=postgres sslcert={certificate} sslkey={key}"
    );
    let plain = format!("host=localhost port={port} user=plain dbname=postgres");
    assert_eq!(
        is_encrypted(&format!("{plain} sslmode=prefer")).await,
        Ok(false)
    );
    let error = is_encrypted(&format!("{plain} sslmode=require"))
        .await
        .unwrap_err();
    assert!(error.contains("28000"), "{error}");
    assert_eq!(
        is_encrypted(&format!("{certified} sslmode=require")).await,
        Ok(true)
    );
    assert_eq!(
        is_encrypted(&format!("{certified} sslmode=allow")).await,
        Ok(true)
    );
    let error = is_encrypted(&format!("{certified} sslmode=disable"))
        .await
        .unwrap_err();
    assert!(error.contains("28000"), "{error}");
}

#[actix::test]
async fn an_expired_or_self_signed_certificate_is_refused_by_the_modes_that_verify() {
    let authority = Authority::new();
    for (expired, self_signed, why) in [(true, false, "expired"), (false, true, "self")] {
        let files = authority.certify("localhost", expired, self_signed);
        let server = server(&authority, &files);
        let base = format!("host=localhost port={} user=postgres", server.port);
        let root = authority.root();
        let root = root.display();
        assert_eq!(
            is_encrypted(&format!("{base} sslmode=require")).await,
            Ok(true)
        );
        for mode in ["verify-ca", "verify-full"] {
            let conninfo = format!("{base} sslmode={mode} sslrootcert={root}");
            let error = is_encrypted(&conninfo).await.unwrap_err();
            assert!(error.contains(why), "{mode}: {error}");
        }
    }
}

/// Makes a self-signed certificate whose signature is RSA-PSS with this hash.
fn signed_with_pss(authority: &Authority, hash: &str) -> Files {
    let file = |kind: &str| {
        authority
            .directory
            .path()
            .join(format!("pss-{hash}.{kind}"))
    };
    let files = Files {
        certificate: file("crt"),
        key: file("key"),
    };
    let output = std::process::Command::new("openssl")
        .args([
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
        ])
        .args(["-subj", "/CN=localhost", "-sigopt", "rsa_padding_mode:pss"])
        .arg(format!("-{hash}"))
        .arg("-keyout")
        .arg(&files.key)
        .arg("-out")
        .arg(&files.certificate)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    fs::set_permissions(&files.key, Permissions::from_mode(0o600)).unwrap();
    files
}

#[actix::test]
async fn channel_binding_works_with_certificates_of_every_signature_that_psql_takes() {
    let authority = Authority::new();
    let certificates = [
        authority.certify("localhost", false, true),
        signed_with_pss(&authority, "sha256"),
        signed_with_pss(&authority, "sha384"),
        signed_with_pss(&authority, "sha512"),
    ];
    for files in &certificates {
        let server = server(&authority, files);
        let hba = authority.directory.path().join("pg_hba.conf");
        let db = TestDatabase::at(&server.conninfo()).await;
        db.execute("CREATE ROLE app LOGIN PASSWORD 'secret'").await;
        let rules = fs::read_to_string(&hba).unwrap();
        let rules = rules.replacen(
            "host all all",
            "hostssl all app all scram-sha-256\nhost all all",
            1,
        );
        fs::write(&hba, rules).unwrap();
        db.execute("SELECT pg_reload_conf()").await;
        let conninfo = format!(
            "host=127.0.0.1 port={} user=app password=secret dbname=postgres sslmode=require channel_binding=require",
            server.port
        );
        let shown = files.certificate.display();
        let psql = std::process::Command::new("psql")
            .args(["--no-psqlrc", "-Atc", "SELECT 1", "-d", &conninfo])
            .output()
            .unwrap();
        assert!(psql.status.success(), "{shown}: {psql:?}");
        connect(&conninfo)
            .await
            .unwrap_or_else(|error| panic!("{shown}: {error}"));
    }
}

#[actix::test]
async fn a_server_without_channel_binding_is_not_away() {
    let server = TestServer::start();
    let plain = format!(
        "{} password=secret channel_binding=require",
        server.conninfo()
    );
    let conninfo = ConnInfo::parse(&plain, |_| None).unwrap();
    let database = Database::new(conninfo, database::Settings::default()).unwrap();
    let (state, error) = database.server_state().await;
    assert_eq!(state, database::ServerState::Unknown);
    let error = error.unwrap();
    assert!(
        error.to_string().contains("channel binding") && !error.is_away(),
        "{error}"
    );
}

#[actix::test]
async fn an_unusable_key_is_refused_with_what_to_do_about_it() {
    let authority = Authority::new();
    let ours = authority.certify("certified", false, false);
    let (certificate, key) = (ours.certificate.display(), ours.key.display());
    let conninfo = format!("host=localhost sslmode=require sslcert={certificate} sslkey={key}");
    let refused = async || connect(&conninfo).await.err().unwrap();
    fs::set_permissions(&ours.key, Permissions::from_mode(0o644)).unwrap();
    assert!(refused().await.contains("has group or world access"));
    fs::set_permissions(&ours.key, Permissions::from_mode(0o600)).unwrap();
    let pem = fs::read_to_string(&ours.key).unwrap();
    fs::write(&ours.key, pem.replace("PRIVATE KEY", "EC PRIVATE KEY")).unwrap();
    let error = refused().await;
    let command = format!("openssl pkcs8 -topk8 -nocrypt -in \"{key}\" -out \"{key}.pk8\"");
    assert!(error.ends_with(&command), "{error}");
    fs::remove_file(&ours.key).unwrap();
    assert!(
        refused()
            .await
            .contains("certificate present, but not private key file")
    );
    fs::remove_file(&ours.certificate).unwrap();
    assert!(refused().await.contains("it does not exist"));
}

#[actix::test]
async fn a_statement_is_cancelled_over_tls_as_well() {
    let authority = Authority::new();
    let good = authority.certify("localhost", false, false);
    let server = server(&authority, &good);
    let conninfo = format!(
        "host=localhost port={} user=postgres sslmode=verify-full sslrootcert={}",
        server.port,
        authority.root().display()
    );
    let connection = connect(&conninfo).await.unwrap();
    let cancel = connection.cancel_token();
    let begin = Instant::now();
    let sleeping =
        actix_rt::spawn(async move { connection.query("sleep", "SELECT pg_sleep(60)", &[]).await });
    let db = TestDatabase::at(&server.conninfo()).await;
    eventually("it sleeps", || async {
        let sql = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'PgSleep')";
        db.value::<bool>(sql).await
    })
    .await;
    cancel.cancel().await;
    let error = sleeping.await.unwrap().unwrap_err();
    assert_eq!(error.sqlstate(), Some("57014"));
    assert!(begin.elapsed() < busy(Duration::from_secs(5)));
}

#[actix::test]
async fn a_certificate_that_is_renewed_is_used_by_the_next_connection() {
    let authority = Authority::new();
    let good = authority.certify("localhost", false, false);
    let server = server(&authority, &good);
    let root = authority.root();
    let conninfo = format!(
        "host=localhost port={} user=postgres sslmode=verify-full sslrootcert={}",
        server.port,
        root.display()
    );
    let parsed = ConnInfo::parse(&conninfo, |_| None).unwrap();
    let database = Database::new(parsed, database::Settings::default()).unwrap();
    database.connect("test", None).await.unwrap();
    let right = fs::read(&root).unwrap();
    fs::write(&root, fs::read(Authority::new().root()).unwrap()).unwrap();
    database.connect("test", None).await.unwrap_err();
    fs::write(&root, right).unwrap();
    database.connect("test", None).await.unwrap();
}
