//! The check of one user's round: pure, so that it is tested itself.

use super::ledger::{Fault, Row, Span, Told};

/// What a round was run with.
#[derive(Clone, Debug)]
pub struct Terms {
    pub ttl_ms: i64,
    /// Within which an expiry is recorded while nothing is wrong.
    pub punctual_ms: i64,
    pub faults: Vec<Fault>,
}

/// How soon an expiry is recorded after the last fault has healed.
const HEALED_MS: i64 = 5_000;
/// How much later than lost data are known to have served they may have served: instances learn of one another's heartbeats
/// within it.
const SERVED_MS: i64 = 600;
/// How soon a block or an end counts everywhere while nothing is wrong.
const AT_ONCE_MS: i64 = 1_000;

impl Terms {
    /// The terms of one user: without the faults that only others may notice.
    pub fn of(&self, user: i64) -> Self {
        let faults = self.faults.iter().filter(|fault| fault.concerns(user)).cloned().collect();
        Self { faults, ..self.clone() }
    }

    /// Whether a request of that time may have failed.
    pub fn excuses(&self, asked: Span) -> bool {
        self.healed(asked).is_some()
    }

    /// Where a span meets a fault or its aftermath: when the last such fault had healed.
    fn healed(&self, span: Span) -> Option<i64> {
        let meets = |fault: &&Fault| {
            // Where data were lost, a TTL is waited for before anybody is missed.
            let hold = if fault.forgot_since.is_some() { self.ttl_ms } else { 0 };
            Span { from: fault.span.from, to: fault.span.to + fault.aftermath_ms + hold }.meets(span)
        };
        let mut healed = self.faults.iter().filter(meets).map(|fault| fault.span.to).max()?;
        // The next fault may have begun before this one was over in its effects.
        while let Some(later) =
            self.faults.iter().find(|fault| fault.span.from <= healed + HEALED_MS && fault.span.to > healed)
        {
            healed = later.span.to;
        }
        Some(healed)
    }

    /// Whether Redis lost what it was told then.
    fn is_lost(&self, at: i64) -> bool {
        self.losses().any(|loss| loss.meets(Span { from: at, to: at }))
    }

    /// From the first thing lost to when Redis was there again.
    fn losses(&self) -> impl Iterator<Item = Span> {
        self.faults.iter().filter_map(|fault| Some(Span { from: fault.forgot_since?, to: fault.span.to }))
    }

    /// Whether this instant is about when lost data served last. A user who is in neither Redis nor a later row of SQL is dated
    /// then, because a heartbeat may have been acknowledged until then.
    fn is_last_service(&self, at: i64) -> bool {
        let mut losses = self.faults.iter().filter(|fault| fault.forgot_since.is_some());
        // What is written before the fence stands again may count as service.
        losses.any(|loss| {
            loss.span.from - SERVED_MS <= at && at <= loss.span.to + loss.aftermath_ms + SERVED_MS
        })
    }

    /// Whether single keys went since then: the instant until which lost data served may be among them.
    fn evicts_since(&self, at: i64) -> bool {
        self.faults.iter().any(|fault| fault.name == "EvictKeys" && fault.span.to >= at)
    }

    /// Whether a deadline that was set at `since` may have been forgotten by `until`.
    fn may_be_lost(&self, since: i64, until: i64) -> bool {
        self.losses().any(|loss| loss.meets(Span { from: since, to: until }))
    }
}

/// What was checked, so that a round in which nothing was is seen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Checked {
    /// Expiries due to the millisecond.
    pub exact: u64,
    /// Heartbeats that kept their user present.
    pub kept: u64,
    /// Expiries recorded outside of any fault, and the slowest of them, ms.
    pub punctual: u64,
    pub slowest_ms: i64,
}

/// What is wrong with a user's round: nothing, or a line for each thing. `rows` in their order, from offline on.
pub fn check(told: &Told, rows: &[Row], terms: &Terms, checked: &mut Checked) -> Vec<String> {
    let mut wrong = Vec::new();
    wrong.extend(chains(rows));
    wrong.extend(expiries_have_a_cause(told, rows, terms));
    wrong.extend(silences_end(told, rows, terms, checked));
    wrong.extend(heartbeats_count(told, rows, terms, checked));
    wrong.extend(records_are_punctual(rows, terms, checked));
    wrong.extend(refusals_are_due(told, terms));
    wrong
}

fn chains(rows: &[Row]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut status = "offline";
    for row in rows {
        if row.from != status || row.to == row.from {
            wrong.push(format!("the history does not alternate: {status}, then {row:?}"));
        }
        status = &row.to;
    }
    for pair in rows.windows(2).filter(|pair| pair[1].at < pair[0].at) {
        wrong.push(format!("dated before the row that precedes it: {:?}, then {:?}", pair[0], pair[1]));
    }
    if status != "offline" {
        wrong.push(format!("the history ends {status}"));
    }
    wrong
}

