//! `mobula drain`.

use std::time::Duration;

use mobula_head::http::DrainWanted;
use mobula_proto::{
    head::{DrainSnapshot, NodeSnapshot, Snapshot},
    resource::bytes_text,
};

use crate::{api::Api, args::DrainArgs, error::Error, home::Home, ready::say, status::count};

/// How often it is looked at what is left.
const LOOK: Duration = Duration::from_millis(500);

/// Has a node leave, and waits for that; or lets it stay after all.
pub fn run(args: &DrainArgs) -> Result<(), Error> {
    let api = Api::open(&Home::of(&args.home)?)?;
    if args.undo {
        api.resume(&args.node)?;
        say(&format!("{} stays.", args.node));
        return Ok(());
    }
    api.drain(&DrainWanted { node: args.node.clone(), seconds: args.within.as_secs() })?;
    if args.no_wait {
        say(&format!("{} drains; `mobula status` says what is left there.", args.node));
        return Ok(());
    }
    let mut told = String::new();
    loop {
        let (_, snapshot) = api.status()?;
        match of(&snapshot, &args.node) {
            None => {
                say(&format!("{} has left.", args.node));
                return Ok(());
            }
            Some(NodeSnapshot { draining: None, .. }) => {
                return Err(Error::DrainUndone { node: args.node.clone() });
            }
            Some(NodeSnapshot { draining: Some(draining), .. }) => {
                let left = format!("{}: {}", args.node, left(draining));
                if left != told {
                    say(&left);
                    told = left;
                }
            }
        }
        std::thread::sleep(LOOK);
    }
}

fn of<'a>(snapshot: &'a Snapshot, node: &str) -> Option<&'a NodeSnapshot> {
    snapshot.nodes.iter().find(|known| known.node == node || known.name == node)
}

/// What is left on a node that drains.
pub fn left(draining: &DrainSnapshot) -> String {
    let DrainSnapshot { leases, counted, left, seconds_left: _ } = draining;
    let mut parts = Vec::new();
    let mut some = |n: u64, what: &str| {
        if n > 0 {
            parts.push(count(n, what));
        }
    };
    some(*leases, "lease");
    some(left.hosts.into(), "host");
    some(left.drivers.into(), "driver");
    if left.objects > 0 {
        parts.push(format!("{} of {}", count(left.objects, "object"), bytes_text(left.bytes)));
    }
    if !counted {
        parts.push("the node has not said what else".to_owned());
    } else if parts.is_empty() {
        return "nothing is left".to_owned();
    }
    format!("left are {}", parts.join(", "))
}

#[cfg(test)]
mod tests {
    use mobula_proto::head::Left;

    use super::*;

    #[test]
    fn what_is_left_is_a_sentence() {
        let mut draining = DrainSnapshot { leases: 1, ..DrainSnapshot::default() };
        assert_eq!(left(&draining), "left are 1 lease, the node has not said what else");
        draining.counted = true;
        draining.left = Left { objects: 2, bytes: 3 << 20, hosts: 2, drivers: 0 };
        assert_eq!(left(&draining), "left are 1 lease, 2 hosts, 2 objects of 3.0 MiB");
        (draining.leases, draining.left) = (0, Left::default());
        assert_eq!(left(&draining), "nothing is left");
    }
}
