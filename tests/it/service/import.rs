//! `presenced import-users`: what it reads, what it reports, and that the accounts can log in.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::commands::presenced;
use crate::support::http::Api;
use crate::support::process::{Presenced, PresencedOptions};
use crate::support::python::python;
use crate::support::tether;

/// Exit code, and what was printed, errors included.
fn import(data: &Path, file: &Path, more: &[&str]) -> (i32, String) {
    let arguments = [&["import-users", file.to_str().unwrap()], more].concat();
    let output = presenced(data, &[], &arguments);
    let said = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(said).unwrap())
}

fn hash(password: &str) -> String {
    let made = python("make_hashes.py", &[password]);
    made[0]["hash"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn accounts_of_a_csv_file_log_in_with_their_old_passwords_and_keep_their_ids() {
    let folder = tether::folder("import");
    let file = folder.path().join("users.csv");
    let hash = hash("correct horse battery");
    let users = format!(
        "id,username,email,password,is_staff,is_active,date_joined,first_name\n\
         41,ada,ada@example.com,{hash},t,t,2024-01-31 12:00:00+00,\"Ada, Countess\"\n\
         ,bob,bob@example.com,,False,True,,\n\
         17,eve,eve@example.com,{hash},f,f,,\n"
    );
    fs::write(&file, &users).unwrap();
    let data = folder.path().join("data");
    let (code, said) = import(&data, &file, &["--dry-run"]);
    assert!(code == 0 && said.contains("dry run: 3 new, 0 unchanged, 0 refused"), "{said}");
    let (code, said) = import(&data, &file, &[]);
    assert_eq!(code, 0, "{said}");
    for line in [
        "note: the column 'first_name' is ignored",
        "line 2: new: ada as account 41",
        "line 3: new: bob as account 42",
        "line 4: new: eve as account 17",
        "imported: 3 new, 0 unchanged, 0 refused",
    ] {
        assert!(said.contains(line), "{line} in {said}");
    }
    let (code, said) = import(&data, &file, &[]);
    assert!(code == 0 && said.contains("imported: 0 new, 3 unchanged, 0 refused"), "{said}");
    assert!(!said.contains("pbkdf2"), "a hash is shown: {said}");

    let service =
        Presenced::start(PresencedOptions { data: Some(data.clone()), ..PresencedOptions::default() }).await;
    let api = Api::new(service.base_url());
    let ada = api.login_with("ada", "correct horse battery").await;
    assert_eq!((ada.user_id(), &ada.user["role"]), (41, &json!("admin")));
    for (name, status) in [("bob", 401), ("eve", 403)] {
        let body = json!({"username": name, "password": "correct horse battery"});
        assert_eq!(api.post("login/", None, &body).await.0, status, "{name}");
    }
    let edit = json!({"password": "a password that an administrator set"});
    let (status, body, _) = api.patch("admin/users/42/", Some(&ada.access), &edit).await;
    assert_eq!(status, 200, "{body}");
    api.login_with("bob", "a password that an administrator set").await;
    // Beside the running service, after a password was replaced and another set.
    let (code, said) = import(&data, &file, &[]);
    assert!(code == 0 && said.contains("imported: 0 new, 3 unchanged"), "{said}");
    assert!(said.contains("with another password, which stays"), "{said}");
}

#[test]
fn what_manage_py_dumpdata_writes_comes_in() {
    let folder = tether::folder("import");
    let data = folder.path().join("data");
    let file = folder.path().join("users.json");
    let hash = hash("correct horse battery");
    let fields = json!({
        "password": hash, "last_login": null, "is_superuser": true, "username": "ada", "first_name": "", "last_name": "",
        "email": "ada@example.com", "is_staff": true, "is_active": true, "date_joined": "2024-01-31T12:00:00.123Z",
        "groups": [], "user_permissions": []
    });
    let dump = json!([
        {"model": "auth.permission", "pk": 1, "fields": {"name": "x"}},
        {"model": "auth.user", "pk": 41, "fields": fields},
        {"username": "bob", "email": "bob@example.com", "id": "43", "role": "user", "status": "pending"},
    ]);
    fs::write(&file, dump.to_string()).unwrap();
    let (code, said) = import(&data, &file, &[]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("item 2: new: ada as account 41") && said.contains("bob as account 43"), "{said}");
    assert!(said.contains("model 'auth.permission' are ignored"), "{said}");
}

#[test]
fn a_bad_file_is_refused_as_a_whole_with_every_reason() {
    let folder = tether::folder("import");
    let data = folder.path().join("data");
    let report = |name: &str, text: &[u8]| {
        let file = folder.path().join(name);
        fs::write(&file, text).unwrap();
        import(&data, &file, &[])
    };
    let (code, said) = report(
        "rows.csv",
        b"username,email,password\n\
          ada,ada@example.com,\n\
          bob,nowhere,md5$salt$5f4dcc3b\n\
          too,many,fields,here\n\
          caf\xe9,x@y,\n\
          ,no@name.com,\n\
          ADA,other@example.com,\n\
          x,x@y,pbkdf2_sha256$4000000000$salt$aaaa\n",
    );
    assert_eq!(code, 1, "{said}");
    for line in [
        "line 2: new: ada",
        "line 3: refused: email must be an e-mail address",
        "line 3: refused: password cannot be used",
        "line 4: refused: there are 4 fields and not 3",
        "line 5: refused: it is not UTF-8",
        "line 6: refused: username must be 1 to 150 characters long",
        "line 7: refused: username is that of line 2",
        "line 8: refused: password cannot be used, for it asks for 4000000000 iterations",
        "nothing was imported: 1 new, 0 unchanged, 6 refused",
    ] {
        assert!(said.contains(line), "{line} in {said}");
    }
    assert!(!said.contains("5f4dcc3b"), "a hash is shown: {said}");

    for (name, text, must_say) in [
        ("a.csv", "username,email,shoe_size,colour\nada,a@b,7,red\n", "'shoe_size' is no column"),
        ("b.csv", "username,email,shoe_size,colour\nada,a@b,7,red\n", "'colour' is no column"),
        ("c.csv", "ada,ada@example.com,x\n", "'ada' is no column"),
        ("d.csv", "", "'username' among them"),
        ("e.json", "{\"username\": \"ada\"}", "a list of accounts"),
        ("f.json", "[{\"username\": \"ada\"", "EOF"),
        (
            "g.json",
            "[{\"username\": \"ada\", \"email\": \"a@b\", \"shoe_size\": 7}]",
            "'shoe_size' is no column",
        ),
        ("h.json", "[7, {\"username\": [\"ada\"]}]", "item 1: refused: it must be an object"),
        ("i.txt", "", "must end in .csv or .json"),
    ] {
        let (code, said) = report(name, text.as_bytes());
        assert!(code == 1 && said.contains(must_say), "{name}: {code} {said}");
    }
    let (code, said) = import(&data, &folder.path().join("nowhere.csv"), &[]);
    assert!(code == 1 && said.contains("cannot read"), "{said}");
    let empty = report("users.json", Value::Array(Vec::new()).to_string().as_bytes());
    assert!(empty.0 == 0 && empty.1.contains("imported: 0 new"), "{empty:?}");
}
