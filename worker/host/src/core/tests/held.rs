//! What holds an object, as its owner says.

use mobula_proto::inventory::{HOLDERS_MAX, Held, Hold};

use super::*;

fn stored() -> Value {
    Value::Stored(Copy { node: NODE, bytes: 1 << 20, attempt: 1, job: JOB })
}

impl Bench {
    /// An object whose value lies in a store, with these refs inside.
    fn put(&mut self, contains: Vec<ObjectId>) -> ObjectId {
        let Value::Stored(copy) = stored() else { panic!("not stored") };
        let object = self.core.next_task().object(0);
        let mut out = Vec::new();
        self.core.own(&mut out, |objects, fx| objects.put(object, State::Stored(copy), contains, fx));
        object
    }

    fn let_go(&mut self, object: ObjectId) {
        self.core.drop_ref(object, &mut Vec::new());
    }

    fn held(&self, object: ObjectId) -> Held {
        let [held] = &self.core.held(&[object])[..] else { panic!("one for each") };
        held.clone()
    }
}

#[test]
fn what_holds_an_object_is_told_apart() {
    let mut bench = Bench::new();
    let object = bench.put(Vec::new());
    assert_eq!(bench.held(object).by, [Hold::Owner]);
    let (made, _) = bench.submit(TASK, vec![Input::Ref(object), Input::List(vec![object])]);
    assert_eq!(bench.held(object).by, [Hold::Owner, Hold::Calls]);
    bench.let_go(object);
    assert_eq!(bench.held(object).by, [Hold::Calls]);
    // Slots are asked for near the argument.
    let calls = runs(&bench.granted(Grant { key: 1, ..grant(1, 1) }));
    let outcome = Outcome::Values(smallvec![Returned { value: stored(), contains: Vec::new() }]);
    bench.message(done(&calls[0], outcome));
    assert_eq!(bench.held(object).by, [Hold::Again], "its result is stored, and may be lost");
    let outer = bench.put(vec![object]);
    assert_eq!(bench.held(object).by, [Hold::Again, Hold::Values]);
    let borrow = |bench: &mut Bench, host| {
        bench.core.own(&mut Vec::new(), |objects, _| objects.retained(host, &[object]));
    };
    borrow(&mut bench, THERE);
    borrow(&mut bench, THERE);
    let all = Held { by: vec![Hold::Again, Hold::Values, Hold::Hosts], hosts: vec![THERE], more_hosts: 0 };
    assert_eq!(bench.held(object), all);
    assert_eq!(bench.held(outer).by, [Hold::Owner]);
    bench.let_go(made);
    bench.let_go(outer);
    assert_eq!(bench.held(object), Held { by: vec![Hold::Hosts], ..all });
    for seq in 10..10 + HOLDERS_MAX as u32 + 2 {
        borrow(&mut bench, HostId { seq, ..THERE });
    }
    let held = bench.held(object);
    assert_eq!((held.hosts.len(), held.more_hosts), (HOLDERS_MAX, 3), "{held:?}");
}

#[test]
fn of_what_it_does_not_own_a_host_says_nothing() {
    let mut bench = Bench::new();
    let (known, gone) = (bench.put(Vec::new()), bench.put(Vec::new()));
    bench.let_go(gone);
    let others = TaskId::numbered(THERE, 1).object(0);
    let held = bench.core.held(&[gone, others, known]);
    assert_eq!(held.iter().map(|held| held.by.len()).collect::<Vec<_>>(), [0, 0, 1]);
}

#[test]
fn actors_of_others_are_forgotten_with_the_last_ref_however_many_there_are() {
    let mut bench = Bench::new();
    let actors: Vec<_> = (1..=5000).map(|seq| TaskId::numbered(THERE, seq).object(0)).collect();
    for actor in &actors {
        let mut out = Vec::new();
        bench.core.own(&mut out, |objects, fx| objects.receive(*actor, Via::Registered, fx));
        let (result, _) = method(&mut bench, *actor, Maker::Outside);
        let state = State::Actor { host: THERE, incarnation: 1 };
        let out = bench.message(Message::Resolved { object: *actor, state });
        bench.message(done(&runs(&out)[0], value(1)));
        bench.let_go(result);
    }
    let ticks = |bench: &mut Bench| (0..4).for_each(|_| bench.core.tick(&mut Vec::new()));
    ticks(&mut bench);
    assert_eq!(bench.core.clients.len(), 5000);
    let (held, dropped) = actors.split_at(2500);
    for actor in dropped {
        bench.let_go(*actor);
    }
    ticks(&mut bench);
    assert!(bench.core.clients.keys().eq(held));
}
