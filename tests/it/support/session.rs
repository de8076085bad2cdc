//! Scripted sessions in Markdown: what a reader would type and see, run as a test so that it stays true.
//!
//! A session is the text of all code blocks fenced as `sh session`, in their order:
//!
//! ````markdown
//! ```sh session
//! $ NAME=world
//! $ echo "hello $NAME" &&
//! > date
//! hello world
//! …
//! ```
//! ````
//!
//! - `$ ` begins a command, `> ` continues it on the next line.
//! - All other lines are what the command must print, on standard output and standard error alike; spaces at their
//!   ends do not count.
//! - `…` stands for any text within its line; alone on a line, for any number of lines, none included.
//! - A command that prints must show that it does, and each must end with status 0.
//! - One shell runs them all, so that variables last from block to block. It starts in an empty folder, and gets its
//!   variables from who runs it.

use std::{
    fmt::Write as _,
    fs::{self, File},
    os::unix::process::CommandExt,
    process::{Command, Stdio},
    time::Duration,
};

use super::tether;

/// The info string of a block that belongs to the session.
const INFO: &str = "sh session";

/// How long a whole session may take; a TTL that it waits for included.
const ENDS_WITHIN: Duration = Duration::from_mins(2);

/// Stands for any text.
const ANY: &str = "…";

/// A command and what it must print.
#[derive(Debug, PartialEq)]
struct Step {
    command: String,
    expected: Vec<String>,
}

/// Runs the session of a Markdown text; `Err` says which command printed what else. A text without one is an error.
pub async fn run_session(markdown: &str, env: &[(&str, String)]) -> Result<(), String> {
    let steps = steps(markdown)?;
    let printed = run(&steps, env).await?;
    for (step, (output, status)) in steps.iter().zip(&printed) {
        let lines: Vec<&str> = output.lines().map(str::trim_end).collect();
        let expected: Vec<&str> = step.expected.iter().map(|line| line.trim_end()).collect();
        if *status != 0 || !matches_lines(&expected, &lines) {
            return Err(format!(
                "$ {}\n--- expected\n{}\n--- printed, with status {status}\n{}",
                step.command,
                expected.join("\n"),
                lines.join("\n"),
            ));
        }
    }
    match steps.get(printed.len()) {
        Some(step) => Err(format!("the shell ended in: {}", step.command)),
        None => Ok(()),
    }
}

/// The commands of all session blocks.
fn steps(markdown: &str) -> Result<Vec<Step>, String> {
    let mut steps: Vec<Step> = Vec::new();
    let mut inside = false;
    // The fence of a block that is not ours, whose text may quote a session.
    let mut other: Option<&str> = None;
    for line in markdown.lines() {
        let ticks = &line[..line.len() - line.trim_start_matches('`').len()];
        if let Some(fence) = other {
            if ticks.len() >= fence.len() && line == ticks {
                other = None;
            }
        } else if inside {
            if line == "```" {
                inside = false;
            } else if let Some(command) = line.strip_prefix("$ ") {
                steps.push(Step { command: command.to_owned(), expected: Vec::new() });
            } else {
                let step = steps.last_mut().ok_or_else(|| format!("output before any command: {line}"))?;
                match line.strip_prefix("> ") {
                    Some(more) if step.expected.is_empty() => {
                        step.command.push('\n');
                        step.command.push_str(more);
                    }
                    _ => step.expected.push(line.to_owned()),
                }
            }
        } else if ticks.len() >= 3 {
            inside = ticks == "```" && line[3..].trim() == INFO;
            other = (!inside).then_some(ticks);
        }
    }
    if inside {
        return Err("a session block has no end".to_owned());
    }
    if steps.is_empty() {
        return Err(format!("no command in a block fenced as ```{INFO}"));
    }
    Ok(steps)
}

/// Runs the commands in one shell and returns what each printed, with its status, as far as it came.
async fn run(steps: &[Step], env: &[(&str, String)]) -> Result<Vec<(String, i32)>, String> {
    // What follows a command's output: no command prints this by chance.
    const MARK: &str = "\u{1}end of a step\u{1}";
    let mut script = String::new();
    for step in steps {
        writeln!(script, "{}\nprintf '%s%s\\n' '{MARK}' \"$?\"", step.command)
            .expect("a string takes it all");
    }
    let folder = tether::folder("session");
    let (work, output_file) = (folder.path().join("work"), folder.path().join("output"));
    fs::create_dir(&work).expect("an own folder is writable");
    let output = File::create(&output_file).expect("an own folder is writable");
    let mut shell = Command::new("sh")
        .args(["-c", &script])
        .envs(env.iter().map(|(name, value)| (name, value)))
        .current_dir(&work)
        .process_group(0)
        .stdin(Stdio::null())
        .stderr(output.try_clone().expect("a second handle"))
        .stdout(output)
        .spawn()
        .expect("sh starts");
    let group = shell.id();
    let ended = tokio::task::spawn_blocking(move || shell.wait());
    // By the id of its group: what the shell has started has to end too.
    let within_bound = tokio::time::timeout(ENDS_WITHIN, ended).await.is_ok();
    if !within_bound {
        let _ =
            Command::new("sh").args(["-c", "kill -s KILL -- \"-$1\"", "kill", &group.to_string()]).status();
    }
    let text =
        String::from_utf8_lossy(&fs::read(&output_file).expect("an own file is readable")).into_owned();
    let mut printed = Vec::new();
    let mut rest = text.as_str();
    while let Some((output, after)) = rest.split_once(MARK) {
        let (status, after) = after.split_once('\n').unwrap_or((after, ""));
        printed.push((output.to_owned(), status.parse().unwrap_or(-1)));
        rest = after;
    }
    if within_bound { Ok(printed) } else { Err(format!("not over within {ENDS_WITHIN:?}: {text}")) }
}

/// Whether the lines are as expected; a lone `…` takes any number of them.
fn matches_lines(expected: &[&str], lines: &[&str]) -> bool {
    match expected.split_first() {
        None => lines.is_empty(),
        Some((&ANY, rest)) => (0..=lines.len()).any(|skipped| matches_lines(rest, &lines[skipped..])),
        Some((first, rest)) => lines
            .split_first()
            .is_some_and(|(line, more)| matches_line(first, line) && matches_lines(rest, more)),
    }
}

/// Whether the line is as expected; each `…` in it takes any text.
fn matches_line(expected: &str, line: &str) -> bool {
    match expected.split_once(ANY) {
        None => expected == line,
        Some((before, after)) => line.strip_prefix(before).is_some_and(|rest| {
            rest.char_indices()
                .map(|(at, _)| at)
                .chain([rest.len()])
                .any(|at| matches_line(after, &rest[at..]))
        }),
    }
}
