//! The scheduling classes of what was submitted here.

use std::{
    collections::BTreeSet,
    ops::{Index, IndexMut},
};

use mobula_proto::{NodeId, SeqMap, resource::Class};

use super::{ClassState, Core, Kind, Queue, spec::Template};

/// So many classes are known without any being forgotten: most programs have fewer.
const KEPT: usize = 1024;
/// Fewest that are forgotten at once, since each task is looked at for that.
const AT_ONCE: usize = KEPT / 8;
/// Ticks for which nothing of a class waits or runs, and none is asked for, before it is forgotten.
const IDLE_TICKS_MAX: u32 = 40;

/// Classes by their numbers, none of which is ever another's: what the head has to say may come late.
#[derive(Debug, Default)]
pub(super) struct Classes {
    known: SeqMap<ClassState>,
    next: u32,
}

impl Classes {
    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    pub(super) fn contains(&self, key: u32) -> bool {
        self.known.contains_key(&key.into())
    }

    pub(super) fn get(&self, key: u32) -> Option<&ClassState> {
        self.known.get(&key.into())
    }

    pub(super) fn get_mut(&mut self, key: u32) -> Option<&mut ClassState> {
        self.known.get_mut(&key.into())
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (u32, &mut ClassState)> {
        self.known.iter_mut().map(|(key, class)| (key as u32, class))
    }

    fn add(&mut self, class: ClassState) -> u32 {
        while self.contains(self.next) {
            self.next = self.next.wrapping_add(1);
        }
        let key = self.next;
        self.known.insert(key.into(), class);
        self.next = key.wrapping_add(1);
        key
    }
}

// Whatever has a key is looked for before its class is forgotten.
impl Index<u32> for Classes {
    type Output = ClassState;

    #[inline]
    #[expect(clippy::expect_used, reason = "as for any index")]
    fn index(&self, key: u32) -> &ClassState {
        self.get(key).expect("a class that is in use is known")
    }
}

impl IndexMut<u32> for Classes {
    #[inline]
    #[expect(clippy::expect_used, reason = "as for any index")]
    fn index_mut(&mut self, key: u32) -> &mut ClassState {
        self.get_mut(key).expect("a class that is in use is known")
    }
}

impl Core {
    pub(super) fn key(&mut self, template: &Template) -> u32 {
        template.key(self.number).filter(|key| self.classes.contains(*key)).unwrap_or_else(|| {
            let key = self.find_key(&template.class);
            template.keep_key(self.number, key);
            key
        })
    }

    fn find_key(&mut self, class: &Class) -> u32 {
        if let Some(key) = self.keys.get(class) {
            return *key;
        }
        let key = self.add_class(class.clone(), None);
        self.keys.insert(class.clone(), key);
        key
    }

    pub(super) fn add_class(&mut self, class: Class, near: Option<(NodeId, u64)>) -> u32 {
        self.classes.add(ClassState {
            class,
            near,
            queue: Queue::default(),
            leases: Vec::new(),
            open: Vec::new(),
            slots: 0,
            asked: 0,
            unserved_ticks: 0,
            failed_starts: 0,
            pause_ticks: 0,
            idle_ticks: 0,
            ahead: false,
            nanos: 0,
        })
    }

    /// Where there are many classes, those that have not been used for long go: a program may make one for each placement
    /// group. Called at every tick.
    pub(super) fn forget_classes(&mut self) {
        for (_, class) in self.classes.iter_mut() {
            let is_idle = class.queue.is_empty() && class.leases.is_empty() && class.asked == 0;
            class.idle_ticks = if is_idle { class.idle_ticks.saturating_add(1) } else { 0 };
        }
        if self.classes.len() <= KEPT {
            return;
        }
        let idle = self.classes.iter_mut().filter(|(_, class)| class.idle_ticks > IDLE_TICKS_MAX);
        let mut idle: BTreeSet<u32> = idle.map(|(key, _)| key).collect();
        if idle.len() < AT_ONCE {
            return;
        }
        // Tasks that wait for arguments have one, and those that may run again.
        for (_, task) in self.tasks.iter() {
            if matches!(task.spec.kind, Kind::Task { .. } | Kind::Construct { .. }) && idle.remove(&task.key)
            {
                // It is not looked for at the next tick again.
                self.classes[task.key].idle_ticks = 0;
            }
        }
        for key in idle {
            if let Some(class) = self.classes.known.remove(&key.into())
                && class.near.is_none()
            {
                self.keys.remove(&class.class);
            }
        }
        let classes = &self.classes;
        self.near_keys.retain(|(plain, _), key| classes.contains(*plain) && classes.contains(*key));
    }
}
