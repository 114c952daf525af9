use std::collections::BTreeSet;

use proptest::{prelude::*, sample::Index};

use super::*;

/// What is kept at most in these tests, but for one frame. Unit: bytes.
const SMALL: usize = 1500;
/// The most that a frame takes in these tests. Unit: bytes.
const ONE: usize = 512 + FRAME_BYTES;

fn frame(number: u64, bytes: usize) -> AlignedVec {
    let mut frame = AlignedVec::new();
    frame.extend_from_slice(&number.to_le_bytes());
    frame.resize(8 + bytes, 7);
    frame
}

fn named(frame: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(*frame.first_chunk()?))
}

/// One stream on its way through the network. What was written comes out in order, up to where it is cut, however late.
struct Way {
    begin: Begin,
    /// The receiver's view, once it has begun there.
    stream: Option<Stream>,
    refused: bool,
    /// Frames that have not come out yet.
    forth: VecDeque<Vec<u8>>,
    /// What the receiver said and the sender has not heard.
    back: VecDeque<u64>,
}

/// Two incarnations, and all streams that ever were between them.
struct Pair {
    outgoing: Outgoing,
    incoming: Incoming,
    ways: Vec<Way>,
    /// Whether the sender may write into the last of them.
    open: bool,
    sent: u64,
    given_up: BTreeSet<u64>,
    handed_on: Vec<u64>,
}

impl Pair {
    fn new() -> Self {
        Self {
            outgoing: Outgoing::new(SMALL),
            incoming: Incoming::default(),
            ways: Vec::new(),
            open: false,
            sent: 0,
            given_up: BTreeSet::new(),
            handed_on: Vec::new(),
        }
    }

    fn send(&mut self, bytes: usize) {
        if !self.outgoing.has_room() {
            return;
        }
        let frame = frame(self.sent, bytes);
        self.sent += 1;
        if self.open
            && let Some(way) = self.ways.last_mut()
        {
            way.forth.push_back(frame.to_vec());
        }
        self.outgoing.push(frame);
        let kept: usize = self.outgoing.frames.iter().map(cost).sum();
        assert!(kept == self.outgoing.bytes && kept < SMALL + ONE, "DL-5: {kept}");
    }

    /// The sender opens a further stream; the others go on coming out.
    fn open(&mut self) {
        let begin = self.outgoing.begin();
        let all = begin.first..self.outgoing.next();
        let forth = all.map(|number| self.outgoing.frame(number).to_vec()).collect();
        self.ways.push(Way { begin, stream: None, refused: false, forth, back: VecDeque::new() });
        self.open = true;
    }

    /// A stream breaks: of what is under way in it, so much still arrives.
    fn cut(&mut self, at: Index, part: Index) {
        if self.ways.is_empty() {
            return;
        }
        let at = at.index(self.ways.len());
        self.open &= at + 1 < self.ways.len();
        let way = &mut self.ways[at];
        way.forth.truncate(part.index(way.forth.len() + 1));
        way.back.truncate(part.index(way.back.len() + 1));
    }

    /// One more thing comes out of a stream at the receiver's end.
    fn arrive(&mut self, at: usize) {
        let way = &mut self.ways[at];
        if way.refused {
            return;
        }
        let Some(stream) = &mut way.stream else {
            way.stream = self.incoming.begin(way.begin).unwrap();
            way.refused = way.stream.is_none();
            way.back.extend(way.stream.as_ref().map(|stream| self.incoming.say(stream).unwrap()));
            return;
        };
        let Some(frame) = way.forth.pop_front() else { return };
        let newest = stream.stream == self.incoming.stream;
        match self.incoming.take(stream, frame.len()) {
            Taken::Next => {
                assert!(newest, "DL-4: it came in an older stream");
                self.handed_on.extend(named(&frame));
            }
            Taken::Again => assert!(newest),
            Taken::Over => {
                assert!(!newest);
                way.refused = true;
            }
        }
        match self.incoming.due() {
            Say::Now => way.back.extend(self.incoming.say(stream)),
            Say::Later | Say::Nothing => {}
        }
    }

    /// The time of what was not said is over, as whoever receives a stream believes.
    fn say(&mut self, at: usize) {
        let Way { stream: Some(stream), back, .. } = &mut self.ways[at] else { return };
        if self.incoming.due() != Say::Nothing {
            back.extend(self.incoming.say(stream));
        }
    }

    /// The sender hears what was said on a stream.
    fn hear(&mut self, at: usize) {
        if let Some(next) = self.ways[at].back.pop_front() {
            self.outgoing.received(next).unwrap();
        }
    }

    fn give_up(&mut self, third: u64) {
        let given_up = &mut self.given_up;
        self.outgoing.give_up(|frame| {
            let number = named(frame).filter(|number| number % 3 == third);
            given_up.extend(number);
            number.is_some()
        });
    }

    fn step(&mut self, step: &Step) {
        let ways = self.ways.len();
        match step {
            Step::Send(bytes) => self.send(usize::from(*bytes)),
            Step::Open => self.open(),
            Step::Cut(at, part) => self.cut(*at, *part),
            Step::Arrive(at, times) if ways > 0 => (0..*times).for_each(|_| self.arrive(at.index(ways))),
            Step::Hear(at) if ways > 0 => self.hear(at.index(ways)),
            Step::Say(at) if ways > 0 => self.say(at.index(ways)),
            Step::GiveUp(third) => self.give_up(u64::from(*third)),
            Step::Arrive(..) | Step::Hear(_) | Step::Say(_) | Step::Restart => {}
        }
    }

