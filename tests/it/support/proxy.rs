//! A TCP proxy that cuts connections in the middle of a command.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Passes everything on between clients and a server on loopback, until told to cut. Ends with the value.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    cut: Arc<AtomicBool>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// A proxy before the server on this port.
    pub async fn before(server: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let port = listener.local_addr().unwrap().port();
        let cut = Arc::new(AtomicBool::new(false));
        let told = cut.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass_on(client, server, told.clone()));
            }
        });
        Self { port, cut, accepting }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Cuts the next connection on which the server answers: what it was asked is done, and nobody is told.
    pub fn cut(&self) {
        self.cut.store(true, Ordering::Relaxed);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn pass_on(client: TcpStream, server: u16, cut: Arc<AtomicBool>) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (mut asks, mut hears) = client.into_split();
    let (mut answers, mut is_asked) = server.into_split();
    let there = async move {
        let mut buffer = vec![0; 65_536];
        while let Ok(length @ 1..) = asks.read(&mut buffer).await {
            if is_asked.write_all(&buffer[..length]).await.is_err() {
                return;
            }
        }
    };
    let back = async move {
        let mut buffer = vec![0; 65_536];
        while let Ok(length @ 1..) = answers.read(&mut buffer).await {
            if cut.swap(false, Ordering::Relaxed) || hears.write_all(&buffer[..length]).await.is_err() {
                return;
            }
        }
    };
    // When either side is done both are closed.
    tokio::select! {
        () = there => {}
        () = back => {}
    }
}
