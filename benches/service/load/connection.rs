//! One keep-alive connection: a request on its way, then its answer.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

use super::answer::Answer;
use super::requests::Prebuilt;

/// How long the first answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection, free or with one request under way.
pub struct Connection {
    stream: TcpStream,
    answer: Answer,
    /// The request that is under way, and how much of it is sent.
    sending: (usize, usize),
    /// From when the request under way is timed; `None` while there is none.
    since: Option<Instant>,
    opened: Instant,
    answers: u64,
}

impl Connection {
    /// Connects, is answered once, and registers under this number.
    ///
    /// One after the other: so no queue of connections overflows, which the system would punish with seconds, and none is
    /// taken for one that has nothing to say.
    pub fn open(
        address: SocketAddr,
        registry: &Registry,
        number: usize,
        requests: &Prebuilt,
    ) -> anyhow::Result<Self> {
        let mut stream =
            std::net::TcpStream::connect(address).with_context(|| format!("nobody listens on {address}"))?;
        let opened = Instant::now();
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(requests.at(number))?;
        let (mut scratch, mut first) = ([0; 4_096], Answer::default());
        loop {
            let read =
                stream.read(&mut scratch).with_context(|| format!("no first answer within {PATIENCE:?}"))?;
            if read == 0 {
                bail!("a connection was closed before its first answer");
            }
            if first.take(&scratch[..read])? {
                break;
            }
        }
        stream.set_nonblocking(true)?;
        let mut stream = TcpStream::from_std(stream);
        registry.register(&mut stream, Token(number), Interest::READABLE | Interest::WRITABLE)?;
        Ok(Self { stream, answer: Answer::default(), sending: (0, 0), since: None, opened, answers: 1 })
    }

    /// Sends this request, timed from `since`.
    pub fn ask(&mut self, requests: &Prebuilt, number: usize, since: Instant) -> anyhow::Result<()> {
        self.since = Some(since);
        self.sending = (number, 0);
        self.send(requests)
    }

    /// Sends what is left of the request; the rest goes once the socket takes it.
    pub fn send(&mut self, requests: &Prebuilt) -> anyhow::Result<()> {
        let (number, mut sent) = self.sending;
        let request = requests.at(number);
        while self.since.is_some() && sent < request.len() {
            match self.stream.write(&request[sent..]) {
                Ok(written) => sent += written,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("a connection broke while a request was sent"),
            }
        }
        self.sending.1 = sent;
        Ok(())
    }

    /// Reads what is there; from when the request was timed, where its answer is whole now.
    pub fn hear(&mut self, scratch: &mut [u8]) -> anyhow::Result<Option<Instant>> {
        let mut answered = None;
        loop {
            let read = match self.stream.read(scratch) {
                Ok(0) => bail!(
                    "a connection was closed instead of kept alive, {:?} after it was opened and after {} answers{}",
                    self.opened.elapsed(),
                    self.answers,
                    if self.since.is_some() { ", with a request under way" } else { "" }
                ),
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(answered),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error).context("a connection broke while an answer was read"),
            };
            if self.since.is_none() {
                bail!("an answer to nothing: {}", String::from_utf8_lossy(&scratch[..read]));
            }
            if self.answer.take(&scratch[..read])? {
                answered = self.since.take();
                self.answers += 1;
            }
            // A read that does not fill the buffer has emptied the socket; what comes next is an event of its own.
            if read < scratch.len() {
                return Ok(answered);
            }
        }
    }
}
