//! An actor's inbox: which of its calls may start, and which are let in at all. Pure.
//!
//! - **IN-1** A `&mut self` call runs alone; nothing that came later starts before it.
//! - **IN-2** At most so many `&self` calls of a group run at once. One that waits for an object does not count
//!   meanwhile, and when it goes on it does not wait for its turn again.
//! - **IN-3** Calls of one caller start in the order in which they came (within a group), unless the actor is
//!   unordered; one whose arguments are on their way holds back those behind it.
//! - **IN-4** At most `inbox` calls wait here. Others stay with their callers, which are let in in turn, each with a
//!   number of calls for which places are kept; those that it leaves unused for long while others wait are theirs.
//! - **IN-5** No call of a caller is let in between one that was not and the caller's word that it knows.
//! - **IN-6** One that closes lets nobody in any more, so that it comes to an end; but where all that runs waits,
//!   perhaps for what is kept out, it opens again for a while.

use std::collections::VecDeque;

use mobula_proto::{
    HostId, TaskId,
    limits::{Limits, WhenFull},
};
use smallvec::{SmallVec, smallvec};

/// Most calls of one group that have started and wait for objects, with their turn given to others. What waits beyond
/// that keeps its turn, until nothing has moved for long.
pub const WAITING_MAX: u32 = 4096;
/// An actor all of whose calls wait is looked at so often ([`Inbox::tick`]) before something is done about it, since it
/// may be waiting in a circle: 5 s.
const STALLED_TICKS: u32 = 20;
/// Places that a caller has not used are kept for so many looks at which others wait: 5 s.
const KEPT_TICKS: u32 = 20;
/// Callers that wait are let in when this share of the inbox is free.
const ROOM_SHARE: u32 = 4;

/// How a call runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seat {
    /// `&mut self`.
    Alone,
    /// `&self`, in this group; 0 for those that are in none.
    Group(u16),
}

/// What becomes of a call that arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Knock {
    /// It is let in.
    In,
    /// It stays with its caller.
    Wait,
    /// It fails.
    Refused,
}

/// A place in the inbox, kept while the call's arguments are fetched.
#[derive(Debug)]
struct Place<R> {
    /// Counts arrivals.
    number: u64,
    task: TaskId,
    caller: HostId,
    run: Option<R>,
}

#[derive(Debug)]
struct Group<R> {
    places: VecDeque<Place<R>>,
    /// Calls that have started and not ended.
    started: u32,
    /// Those among them that wait for objects.
    waiting: u32,
    /// So many of those may have given up their turn.
    waiting_most: u32,
    most: u32,
}

/// Exists while callers wait for room.
#[derive(Debug, Default)]
struct Door {
    /// Are let in no more until they have asked.
    told: Vec<(HostId, Told)>,
    waiting: VecDeque<HostId>,
    kept: Vec<Kept>,
}

/// What a caller was told that is not let in, and what it says next. With the calls for which it was given room it sends one
/// word at once, whether it wants more ([`Inbox::asked`]); and one more for those that come back, when it knows of that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// There is no room. Next it says that it knows.
    NoRoom,
    /// The same, of calls for which it had room. Next comes what it said with these.
    NoRoomAfterAll,
    /// That it has room, which went to others before it used any.
    Lapsed,
}

/// Places kept for a caller.
#[derive(Debug)]
struct Kept {
    caller: HostId,
    places: u32,
    /// Looks at which others waited, since it used one.
    unused: u32,
}

/// See the module's text. `R` is a call that is ready to run.
#[derive(Debug)]
pub struct Inbox<R> {
    alone: VecDeque<Place<R>>,
    groups: SmallVec<[Group<R>; 1]>,
    /// A `&mut self` call runs.
    exclusive: bool,
    /// And waits for an object.
    exclusive_waits: bool,
    /// `&self` calls that have started and not ended.
    shared: u32,
    /// How often in a row nothing had moved at a look.
    still: u32,
    len: u32,
    most: u32,
    when_full: WhenFull,
    unordered: bool,
    arrived: u64,
    /// Callers and numbers of what waits for its arguments, by number.
    unready: Vec<(HostId, u64)>,
    door: Option<Box<Door>>,
    closing: Closing,
}

/// Whether an inbox comes to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Closing {
    No,
    Closed,
    /// It lets callers in again, for so many more ticks.
    Open(u32),
}