fn expiries_have_a_cause(told: &Told, rows: &[Row], terms: &Terms) -> Vec<String> {
    let mut wrong = Vec::new();
    for (index, row) in rows.iter().enumerate() {
        if row.to != "offline" || row.reason != "expired" {
            continue;
        }
        let base = row.at - terms.ttl_ms;
        let heard = told.beats.iter().any(|beat| (beat.at - base).abs() <= 1);
        if !heard && told.is_plain(Span { from: base - 1, to: base + 1 }) {
            // After a loss the date may come from an older heartbeat, or from what SQL knew, never from a later one; or
            // from when the lost data served last.
            let some = terms.is_last_service(row.at)
                || told.beats.iter().any(|beat| beat.at + 1 >= base)
                || !told.is_plain(Span { from: base - 1, to: row.appended });
            if !(terms.may_be_lost(base, row.appended) && some) {
                wrong.push(format!("an expiry that no heartbeat explains: {row:?}"));
            }
        }
        // Whoever was heard after the heartbeat that it dates from, and before it was noted, was not to be taken off.
        // The heartbeat that found the deadline passed notes it itself, and the user's return with it.
        let returned = rows.get(index + 1).map(|next| next.at);
        for beat in &told.beats {
            let after = beat.at > base + 1 && beat.at < row.appended && Some(beat.at) != returned;
            let stands = told.is_plain(Span { from: beat.at, to: row.appended.max(row.at) });
            // A heartbeat may have been lost with its key, though not the user's presence until data served last.
            let is_lost = terms.is_lost(beat.at) || (beat.at <= row.at && terms.is_last_service(row.at));
            if after && stands && !is_lost {
                wrong.push(format!("taken offline though heard at {}: {row:?}", beat.at));
            }
            // Nor, where it was lost, is the user said to have gone before it.
            if after && stands && beat.at > row.at && !terms.evicts_since(beat.at) {
                wrong.push(format!("dated before the heartbeat at {}: {row:?}", beat.at));
            }
        }
    }
    wrong
}

fn silences_end(told: &Told, rows: &[Row], terms: &Terms, checked: &mut Checked) -> Vec<String> {
    let mut wrong = Vec::new();
    for (index, beat) in told.beats.iter().enumerate() {
        let deadline = beat.at + terms.ttl_ms;
        // A heartbeat within a few ms of the deadline may have come on either side of it.
        let next = told.beats.get(index + 1).map_or(i64::MAX, |next| next.at);
        let silence = Span { from: beat.at, to: deadline + 5 };
        let earlier = told.beats[..index].iter().all(|before| before.at < beat.at);
        // After a loss no deadline is claimed for a TTL; who comes back within it was never gone.
        let on_hold = terms.faults.iter().any(|fault| {
            fault.forgot_since.is_some()
                && fault.span.to <= next
                && next <= fault.span.to + fault.aftermath_ms + terms.ttl_ms
        });
        if on_hold
            || next <= silence.to
            || !earlier
            || !told.is_plain(silence)
            || terms.may_be_lost(beat.at, deadline + terms.ttl_ms)
        {
            continue;
        }
        checked.exact += 1;
        let found = rows.iter().any(|row| row.reason == "expired" && (row.at - deadline).abs() <= 1);
        if !found {
            wrong.push(format!("silent since {}, and no expiry at {deadline}", beat.at));
        }
    }
    wrong
}

fn heartbeats_count(told: &Told, rows: &[Row], terms: &Terms, checked: &mut Checked) -> Vec<String> {
    let mut wrong = Vec::new();
    for beat in &told.beats {
        if terms.may_be_lost(beat.at - terms.ttl_ms, beat.at)
            || !told.is_plain(Span { from: beat.at, to: beat.at })
        {
            continue;
        }
        checked.kept += 1;
        let status = rows.iter().rev().find(|row| row.at <= beat.at).map_or("offline", |row| row.to.as_str());
        if status == "offline" {
            wrong.push(format!("heard at {}, and offline then", beat.at));
        }
    }
    wrong
}

