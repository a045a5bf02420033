//! Tables that another role made before bgworker: none runs that role's code with the rights of the worker's role.

use bgworker::PostmasterHandle;
use bgworker::database::{ConnInfo, Database, Settings};
use bgworker::supervision::Shutdown;

use crate::support::database::TestDatabase;
use crate::support::eventually;
use crate::support::jobs::{EFFECT, Instance, every, runs, settings_of, stage};
use crate::support::rollup::Rollup;

/// A database with a role that is no superuser, and what that role can do there.
struct Shared {
    db: TestDatabase,
    role: String,
    /// A session of the role.
    theirs: TestDatabase,
}

impl Shared {
    async fn new() -> Self {
        let db = stage().await;
        let name: String = db.value("SELECT current_database()::text").await;
        let role = format!("{name}_role");
        db.execute(&format!(
            "CREATE ROLE {role} LOGIN; GRANT CREATE ON DATABASE {name} TO {role}; \
             GRANT CREATE ON SCHEMA public TO {role}; GRANT ALL ON effect, effect_id_seq TO {role}"
        ))
        .await;
        let theirs = TestDatabase::at(&db.conninfo_with("user", &role)).await;
        Self { db, role, theirs }
    }

    /// Makes the role the owner of the database.
    async fn is_theirs(&self) {
        let name: String = self.db.value("SELECT current_database()::text").await;
        self.db
            .execute(&format!("ALTER DATABASE {name} OWNER TO {}", self.role))
            .await;
    }

    /// Has the role make the tables of jobs, as `ddl` prints them.
    async fn make_tables(&self) {
        let settings = settings_of(&self.db, &[("j".to_owned(), &every("1s", EFFECT))]);
        let objects = settings.workers[0].function.objects(&self.role);
        self.theirs.execute(&objects.statements.join("; ")).await;
    }

    /// SQL that makes a trigger of the role's that would make it a superuser.
    fn trigger_on(&self, table: &str) -> String {
        let role = &self.role;
        format!(
            "CREATE FUNCTION grab() RETURNS trigger LANGUAGE plpgsql AS \
             'BEGIN ALTER ROLE {role} SUPERUSER; RETURN NEW; END'; \
             CREATE TRIGGER grab BEFORE INSERT OR UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION grab()"
        )
    }

    async fn is_superuser(&self) -> bool {
        let role = &self.role;
        let sql = format!("SELECT rolsuper FROM pg_roles WHERE rolname = '{role}'");
        self.db.value(&sql).await
    }

    /// Waits until the worker has refused to use something, and returns the reason.
    async fn refusal(&self, postmaster: &PostmasterHandle) -> String {
        let said = || async {
            let workers = postmaster.workers().await.unwrap();
            let ended = workers.ended.iter().filter_map(|one| one.reason.clone());
            let errors = workers.registered.iter();
            let errors = errors.filter_map(|one| one.report.last_error.clone());
            let mut all = ended.chain(errors);
            all.find(|said| said.contains("not used"))
        };
        eventually("it refuses", || async { said().await.is_some() }).await;
        said().await.unwrap().to_string()
    }

    /// Runs each statement that a refusal names.
    async fn mend(&self, refusal: &str) {
        for part in refusal.split(" (").skip(1) {
            let statement = part.split([';', ')']).next().unwrap();
            self.db.execute(statement).await;
        }
    }
}

#[actix::test]
async fn the_owner_of_a_database_gets_no_rights_of_the_superuser_whose_jobs_run_there() {
    let shared = Shared::new().await;
    shared.is_theirs().await;
    shared.make_tables().await;
    let trigger = shared.trigger_on("bgworker.job");
    shared.theirs.execute(&trigger).await;
    let instance = Instance::new(&shared.db, &every("1s", EFFECT)).await;
    let refusal = shared.refusal(&instance.postmaster).await;
    assert!(!shared.is_superuser().await);
    instance.stop(Shutdown::Fast).await;
    for expected in [
        "the schema bgworker belongs to",
        "bgworker.job belongs to",
        "bgworker.job has the trigger grab",
        "bgworker.job_run belongs to",
    ] {
        assert!(refusal.contains(expected), "{refusal}");
    }
    // All of it is mended at once, and nothing is lost.
    shared.mend(&refusal).await;
    let instance = Instance::new(&shared.db, &every("1s", EFFECT)).await;
    eventually("a tick is done", || async {
        runs(&shared.db, "true").await > 0
    })
    .await;
    assert!(!shared.is_superuser().await);
    instance.stop(Shutdown::Smart).await;
}

