use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use super::*;

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

fn open_to_all(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn a_folder_is_made_private_with_those_above_it() {
    let base = folder();
    let deep = base.path().join("a/b/c");
    create_folder(&deep).unwrap();
    for path in ["a", "a/b", "a/b/c"] {
        assert_eq!(mode(&base.path().join(path)), 0o700, "{path}");
    }
    create_folder(&deep).unwrap();
}

#[test]
fn an_open_folder_is_claimed_where_it_is_empty_or_known_and_refused_where_it_has_another_purpose() {
    let claim = |names: &[&str], folder_mode: u32| {
        let base = folder();
        for name in names {
            fs::write(base.path().join(name), "").unwrap();
        }
        open_to_all(base.path(), folder_mode);
        let claimed = claim_folder(base.path(), |name| match name {
            "ours" => Entry::Proof,
            "lock" => Entry::Known,
            _ => Entry::Unknown,
        });
        (claimed.map_err(|error| error.to_string()), mode(base.path()))
    };
    for names in [&[][..], &["ours"], &["lock"], &["ours", "notes"], &["lost+found", ".keep", "lock"]] {
        assert_eq!(claim(names, 0o755), (Ok(()), 0o700), "{names:?}");
    }
    for (names, found) in [(&["notes", "lock"][..], 0o755), (&["ours"], 0o1777), (&[], 0o1777)] {
        let (refused, mode) = claim(names, found);
        let reason = refused.unwrap_err();
        assert!(reason.contains("open to other users") && reason.contains("chmod 700"), "{reason}");
        assert_eq!(mode, found, "what is refused is left as it was");
    }
    // One that its owner has closed is the owner's choice, whatever it holds.
    assert_eq!(claim(&["notes"], 0o700), (Ok(()), 0o700));
}

#[test]
fn a_file_in_the_place_of_a_folder_is_refused() {
    let base = folder();
    let file = base.path().join("data");
    fs::write(&file, "").unwrap();
    assert!(claim_folder(&file, |_| Entry::Proof).unwrap_err().to_string().contains("is not a folder"));
}

#[test]
fn all_below_a_folder_is_made_private_and_links_are_followed() {
    let base = folder();
    let (inside, outside) = (base.path().join("inside"), base.path().join("outside"));
    fs::create_dir_all(inside.join("deep/deeper")).unwrap();
    for file in [inside.join("file"), inside.join("deep/deeper/file"), outside.clone()] {
        fs::write(&file, "").unwrap();
        open_to_all(&file, 0o664);
    }
    open_to_all(&inside.join("deep"), 0o777);
    symlink(&outside, inside.join("link")).unwrap();
    symlink("nowhere", inside.join("dangling")).unwrap();
    secure(&inside).unwrap();
    for file in [inside.join("file"), inside.join("deep/deeper/file"), outside] {
        assert_eq!(mode(&file), 0o600, "{}", file.display());
    }
    assert_eq!(mode(&inside.join("deep")), 0o700);
    secure(&base.path().join("absent")).unwrap();
}

#[test]
fn what_is_closed_already_keeps_its_mode() {
    let base = folder();
    let file = base.path().join("file");
    fs::write(&file, "").unwrap();
    open_to_all(&file, 0o400);
    secure(&file).unwrap();
    tighten_file(&file).unwrap();
    assert_eq!(mode(&file), 0o400);
}

#[test]
fn a_file_is_created_private_and_an_open_one_is_closed() {
    let base = folder();
    let file = base.path().join("file");
    create_file(&file).unwrap();
    assert_eq!(mode(&file), 0o600);
    fs::write(&file, "kept").unwrap();
    open_to_all(&file, 0o666);
    create_file(&file).unwrap();
    assert_eq!((mode(&file), fs::read_to_string(&file).unwrap().as_str()), (0o600, "kept"));
}

#[test]
fn a_file_is_written_whole_and_only_once_unless_it_may_be_replaced() {
    let base = folder();
    let file = base.path().join("file");
    write_once(&file, "one").unwrap();
    write_once(&file, "two").unwrap();
    assert_eq!((mode(&file), fs::read_to_string(&file).unwrap().as_str()), (0o600, "one"));
    write(&file, "three").unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap(), "three");
    assert_eq!(fs::read_dir(base.path()).unwrap().count(), 1, "no draft is left");
}

#[test]
fn a_link_or_an_open_folder_is_no_private_folder() {
    let base = folder();
    let (private, link) = (base.path().join("private"), base.path().join("link"));
    create_new_folder(&private).unwrap();
    check_private_folder(&private).unwrap();
    symlink(&private, &link).unwrap();
    assert!(check_private_folder(&link).is_err());
    open_to_all(&private, 0o750);
    assert!(check_private_folder(&private).unwrap_err().to_string().contains("0750"));
    assert!(create_new_folder(&link).is_err(), "a name that is taken is not used");
}

#[test]
fn only_a_folder_whose_entries_nobody_else_can_rename_protects_them() {
    let base = folder();
    for (found, protects) in [(0o700, true), (0o755, true), (0o775, false), (0o777, false), (0o1777, true)] {
        open_to_all(base.path(), found);
        assert_eq!(protects_entries(base.path()), protects, "{found:o}");
    }
}

#[test]
fn a_folder_above_in_which_every_user_can_rename_is_found() {
    let base = folder();
    let deep = base.path().join("a/b");
    create_folder(&deep).unwrap();
    assert_eq!(exposed_above(&deep), None);
    open_to_all(base.path(), 0o777);
    assert_eq!(exposed_above(&deep), Some(base.path()));
    open_to_all(base.path(), 0o1777);
    assert_eq!(exposed_above(&deep), None);
}
