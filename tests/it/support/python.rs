//! The real packages of the existing product: `scripts/install test` has put them beside the build.

use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

/// Runs `tests/python/<script>` with these arguments and returns the JSON that it prints.
pub fn python(script: &str, arguments: &[&str]) -> Value {
    let interpreter = folder().join("bin/python");
    let output = Command::new(&interpreter)
        .arg(format!("tests/python/{script}"))
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}; run scripts/install test", interpreter.display()));
    let (printed, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{script}: {said}{printed}");
    serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{script}: {error}: {printed}"))
}

/// Where the build puts what it makes: the binary under test lies in a folder of it.
fn folder() -> PathBuf {
    let binary = PathBuf::from(env!("CARGO_BIN_EXE_presenced"));
    binary.ancestors().nth(2).expect("target/<profile>/presenced").join("python")
}
