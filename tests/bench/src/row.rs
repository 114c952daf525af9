//! What is measured: rows, and the probes that fill them.

use mobula::{Cluster, NodeId};

use crate::measure::{Result, Scale};

/// A line of the table.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Unique.
    pub name: &'static str,
    /// Of its values.
    pub unit: &'static str,
    /// `more` or `less`.
    pub better: &'static str,
    /// Whose value it is.
    pub side: Side,
    /// Ray's row that it is held against.
    pub peer: Option<&'static str>,
    /// The row that says what the machine allows.
    pub limit: Option<&'static str>,
    /// What is wanted.
    pub targets: &'static [Target],
}

/// Whose value a row shows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Side {
    /// Mobula's.
    Mobula,
    /// What the machine, or a part that Mobula is made of, allows.
    Limit,
    /// What other limits add up to: how often each, and so much more, in the row's unit.
    Sum(&'static [(f64, &'static str)], f64),
}

/// What is wanted of a row.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// The median, in the row's unit.
    AtLeast(f64),
    /// The median, in the row's unit.
    AtMost(f64),
    /// The median is at least so many times the limit's.
    OfLimit(f64),
    /// The median is at most so many times the limit's.
    WithinLimit(f64),
    /// The median is at least so many times the peer's.
    OfPeer(f64),
}

impl Row {
    const fn new(name: &'static str, unit: &'static str, better: &'static str) -> Self {
        Self { name, unit, better, side: Side::Mobula, peer: None, limit: None, targets: &[] }
    }

    /// The larger the better.
    pub const fn more(name: &'static str, unit: &'static str) -> Self {
        Self::new(name, unit, "more")
    }

    /// The smaller the better.
    pub const fn less(name: &'static str, unit: &'static str) -> Self {
        Self::new(name, unit, "less")
    }

    /// It is a limit itself.
    pub const fn is_limit(mut self) -> Self {
        self.side = Side::Limit;
        self
    }

    /// It is what these limits add up to: how often each, and so much more.
    pub const fn is_sum(mut self, parts: &'static [(f64, &'static str)], more: f64) -> Self {
        self.side = Side::Sum(parts, more);
        self
    }

    /// It is held against this row of Ray's.
    pub const fn peer(mut self, name: &'static str) -> Self {
        self.peer = Some(name);
        self
    }

    /// It is held against this row.
    pub const fn limit(mut self, name: &'static str) -> Self {
        self.limit = Some(name);
        self
    }

    /// It is to reach these.
    pub const fn targets(mut self, targets: &'static [Target]) -> Self {
        self.targets = targets;
        self
    }
}

/// The cluster that a probe wants to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// None: the probe starts what it needs.
    Alone,
    /// One node, whose host is another process than the driver.
    OneNode,
    /// One node that has done nothing yet.
    Fresh,
    /// Two nodes.
    TwoNodes,
    /// One node that has no host but those of the stage's own probes.
    Starts,
    /// One node, for what leaves much memory touched.
    Scale,
}

/// Where a probe runs.
#[derive(Clone)]
pub struct Place {
    /// Counts rounds, from 0.
    pub round: usize,
    /// How much to do.
    pub scale: Scale,
    /// Where async code of the driver runs.
    pub runtime: tokio::runtime::Handle,
    /// The stage's, where it has one.
    pub cluster: Option<Cluster>,
    /// A node other than the driver's, where there is one.
    pub far: Option<NodeId>,
}

/// Fills some rows in one go.
#[derive(Clone, Copy, Debug)]
pub struct Probe {
    /// Which.
    pub rows: &'static [Row],
    /// In which cluster.
    pub stage: Stage,
    /// Gives a value for each row, in the same order. It runs on a plain thread.
    pub run: fn(&Place) -> Result<Vec<f64>>,
}
