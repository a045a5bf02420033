//! What the program reports to systemd: ready, reloading, stopping, alive. The test's own socket stands in for systemd.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::sys::time::TimeValLike as _;
use nix::time::{ClockId, clock_gettime};

use crate::configuration::Config;
use crate::daemon::seed;
use crate::program::{bgworker, wait_for_all};
use crate::support::LONG;
use crate::support::daemon::Daemon;
use crate::support::database::TestDatabase;

/// The service manager's end of the socket.
struct ServiceManager {
    socket: UnixDatagram,
    /// The lines that it has received.
    heard: Vec<String>,
}

impl ServiceManager {
    /// Listens on a socket beside a configuration that every user may write to.
    fn listen(config: &Config) -> Self {
        let path = Self::path(config);
        let socket = UnixDatagram::bind(&path).unwrap();
        let everyone = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(path, everyone).unwrap();
        socket.set_read_timeout(Some(LONG)).unwrap();
        let heard = Vec::new();
        Self { socket, heard }
    }

    fn path(config: &Config) -> std::path::PathBuf {
        config.path.with_file_name("notify")
    }

    /// The program, as the service manager starts it.
    fn command(config: &Config) -> Command {
        let mut command = bgworker();
        command
            .args(["--log-format", "text", "--config"])
            .arg(&config.path)
            .env("NOTIFY_SOCKET", Self::path(config));
        command
    }

    /// Waits for the next message other than those with the status and the watchdog, and returns its lines.
    fn next(&mut self) -> Vec<String> {
        loop {
            let lines = self.next_of_any_kind();
            if !lines.iter().any(|line| line.starts_with("STATUS=")) {
                return lines;
            }
        }
    }

    fn next_of_any_kind(&mut self) -> Vec<String> {
        let mut message = [0; 4096];
        let length = self.socket.recv(&mut message).expect("it tells nothing");
        let message = str::from_utf8(&message[..length]).unwrap();
        let lines: Vec<_> = message.lines().map(str::to_owned).collect();
        self.heard.extend(lines.iter().cloned());
        lines
    }

    /// Receives what has been sent so far; for use after the program has ended.
    fn rest(&mut self) {
        self.socket.set_nonblocking(true).unwrap();
        let mut message = [0; 4096];
        while let Ok(length) = self.socket.recv(&mut message) {
            let message = str::from_utf8(&message[..length]).unwrap();
            self.heard.extend(message.lines().map(str::to_owned));
        }
    }
}

#[actix::test]
async fn systemd_is_notified_of_the_start_each_reload_and_the_stop() {
    let db = TestDatabase::new().await;
    let config = Config::given(&db, "100ms", &["s", "s2"]);
    let mut manager = ServiceManager::listen(&config);
    let mut daemon = Daemon::start(&mut ServiceManager::command(&config));
    assert_eq!(manager.next(), ["READY=1"]);
    wait_for_all(&mut daemon, &["s initialized", "s2 initialized"]);
    // The status line as well, when it is next sent.
    while !manager
        .heard
        .iter()
        .any(|line| line == "STATUS=2 of 2 background workers run")
    {
        manager.next_of_any_kind();
    }

    for text in [config.read(), "[worker".to_owned()] {
        config.write(&text);
        let micros = || {
            clock_gettime(ClockId::CLOCK_MONOTONIC)
                .unwrap()
                .num_microseconds()
        };
        let before = micros();
        daemon.signal(Signal::SIGHUP);
        let reloading = manager.next();
        assert_eq!(reloading[0], "RELOADING=1");
        let at: i64 = reloading[1]
            .strip_prefix("MONOTONIC_USEC=")
            .unwrap()
            .parse()
            .unwrap();
        assert!((before..=micros()).contains(&at), "{at}");
        assert_eq!(manager.next(), ["READY=1"]);
    }

    daemon.signal(Signal::SIGTERM);
    assert_eq!(manager.next(), ["STOPPING=1"]);
    assert_eq!(daemon.wait().0, Some(0));
}

#[actix::test]
async fn the_program_is_ready_while_it_waits_for_its_server() {
    let config = Config::new(
        "[database]\nurl = \"host=/no/such/directory\"\n[[worker]]\nname = \"w\"\nschema = \"s\"\ntable = \"t\"\n",
    );
    let mut manager = ServiceManager::listen(&config);
    let mut daemon = Daemon::start(&mut ServiceManager::command(&config));
    assert_eq!(manager.next(), ["READY=1"]);
    // The first message may come before the first look at the server.
    let expected = "STATUS=0 of 1 background workers run, server is away";
    while manager.next_of_any_kind()[0] != expected {}
    daemon.signal(Signal::SIGTERM);
    assert_eq!(manager.next(), ["STOPPING=1"]);
    assert_eq!(daemon.wait().0, Some(0));
}

