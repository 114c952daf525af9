//! In whose memory an object's primary copies lie: that of its owner's job or, for what an actor of another job returned, of
//! that one. Who was given a ref knows the name, and could give it to other bytes.

use mobula_proto::{HostId, JobId, ObjectId};

use super::{Gone, Key, Objects, of_owner, up_to};

impl Objects {
    fn makers(&self, object: ObjectId) -> impl Iterator<Item = JobId> {
        let all = self.copies.range(up_to(object, u32::MAX));
        all.filter(|(_, entry)| entry.origin.is_none() && !entry.freed).map(|((.., job), _)| *job)
    }

    /// Whether a primary copy lies in memory of this job.
    pub fn is_made_by(&self, object: ObjectId, job: JobId) -> bool {
        self.makers(object).any(|maker| maker == job)
    }

    /// Whether one lies in memory of another.
    pub fn is_made_by_others(&self, object: ObjectId, job: JobId) -> bool {
        self.makers(object).any(|maker| maker != job)
    }

    /// All copies go but those that this job made, and of those.
    pub fn free_of_others(&mut self, object: ObjectId, job: JobId) -> Gone {
        self.free_all(up_to(object, u32::MAX), |key, origin| origin.map_or(key.2, |origin| origin.job) != job)
    }

    /// What a host of this job owned that others gave other bytes to, too.
    pub fn taken_from(&self, owner: HostId, job: JobId) -> Vec<ObjectId> {
        let all = self.copies.range(of_owner(owner));
        let others = all.filter(|((.., maker), entry)| entry.origin.is_none() && *maker != job);
        let mut taken: Vec<ObjectId> = others.map(|((object, ..), _)| *object).collect();
        taken.dedup();
        taken.retain(|object| self.is_made_by(*object, job));
        taken
    }

    /// This copy alone goes.
    pub fn free_one(&mut self, key: Key) -> Gone {
        let mut gone = Gone::default();
        self.free_copy(key, &mut gone);
        gone
    }
}