#[actix::test]
async fn tables_that_a_superuser_makes_with_the_role_that_the_database_gives_it_are_that_roles() {
    let shared = Shared::new().await;
    shared.is_theirs().await;
    let name: String = shared.db.value("SELECT current_database()::text").await;
    let set = format!("ALTER DATABASE {name} SET role = '{}'", shared.role);
    shared.theirs.execute(&set).await;
    let instance = Instance::new(&shared.db, &every("1s", EFFECT)).await;
    let refusal = shared.refusal(&instance.postmaster).await;
    assert!(refusal.contains("bgworker.job belongs to"), "{refusal}");
    instance.stop(Shutdown::Fast).await;
}

#[actix::test]
async fn a_trigger_that_is_made_while_the_job_sleeps_is_found_by_the_claim() {
    for transaction in [true, false] {
        let shared = Shared::new().await;
        let keys = format!("{}\ntransaction = {transaction}", every("1s", EFFECT));
        let instance = Instance::new(&shared.db, &keys).await;
        eventually("a tick is done", || async {
            runs(&shared.db, "true").await > 0
        })
        .await;
        let role = &shared.role;
        shared
            .db
            .execute(&format!(
                "GRANT USAGE ON SCHEMA bgworker TO {role}; GRANT TRIGGER ON bgworker.job TO {role}"
            ))
            .await;
        let trigger = shared.trigger_on("bgworker.job");
        shared.theirs.execute(&trigger).await;
        let refusal = shared.refusal(&instance.postmaster).await;
        for expected in ["bgworker.job has the trigger grab", "REVOKE TRIGGER ON"] {
            assert!(refusal.contains(expected), "{refusal}");
        }
        assert!(!shared.is_superuser().await, "{transaction}");
        shared.mend(&refusal).await;
        shared.db.execute("TRUNCATE bgworker.job_run").await;
        instance.stop(Shutdown::Fast).await;
        let instance = Instance::new(&shared.db, &keys).await;
        eventually("it goes on", || async {
            runs(&shared.db, "true").await > 0
        })
        .await;
        instance.stop(Shutdown::Smart).await;
    }
}

#[actix::test]
async fn whatever_runs_code_in_a_table_is_refused_with_a_statement_that_mends_it() {
    let shared = Shared::new().await;
    shared.make_tables().await;
    let role = &shared.role;
    shared
        .theirs
        .execute(
            "CREATE FUNCTION code(t text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN t; END'; \
             ALTER TABLE bgworker.job ADD extra text DEFAULT code('x'), ADD whole text GENERATED ALWAYS AS (code(name)) STORED; \
             ALTER TABLE bgworker.job_run ADD CHECK (code(name) <> ''), ADD at timestamptz DEFAULT now(); \
             CREATE INDEX ON bgworker.job_run (code(name)); CREATE INDEX ON bgworker.job_run (run) WHERE run > 0; \
             CREATE RULE r AS ON UPDATE TO bgworker.job DO ALSO SELECT 1",
        )
        .await;
    let instance = Instance::new(&shared.db, &every("1s", EFFECT)).await;
    let refusal = shared.refusal(&instance.postmaster).await;
    instance.stop(Shutdown::Fast).await;
    for (expected, number) in [
        ("has the rule r", 1),
        ("has a column extra whose default calls a function", 1),
        ("has a generated column whole", 1),
        ("which evaluates an expression", 1),
        ("which calls another role's function", 1),
        ("belongs to", 3),
    ] {
        assert_eq!(refusal.matches(expected).count(), number, "{refusal}");
    }
    // The owner is trusted by the settings, and then what runs code is refused all the same.
    let mut settings = Settings::default().trusted_owners([role]);
    for _ in 0..2 {
        let conninfo = ConnInfo::parse(shared.db.conninfo(), |_| None).unwrap();
        let database = Database::new(conninfo, settings.clone()).unwrap();
        let instance = Instance::on(database, &shared.db, &every("1s", EFFECT)).await;
        if settings.jobs == 1 {
            eventually("a tick is done", || async {
                runs(&shared.db, "true").await > 0
            })
            .await;
            instance.stop(Shutdown::Smart).await;
            return;
        }
        let refusal = shared.refusal(&instance.postmaster).await;
        assert!(!refusal.contains("belongs to"), "{refusal}");
        shared.mend(&refusal).await;
        instance.stop(Shutdown::Fast).await;
        settings = settings.jobs(1);
    }
}