fn records_are_punctual(rows: &[Row], terms: &Terms, checked: &mut Checked) -> Vec<String> {
    let mut wrong = Vec::new();
    for row in rows.iter().filter(|row| row.to == "offline" && row.reason == "expired") {
        match terms.healed(Span { from: row.at, to: row.at + terms.punctual_ms }) {
            None => {
                checked.punctual += 1;
                checked.slowest_ms = checked.slowest_ms.max(row.recorded_at - row.at);
                if row.recorded_at - row.at > terms.punctual_ms {
                    wrong.push(format!("recorded late, {} ms: {row:?}", row.recorded_at - row.at));
                }
            }
            Some(healed) => {
                let hold = if terms.losses().next().is_some() { terms.ttl_ms } else { 0 };
                if row.recorded_at > healed.max(row.at) + hold + HEALED_MS {
                    wrong.push(format!("recorded too long after {healed}: {row:?}"));
                }
            }
        }
    }
    wrong
}

fn refusals_are_due(told: &Told, terms: &Terms) -> Vec<String> {
    let mut wrong = Vec::new();
    for refusal in &told.refusals {
        let due = match refusal.status {
            401 => {
                let ends = told.ends.iter().filter(|end| end.session == refusal.session);
                let cuts = told.cuts.iter().filter(|cut| refusal.session < cut.below);
                let begun = ends.map(|end| end.asked.from).chain(cuts.map(|cut| cut.from)).min();
                begun.is_some_and(|from| from <= refusal.asked.to)
            }
            403 => told.perhaps_blocked.iter().any(|span| span.meets(refusal.asked)),
            _ => false,
        };
        if !due {
            wrong.push(format!("refused without a reason: {refusal:?}"));
        }
    }
    for failure in &told.failures {
        if !terms.excuses(*failure) {
            wrong.push(format!("503 or no answer while nothing was wrong: {failure:?}"));
        }
    }
    for (beat, sent) in told.beats.iter().zip(&told.sent) {
        // A Redis that came back with an older copy is told again of sessions that ended, within a moment.
        let ended = told
            .ends
            .iter()
            .any(|end| end.acknowledged && end.session == beat.session && end.asked.to < *sent);
        if ended && !terms.may_be_lost(beat.at - AT_ONCE_MS, beat.at) {
            wrong.push(format!("an ended session was heard: {beat:?}"));
        }
        let just_before = Span { from: sent - AT_ONCE_MS, to: beat.at };
        let cut = told.cuts.iter().any(|cut| cut.had_ended(beat.session, sent - AT_ONCE_MS));
        let excused = terms.may_be_lost(just_before.from, beat.at) || terms.healed(just_before).is_some();
        if cut && !excused {
            wrong.push(format!("a session that a block has ended was heard: {beat:?}"));
        }
        let blocked = told.blocked.iter().any(|span| span.from + AT_ONCE_MS < *sent && beat.at < span.to);
        if blocked && terms.healed(just_before).is_none() {
            wrong.push(format!("a blocked account was heard: {beat:?}"));
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::super::ledger::{Beat, End, Refusal};
    use super::*;

    const TTL: i64 = 1_500;

    fn terms(faults: Vec<Fault>) -> Terms {
        Terms { ttl_ms: TTL, punctual_ms: 1_000, faults }
    }

    fn told(beats: &[i64]) -> Told {
        Told {
            beats: beats.iter().map(|at| Beat { at: *at, session: 0 }).collect(),
            sent: beats.iter().map(|at| at - 1).collect(),
            ..Told::default()
        }
    }

    fn row(from: &str, to: &str, reason: &str, at: i64, appended: i64) -> Row {
        Row {
            from: from.into(),
            to: to.into(),
            reason: reason.into(),
            at,
            recorded_at: appended + 50,
            appended,
        }
    }

    fn life(from: i64, last: i64) -> Vec<Row> {
        vec![
            row("offline", "online", "heartbeat", from, from),
            row("online", "offline", "expired", last + TTL, last + TTL + 20),
        ]
    }

    fn verdict(told: &Told, rows: &[Row], faults: Vec<Fault>) -> Vec<String> {
        check(told, rows, &terms(faults), &mut Checked::default())
    }

    fn loss(since: i64, from: i64, to: i64) -> Fault {
        let span = Span { from, to };
        Fault { name: "loss".into(), span, aftermath_ms: 0, forgot_since: Some(since), only: None }
    }

    #[test]
    fn a_life_from_its_first_heartbeat_to_a_ttl_after_the_last_is_right() {
        let mut checked = Checked::default();
        let wrong = check(&told(&[1_000, 2_000, 3_000]), &life(1_000, 3_000), &terms(vec![]), &mut checked);
        assert_eq!(wrong, Vec::<String>::new());
        assert_eq!((checked.exact, checked.kept, checked.punctual), (1, 3, 1));
    }

    #[test]
    fn what_is_lost_doubled_late_or_made_up_is_found() {
        let beats = told(&[1_000, 2_000]);
        assert!(!verdict(&beats, &[], vec![]).is_empty(), "nothing recorded");
        assert!(!verdict(&beats, &life(1_000, 2_000)[..1], vec![]).is_empty(), "stuck online");
        assert!(!verdict(&beats, &life(1_000, 2_000)[1..], vec![]).is_empty(), "no beginning");
        assert!(!verdict(&beats, &life(1_000, 2_002), vec![]).is_empty(), "two ms off");
        assert!(!verdict(&beats, &life(1_000, 1_000), vec![]).is_empty(), "taken off by an older life");
        let twice = [life(1_000, 2_000), life(1_000, 2_000)].concat();
        assert!(!verdict(&beats, &twice[..3], vec![]).is_empty(), "online twice");
        assert!(
            !verdict(&beats, &[life(1_000, 2_000), life(9_000, 9_000)].concat(), vec![]).is_empty(),
            "risen again"
        );
        let mut late = life(1_000, 2_000);
        late[1].recorded_at = late[1].at + 1_001;
        assert!(!verdict(&beats, &late, vec![]).is_empty(), "late");
    }

    #[test]
    fn a_flap_is_found_even_after_a_loss() {
        // Heard all the while, but taken off and back on at 3,000.
        let beats = told(&[1_000, 2_000, 3_000, 4_000]);
        let rows = vec![
            row("offline", "online", "heartbeat", 1_000, 1_000),
            row("online", "offline", "expired", 2_500, 3_100),
            row("offline", "online", "heartbeat", 4_000, 4_000),
            row("online", "offline", "expired", 5_500, 5_520),
        ];
        let wrong = verdict(&beats, &rows, vec![loss(1_500, 2_100, 2_400)]);
        assert!(wrong.iter().any(|line| line.contains("though heard at 3000")), "{wrong:?}");
    }

    #[test]
    fn a_loss_excuses_an_older_date_and_nothing_else() {
        let beats = told(&[1_000, 2_000]);
        let faults = || vec![loss(1_500, 2_100, 2_400)];
        let mut older = life(1_000, 1_000);
        older[1].appended = 3_950;
        older[1].recorded_at = 4_000;
        assert_eq!(verdict(&beats, &older, faults()), Vec::<String>::new());
        assert!(!verdict(&beats, &older, vec![]).is_empty());
        assert!(
            !verdict(&beats, &life(1_000, 2_300), faults()).is_empty(),
            "no later than the last heartbeat allows"
        );
        let served = |at: i64| {
            let mut rows = life(1_000, at - TTL);
            (rows[1].appended, rows[1].recorded_at) = (3_950, 4_000);
            verdict(&told(&[1_000]), &rows, faults())
        };
        assert_eq!(served(2_900), Vec::<String>::new(), "the lost data may have served until then");
        assert!(!served(3_100).is_empty());
    }

    #[test]
    fn even_a_loss_excuses_no_date_before_what_was_heard_or_recorded() {
        let beats = told(&[1_000, 2_000, 3_000]);
        let faults = || vec![loss(1_500, 3_100, 3_200)];
        let mut rows = life(1_000, 1_000);
        (rows[1].appended, rows[1].recorded_at) = (4_750, 4_800);
        assert!(!verdict(&beats, &rows, faults()).is_empty(), "heard at 3,000, and gone at 2,500");
        rows[1].at = 3_100;
        assert_eq!(verdict(&beats, &rows, faults()), Vec::<String>::new());
        rows.insert(1, row("online", "away", "heartbeat", 3_150, 3_150));
        rows[2].from = "away".into();
        assert!(!verdict(&beats, &rows, faults()).is_empty(), "away at 3,150, and gone at 3,100");
    }

    #[test]
    fn refusals_need_a_reason_and_reasons_need_refusals() {
        let mut refused = told(&[1_000]);
        refused.refusals.push(Refusal { asked: Span { from: 1_200, to: 1_210 }, session: 0, status: 401 });
        assert!(!verdict(&refused, &life(1_000, 1_000), vec![]).is_empty());
        let mut heard = told(&[1_000, 2_000]);
        heard.ends.push(End { session: 0, asked: Span { from: 1_500, to: 1_510 }, acknowledged: true });
        let rows = vec![
            row("offline", "online", "heartbeat", 1_000, 1_000),
            row("online", "offline", "logout", 1_505, 1_505),
            row("offline", "online", "heartbeat", 2_000, 2_000),
            row("online", "offline", "expired", 3_500, 3_520),
        ];
        assert!(!verdict(&heard, &rows, vec![]).is_empty(), "an ended session was heard");
        heard.beats[1].session = 1;
        assert_eq!(verdict(&heard, &rows, vec![]), Vec::<String>::new());
        let mut failed = told(&[]);
        failed.failures.push(Span { from: 1, to: 2 });
        assert!(!verdict(&failed, &[], vec![]).is_empty());
    }
}
