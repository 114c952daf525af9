//! Who was told to let go of memory, and whether they do (O-9).

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use mobula_proto::{HostId, RegionId};

use super::{Objects, Region};

/// How long who is told to let go of memory may take to answer until others' comes free instead. A process that runs does
/// so in no time; one that is stopped may never.
pub const ANSWER_WAIT: Duration = Duration::from_secs(1);
/// How long after its writer was asked for a region that it still used it is asked again, while somebody lacks room. For so
/// long hosts give back by themselves what comes free; what they drop later they may keep for reuse.
pub const ASK_AGAIN: Duration = Duration::from_secs(5);

impl Objects {
    /// So late it is.
    pub fn at(&mut self, now: Instant) {
        self.now = self.now.max(Some(now));
    }

    /// Whoever has this region was told to let go of it.
    pub(super) fn told(&mut self, id: RegionId) {
        self.clock += 1;
        if let (Some(now), Some(region)) = (self.now, self.regions.get_mut(&id)) {
            region.told_at = self.clock;
            self.answers.push_back((now + ANSWER_WAIT, id, self.clock));
        }
    }

    /// When [`Self::unanswered`] has something to do next.
    pub fn answers_until(&self) -> Option<Instant> {
        self.answers.front().map(|(until, ..)| *until)
    }

    /// Who was told to let go of memory, and has said nothing for too long, is not counted on any more (O-9).
    pub fn unanswered(&mut self, now: Instant) {
        while let Some((_, id, told_at)) = self.answers.pop_front_if(|(until, ..)| *until <= now) {
            let Some(region) = self.regions.get_mut(&id) else { continue };
            let who: Vec<_> = match (region.dropped, region.asked && region.copies.is_empty()) {
                _ if region.told_at != told_at || region.kept => continue,
                // The agent lets go of it when nothing is written there any more.
                (true, _) => region.mapped.iter().filter(|host| !host.is_agent()).copied().collect(),
                (false, true) => vec![id.writer],
                (false, false) => continue,
            };
            if !who.is_empty() {
                region.kept = true;
                self.going -= if region.dropped { region.bytes } else { 0 };
                self.silent.extend(who);
            }
        }
    }

    /// A host said something. Whether it had been silent for too long.
    pub fn heard(&mut self, host: HostId) -> bool {
        self.silent.remove(&host)
    }

    /// Whether a region would not come free if nothing lay in it, since somebody has it who says nothing.
    pub(super) fn is_stuck(&self, id: RegionId, region: &Region) -> bool {
        let silent = |host: &HostId| self.silent.contains(host);
        !self.silent.is_empty() && (silent(&id.writer) || region.mapped.iter().any(silent))
    }

    /// When the writer of this region is asked for it again; `None` where it was not asked, or has not answered.
    fn ask_again_at(&self, id: RegionId, region: &Region) -> Option<Instant> {
        let answered =
            region.asked && region.kept && !id.writer.is_agent() && !self.silent.contains(&id.writer);
        let empty = region.copies.is_empty() && !region.orphan && !region.dropped;
        Some(region.asked_at.filter(|_| answered && empty)? + ASK_AGAIN)
    }

    /// When [`Self::idle_writers`] has somebody to name again.
    pub(super) fn next_asked(&self) -> Option<Instant> {
        if self.short_by() == 0 {
            return None;
        }
        self.regions.iter().filter_map(|(id, region)| self.ask_again_at(*id, region)).min()
    }

    /// While somebody waits for room: the writers of regions in which nothing lies, each once for a region. They keep
    /// them for reuse, and may give them back. Who still used one then is named again, now and then.
    pub fn idle_writers(&mut self) -> BTreeSet<HostId> {
        let mut asked = Vec::new();
        if self.short_by() > 0 {
            let is_due = |(id, region): &(&RegionId, &Region)| {
                let empty = region.copies.is_empty() && !region.orphan && !region.dropped;
                let again = || self.ask_again_at(**id, region).is_some_and(|at| Some(at) <= self.now);
                empty && (!region.asked || again())
            };
            asked = self.regions.iter().filter(is_due).map(|(id, _)| *id).collect();
        }
        for id in &asked {
            if let Some(region) = self.regions.get_mut(id) {
                (region.asked, region.asked_at) = (true, self.now);
            }
        }
        for id in &asked {
            // Its own it drops by itself.
            if !id.writer.is_agent() {
                self.told(*id);
            }
        }
        asked.into_iter().map(|id| id.writer).collect()
    }

    /// The writer gave back what it could: what it still has it needs.
    pub fn trimmed(&mut self, writer: HostId) {
        for id in self.regions_of(writer) {
            if let Some(region) = self.regions.get_mut(&id)
                && region.asked
                && !region.dropped
            {
                region.kept = true;
            }
        }
    }
}