#[actix::test]
async fn the_owner_of_a_database_is_trusted_by_roles_that_are_no_superusers() {
    let shared = Shared::new().await;
    let name: String = shared.db.value("SELECT current_database()::text").await;
    let other = format!("{name}_other");
    shared.is_theirs().await;
    shared.make_tables().await;
    let make = format!("CREATE ROLE {other} LOGIN; GRANT ALL ON effect, effect_id_seq TO {other}");
    shared.db.execute(&make).await;
    let grant = format!(
        "GRANT USAGE ON SCHEMA bgworker TO {other}; \
         GRANT SELECT, INSERT, UPDATE ON bgworker.job, bgworker.job_run TO {other}"
    );
    shared.theirs.execute(&grant).await;
    let worker = TestDatabase::at(&shared.db.conninfo_with("user", &other)).await;
    let instance = Instance::new(&worker, &every("1s", EFFECT)).await;
    eventually("a tick is done", || async {
        runs(&shared.db, "true").await > 0
    })
    .await;
    instance.stop(Shutdown::Smart).await;
    worker.client.close().await;
    let drop = format!("DROP OWNED BY {other}; DROP ROLE {other}");
    shared.db.execute(&drop).await;
}

#[actix::test]
async fn a_table_for_poison_that_another_role_has_made_runs_none_of_its_code() {
    let shared = Shared::new().await;
    shared
        .db
        .execute(
            "CREATE TABLE dq (shop int NOT NULL, amount bigint NOT NULL); \
             CREATE TABLE tot (shop int PRIMARY KEY, amount int NOT NULL DEFAULT 0); \
             INSERT INTO dq VALUES (1, 5000000000), (2, 7)",
        )
        .await;
    let theirs = format!(
        "CREATE TABLE dq_rejected (shop int, amount bigint); {}",
        shared.trigger_on("dq_rejected")
    );
    shared.theirs.execute(&theirs).await;
    let keys = "queue = 'public.dq'\ntotals = 'public.tot'\nkeys = ['shop']\nsum = ['amount']\n\
                naptime = '10ms'\non_poison = 'set_aside'";
    let refusal = Rollup::start(&shared.db, keys).await.refusal().await;
    for expected in ["public.dq_rejected belongs to", "has the trigger grab"] {
        assert!(refusal.contains(expected), "{refusal}");
    }
    shared.mend(&refusal).await;
    let rollup = Rollup::start(&shared.db, keys).await;
    eventually("the poison is set aside", || async {
        let sql = "SELECT NOT EXISTS (SELECT FROM dq) AND EXISTS (SELECT FROM dq_rejected)";
        shared.db.value::<bool>(sql).await
    })
    .await;
    assert!(!shared.is_superuser().await);
    rollup.stop().await;
}

