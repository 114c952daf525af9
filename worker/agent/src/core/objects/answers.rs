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

    /// While somebody waits for room: the writers of regions in which nothing lies, each once for a region. They keep
    /// them for reuse, and may give them back.
    pub fn idle_writers(&mut self) -> BTreeSet<HostId> {
        let mut asked = Vec::new();
        if self.short_by() > 0 {
            for (id, region) in &mut self.regions {
                let kept = region.copies.is_empty() && !region.orphan && !region.dropped;
                if kept && !std::mem::replace(&mut region.asked, true) {
                    asked.push(*id);
                }
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
