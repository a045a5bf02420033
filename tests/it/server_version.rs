//! The server of the tests is the one that they were told to use.

use crate::support::database::TestDatabase;

#[actix::test]
async fn the_server_is_of_the_version_that_was_asked_for() {
    let db = TestDatabase::new().await;
    let major: i32 = db
        .value("SELECT current_setting('server_version_num')::int / 10000")
        .await;
    assert!(major >= 14, "{major}");
    if let Ok(expected) = std::env::var("EXPECTED_POSTGRESQL") {
        assert_eq!(major.to_string(), expected);
    }
}
