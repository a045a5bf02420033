//! Reading files that are regular ones. A pipe in the place of a file might never end.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::Path;

/// More than any file of settings holds.
const BYTES_MAX: u64 = 16 * 1024 * 1024;

/// The file that is empty by definition, by which some leave out a file.
const NULL: &str = "/dev/null";

/// Reads a regular file. Blocks while its file system does: call it on a thread that may wait.
///
/// # Errors
///
/// If it cannot be read, is a pipe, a device or a socket, or is larger than any file of settings.
pub(crate) fn read(path: &Path) -> io::Result<Vec<u8>> {
    if path == Path::new(NULL) {
        return Ok(Vec::new());
    }
    // Before it is opened, since opening a pipe waits for its writer.
    refuse_others(&fs::metadata(path)?)?;
    let file = File::open(path)?;
    refuse_others(&file.metadata()?)?;
    let mut bytes = Vec::new();
    file.take(BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > BYTES_MAX {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it is larger than {} MB", BYTES_MAX / 1024 / 1024),
        ));
    }
    Ok(bytes)
}

/// Reads a regular file of text.
///
/// # Errors
///
/// As [`read`], and if it is not UTF-8.
pub(crate) fn read_to_string(path: &Path) -> io::Result<String> {
    String::from_utf8(read(path)?)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8"))
}

fn refuse_others(metadata: &fs::Metadata) -> io::Result<()> {
    if metadata.is_file() {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidInput,
        "it is not a regular file",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_of_a_sensible_size_are_read() {
        let why = |path: &Path| read(path).unwrap_err().to_string();
        assert_eq!(why(Path::new("/dev/zero")), "it is not a regular file");
        assert_eq!(why(&std::env::temp_dir()), "it is not a regular file");
        assert_eq!(read(Path::new("/dev/null")).unwrap(), b"");
        let huge = std::env::temp_dir().join(format!("bgworker-huge-{}", std::process::id()));
        File::create(&huge).unwrap().set_len(BYTES_MAX + 1).unwrap();
        let too_large = why(&huge);
        fs::remove_file(&huge).unwrap();
        assert_eq!(too_large, "it is larger than 16 MB");
    }
}
