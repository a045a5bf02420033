//! What the jobs of a test have done: the table `effect` has a row for each tick of one second.

use super::database::TestDatabase;

/// Asserts that each tick, from the first to the last, was done once.
pub(crate) async fn assert_exact(db: &TestDatabase) {
    let twice = "SELECT count(*) - count(DISTINCT tick) FROM effect";
    assert_eq!(db.value::<i64>(twice).await, 0);
    let gaps =
        "SELECT extract(epoch FROM max(tick) - min(tick))::bigint + 1 - count(*) FROM effect";
    assert_eq!(db.value::<i64>(gaps).await, 0);
}