    /// Once a last stream holds, all comes.
    fn settle(&mut self) {
        self.open();
        let last = self.ways.len() - 1;
        for _ in 0..=self.ways[last].forth.len() {
            self.arrive(last);
        }
        assert!(self.ways[last].forth.is_empty() && !self.ways[last].refused);
        self.say(last);
        while !self.ways[last].back.is_empty() {
            self.hear(last);
        }
        assert!(self.outgoing.is_empty() && self.outgoing.bytes == 0 && self.incoming.due() == Say::Nothing);
        // What was opened before stays silent, and says nothing new.
        for at in 0..last {
            while !self.ways[at].refused && !self.ways[at].forth.is_empty() {
                self.arrive(at);
            }
            while !self.ways[at].back.is_empty() {
                self.hear(at);
            }
        }
        assert!(self.handed_on.is_sorted_by(|a, b| a < b), "DL-1, DL-3: {:?}", self.handed_on);
        let had: BTreeSet<u64> = self.handed_on.iter().copied().collect();
        let must: BTreeSet<u64> = (0..self.sent).filter(|number| !self.given_up.contains(number)).collect();
        assert!(had.is_superset(&must), "DL-2: {:?} is lost", &must - &had);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Send(u8),
    Open,
    Cut(Index, Index),
    Arrive(Index, u8),
    Hear(Index),
    Say(Index),
    GiveUp(u8),
    /// One of the two is another incarnation from now on.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let at = any::<Index>;
    prop_oneof![
        8 => any::<u8>().prop_map(Step::Send),
        2 => Just(Step::Open),
        2 => (at(), at()).prop_map(|(way, part)| Step::Cut(way, part)),
        8 => (at(), 1..20u8).prop_map(|(way, times)| Step::Arrive(way, times)),
        4 => at().prop_map(Step::Hear),
        2 => at().prop_map(Step::Say),
        1 => (0..3u8).prop_map(Step::GiveUp),
        1 => Just(Step::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever breaks, and however late it comes: each frame is handed on once and in order, what a sender gave up excepted,
    /// and what it keeps is bounded. Incarnations have nothing in common: what is under way between those before goes on.
    #[test]
    fn dl_1_to_dl_6_each_frame_is_handed_on_once_and_in_order(
        steps in proptest::collection::vec((step(), any::<Index>()), 1..200)
    ) {
        let mut pairs = vec![Pair::new()];
        for (step, of) in &steps {
            if matches!(step, Step::Restart) {
                pairs.push(Pair::new());
            }
            // Mostly the last ones; now and then something comes of those before.
            let old = of.index(4 * pairs.len());
            let at = if matches!(step, Step::Arrive(..) | Step::Hear(_)) && old < pairs.len() { old } else { pairs.len() - 1 };
            pairs[at].step(step);
        }
        pairs.iter_mut().for_each(Pair::settle);
    }
}

#[test]
fn dl_3_a_stream_that_begins_too_late_is_refused() {
    let mut incoming = Incoming::default();
    let mut stream = incoming.begin(Begin { stream: 1, first: 0 }).unwrap().unwrap();
    assert_eq!(incoming.take(&mut stream, 1), Taken::Next);
    let gap = Violation::Gap { first: 2, expected: 1 };
    assert_eq!(incoming.begin(Begin { stream: 2, first: 2 }).unwrap_err(), gap);
    assert_eq!(incoming.take(&mut stream, 1), Taken::Next, "it has not begun");
    assert!(incoming.begin(Begin { stream: 1, first: 0 }).unwrap().is_none(), "it has begun before");
}

#[test]
fn dl_5_what_is_kept_is_bounded_and_an_idle_peer_costs_nothing() {
    let mut outgoing = Outgoing::default();
    let mut frames = 0;
    while outgoing.has_room() {
        outgoing.push(frame(frames, 1000));
        frames += 1;
    }
    assert!(outgoing.bytes <= KEPT_BYTES_MAX + 2048 + FRAME_BYTES);
    assert!(FRAME_BYTES >= 2 * size_of::<AlignedVec>(), "a queue may be half empty");
    outgoing.received(1).unwrap();
    assert!(outgoing.has_room());
    let sent = Violation::NotSent { said: frames + 1, sent: frames };
    assert_eq!(outgoing.received(frames + 1), Err(sent));
    outgoing.received(frames).unwrap();
    assert!(outgoing.is_empty() && outgoing.bytes == 0 && outgoing.frames.capacity() <= ROOM_KEPT);
}

#[test]
fn dl_7_it_is_said_after_so_many_frames_or_bytes_else_later() {
    let mut incoming = Incoming::default();
    let mut stream = incoming.begin(Begin { stream: 1, first: 0 }).unwrap().unwrap();
    assert_eq!((incoming.due(), incoming.say(&stream)), (Say::Nothing, Some(0)));
    for _ in 1..SAY_FRAMES {
        incoming.take(&mut stream, 100);
        assert_eq!(incoming.due(), Say::Later);
    }
    incoming.take(&mut stream, 100);
    assert_eq!(incoming.due(), Say::Now);
    assert_eq!((incoming.say(&stream), incoming.due()), (Some(u64::from(SAY_FRAMES)), Say::Nothing));
    incoming.take(&mut stream, SAY_BYTES);
    assert_eq!(incoming.due(), Say::Now);
    let further = incoming.begin(Begin { stream: 2, first: 0 }).unwrap().unwrap();
    assert_eq!(incoming.say(&stream), None, "nobody may hear it there any more");
    assert_eq!(incoming.say(&further), Some(u64::from(SAY_FRAMES) + 1));
}
