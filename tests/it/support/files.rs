//! Files that the server's user can reach or owns, and the processes that use them.

use std::fs;
use std::path::Path;

/// A directory that the server's user can reach, whichever user the tests run as.
pub(crate) fn reachable_directory() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt as _;
    let open = fs::Permissions::from_mode(0o755);
    tempfile::Builder::new()
        .permissions(open)
        .tempdir_in("/tmp")
        .unwrap()
}

/// Gives a path to the server's user, whichever user that is.
pub(crate) fn give_to_the_server(path: &Path) {
    let user = nix::unistd::User::from_name("postgres").unwrap();
    if let (true, Some(user)) = (nix::unistd::Uid::effective().is_root(), user) {
        let (uid, gid) = (user.uid.as_raw(), user.gid.as_raw());
        std::os::unix::fs::chown(path, Some(uid), Some(gid)).unwrap();
    }
}

/// The command lines of the processes that have a path in them.
pub(crate) fn processes_with(path: &Path) -> Vec<String> {
    let path = path.to_str().unwrap();
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let commands = entries.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    let commands = commands.map(|bytes| String::from_utf8_lossy(&bytes).replace('\0', " "));
    commands.filter(|command| command.contains(path)).collect()
}
