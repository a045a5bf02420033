//! The tests run on the server version that was requested.

use crate::support::database::TestDatabase;

#[actix::test]
async fn the_server_has_the_requested_version() {
    let db = TestDatabase::new().await;
    let major: i32 = db
        .value("SELECT current_setting('server_version_num')::int / 10000")
        .await;
    assert!(major >= 14, "{major}");
    if let Ok(expected) = std::env::var("EXPECTED_POSTGRESQL") {
        assert_eq!(major.to_string(), expected);
    }
}
