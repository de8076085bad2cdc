//! The database's file: where a URL or a path says it is, and private to its owner.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use sqlx::sqlite::SqliteConnectOptions;

use crate::files::{self, FileError};
use crate::store::{Result, StoreError};

/// What SQLite puts beside the file under the file's own name.
const COMPANIONS: [&str; 3] = ["-wal", "-shm", "-journal"];

/// The database that a URL names. Its path is percent-decoded, and ends at a question mark.
///
/// # Errors
/// [`StoreError::Url`] where it names no file.
pub fn from_url(url: &str) -> Result<SqliteConnectOptions> {
    let options = SqliteConnectOptions::from_str(url).map_err(|error| StoreError::Url(error.to_string()))?;
    if url.contains(":memory:") || url.contains("mode=memory") {
        return Err(StoreError::Url("a database in memory cannot be shared by several connections".into()));
    }
    let path = options.get_filename();
    if path == Path::new("") {
        return Err(StoreError::Url("it names no file: write sqlite:///folder/presence.db".into()));
    }
    // SQLite would read it as a URL of its own kind, and keep the file elsewhere than here.
    if path.to_str().is_some_and(|path| path.starts_with("file:")) {
        return Err(StoreError::Url(
            "write the path without 'file:', as in sqlite:///folder/presence.db".into(),
        ));
    }
    Ok(options)
}

/// The database at a path, whatever characters that has.
///
/// # Errors
/// [`StoreError::File`] where the path cannot be made absolute; [`StoreError::Url`] where it is not UTF-8, which the driver
/// requires.
pub fn at(path: &Path) -> Result<SqliteConnectOptions> {
    // Absolute, because SQLite reads a path that begins with `file:` as a URL.
    let path = std::path::absolute(path).map_err(FileError::io("find", path))?;
    if path.to_str().is_none() {
        return Err(StoreError::Url(format!("the path {} is not UTF-8", path.display())));
    }
    Ok(SqliteConnectOptions::new().filename(path))
}

/// Creates the file, and its folder where that is missing, for this user alone; closes what is open to others. The mode of
/// a folder that exists is its owner's affair. SQLite gives what it puts beside the file the mode of the file.
///
/// # Errors
/// [`StoreError::File`] with the reason.
pub fn make_private(path: &Path) -> Result<()> {
    if let Some(folder) = path.parent().filter(|folder| *folder != Path::new("")) {
        files::create_folder(folder)?;
    }
    files::create_file(path)?;
    // A link's companions lie beside its target.
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    for companion in COMPANIONS {
        let mut name = path.clone().into_os_string();
        name.push(companion);
        files::tighten_file(&PathBuf::from(name))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_percent_decoded_and_a_path_is_not() {
        for (url, file) in [
            ("sqlite:///a/b.db", "/a/b.db"),
            ("sqlite:b.db", "b.db"),
            ("sqlite:///job%2Fmain/what%3F.db", "/job/main/what?.db"),
            ("sqlite:///a/b.db?cache=private", "/a/b.db"),
        ] {
            assert_eq!(from_url(url).unwrap().get_filename(), Path::new(file), "{url}");
        }
        for path in ["/job%2Fmain/what?/#1/ü ü.db", "/file:/a.db"] {
            assert_eq!(at(Path::new(path)).unwrap().get_filename(), Path::new(path));
        }
        assert!(at(Path::new("file:a.db")).unwrap().get_filename().is_absolute());
    }

    #[test]
    fn a_url_that_names_no_file_is_refused_with_what_to_write() {
        for url in ["sqlite:", "sqlite://", "sqlite:?mode=rwc", "sqlite:file:a.db", "sqlite:file:/a/b.db"] {
            assert!(from_url(url).unwrap_err().to_string().contains("sqlite:///folder"), "{url}");
        }
    }

    #[test]
    fn a_name_that_is_not_utf_8_is_refused() {
        use std::os::unix::ffi::OsStrExt;
        let path = Path::new(std::ffi::OsStr::from_bytes(b"/tmp/\xff/a.db"));
        assert!(at(path).unwrap_err().to_string().contains("not UTF-8"));
    }
}
