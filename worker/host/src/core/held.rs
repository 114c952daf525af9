//! What holds the objects that this host owns, for people.

use mobula_proto::{
    IdMap, ObjectId,
    inventory::{HOLDERS_MAX, Held, Hold},
};

use super::{Core, Phase};

/// How many of an object's local references are of which kind.
#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    calls: u32,
    again: u32,
    values: u32,
}

impl Core {
    /// What holds each of these objects; nothing for one that is unknown, or another's. Looks at every call and every object
    /// that is known here, a few tens of nanoseconds each.
    pub fn held(&self, objects: &[ObjectId]) -> Vec<Held> {
        let own = objects.iter().filter(|object| object.owner == self.me);
        let mut counted: IdMap<ObjectId, Counted> = own.map(|object| (*object, Counted::default())).collect();
        if counted.is_empty() {
            return vec![Held::default(); objects.len()];
        }
        for (_, task) in self.tasks.iter() {
            let again = task.phase == Phase::Kept;
            for object in task.spec.refs() {
                if let Some(counted) = counted.get_mut(&object) {
                    *(if again { &mut counted.again } else { &mut counted.calls }) += 1;
                }
            }
        }
        for object in self.objects.inside_values() {
            if let Some(counted) = counted.get_mut(&object) {
                counted.values += 1;
            }
        }
        let held = |object| Some(self.say_held(object, *counted.get(object)?));
        objects.iter().map(|object| held(object).unwrap_or_default()).collect()
    }

    fn say_held(&self, object: &ObjectId, Counted { calls, again, values }: Counted) -> Held {
        let Some((local, borrowers)) = self.objects.holders(*object) else { return Held::default() };
        let mut hosts: Vec<_> = borrowers.collect();
        let kinds = [
            (Hold::Owner, local > calls.saturating_add(again).saturating_add(values)),
            (Hold::Calls, calls > 0),
            (Hold::Again, again > 0),
            (Hold::Values, values > 0),
            (Hold::Hosts, !hosts.is_empty()),
        ];
        let more = hosts.len().saturating_sub(HOLDERS_MAX);
        hosts.truncate(HOLDERS_MAX);
        let by = kinds.into_iter().filter_map(|(hold, yes)| yes.then_some(hold)).collect();
        Held { by, hosts, more_hosts: u32::try_from(more).unwrap_or(u32::MAX) }
    }
}
