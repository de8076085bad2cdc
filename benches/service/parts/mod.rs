//! What is measured, one module a part, in the order of [`Plan`].

mod heartbeat;

use crate::plan::Plan;
use crate::report::Report;

/// Measures every part of the plan and writes the report, after each part, so that a later defect loses nothing.
pub async fn run(plan: Plan) -> anyhow::Result<()> {
    let mut report = Report::new(&plan);
    for part in &plan.parts {
        match part.as_str() {
            "heartbeat" => heartbeat::measure(&plan, &mut report).await?,
            other => println!("\n{other} is not there yet"),
        }
        let path = report.write()?;
        println!("\nwritten: {}", path.display());
    }
    Ok(())
}
