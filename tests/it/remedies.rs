//! Statements that errors suggest: each works unchanged and loses nothing, and the worker folds afterwards.

use bgworker::database::{ConnInfo, Database, Settings as DatabaseSettings};
use bgworker::supervision::Limits;
use bgworker::worker_spi::Table;
use bgworker::{ExitStatus, Postmaster, PostmasterHandle};

use crate::support::database::{TestDatabase, brisk, register, table};
use crate::support::eventually;
use crate::support::statements::mends;

/// A table that needs mending, and a role for the worker.
struct Broken {
    db: TestDatabase,
    role: String,
    table: Table,
}

impl Broken {
    async fn new(sql: &str) -> Self {
        let db = TestDatabase::new().await;
        let role: String = db.value("SELECT current_database()::text || '_role'").await;
        db.execute(&format!("CREATE ROLE {role} LOGIN; CREATE SCHEMA s"))
            .await;
        db.execute(&sql.replace("ROLE", &role)).await;
        let table = table("s", "t");
        Self { db, role, table }
    }

    /// A Postmaster that connects as the role, or as the superuser of the tests.
    fn postmaster(&self, as_role: bool, prepare: bool) -> PostmasterHandle {
        let conninfo = match as_role {
            true => self.db.conninfo_with("user", &self.role),
            false => self.db.conninfo().to_owned(),
        };
        let conninfo = ConnInfo::parse(&conninfo, |_| None).unwrap();
        let settings = DatabaseSettings::default().prepare(prepare);
        let database = Database::new(conninfo, settings).unwrap();
        Postmaster::launch(Limits::default(), Some(database)).unwrap()
    }

    /// The reason why a worker refuses the table.
    async fn refusal(&self, postmaster: &PostmasterHandle) -> String {
        let worker = register(postmaster, "w", brisk(&self.table)).await;
        eventually("the worker ends", || async {
            postmaster.worker(worker.id).await.unwrap().is_none()
        })
        .await;
        let ended = postmaster.workers().await.unwrap().ended;
        let ended = ended.last().unwrap();
        assert_eq!(ended.exit, ExitStatus::Failed);
        ended.reason.as_deref().unwrap().to_owned()
    }

    /// The sum of all values as text, so that no fraction is lost.
    async fn sum(&self) -> String {
        let columns = "SELECT count(*) = 1 FROM pg_attribute WHERE attrelid = 's.t'::regclass \
                       AND attname = 'value' AND NOT attisdropped";
        if !self.db.value::<bool>(columns).await {
            return "0".to_owned();
        }
        let sql = "SELECT trim_scale(coalesce(sum(value::text::numeric), 0))::text FROM s.t";
        self.db.value(sql).await
    }

    /// Runs remedies until none is needed, and checks that each keeps the sum, and that a delta is folded then.
    async fn is_mended_by_its_remedies(&self, as_role: bool) {
        let before = self.sum().await;
        for _ in 0..4 {
            let postmaster = self.postmaster(as_role, true);
            let worker = register(&postmaster, "w", brisk(&self.table)).await;
            eventually("it is ready, or ends", || async {
                let status = postmaster.worker(worker.id).await.unwrap();
                status.is_none_or(|status| status.report.cycles > 0)
            })
            .await;
            let ended = postmaster.workers().await.unwrap().ended;
            let reason = ended.last().and_then(|ended| ended.reason.clone());
            let Some(reason) = reason else {
                assert_eq!(self.sum().await, before);
                return self.folds().await;
            };
            for mend in mends(&reason) {
                self.db.execute(&mend).await;
                let after = self.sum().await;
                let same = format!("{before} = {after}");
                let is_same: bool = self.db.value(&format!("SELECT {same}")).await;
                assert!(is_same, "{mend}: {same}");
            }
        }
        panic!("it is never mended");
    }

    async fn folds(&self) {
        let db = &self.db;
        db.execute(
            "INSERT INTO s.t (type, value) SELECT 'total', 0 WHERE NOT EXISTS \
             (SELECT FROM s.t WHERE type = 'total')",
        )
        .await;
        db.execute("INSERT INTO s.t (type, value) VALUES ('delta', 7)")
            .await;
        eventually("it folds", || async {
            db.value::<bool>("SELECT NOT EXISTS (SELECT FROM s.t WHERE type = 'delta')")
                .await
        })
        .await;
    }
}

#[actix::test]
async fn a_column_that_may_have_another_name_is_not_added_to_rows() {
    let broken = Broken::new(
        "CREATE TABLE s.t (kind text, value bigint); INSERT INTO s.t VALUES ('total', 1), ('delta', 2)",
    )
    .await;
    let refusal = broken.refusal(&broken.postmaster(false, true)).await;
    let expected = "column \"type\" must be text, but is missing";
    assert!(refusal.ends_with(expected), "{refusal}");
}