#[actix::test]
async fn a_trigger_that_is_made_during_a_run_waits_until_it_is_recorded_and_is_then_found() {
    for transaction in [true, false] {
        let shared = Shared::new().await;
        shared.db.execute("SELECT pg_advisory_lock(4711)").await;
        let waits = "SELECT pg_advisory_lock(4711); SELECT pg_advisory_unlock(4711)";
        let keys = format!("{}\ntransaction = {transaction}", every("1s", waits));
        let instance = Instance::new(&shared.db, &keys).await;
        let is_waited_for = |what: &str| {
            format!(
                "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() \
                 AND wait_event_type = 'Lock' AND query LIKE '%{what}%')"
            )
        };
        let runs_now = is_waited_for("advisory_lock");
        eventually("it runs", async || shared.db.value::<bool>(&runs_now).await).await;
        let role = &shared.role;
        let grant = format!(
            "GRANT USAGE ON SCHEMA bgworker TO {role}; GRANT TRIGGER ON bgworker.job TO {role}"
        );
        shared.db.execute(&grant).await;
        let trigger = shared.trigger_on("bgworker.job");
        let goes_on = async {
            if transaction {
                let waits = is_waited_for("CREATE TRIGGER");
                eventually("it waits", async || shared.db.value::<bool>(&waits).await).await;
            } else {
                let is_made = "SELECT EXISTS (SELECT FROM pg_trigger WHERE tgname = 'grab')";
                eventually("it is made", async || {
                    shared.db.value::<bool>(is_made).await
                })
                .await;
            }
            shared.db.execute("SELECT pg_advisory_unlock(4711)").await;
        };
        tokio::join!(shared.theirs.execute(&trigger), goes_on);
        let refusal = shared.refusal(&instance.postmaster).await;
        assert!(refusal.contains("has the trigger grab"), "{refusal}");
        assert!(!shared.is_superuser().await, "{transaction}");
        assert_eq!(
            runs(&shared.db, "outcome = 'done'").await,
            i64::from(transaction)
        );
        instance.stop(Shutdown::Fast).await;
    }
}

#[actix::test]
async fn a_job_is_not_declared_in_a_table_that_has_got_a_trigger() {
    let shared = Shared::new().await;
    let instance = Instance::new(&shared.db, &every("1s", EFFECT)).await;
    eventually("a tick is done", async || {
        runs(&shared.db, "true").await > 0
    })
    .await;
    let role = &shared.role;
    let grant = format!(
        "GRANT USAGE ON SCHEMA bgworker TO {role}; GRANT TRIGGER ON bgworker.job TO {role}; \
         BEGIN; SET LOCAL ROLE {role}; {}; RESET ROLE; DELETE FROM bgworker.job; COMMIT",
        shared.trigger_on("bgworker.job")
    );
    shared.db.execute(&grant).await;
    let refusal = shared.refusal(&instance.postmaster).await;
    assert!(refusal.contains("has the trigger grab"), "{refusal}");
    assert!(!shared.is_superuser().await);
    instance.stop(Shutdown::Fast).await;
}

#[actix::test]
async fn the_owner_of_an_enumeration_that_is_a_key_runs_no_code_with_the_rights_of_the_worker() {
    for context in ["", " AS ASSIGNMENT", " AS IMPLICIT"] {
        let shared = Shared::new().await;
        let role = &shared.role;
        let make = format!(
            "CREATE TYPE mood AS ENUM ('good', 'bad'); CREATE FUNCTION grab(mood) RETURNS text LANGUAGE plpgsql AS \
             'BEGIN ALTER ROLE {role} SUPERUSER; RETURN enum_out($1); END'; \
             CREATE CAST (mood AS text) WITH FUNCTION grab(mood){context}"
        );
        shared.theirs.execute(&make).await;
        shared
            .db
            .execute(
                "CREATE TABLE dq (mood mood NOT NULL, amount bigint NOT NULL); \
                 CREATE TABLE dq_rejected (LIKE dq); \
                 CREATE TABLE tot (mood mood PRIMARY KEY, amount int NOT NULL DEFAULT 0); \
                 INSERT INTO dq VALUES ('bad', 5000000000), ('good', 7)",
            )
            .await;
        let keys = "queue = 'public.dq'\ntotals = 'public.tot'\nkeys = ['mood']\nsum = ['amount']\n\
                    naptime = '10ms'\non_poison = 'set_aside'\nview = 'public.v'";
        let rollup = Rollup::start(&shared.db, keys).await;
        eventually("it has used what the cast is for", async || {
            // Beside an implicit cast, the server does not know which operator is meant: that is told, and nothing runs.
            let error = rollup.last_error().await.unwrap_or_default();
            let sql = "SELECT concat_ws(' ', (SELECT count(*) FROM dq), \
                       (SELECT string_agg(enum_out(mood)::text, '') FROM dq_rejected), (SELECT sum(amount) FROM tot))";
            error.contains("operator is not unique")
                || shared.db.value::<String>(sql).await == "0 bad 7"
        })
        .await;
        assert!(!shared.is_superuser().await, "{context}");
        rollup.stop().await;
    }
}
