//! What was refused because no node could ever hold it. It waits no longer, so the scheduler does not know of it; but
//! whoever starts nodes, and whoever wonders why his work fails, is to learn of it.

use std::{cmp::Reverse, collections::BTreeMap};

use mobula_proto::{GroupId, head::RefusedSnapshot};
use mobula_scheduler::{self as scheduler, Millis, Unmet, autoscale};

use super::{Core, snapshot::shape, why::REASON_LOOKS_MAX};

/// Most kinds of requests that are remembered: those that were refused last.
const REFUSED_MAX: usize = 100;
/// What a placement group is called.
pub(super) const GROUP: &str = "a placement group";
/// How long, unless it is refused again. Who is refused tries again within that time, or does without.
const REFUSED_MS: u64 = 600_000;

/// Why, how often and when a request was refused.
#[derive(Debug)]
struct Entry {
    /// Its shapes as they were the last time, with the most slots that were asked for at once.
    shapes: Vec<Unmet>,
    what: String,
    why: String,
    times: u64,
    last: Millis,
}

/// Requests that were refused, by what they asked for.
#[derive(Debug, Default)]
pub(super) struct Refused(BTreeMap<(String, Vec<Unmet>), Entry>);

impl Core {
    /// No node could ever hold this, which is refused. Other errors than that no node would mend are none of ours.
    pub(super) fn note_refused(&mut self, what: &str, shapes: Vec<Unmet>, error: &scheduler::Error) {
        let lacks_nodes =
            matches!(error, scheduler::Error::Infeasible(_) | scheduler::Error::UnknownPlace(_));
        if !lacks_nodes || shapes.is_empty() {
            return;
        }
        let alike = |shape: &Unmet| {
            let mut alike = shape.clone();
            match &mut alike.gang {
                Some(gang) => gang.group = GroupId { number: 0 },
                None => alike.count = 0,
            }
            alike
        };
        let key = (what.to_owned(), shapes.iter().map(alike).collect());
        let all = &mut self.refused.0;
        let entry = all.entry(key).or_insert_with(|| Entry {
            shapes: Vec::new(),
            what: what.to_owned(),
            why: String::new(),
            times: 0,
            last: self.now,
        });
        let before = entry.shapes.first().map_or(0, |shape| shape.count);
        entry.shapes = shapes;
        if let [single] = &mut entry.shapes[..] {
            single.count = single.count.max(before);
        }
        entry.times += 1;
        (entry.why, entry.last) = (error.to_string(), self.now);
        if all.len() > REFUSED_MAX
            && let Some(oldest) = all.iter().min_by_key(|(_, entry)| entry.last).map(|(key, _)| key.clone())
        {
            all.remove(&oldest);
        }
    }

    /// What was refused lately of what is meant, and would be again: the last first. As far as [`REASON_LOOKS_MAX`]
    /// suffices to find that out; what is beyond was at least refused then.
    pub(super) fn refused(&self, meant: impl Fn(&str) -> bool) -> Vec<RefusedSnapshot> {
        let lately = |entry: &&Entry| entry.last.plus(Millis(REFUSED_MS)) > self.now && meant(&entry.what);
        let mut entries: Vec<&Entry> = self.refused.0.values().filter(lately).collect();
        if entries.is_empty() {
            return Vec::new();
        }
        // A node may have joined that could hold it.
        let members = self.emptied();
        entries.sort_by_key(|entry| Reverse(entry.last));
        let mut looks: u64 = 0;
        entries.retain(|entry| {
            if looks >= REASON_LOOKS_MAX {
                return true;
            }
            // All nodes are copied, and each shape is held against them.
            looks += u64::try_from(members.len() * (1 + entry.shapes.len())).unwrap_or(u64::MAX);
            !autoscale::could_hold_all(&[], &members, &one_of_each(&entry.shapes))
        });
        let told = |entry: &Entry| RefusedSnapshot {
            what: entry.what.clone(),
            shapes: entry.shapes.iter().map(shape).collect(),
            times: entry.times,
            seconds_ago: self.now.0.saturating_sub(entry.last.0) as f64 / 1000.0,
            why: entry.why.clone(),
        };
        entries.into_iter().map(told).collect()
    }
}

/// A single slot counts alone; a group is all of it.
fn one_of_each(shapes: &[Unmet]) -> Vec<Unmet> {
    let one =
        |shape: &Unmet| Unmet { count: if shape.gang.is_some() { shape.count } else { 1 }, ..shape.clone() };
    shapes.iter().map(one).collect()
}
