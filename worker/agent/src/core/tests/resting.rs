//! Hosts whose leases have ended, and what still runs in them.

use mobula_proto::resource::DeviceGrant;

use super::*;

fn on_gpu(number: u64, share: &str) -> FromHead {
    let class = Class {
        resources: Resources::from_list([(ResourceKind::Gpu, share.parse().unwrap())]).unwrap(),
        ..Class::default()
    };
    let gpu = DeviceGrant { kind: ResourceKind::Gpu, index: 0, share: share.parse().unwrap() };
    FromHead::Reserve { lease: lease(number), job: job(id(1)), class, slots: 1, devices: vec![gpu] }
}

impl Rig {
    /// A host with a GPU, of which the head says that its lease has ended; and what it was asked.
    fn left_on_gpu(&mut self) -> u64 {
        self.driver(false);
        assert_eq!(self.head(on_gpu(1, "1")), ["launch host-2"]);
        self.host(id(2), hello(Role::Host, None, REGISTRY));
        self.asked(FromHead::LeaseEnded { lease: lease(1), evicted: false })
    }

    /// What host 2 is asked because of this.
    fn asked(&mut self, message: FromHead) -> u64 {
        self.core.from_head(message, self.now);
        match self.take().as_slice() {
            [Effect::Tell(host, ToHost::AreYouAtRest { request }, _)] if *host == id(2) => *request,
            other => panic!("{:?}", other.iter().map(line).collect::<Vec<_>>()),
        }
    }

    fn at_rest(&mut self, request: u64, at_rest: bool) -> Vec<String> {
        self.host(id(2), ToAgent::AtRest { request, at_rest })
    }

    fn pass(&mut self, time: Duration) -> Vec<String> {
        self.now += time;
        self.core.tick(self.now);
        self.lines()
    }
}

const LONG: Duration = Duration::from_secs(60);

#[test]
fn a_host_that_runs_something_is_not_killed_and_nobody_gets_its_device() {
    let mut rig = Rig::new(false);
    let asked = rig.left_on_gpu();
    assert_eq!(rig.at_rest(asked, false), [""; 0]);
    assert_eq!(rig.pass(LONG), [""; 0]);
    assert_eq!(rig.head(on_gpu(2, "0.5")), [""; 0], "the device is in use");
    assert_eq!(rig.head(on_gpu(3, "1")), [""; 0]);
    assert_eq!(rig.head(FromHead::LeaseEnded { lease: lease(3), evicted: false }), [""; 0], "given up");
    assert_eq!(rig.at_rest(asked, true), ["kill host-2", "launch host-3"]);
    assert_eq!(rig.pass(LONG), [""; 0]);
}

#[test]
fn a_host_at_rest_gets_what_waited_for_it() {
    let mut rig = Rig::new(false);
    let asked = rig.left_on_gpu();
    assert_eq!(rig.head(on_gpu(2, "1")), [""; 0], "it has not answered");
    assert_eq!(rig.at_rest(asked, true), ["head LeaseReady host-2"]);
    assert_eq!(rig.pass(LONG), [""; 0]);
    let asked = rig.asked(FromHead::LeaseEnded { lease: lease(2), evicted: false });
    assert_eq!(rig.at_rest(asked, true), [""; 0]);
    assert_eq!(rig.pass(LONG), ["kill host-2"], "nobody wanted it");
}

#[test]
fn a_host_that_dies_leaves_its_device() {
    let mut rig = Rig::new(false);
    rig.left_on_gpu();
    assert_eq!(rig.head(on_gpu(2, "1")), [""; 0]);
    rig.core.host_ended(id(2), Failure::new(FailureKind::HostDied, "killed by signal 9"), rig.now);
    assert!(rig.lines().contains(&"launch host-3".to_owned()));
}

#[test]
fn a_silent_host_keeps_its_device_and_not_its_job() {
    let mut rig = Rig::new(false);
    rig.driver(false);
    let host = rig.launched(1, own());
    assert_eq!(rig.asked(FromHead::LeaseEnded { lease: lease(1), evicted: false }), 1);
    assert_eq!(rig.head(reserve(2, own())), [""; 0]);
    assert_eq!(rig.pass(Duration::from_secs(1)), ["launch host-3"], "{host} does not answer");
    assert_eq!(rig.pass(LONG), [""; 0]);
}

#[test]
fn the_head_hears_whether_anything_runs_under_a_lease() {
    let mut rig = Rig::new(false);
    assert_eq!(rig.head(FromHead::Overdue { lease: lease(9) }), ["head AtRest"], "there is none");
    rig.driver(false);
    rig.launched(1, own());
    let asked = rig.asked(FromHead::Overdue { lease: lease(1) });
    assert_eq!(rig.at_rest(asked, false), [""; 0]);
    assert_eq!(rig.at_rest(asked, true), ["head AtRest"]);
}