impl<R> Inbox<R> {
    /// An empty one.
    pub fn new(limits: &Limits) -> Self {
        let mut groups: SmallVec<[Group<R>; 1]> = smallvec![Group::new(limits.concurrency)];
        groups.extend(limits.groups.iter().map(|declared| Group::new(declared.concurrency)));
        Self {
            alone: VecDeque::new(),
            groups,
            exclusive: false,
            exclusive_waits: false,
            shared: 0,
            still: 0,
            len: 0,
            most: limits.inbox.max(1),
            when_full: limits.when_full,
            unordered: limits.unordered,
            arrived: 0,
            unready: Vec::new(),
            door: None,
            closing: Closing::No,
        }
    }

    /// Most calls that wait here.
    pub fn most(&self) -> u32 {
        self.most
    }

    /// Whether callers wait for room.
    pub fn has_door(&self) -> bool {
        self.door.is_some()
    }

    /// Lets nobody in from now on (IN-6).
    pub fn close(&mut self) {
        self.closing = Closing::Closed;
    }

    /// Whether nothing waits here, and nothing runs.
    pub fn is_idle(&self) -> bool {
        self.len == 0 && !self.runs()
    }

    /// Whether a call runs, or waits for an object.
    pub fn runs(&self) -> bool {
        self.shared > 0 || self.exclusive
    }

    /// A call arrived: is there room for it (IN-4, IN-5)?
    pub fn knock(&mut self, caller: HostId) -> Knock {
        if self.closing == Closing::Closed {
            self.door.get_or_insert_default().turn_back(caller);
            return Knock::Wait;
        }
        let Some(door) = &mut self.door else {
            if self.len < self.most {
                return Knock::In;
            }
            if self.when_full == WhenFull::Refuse {
                return Knock::Refused;
            }
            self.door.get_or_insert_default().turn_back(caller);
            return Knock::Wait;
        };
        if let Some(at) = door.kept.iter().position(|kept| kept.caller == caller) {
            let kept = &mut door.kept[at];
            kept.places -= 1;
            kept.unused = 0;
            if kept.places == 0 {
                door.kept.swap_remove(at);
            }
            return Knock::In;
        }
        if !door.knows(caller) && door.waiting.is_empty() && self.len + door.kept_places() < self.most {
            return Knock::In;
        }
        // One that waits meant room that was given before it asked last; what it sent behind this shall not be let in first.
        door.turn_back(caller);
        Knock::Wait
    }

    /// Takes a call in; without `run`, its arguments are on their way.
    pub fn enter(&mut self, seat: Seat, task: TaskId, caller: HostId, run: Option<R>) {
        self.arrived += 1;
        self.len += 1;
        let number = self.arrived;
        if run.is_none() {
            self.unready.push((caller, number));
        }
        self.places(seat).push_back(Place { number, task, caller, run });
    }

    fn places(&mut self, seat: Seat) -> &mut VecDeque<Place<R>> {
        match seat {
            Seat::Alone => &mut self.alone,
            // A program whose methods and limits disagree does not exist; one that does shall not panic here.
            Seat::Group(group) => {
                let last = self.groups.len() - 1;
                &mut self.groups[usize::from(group).min(last)].places
            }
        }
    }

    fn group(&mut self, group: u16) -> &mut Group<R> {
        let last = self.groups.len() - 1;
        &mut self.groups[usize::from(group).min(last)]
    }

    /// The arguments of a call came; it is dropped if it has no place here any more.
    pub fn ready(&mut self, seat: Seat, task: TaskId, run: R) {
        let found = self.places(seat).iter_mut().find(|place| place.task == task);
        if let Some(place) = found {
            place.run = Some(run);
            let number = place.number;
            self.unready.retain(|(_, other)| *other != number);
        }
    }

    /// Takes the first waiting call that is meant out, for its arguments, if it may go; it keeps its place, as one that
    /// came without them.
    pub fn take_out(&mut self, is_meant: impl Fn(&R) -> bool, may: impl FnOnce(&R) -> bool) -> Option<R> {
        let all = self.groups.iter_mut().map(|group| &mut group.places).chain([&mut self.alone]);
        let firsts = all
            .filter_map(|places| places.iter_mut().find(|place| place.run.as_ref().is_some_and(&is_meant)));
        let place = firsts.min_by_key(|place| place.number)?;
        let run = place.run.take_if(|run| may(run))?;
        let (caller, number) = (place.caller, place.number);
        let at = self.unready.partition_point(|(_, other)| *other < number);
        self.unready.insert(at, (caller, number));
        Some(run)
    }

    /// The arguments of a call are not to be had: it gives its place up.
    pub fn leave(&mut self, seat: Seat, task: TaskId) {
        let places = self.places(seat);
        if let Some(at) = places.iter().position(|place| place.task == task)
            && let Some(place) = places.remove(at)
        {
            self.len -= 1;
            self.unready.retain(|(_, other)| *other != place.number);
        }
    }

