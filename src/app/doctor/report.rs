//! What the command prints, on standard output: findings, outcomes, remarks and sums.

use std::collections::BTreeMap;
use std::time::Duration;

use super::findings::Finding;
use super::look::Extent;
use super::mend::Outcome;
use super::words::words;
use crate::model::Escaped;
use crate::store::SetAside;

/// Findings of one kind that are told one by one; of the others the sum is told.
const TOLD: u64 = 20;

/// What was told in one pass.
#[derive(Debug, Default)]
pub(super) struct Report {
    pass: u32,
    kinds: BTreeMap<&'static str, Sum>,
}

#[derive(Debug, Default)]
struct Sum {
    found: u64,
    mended: u64,
}

/// The number of shards is another: nothing else can be looked at.
pub(super) fn other_shards(found: u32, asked: u32) {
    println!(
        "disagreement: this Redis is used with {found} shard(s), and PRESENCE_SHARDS says {asked}: everyone would be looked for \
         in the wrong place, so nothing else was looked at"
    );
    println!("  by hand: run this, and every instance, with PRESENCE_SHARDS={found}");
}

/// How much was looked at.
pub(super) fn extent(extent: &Extent) {
    println!(
        "looked at: {} accounts, {} members of the live set, {} transitions on their way, {} rows of history",
        extent.accounts, extent.members, extent.waiting, extent.rows
    );
}

impl Report {
    pub(super) fn begin(&mut self, pass: u32) {
        self.pass = pass;
        self.kinds.clear();
        if pass > 1 {
            println!("looking again");
        }
    }

    /// Tells what was found, and what became of it where it was to be mended.
    pub(super) fn tell(&mut self, findings: &[Finding], outcomes: Option<&[Outcome]>) {
        for (index, finding) in findings.iter().enumerate() {
            let said = words(finding);
            let outcome = outcomes.map(|outcomes| &outcomes[index]);
            let sum = self.kinds.entry(said.kind).or_default();
            sum.found += 1;
            sum.mended += u64::from(matches!(outcome, Some(Outcome::Mended(_) | Outcome::Changed)));
            if sum.found > TOLD {
                continue;
            }
            println!("disagreement: {}", Escaped(&said.what));
            match outcome {
                None if said.remedy.starts_with("nothing, ") => {
                    println!("  by hand: {}", Escaped(&said.remedy));
                }
                None => println!("  --repair: {}", Escaped(&said.remedy)),
                Some(Outcome::Mended(how)) => println!("  mended: {}", Escaped(how)),
                Some(Outcome::Changed) => println!("  left alone: it has changed since"),
                Some(Outcome::Failed(why)) => println!("  not mended: {}", Escaped(why)),
                Some(Outcome::ByHand) => println!("  not mended: {}", Escaped(&said.remedy)),
            }
        }
    }

    pub(super) fn found(&self) -> u64 {
        self.kinds.values().map(|sum| sum.found).sum()
    }

    /// How many were mended, or had changed by themselves: reasons to look again.
    pub(super) fn mended(&self) -> u64 {
        self.kinds.values().map(|sum| sum.mended).sum()
    }

    pub(super) fn end(&self, mending: bool) {
        for (kind, sum) in &self.kinds {
            if sum.found > TOLD {
                println!("in all: {} x {kind}", sum.found);
            }
        }
        match (self.found(), mending) {
            (0, _) => println!("all is well: Redis, deadlines, stream and SQL agree"),
            (found, true) => println!("disagreements: {found}, mended: {}", self.mended()),
            (found, false) => println!("disagreements: {found}"),
        }
    }

    /// Remarks are told once.
    fn remark(&self, text: &str) {
        if self.pass == 1 {
            println!("remark: {}", Escaped(text));
        }
    }

    pub(super) fn unheard(&self, left: Option<Duration>, noted: bool) {
        match left {
            Some(_) if !noted => self.remark(
                "no instance has been heard since this Redis started, so nobody can be missed yet, and Redis and SQL were not \
                 compared user by user. Start an instance, and look again a PRESENCE_TTL later",
            ),
            Some(left) => self.remark(&format!(
                "this Redis has been heard for less than PRESENCE_TTL, so nobody can be missed yet, and Redis and SQL were \
                 not compared user by user; look again in {} s",
                left.as_secs() + 1
            )),
            None => {}
        }
    }

    pub(super) fn expiry_events(&self, published: Option<bool>) {
        match published {
            Some(true) => {}
            Some(false) => self.remark(
                "Redis publishes no expiry events (notify-keyspace-events); that is no harm, for the sweeper does not wait for \
                 them",
            ),
            None => self.remark("Redis does not say whether it publishes expiry events; the sweeper does not need them"),
        }
    }

    pub(super) fn set_aside(&self, aside: SetAside) {
        if let Some(latest) = aside.latest {
            let more = if aside.count >= SetAside::COUNTED { " or more" } else { "" };
            self.remark(&format!(
                "{}{more} transition(s) of users of whom SQL knew nothing are kept in presence_set_aside, the latest of {latest}",
                aside.count
            ));
        }
    }
}
