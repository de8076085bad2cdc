//! Floors as processes of their own, which end with the run.

use std::net::SocketAddr;
use std::time::Duration;

use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::floor::Door;
use crate::load::{Load, Pace, Requests};
use crate::plan::Plan;
use crate::process::Watched;
use crate::support::poll::eventually;
use crate::support::tether::{self, Start, Tether};

/// A floor as a process of its own.
pub struct Floor {
    tether: Tether,
    _folder: TempDir,
    address: SocketAddr,
    /// How many threads it has.
    pub threads: usize,
}

impl Floor {
    /// Starts one.
    pub async fn start(threads: usize, door: Door) -> anyhow::Result<Self> {
        let program = std::env::current_exe()?.to_string_lossy().into_owned();
        for _ in 0..10 {
            let folder = tether::folder("floor");
            let port = tether::free_port();
            let command =
                [program.clone(), "floor".into(), port.to_string(), threads.to_string(), door.word().into()];
            let start =
                Start { folder: folder.path(), signal: "KILL", user: None, env: &[], command: &command };
            let tether = Tether::start(&start);
            let address = SocketAddr::from(([127, 0, 0, 1], port));
            let serves = eventually(Duration::from_secs(20), async || {
                match (tether.exit_code(), TcpStream::connect(address).await) {
                    // Somebody else has taken the port meanwhile.
                    (Some(code), _) => Ok(Err(code)),
                    (None, Ok(_)) => Ok(Ok(())),
                    (None, Err(error)) => Err(error.to_string()),
                }
            })
            .await;
            if serves.is_ok() {
                return Ok(Self { tether, _folder: folder, address, threads });
            }
        }
        anyhow::bail!("no floor after ten ports")
    }

    /// A load of heartbeats by the plan.
    pub fn load(&self, plan: &Plan, connections: usize, requests: &Requests) -> Load {
        Load {
            address: self.address,
            connections,
            requests: requests.clone(),
            pace: Pace::Closed,
            warm_up: plan.warm_up(),
            window: plan.window,
            watch: vec![Watched { name: "floor".into(), pid: self.tether.pid() }],
        }
    }
}

/// The floor with one thread and with two; which of them is the bound is found out for each number of connections.
pub struct Floors([Floor; 2]);

impl Floors {
    /// Starts both.
    pub async fn start() -> anyhow::Result<Self> {
        Ok(Self([Floor::start(1, Door::Token).await?, Floor::start(2, Door::Token).await?]))
    }

    /// The better one for each number of connections.
    pub fn best_of_each<const N: usize>(
        &self,
        plan: &Plan,
        connections: [usize; N],
        requests: &Requests,
    ) -> anyhow::Result<[&Floor; N]> {
        let mut best = [&self.0[0]; N];
        for (place, connections) in best.iter_mut().zip(connections) {
            *place = self.best(plan, connections, requests)?;
        }
        Ok(best)
    }

    /// The one that answers more, by a short look.
    pub fn best(&self, plan: &Plan, connections: usize, requests: &Requests) -> anyhow::Result<&Floor> {
        let look = |floor: &Floor| -> anyhow::Result<f64> {
            let window = plan.window.min(Duration::from_secs(3));
            Ok(Load { window, ..floor.load(plan, connections, requests) }.run()?.per_second)
        };
        let (one, two) = (look(&self.0[0])?, look(&self.0[1])?);
        println!("floor, {connections} connections: {one:.0}/s with one thread, {two:.0}/s with two");
        Ok(&self.0[usize::from(two > one)])
    }
}
