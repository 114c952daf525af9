//! Copies that cannot be read any more.

use super::*;

/// A primary copy that cannot be read back comes back from whoever pulled it; where nobody has it, theirs go with it.
#[test]
fn what_cannot_be_read_back_is_had_from_who_was_given_it() {
    for found in [true, false] {
        let mut rig = Rig::new(false);
        rig.driver(false);
        let host = rig.launched(1, Class::default());
        rig.host(host, ToAgent::RegionWanted { request: 5, bytes: 4 * MIB, wait_ms: 0 });
        rig.host_with(host, ToAgent::RegionAdded { request: 5, seq: 1, bytes: 4 * MIB }, vec![fd()]);
        rig.host(host, sealed(1, 0, 100));
        let (there, here, key) = (other_node().node, copy(NodeId::EMBEDDED, 1), (object(1), 1, JOB));
        let wish = |by| Wish { object: object(1), copy: here, by, tried: vec![], whole: false };
        assert!(matches!(rig.core.serve(&wish(there), rig.now), Serve::Whole(..)));
        rig.core.served(key, there, 100);
        rig.host(id(1), ToAgent::RegionWanted { request: 6, bytes: MIB, wait_ms: 1000 });
        rig.core.spilled(1, Ok(()), rig.now);
        rig.host(host, ToAgent::RegionRemoved { seq: 1 });
        rig.take();

        let third = NodeId { number: 3, incarnation: 1 };
        assert!(matches!(rig.core.serve(&wish(third), rig.now), Serve::Later(_)));
        let open = ToAgent::Open { ahead: false, request: 9, object: object(1), copy: here };
        assert_eq!(rig.host(id(1), open.clone()), [format!("restore {}", object(1))]);
        let lost = || Failure::new(FailureKind::ObjectLost, "a bit is another");
        assert!(!rig.core.restored(key, Err(lost())));
        assert_eq!(rig.lines(), ["delete 1", &format!("pull {} from node-1", object(1))]);
        assert_eq!(rig.core.objects.lies_with(key), Some((vec![there, third], 100)));
        let busy = Failure::new(FailureKind::Unreachable, "it is not reached");
        assert!(!rig.core.pulled(key, Err(busy)));
        assert_eq!(rig.lines(), ["serve Unreachable", "host-1 < OpenFailed Unreachable"]);
        assert_eq!(rig.core.usage().objects, 1, "it is tried again with the next who wants it");
        assert_eq!(rig.host(id(1), open), [format!("pull {} from node-1", object(1))]);
        if found {
            let region = RegionId { writer: NodeId::EMBEDDED.agent(), seq: 1 };
            rig.core.want_region(region.writer, 1, MIB, Duration::ZERO, rig.now);
            rig.core.objects.add_region(region, 1, JOB, MIB, Arc::new(fd())).unwrap();
            rig.take();
            assert!(rig.core.pulled(key, Ok((region, 0, 100))));
            assert_eq!(rig.lines()[0], "host-1 < Opened +1fd");
            let free = ToAgent::Free { object: object(1), copy: here };
            assert_eq!(rig.host(id(1), free), ["node-2 Drop", "node-3 Drop"]);
            rig.host(id(1), ToAgent::Unpin { object: object(1) });
        } else {
            assert!(!rig.core.pulled(key, Err(lost())));
            assert_eq!(rig.lines(), ["node-2 Drop", "node-3 Drop", "host-1 < OpenFailed ObjectLost"]);
        }
        assert_eq!((rig.core.usage().objects, rig.core.usage().pinned), (0, 0));
        assert!(rig.core.queue.is_empty());
    }
}

/// What was pulled from a node goes once that is dead and its owner has looked elsewhere, also what comes in only then from
/// others; but not what another node has the primary copy of by now.
#[test]
fn what_was_pulled_from_a_dead_node_goes_with_its_burial() {
    let third = NodeId { number: 3, incarnation: 1 };
    let (there, dead) = (copy(other_node().node, 3), other_node().node);
    let failure = || Failure::new(FailureKind::NodeDied, "killed");
    let open = |copy| ToAgent::Open { ahead: false, request: 1, object: object(1), copy };
    // Comes in before the burial or after; and then that the primary copy is elsewhere.
    for (early, moved) in [(true, false), (false, false), (true, true)] {
        let mut rig = Rig::new(false);
        rig.driver(false);
        rig.head(FromHead::NodeUp(Node { node: third, ..other_node() }));
        rig.host(id(1), open(there));
        let region = began(&mut rig, 1);
        let comes = |rig: &mut Rig| {
            assert!(rig.core.pulled((object(1), 3, JOB), Ok((region, 0, 100))));
            assert_eq!(rig.lines()[0], "host-1 < Opened +1fd");
        };
        if early {
            comes(&mut rig);
        }
        rig.head(FromHead::NodeDown { node: dead, failure: failure() });
        if moved {
            rig.host(id(1), open(Copy { node: third, ..there }));
            rig.host(id(1), ToAgent::Unpin { object: object(1) });
        }
        rig.head(FromHead::Buried { host: dead.agent() });
        if !early {
            comes(&mut rig);
        }
        assert_eq!(rig.core.usage().objects, 1, "it is read");
        rig.host(id(1), ToAgent::Unpin { object: object(1) });
        assert_eq!(rig.core.usage().objects, u64::from(moved));
        rig.core.from_peer(Between::Drop { object: object(1), attempt: 3, job: JOB });
        assert_eq!((rig.core.usage().objects, rig.core.usage().pinned), (0, 0));
    }
}