    /// Whether the call waits here.
    pub fn has(&self, task: TaskId) -> bool {
        let all = self.groups.iter().map(|group| &group.places).chain([&self.alone]);
        all.flatten().any(|place| place.task == task)
    }

    /// The call that may start now, which then counts as running (IN-1, IN-2, IN-3).
    pub fn start(&mut self) -> Option<R> {
        if self.exclusive {
            return None;
        }
        let alone = first(&self.alone, &self.unready, self.unordered);
        let mut shared: Option<(usize, usize, u64)> = None;
        for (at, group) in self.groups.iter().enumerate() {
            if group.is_free()
                && let Some((place, number)) = first(&group.places, &self.unready, self.unordered)
                && shared.is_none_or(|(_, _, other)| number < other)
            {
                shared = Some((at, place, number));
            }
        }
        let place = match (shared, alone) {
            (Some((group, place, number)), before) if before.is_none_or(|(_, other)| number < other) => {
                self.shared += 1;
                let group = &mut self.groups[group];
                group.started += 1;
                group.places.remove(place)
            }
            (_, Some((place, _))) if self.shared == 0 => {
                self.exclusive = true;
                self.alone.remove(place)
            }
            _ => return None,
        }?;
        self.len -= 1;
        self.still = 0;
        place.run
    }

    /// Any call that is ready, whatever else runs: for an actor that has ended.
    pub fn take(&mut self) -> Option<R> {
        let all = self.groups.iter_mut().map(|group| &mut group.places).chain([&mut self.alone]);
        for places in all {
            if let Some(at) = places.iter().position(|place| place.run.is_some()) {
                self.len -= 1;
                return places.remove(at)?.run;
            }
        }
        None
    }

    /// A call that had started has ended.
    pub fn finished(&mut self, seat: Seat) {
        match seat {
            Seat::Alone => {
                self.exclusive = false;
                self.exclusive_waits = false;
            }
            Seat::Group(group) => {
                self.shared = self.shared.saturating_sub(1);
                let group = self.group(group);
                group.started = group.started.saturating_sub(1);
            }
        }
        self.still = 0;
    }

    /// A call that runs waits for an object from now on; and whether something that it waited for before has come. Code that
    /// is polled and then waits as before has not moved.
    pub fn waits(&mut self, seat: Seat, moved: bool) {
        if moved {
            self.still = 0;
        }
        match seat {
            Seat::Alone => self.exclusive_waits = true,
            Seat::Group(group) => self.group(group).waiting += 1,
        }
    }

    /// It runs again.
    pub fn goes_on(&mut self, seat: Seat) {
        match seat {
            Seat::Alone => self.exclusive_waits = false,
            Seat::Group(group) => {
                let group = self.group(group);
                group.waiting = group.waiting.saturating_sub(1);
                if group.waiting < WAITING_MAX {
                    group.waiting_most = WAITING_MAX;
                }
            }
        }
    }

    /// Whether [`Self::tick`] has anything to look at.
    pub fn wants_ticks(&self) -> bool {
        self.door.is_some() || self.closing != Closing::No || self.groups.iter().any(Group::is_crowded)
    }

    /// A caller knows that there is no room, or has used what it was given: whether it wants more.
    pub fn asked(&mut self, caller: HostId, more: bool) {
        let told = self.door.as_mut().and_then(|door| door.told.iter_mut().find(|told| told.0 == caller));
        match told {
            Some((_, told @ Told::NoRoomAfterAll)) => {
                *told = Told::NoRoom;
                return;
            }
            // It does not know yet: what came back wants room.
            Some((_, Told::NoRoom)) if !more => return,
            Some(_) | None => {}
        }
        self.forget(caller);
        if more {
            self.door.get_or_insert_default().waiting.push_back(caller);
        }
    }

    /// A caller is gone, or wants nothing.
    pub fn forget(&mut self, caller: HostId) {
        let Some(door) = &mut self.door else { return };
        door.told.retain(|(other, _)| *other != caller);
        door.waiting.retain(|other| *other != caller);
        door.kept.retain(|kept| kept.caller != caller);
        if door.told.is_empty() && door.waiting.is_empty() && door.kept.is_empty() {
            self.door = None;
        }
    }

    /// Callers that wait for room or have places kept.
    pub fn callers_at_door(&self) -> Vec<HostId> {
        let Some(door) = &self.door else { return Vec::new() };
        let told = door.told.iter().map(|(caller, _)| *caller);
        told.chain(door.waiting.iter().copied()).chain(door.kept.iter().map(|kept| kept.caller)).collect()
    }