#[actix::test]
async fn every_remedy_works_as_it_stands_and_keeps_the_sum() {
    const INDEX: &str = "CREATE UNIQUE INDEX ON s.t (type) WHERE type = 'total'";
    for (needs, as_role) in [
        ("CREATE TABLE s.t (type text)".to_owned(), false),
        ("CREATE TABLE s.t (value bigint); INSERT INTO s.t VALUES (3)".to_owned(), false),
        (
            "CREATE TABLE s.t (type text, value numeric); \
             INSERT INTO s.t VALUES ('total', 4.00), ('delta', 12)"
                .to_owned(),
            false,
        ),
        (
            "CREATE TABLE s.t (type text, value double precision); INSERT INTO s.t VALUES ('total', 1e15)".to_owned(),
            false,
        ),
        (
            "CREATE DOMAIN s.amount AS bigint CHECK (value > -100); CREATE TABLE s.t (type text, value s.amount); \
             INSERT INTO s.t VALUES ('total', 4)"
                .to_owned(),
            false,
        ),
        (
            "CREATE TYPE s.kind AS ENUM ('total', 'delta'); CREATE TABLE s.t (type s.kind, value bigint); \
             INSERT INTO s.t VALUES ('total', 4)"
                .to_owned(),
            false,
        ),
        (
            "CREATE TABLE s.t (type char(10), value bigint); INSERT INTO s.t VALUES ('total', 4)".to_owned(),
            false,
        ),
        (
            "CREATE TABLE s.t (type text, value int); INSERT INTO s.t VALUES ('total', 4), ('total', NULL), \
             ('total', 5), ('delta', 1)"
                .to_owned(),
            false,
        ),
        (
            "CREATE TABLE s.t (type text, value bigint); CREATE INDEX t_unique_total ON s.t (value)".to_owned(),
            false,
        ),
        (
            format!("CREATE TABLE s.t (type text, value bigint GENERATED ALWAYS AS IDENTITY); {INDEX}"),
            false,
        ),
        (
            format!("CREATE TABLE s.t (type text, value bigint); {INDEX}; GRANT SELECT ON s.t TO ROLE"),
            true,
        ),
        (
            format!(
                "CREATE TABLE s.t (type text, value bigint); {INDEX}; GRANT ALL ON s.t TO ROLE; GRANT USAGE \
                 ON SCHEMA s TO ROLE; INSERT INTO s.t VALUES ('total', 0), ('delta', 9); \
                 ALTER TABLE s.t ENABLE ROW LEVEL SECURITY"
            ),
            true,
        ),
    ] {
        Broken::new(&needs).await.is_mended_by_its_remedies(as_role).await;
    }
}

#[actix::test]
async fn no_statement_is_suggested_that_could_fail_or_lose_something() {
    const INDEX: &str = "; CREATE UNIQUE INDEX ON s.t (type) WHERE type = 'total'";
    for (needs, expected) in [
        (
            "CREATE TABLE s.t (type text, value numeric(12, 2)); INSERT INTO s.t VALUES ('total', 4.05)",
            "but is numeric",
        ),
        (
            "CREATE TABLE s.t (type text, value numeric); INSERT INTO s.t VALUES ('total', 'NaN')",
            "but is numeric",
        ),
        (
            "CREATE TABLE s.t (type text, value numeric); INSERT INTO s.t VALUES ('total', 1e30)",
            "but is numeric",
        ),
        ("CREATE TABLE s.t (type text, value text)", "but is text"),
        (
            "CREATE TABLE s.t (type text, value numeric); CREATE VIEW s.v AS SELECT value FROM s.t",
            "but is numeric",
        ),
        (
            "CREATE TABLE s.t (type text, value int, note text NOT NULL); \
             INSERT INTO s.t VALUES ('total', 1, 'a'), ('total', 2, 'b')",
            "keep the right one, and create such an index",
        ),
        (
            "CREATE TABLE s.t (type text, value int); \
             INSERT INTO s.t VALUES ('total', 2147483647), ('total', 1)",
            "keep the right one, and create such an index",
        ),
        (
            "CREATE TABLE s.t (type text, cents bigint, value bigint GENERATED ALWAYS AS (cents) STORED)",
            "generated from other columns",
        ),
        (
            "CREATE TABLE s.t (type text, value bigint); CREATE RULE r AS ON DELETE TO s.t DO INSTEAD NOTHING",
            "has a rule on UPDATE or DELETE",
        ),
    ] {
        // Without a value, or with several totals, there can be no index.
        let is_one = !expected.contains("keep the right one");
        let index = if is_one { INDEX } else { "" };
        let broken = Broken::new(&format!("{needs}{index}")).await;
        let reason = broken.refusal(&broken.postmaster(false, true)).await;
        assert!(reason.contains(expected), "{needs}: {reason}");
        for word in ["ALTER", "CREATE", "BEGIN", "USING"] {
            assert!(!reason.contains(word), "{needs}: {reason}");
        }
    }
}

#[actix::test]
async fn rows_hidden_by_row_security_are_never_taken_for_none() {
    let needs = "CREATE TABLE s.t (type text, value bigint); \
                 CREATE UNIQUE INDEX ON s.t (type) WHERE type = 'total'; GRANT USAGE ON SCHEMA s TO ROLE; \
                 GRANT ALL ON s.t TO ROLE; INSERT INTO s.t VALUES ('total', 0)";
    for prepare in [true, false] {
        let broken = Broken::new(needs).await;
        let db = &broken.db;
        let postmaster = broken.postmaster(true, prepare);
        db.worker(&postmaster, "w", brisk(&broken.table)).await;
        db.execute(
            "CREATE POLICY p ON s.t FOR SELECT USING (type = 'total'); \
             ALTER TABLE s.t ENABLE ROW LEVEL SECURITY; INSERT INTO s.t VALUES ('delta', 5)",
        )
        .await;
        eventually("it is reported, with its remedy", || async {
            let workers = postmaster.workers().await.unwrap().registered;
            let error = workers[0].report.last_error.as_deref().unwrap_or_default();
            error.contains("BYPASSRLS")
        })
        .await;
        assert_eq!(db.rows(&broken.table).await, ["delta|5", "total|0"]);
        db.execute(&format!("ALTER ROLE {} BYPASSRLS", broken.role))
            .await;
        db.wait_for_rows(&broken.table, &["total|5"]).await;
    }
}
