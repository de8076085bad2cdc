//! `make bench`: what the service does in a second and what that costs, beside the bounds that it is held against.
//!
//! Starts everything that it needs on loopback, measures in rounds, and prints ratios with goals beside them; the report
//! and the raw figures are written to `target/bench`. A goal that is missed fails nothing; an answer that is not 200 does.
//!
//! | module | owns |
//! |---|---|
//! | [`plan`] | what is measured, how often and for how long |
//! | [`floor`] | the bound: the least server that could answer a heartbeat |
//! | [`bounds`] | floors as processes |
//! | [`load`] | the generator: requests, connections, times |
//! | [`process`] | CPU and memory of a process |
//! | [`scene`] | the service with its Redis and PostgreSQL |
//! | [`report`] | figures, goals, and what is written of them |
//! | [`parts`] | what is measured: one module a part |
//!
//! The program is its own children as well: `service floor …` is a floor, `service load` a generator.

mod bounds;
mod floor;
mod load;
mod parts;
mod plan;
mod process;
mod report;
mod scene;
#[path = "../../tests/it/support/mod.rs"]
mod support;

use anyhow::bail;

fn main() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["floor", port, threads, door] => floor::serve(port.parse()?, threads.parse()?, door.parse()?),
        ["load"] => load::child(),
        // cargo's own word, before whatever it was told to pass on.
        ["--bench", ..] => tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(parts::run(plan::Plan::from_environment()?)),
        // `cargo test --benches` says nothing.
        [] => {
            eprintln!("these are measurements, not tests: make bench");
            Ok(())
        }
        other => bail!("{other:?} is nothing that is understood here; the command is: make bench"),
    }
}
