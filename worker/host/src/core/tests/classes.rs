//! Classes that are made by the thousand.

use std::sync::Arc;

use mobula_proto::{Failure, FailureKind, LeaseId, host::ToAgent, resource::Class};

use super::{Bench, TASK, done, grant, runs, value};
use crate::core::{Action, Input, Nested, Spec, Template};

fn template(class: &str) -> Arc<Template> {
    let mut template = Template::new(1, "test::f");
    template.class = Class { function: class.to_owned(), ..Class::default() };
    template.into()
}

fn submit(bench: &mut Bench, template: &Arc<Template>, inputs: Vec<Input>) -> Vec<Action> {
    let mut out = Vec::new();
    let nested = Nested::default();
    let spec = Spec { template: template.clone(), kind: TASK, inputs: inputs.into(), nested };
    bench.core.submit(spec, &mut out);
    out
}

/// Under which number slots are asked for.
fn key(out: &[Action]) -> Option<u32> {
    out.iter().find_map(|action| match action {
        Action::Tell(ToAgent::Demand { key, backlog: 1.., .. }) => Some(*key),
        _ => None,
    })
}

/// Runs one task of the class, if need be under a lease of that number; gives the number of the class.
fn run(bench: &mut Bench, template: &Arc<Template>, lease: u64) -> u32 {
    let out = submit(bench, template, Vec::new());
    let mut calls = runs(&out);
    if let Some(key) = key(&out) {
        let mut slot = grant(lease, 1);
        slot.key = key;
        calls = runs(&bench.granted(slot));
    }
    bench.message(done(&calls[0], value(1)));
    bench.core.keys[&template.class]
}

fn ticks(bench: &mut Bench) {
    for _ in 0..60 {
        bench.core.tick(&mut Vec::new());
    }
}

#[test]
fn those_that_are_not_used_any_more_are_forgotten_and_their_numbers_are_nobodys() {
    let mut bench = Bench::new();
    let (never, out) = bench.submit(TASK, Vec::new());
    let asked = key(&out).unwrap();
    let waits = template("waits");
    assert_eq!(key(&submit(&mut bench, &waits, vec![Input::Ref(never)])), None);
    let templates: Vec<_> = (0..1200).map(|number| template(&number.to_string())).collect();
    let mut lease = 0;
    let mut run = |bench: &mut Bench, template| {
        lease += 1;
        run(bench, template, lease)
    };
    let keys: Vec<u32> = templates[..1000].iter().map(|template| run(&mut bench, template)).collect();
    ticks(&mut bench);
    assert_eq!(bench.core.classes.len(), 1002, "as long as there are few of them, they stay");
    assert_eq!(run(&mut bench, &templates[5]), keys[5]);
    for template in &templates[1000..] {
        run(&mut bench, template);
    }
    ticks(&mut bench);
    // Besides those of late, what is asked for, and what waits for its arguments.
    assert_eq!((bench.core.classes.len(), bench.core.keys.len()), (203, 203));
    assert_eq!(run(&mut bench, &templates[5]), keys[5]);

    // Late news is nobody's.
    let failure = Failure::new(FailureKind::Infeasible, "no node has that");
    bench.core.infeasible(keys[6], &failure, &mut Vec::new());
    let mut late = grant(9999, 1);
    late.key = keys[6];
    let out = bench.granted(late);
    let given_back = LeaseId { number: 9999 };
    assert!(
        matches!(&out[..], [Action::Tell(ToAgent::Release { lease })] if *lease == given_back),
        "{out:?}"
    );

    let again = run(&mut bench, &templates[6]);
    assert!(again != asked && !keys.contains(&again), "{again}");
    assert_eq!(run(&mut bench, &templates[6]), again, "it is known again");

    // What waited goes on.
    let mut slot = grant(9998, 1);
    slot.key = asked;
    let calls = runs(&bench.granted(slot));
    let key = key(&bench.message(done(&calls[0], value(1)))).unwrap();
    let mut slot = grant(9997, 1);
    slot.key = key;
    assert_eq!(runs(&bench.granted(slot)).len(), 1);
    assert_eq!(run(&mut bench, &waits), key);
}
