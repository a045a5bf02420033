//! What `bgworker ddl` prints for a worker: statements that may run again. Pure text.

use super::table::Table;

// === impl Table ===

impl Table {
    /// The statements that make the schema, the table and its index, and let a role work on it, for a script that may run
    /// again.
    pub(super) fn objects(&self, role: &str) -> Vec<String> {
        let made = self.create_table();
        let made = made.split("; ").map(|statement| {
            let again = [
                ("CREATE TABLE ", "CREATE TABLE IF NOT EXISTS "),
                ("INDEX ", "INDEX IF NOT EXISTS "),
            ];
            let begins = again
                .into_iter()
                .find(|(create, _)| statement.starts_with("CREATE ") && statement.contains(create));
            begins.map_or_else(
                || statement.to_owned(),
                |(one, other)| statement.replacen(one, other, 1),
            )
        });
        let grants = self.grant(role);
        std::iter::once(self.create_schema())
            .chain(made)
            .chain(grants.split("; ").map(str::to_owned))
            .collect()
    }
}