#[actix::test]
async fn the_watchdog_is_fed_twice_as_often_as_required() {
    let db = TestDatabase::new().await;
    let config = Config::given(&db, "1s", &["s"]);
    let mut manager = ServiceManager::listen(&config);
    let within = Duration::from_millis(1000);
    let mut command = ServiceManager::command(&config);
    command.env("WATCHDOG_USEC", within.as_micros().to_string());
    let mut daemon = Daemon::start(&mut command);
    assert_eq!(manager.next(), ["READY=1"]);
    let begin = Instant::now();
    for _ in 0..6 {
        assert_eq!(manager.next_of_any_kind()[1], "WATCHDOG=1");
    }
    let six = begin.elapsed();
    assert!(within * 2 < six && six < within * 5, "{six:?}");
    daemon.signal(Signal::SIGTERM);
    daemon.wait();
}

#[actix::test]
async fn a_watchdog_of_another_process_is_not_fed() {
    let db = TestDatabase::new().await;
    let config = Config::given(&db, "1s", &["s"]);
    let mut manager = ServiceManager::listen(&config);
    let mut command = ServiceManager::command(&config);
    command
        .env("WATCHDOG_USEC", "100000")
        .env("WATCHDOG_PID", "1");
    let mut daemon = Daemon::start(&mut command);
    assert_eq!(manager.next(), ["READY=1"]);
    daemon.wait_for("initialized");
    daemon.signal(Signal::SIGTERM);
    daemon.wait();
    manager.rest();
    let heard = |what: &str| manager.heard.iter().any(|line| line.starts_with(what));
    assert!(heard("STATUS="), "{:?}", manager.heard);
    assert!(!heard("WATCHDOG="), "{:?}", manager.heard);
}

#[actix::test]
async fn a_socket_without_a_file_is_notified_as_well() {
    use std::os::linux::net::SocketAddrExt as _;
    let db = TestDatabase::new().await;
    let config = Config::given(&db, "1s", &["s"]);
    let name = format!("bgworker-test-{}", std::process::id());
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
    let socket = UnixDatagram::bind_addr(&address).unwrap();
    socket.set_read_timeout(Some(LONG)).unwrap();
    let mut manager = ServiceManager {
        socket,
        heard: Vec::new(),
    };
    let mut command = ServiceManager::command(&config);
    command.env("NOTIFY_SOCKET", format!("@{name}"));
    let mut daemon = Daemon::start(&mut command);
    assert_eq!(manager.next(), ["READY=1"]);
    daemon.signal(Signal::SIGTERM);
    assert_eq!(manager.next(), ["STOPPING=1"]);
    daemon.wait();
}

/// PostgreSQL, too, notifies a service manager that it is ready; it must not notify the one that started bgworker.
#[test]
fn a_private_server_does_not_speak_for_the_program() {
    let (config, _) = seed();
    let mut manager = ServiceManager::listen(&config);
    let mut daemon = Daemon::start(&mut ServiceManager::command(&config));
    wait_for_all(
        &mut daemon,
        &["worker 1 initialized", "worker 2 initialized"],
    );
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().0, Some(0));
    manager.rest();
    let heard = |text: &str| manager.heard.iter().filter(|line| *line == text).count();
    assert_eq!(
        (heard("READY=1"), heard("STOPPING=1")),
        (1, 1),
        "{:?}",
        manager.heard
    );
}

#[actix::test]
async fn a_socket_that_nothing_listens_on_is_warned_of_once() {
    let db = TestDatabase::new().await;
    let config = Config::given(&db, "20ms", &["s"]);
    let mut command = ServiceManager::command(&config);
    let mut daemon = Daemon::start(command.env("WATCHDOG_USEC", "200000"));
    daemon.wait_for("could not tell the service manager at NOTIFY_SOCKET: ");
    daemon.wait_for("initialized");
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().0, Some(0));
    let said = daemon.said.iter();
    let warnings = said.filter(|line| line.contains("could not tell the service manager"));
    assert_eq!(warnings.count(), 1);
}
