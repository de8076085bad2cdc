//! The scripted sessions of the documentation: see [`crate::support::session`] for how they are written.

use crate::support::process::{Presenced, PresencedOptions};
use crate::support::session::run_session;

/// A session as a Markdown text. The fence is put together here, as this file's own text must not hold one.
fn markdown(session: &str) -> String {
    format!("# A title\n\n```text\n$ false\n```\n\n```sh session\n{session}\n```\n\nMore words.\n")
}

async fn run(session: &str) -> Result<(), String> {
    run_session(&markdown(session), &[("PLANET", "world".to_owned())]).await
}

#[tokio::test]
async fn a_session_that_prints_what_it_says_passes() {
    run("$ echo hello\nhello\n$ printf 'one\\n\\nthree\\n'\none\n\nthree").await.unwrap();
}

#[tokio::test]
async fn another_output_fails_and_is_named() {
    let error = run("$ echo hello\nhullo").await.unwrap_err();
    assert!(
        error.contains("$ echo hello") && error.contains("hullo") && error.contains("\nhello"),
        "{error}"
    );
}

#[tokio::test]
async fn output_that_the_text_does_not_show_fails() {
    assert!(run("$ echo hello").await.is_err());
    assert!(run("$ echo hello\nhello\nhello").await.is_err());
}

#[tokio::test]
async fn a_failing_command_fails() {
    let error = run("$ false\n$ true").await.unwrap_err();
    assert!(error.contains("status 1"), "{error}");
}

#[tokio::test]
async fn a_session_that_ends_early_fails() {
    let error = run("$ exit 0\n$ echo hello\nhello").await.unwrap_err();
    assert!(error.contains("the shell ended in: exit 0"), "{error}");
}

#[tokio::test]
async fn variables_last_and_come_from_outside() {
    let two_blocks = markdown("$ GREETING=hello") + &markdown("$ echo \"$GREETING $PLANET\"\nhello world");
    run_session(&two_blocks, &[("PLANET", "world".to_owned())]).await.unwrap();
}

#[tokio::test]
async fn an_ellipsis_stands_for_any_text() {
    run("$ echo '{\"access\":\"abc\",\"id\":7}'\n{\"access\":\"…\",…}").await.unwrap();
    run("$ printf '1\\n2\\n3\\n4\\n'\n1\n…\n4").await.unwrap();
    run("$ echo 1\n1\n…").await.unwrap();
    assert!(run("$ printf '1\\n2\\n3\\n'\n1\n…\n4").await.is_err());
    assert!(run("$ echo abc\na…d").await.is_err());
}

#[tokio::test]
async fn a_command_may_go_on_for_lines_and_its_errors_show() {
    run("$ echo one &&\n> echo two >&2\none\ntwo").await.unwrap();
}

#[tokio::test]
async fn a_text_without_a_session_fails() {
    assert!(run_session("# A title\n\n```sh\n$ true\n```\n", &[]).await.is_err());
    assert!(run_session("````markdown\n```sh session\n$ true\n```\n````\n", &[]).await.is_err());
    assert!(run_session("```sh session\n$ true\n", &[]).await.is_err());
}

#[tokio::test]
async fn the_walk_in_the_readme_is_true() {
    let service = Presenced::start(PresencedOptions {
        ttl: Some(std::time::Duration::from_secs(3)),
        ..PresencedOptions::default()
    })
    .await;
    let env = [
        ("ADDRESS", service.base_url().to_owned()),
        ("ADMIN_PASSWORD", service.printed("admin password: ").unwrap()),
        ("REDIS_SOCKET", service.redis_socket().display().to_string()),
        ("DATA", service.data().display().to_string()),
    ];
    let readme = std::fs::read_to_string("README.md").unwrap();
    if let Err(error) = run_session(&readme, &env).await {
        panic!("{error}\n--- the service said\n{}", service.stderr());
    }
    assert_eq!(service.terminate().await, 0);
}
