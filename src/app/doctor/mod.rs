//! `presenced doctor`: compares Redis, deadlines, stream and SQL, names each disagreement with its cause, and mends it
//! where it is told to.
//!
//! Safe beside running instances under load: a first look (`look`) only suspects, later ones (`again`) must find the very
//! same facts, with nothing about them on its way (`model::audit` says what contradicts what), and every repair (`mend`)
//! looks once more in the step that changes something. Works in pages; what it keeps in memory is bounded.

mod again;
mod findings;
mod look;
mod mend;
mod names;
mod patience;
mod patient;
mod report;
mod words;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;

use self::look::Look;
use self::patient::Patient;
use self::report::Report;
use super::backing;
use super::cli::Doctor;
use super::settings::Settings;
use crate::live::{LiveError, eviction_warning};
use crate::tasks::Context;

/// How often it looks in all where it mends: a repair can bring to light what it hid, once or twice.
const PASSES: u32 = 4;

/// `presenced doctor`. Exit code 0 where all agree, 1 where something does not; an error where it could not look.
pub(super) async fn doctor(settings: &Settings, how: &Doctor) -> anyhow::Result<ExitCode> {
    let store = backing::store_as_it_is(settings).await?;
    let redis = backing::redis_for_a_command(settings).await?;
    let live = redis.live.clone();
    let outcome = async {
        let shards = tokio::time::timeout(backing::REDIS_PATIENCE, live.visit())
            .await
            .context(backing::NO_REDIS)?
            .context("Redis cannot be asked")?;
        if let Some(found) = shards.filter(|found| *found != settings.shards()) {
            report::other_shards(found, settings.shards());
            return Ok(false);
        }
        let ours = store.installation().await.context(
            "the installation's id could not be read: bring the schema up to date with presenced migrate",
        )?;
        // A pair that does not belong together disagrees in everything, and each repair would do harm.
        let found = live.found_installation().await.context("Redis cannot be asked")?;
        if let Some(found) = found.filter(|found| *found != ours) {
            let prefix = settings.prefix.clone();
            return Err(LiveError::Installation { ours, found, prefix }.into());
        }
        if let Some(policy) = live.eviction_policy().await.context("Redis cannot be asked")? {
            println!("remark: {}", eviction_warning(&policy));
        }
        if how.repair {
            // What changes anything notes with how many shards, and for which installation.
            live.ready().await?;
            live.belong_to(&ours).await?;
        }
        let context = backing::context(settings, &live, &store);
        let well = examine(&context, settings.tokens.access_ttl, how.repair).await;
        if how.repair {
            // It may have taken a turn at the stream, under a name that nobody will use again.
            let _ = live.resign().await;
        }
        well
    }
    .await;
    redis.close().await;
    Ok(if outcome? { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// Looks, and mends and looks again where that is wanted. Whether all is well in the end.
async fn examine(context: &Context, access_ttl: Duration, repair: bool) -> anyhow::Result<bool> {
    let mut report = Report::default();
    for pass in 1..=PASSES {
        let patient = Patient::meet(context, access_ttl).await?;
        report.begin(pass);
        let mending = repair && pass < PASSES;
        Box::pin(Look::new(&patient, &mut report, mending).all()).await?;
        report.end(mending);
        if !mending || report.mended() == 0 {
            break;
        }
    }
    Ok(report.found() == 0)
}
