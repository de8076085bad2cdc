//! One question to a server, on a connection of its own: plain enough to need no client, which would keep reconnecting.

use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::place::Home;
use crate::files;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(1);
/// More than the longest path, which is the longest answer that is looked at.
const LONGEST: usize = 8 * 1024;

/// What comes of a question.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// No process listens there.
    Absent,
    /// A process listens, and gave no answer in time.
    Silent,
    /// The answer as it was sent, or its beginning.
    Text(Vec<u8>),
}

/// Sends an inline command to a socket. A server of another user counts as silent.
pub(super) async fn ask(socket: &Path, command: &str) -> Answer {
    match timeout(PATIENCE, UnixStream::connect(socket)).await {
        Ok(Ok(stream)) if stream.peer_cred().is_ok_and(|peer| peer.uid() == files::user()) => {
            exchange(stream, command).await
        }
        Ok(Err(error)) => absent_or_silent(error.kind()),
        _ => Answer::Silent,
    }
}

/// The same to a TCP port of this machine, as servers of earlier versions have it.
pub(super) async fn ask_port(port: u16, command: &str) -> Answer {
    match timeout(PATIENCE, TcpStream::connect((Ipv4Addr::LOCALHOST, port))).await {
        Ok(Ok(stream)) => exchange(stream, command).await,
        Ok(Err(error)) => absent_or_silent(error.kind()),
        Err(_) => Answer::Silent,
    }
}

/// Whether the server at a socket keeps its data in that folder.
pub(super) async fn keeps_data_in(socket: &Path, home: &Home) -> bool {
    let answer = ask(socket, "CONFIG GET dir").await;
    matches!(answer, Answer::Text(text) if is_folder(&text, home))
}

/// Whether the answer to `CONFIG GET dir` names that folder.
pub(super) fn is_folder(answer: &[u8], home: &Home) -> bool {
    folder(answer).is_some_and(|found| found == home.canonical().as_os_str().as_bytes())
}

/// `*2\r\n$3\r\ndir\r\n$<length>\r\n<folder>\r\n`. By its length, because a name may hold any character.
fn folder(answer: &[u8]) -> Option<&[u8]> {
    let rest = answer.strip_prefix(b"*2\r\n$3\r\ndir\r\n$")?;
    let end = rest.iter().position(|byte| *byte == b'\r')?;
    let length: usize = std::str::from_utf8(&rest[..end]).ok()?.parse().ok()?;
    rest.get(end + 2..)?.get(..length)
}

fn absent_or_silent(kind: ErrorKind) -> Answer {
    match kind {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => Answer::Absent,
        _ => Answer::Silent,
    }
}

async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, command: &str) -> Answer {
    let mut answer = Vec::new();
    let conversation = async {
        stream.write_all(format!("{command}\r\n").as_bytes()).await.ok()?;
        // In one piece as a rule; a longer one until it is whole as far as this file cares.
        while answer.len() < LONGEST && !is_whole(&answer) && stream.read_buf(&mut answer).await.ok()? > 0 {}
        Some(())
    };
    let _ = timeout(PATIENCE, conversation).await;
    if answer.is_empty() { Answer::Silent } else { Answer::Text(answer) }
}

/// A list is whole when the folder in it is; anything else with its first line.
fn is_whole(answer: &[u8]) -> bool {
    if answer.first() == Some(&b'*') { folder(answer).is_some() } else { answer.ends_with(b"\r\n") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_read_by_its_length_whatever_characters_it_has() {
        let answer = "*2\r\n$3\r\ndir\r\n$12\r\n/tmp/a\r\nb ü\r\n";
        assert_eq!(folder(answer.as_bytes()), Some("/tmp/a\r\nb ü".as_bytes()));
        for half in ["", "*2\r\n$3\r\ndir\r\n$12", "*2\r\n$3\r\ndir\r\n$12\r\n/tmp", "-ERR unknown", "*0\r\n"]
        {
            assert_eq!(folder(half.as_bytes()), None, "{half:?}");
            assert!(!is_whole(b"*2\r\n$3\r\ndir\r\n$12\r\n/tmp"));
        }
        assert!(is_whole(answer.as_bytes()) && is_whole(b"+PONG\r\n"));
    }
}
