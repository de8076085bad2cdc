//! What is measured, one module a part, in the order of [`Plan`]; [`rounds`] holds what several of them do.

mod cluster;
mod crowd;
mod expiry;
mod heartbeat;
mod latency;
mod lists;
mod million;
mod rounds;
mod statements;

use anyhow::bail;

use crate::plan::Plan;
use crate::report::Report;

/// Measures every part of the plan, and writes the report after each, so that a later defect loses nothing.
pub async fn run(plan: Plan) -> anyhow::Result<()> {
    let mut report = Report::new(&plan);
    for part in &plan.parts {
        match part.as_str() {
            "heartbeat" => heartbeat::measure(&plan, &mut report).await?,
            "latency" => latency::measure(&plan, &mut report).await?,
            "crowd" => crowd::measure(&plan, &mut report).await?,
            "statements" => statements::measure(&plan, &mut report).await?,
            "lists" => lists::measure(&plan, &mut report).await?,
            "expiry" => expiry::measure(&plan, &mut report).await?,
            "million" => million::measure(&plan, &mut report).await?,
            "cluster" => cluster::measure(&plan, &mut report).await?,
            other => bail!("there is no part '{other}'"),
        }
        let path = report.write()?;
        println!("\nwritten: {}", path.display());
    }
    Ok(())
}