    /// Callers for which there is room now, and for how many calls; their places are kept.
    pub fn let_in(&mut self) -> SmallVec<[(HostId, u32); 1]> {
        let mut all = SmallVec::new();
        if self.closing == Closing::Closed {
            return all;
        }
        let Some(door) = &mut self.door else { return all };
        let enough = (self.most / ROOM_SHARE).max(1);
        loop {
            let free = self.most.saturating_sub(self.len + door.kept_places());
            if free < enough {
                return all;
            }
            let share = free / u32::try_from(door.waiting.len()).unwrap_or(u32::MAX).max(1);
            let Some(caller) = door.waiting.pop_front() else { return all };
            let places = share.max(enough);
            door.kept.push(Kept { caller, places, unused: 0 });
            all.push((caller, places));
        }
    }

    /// Now and then: takes back what callers do not use, and looks whether all that runs has been waiting for long,
    /// perhaps for what waits here or at the door. First more calls may start beside those that wait; where that is not
    /// what is missing, the callers at the door are returned, to be told.
    pub fn tick(&mut self) -> Vec<HostId> {
        self.closing = match self.closing {
            Closing::Open(0) => Closing::Closed,
            Closing::Open(ticks) => Closing::Open(ticks - 1),
            other => other,
        };
        if let Some(door) = self.door.as_mut().filter(|door| !door.waiting.is_empty()) {
            door.take_unused();
        }
        let waiting: u32 = self.groups.iter().map(|group| group.waiting).sum();
        let started = self.shared + u32::from(self.exclusive);
        if started == 0 || waiting + u32::from(self.exclusive_waits) < started || !self.wants_ticks() {
            self.still = 0;
            return Vec::new();
        }
        self.still += 1;
        if self.still < STALLED_TICKS {
            return Vec::new();
        }
        self.still = 0;
        let mut raised = false;
        for group in self.groups.iter_mut().filter(|group| group.is_crowded()) {
            group.waiting_most = group.waiting_most.saturating_add(WAITING_MAX);
            raised = true;
        }
        if !raised && self.closing == Closing::Closed {
            self.closing = Closing::Open(STALLED_TICKS);
            return Vec::new();
        }
        match &self.door {
            Some(door) if !raised => door.waiting.iter().copied().collect(),
            _ => Vec::new(),
        }
    }
}

impl<R> Group<R> {
    fn new(most: u32) -> Self {
        Self { places: VecDeque::new(), started: 0, waiting: 0, waiting_most: WAITING_MAX, most: most.max(1) }
    }

    /// Whether one more may start.
    fn is_free(&self) -> bool {
        self.started - self.waiting.min(self.waiting_most).min(self.started) < self.most
    }

    /// Whether so many wait that those beyond keep their turn.
    fn is_crowded(&self) -> bool {
        self.waiting >= self.waiting_most && !self.places.is_empty()
    }
}

impl Door {
    fn kept_places(&self) -> u32 {
        self.kept.iter().map(|kept| kept.places).sum()
    }

    /// Whether it waits, or was told that it shall.
    fn knows(&self, caller: HostId) -> bool {
        self.waiting.contains(&caller) || self.told.iter().any(|(other, _)| *other == caller)
    }

    /// A call goes back to its caller.
    fn turn_back(&mut self, caller: HostId) {
        if let Some((_, told)) = self.told.iter_mut().find(|(other, _)| *other == caller) {
            if *told == Told::Lapsed {
                *told = Told::NoRoomAfterAll;
            }
            return;
        }
        let all = self.kept.len();
        self.kept.retain(|kept| kept.caller != caller);
        self.waiting.retain(|other| *other != caller);
        let had_room = self.kept.len() < all;
        self.told.push((caller, if had_room { Told::NoRoomAfterAll } else { Told::NoRoom }));
    }

    /// Others wait: a caller that has stood still for long, maybe, has no more room than they.
    fn take_unused(&mut self) {
        let told = &mut self.told;
        self.kept.retain_mut(|kept| {
            kept.unused += 1;
            let stays = kept.unused < KEPT_TICKS;
            if !stays {
                told.push((kept.caller, Told::Lapsed));
            }
            stays
        });
    }
}

/// The first call that may start as far as its caller's order goes: its position and number.
fn first<R>(places: &VecDeque<Place<R>>, unready: &[(HostId, u64)], unordered: bool) -> Option<(usize, u64)> {
    if unready.is_empty() {
        return places.front().map(|place| (0, place.number));
    }
    let held_up = |place: &Place<R>| {
        unready.iter().any(|(caller, number)| *caller == place.caller && *number < place.number)
    };
    let at = places.iter().position(|place| place.run.is_some() && (unordered || !held_up(place)))?;
    Some((at, places[at].number))
}

#[cfg(test)]
mod tests;
