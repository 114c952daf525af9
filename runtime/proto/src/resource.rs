//! Resources as exact fixed-point quantities, labels, and what a scheduling class asks for.

#![allow(missing_docs, reason = "the derive of rkyv makes mirror types with undocumented fields")]

use std::{fmt, str::FromStr};

use rkyv::{Archive, Deserialize, Serialize};

use crate::{GroupId, NodeId};

/// Longest custom resource name, label key or label value, in bytes.
pub const NAME_BYTES_MAX: usize = 128;
/// Most distinct resources, labels or label rules in one request or one node.
pub const ENTRIES_MAX: usize = 64;
/// Most alternatives to a class's label rules.
pub const FALLBACKS_MAX: usize = 8;

/// An exact amount of a resource: a count of ten-thousandths, never negative.
///
/// Memory is counted in bytes like everything else, which holds up to 57 TB of it.
#[derive(
    Archive,
    Serialize,
    Deserialize,
    serde::Serialize,
    serde::Deserialize,
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
)]
#[serde(transparent)]
pub struct Quantity(i64);

/// Why a quantity or a resource list was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The amount is negative, not a number, or too large.
    #[error("resource amount {0} is out of range: use 0 to {max} in steps of 0.0001", max = Quantity::MAX)]
    OutOfRange(String),
    /// The text is not a number.
    #[error("resource amount {0:?} is not a number: write for example 2, 0.5 or, for memory, 512MiB")]
    NotANumber(String),
    /// A name is empty, too long, or has a character outside `A-Za-z0-9._-/`.
    #[error("name {0:?} is not allowed: use 1 to {NAME_BYTES_MAX} characters of A-Z a-z 0-9 . _ - /")]
    BadName(String),
    /// The same resource twice.
    #[error("resource {0} is given twice: give it once")]
    Duplicate(String),
    /// Too many entries.
    #[error("{0} entries are too many: at most {ENTRIES_MAX}")]
    TooMany(usize),
    /// Too many alternatives to the label rules.
    #[error("{0} fallbacks are too many: give at most {FALLBACKS_MAX}")]
    TooManyFallbacks(usize),
    /// A number of TPU chips that the hardware does not connect to one another.
    #[error("{0} TPU is not allowed: ask for a fraction of one chip, or for 1, 2, 4 or 8 of them")]
    TpuChips(String),
    /// More than one device, but not a whole number of them.
    #[error(
        "{amount} {kind} is not allowed: ask for a fraction of one device or for a whole number of devices"
    )]
    FractionAboveOne {
        /// The device kind.
        kind: String,
        /// The amount asked for.
        amount: String,
    },
}

impl Quantity {
    /// How many units of a quantity make one.
    pub const PER_ONE: i64 = 10_000;
    /// Nothing.
    pub const ZERO: Self = Self(0);
    /// One.
    pub const ONE: Self = Self(Self::PER_ONE);
    /// The largest quantity; sums stop at it, and cannot overflow.
    pub const MAX: Self = Self(i64::MAX / 16);

    /// A whole number; larger ones than [`Quantity::MAX`] become it.
    pub fn whole(n: u64) -> Self {
        let n = i64::try_from(n).unwrap_or(i64::MAX);
        Self(n.saturating_mul(Self::PER_ONE)).min(Self::MAX)
    }

    /// A number of ten-thousandths, from 0 to [`Quantity::MAX`].
    pub fn from_units(units: i64) -> Result<Self, Error> {
        if (0..=Self::MAX.0).contains(&units) {
            Ok(Self(units))
        } else {
            Err(Error::OutOfRange(units.to_string()))
        }
    }

    /// The nearest quantity to `x`.
    pub fn from_f64(x: f64) -> Result<Self, Error> {
        let units = (x * Self::PER_ONE as f64).round();
        if units.is_finite() && units >= 0.0 && units <= Self::MAX.0 as f64 {
            Ok(Self(units as i64))
        } else {
            Err(Error::OutOfRange(x.to_string()))
        }
    }

    /// The number of ten-thousandths.
    pub fn units(self) -> i64 {
        self.0
    }

    /// As a floating-point number, for people.
    pub fn as_f64(self) -> f64 {
        self.0 as f64 / Self::PER_ONE as f64
    }

    /// Whether it is nothing.
    pub fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// `self + other`, at most [`Quantity::MAX`].
    pub fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0)).min(Self::MAX)
    }

    /// `self - other`, or `None` where that would be negative.
    pub fn minus(self, other: Self) -> Option<Self> {
        (self.0 >= other.0).then(|| Self(self.0 - other.0))
    }

    /// How many times `other` fits; `u64::MAX` when `other` is zero.
    pub fn times(self, other: Self) -> u64 {
        if other.0 == 0 { u64::MAX } else { (self.0 / other.0).max(0) as u64 }
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, rest) = (self.0 / Self::PER_ONE, self.0 % Self::PER_ONE);
        if rest == 0 {
            write!(f, "{whole}")
        } else {
            let digits = format!("{rest:04}");
            write!(f, "{whole}.{}", digits.trim_end_matches('0'))
        }
    }
}

impl FromStr for Quantity {
    type Err = Error;

    /// A number, optionally followed by a byte unit (`KiB MiB GiB TiB kB MB GB TB`).
    fn from_str(text: &str) -> Result<Self, Error> {
        const UNITS: [(&str, f64); 9] = [
            ("KiB", 1024.0),
            ("MiB", 1_048_576.0),
            ("GiB", 1_073_741_824.0),
            ("TiB", 1_099_511_627_776.0),
            ("kB", 1e3),
            ("MB", 1e6),
            ("GB", 1e9),
            ("TB", 1e12),
            ("B", 1.0),
        ];
        let trimmed = text.trim();
        let (number, scale) = UNITS
            .iter()
            .find_map(|(unit, scale)| Some((trimmed.strip_suffix(unit)?, *scale)))
            .unwrap_or((trimmed, 1.0));
        let x: f64 = number.trim().parse().map_err(|_| Error::NotANumber(text.to_owned()))?;
        Self::from_f64(x * scale).map_err(|_| Error::OutOfRange(text.to_owned()))
    }
}

/// What kind of resource.
#[derive(
    Archive,
    Serialize,
    Deserialize,
    serde::Serialize,
    serde::Deserialize,
    Clone,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Processor cores.
    Cpu,
    /// Bytes of memory.
    Memory,
    /// Graphics processors; indexed devices.
    Gpu,
    /// Tensor processors; indexed devices.
    Tpu,
    /// A resource that an operator named.
    Custom(String),
}

impl Kind {
    /// A custom resource, or a built-in one where `name` is `cpu`, `memory`, `gpu` or `tpu` in any case.
    pub fn parse(name: &str) -> Result<Self, Error> {
        Ok(match name.to_ascii_lowercase().as_str() {
            "cpu" => Self::Cpu,
            "memory" => Self::Memory,
            "gpu" => Self::Gpu,
            "tpu" => Self::Tpu,
            _ => Self::Custom(check_name(name)?.to_owned()),
        })
    }

    /// Whether it counts indexed devices.
    pub fn is_device(&self) -> bool {
        matches!(self, Self::Gpu | Self::Tpu)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "CPU",
            Self::Memory => "memory",
            Self::Gpu => "GPU",
            Self::Tpu => "TPU",
            Self::Custom(name) => name,
        })
    }
}

/// Checks a custom resource name, a label key or a label value.
pub fn check_name(name: &str) -> Result<&str, Error> {
    let fine = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'/');
    if (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(fine) {
        Ok(name)
    } else {
        Err(Error::BadName(name.chars().take(NAME_BYTES_MAX).collect()))
    }
}

/// Amounts of several resources, sorted by kind, zeros left out.
#[derive(
    Archive,
    Serialize,
    Deserialize,
    serde::Serialize,
    serde::Deserialize,
    Clone,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
)]
pub struct Resources(Vec<(Kind, Quantity)>);

impl Resources {
    /// Nothing at all.
    pub fn none() -> Self {
        Self::default()
    }

    /// Only CPUs.
    pub fn cpu(cores: Quantity) -> Self {
        let mut all = Self::none();
        all.set(Kind::Cpu, cores);
        all
    }

    /// Checks a list: no name twice, at most [`ENTRIES_MAX`].
    pub fn from_list(list: impl IntoIterator<Item = (Kind, Quantity)>) -> Result<Self, Error> {
        let mut entries: Vec<_> = list.into_iter().collect();
        if entries.len() > ENTRIES_MAX {
            return Err(Error::TooMany(entries.len()));
        }
        entries.sort();
        for pair in entries.windows(2) {
            if pair[0].0 == pair[1].0 {
                return Err(Error::Duplicate(pair[0].0.to_string()));
            }
        }
        entries.retain(|(_, amount)| !amount.is_zero());
        Ok(Self(entries))
    }

    /// Checks what came from outside: sorted, unique, names allowed, amounts in range.
    pub fn validate(&self) -> Result<(), Error> {
        for (kind, amount) in &self.0 {
            Quantity::from_units(amount.units())?;
            if let Kind::Custom(name) = kind {
                check_name(name)?;
            }
        }
        Self::from_list(self.0.iter().cloned()).map(|_| ())
    }

    /// Checks a request: above one, devices are whole, and TPU chips 2, 4 or 8.
    pub fn validate_request(&self) -> Result<(), Error> {
        self.validate()?;
        let chips = self.get(&Kind::Tpu);
        if chips > Quantity::ONE && ![2, 4, 8].map(Quantity::whole).contains(&chips) {
            return Err(Error::TpuChips(chips.to_string()));
        }
        match self.0.iter().find(|(kind, amount)| {
            kind.is_device() && *amount > Quantity::ONE && amount.units() % Quantity::PER_ONE != 0
        }) {
            Some((kind, amount)) => {
                Err(Error::FractionAboveOne { kind: kind.to_string(), amount: amount.to_string() })
            }
            None => Ok(()),
        }
    }

    /// How much there is of `kind`.
    pub fn get(&self, kind: &Kind) -> Quantity {
        self.0.binary_search_by(|(k, _)| k.cmp(kind)).map_or(Quantity::ZERO, |i| self.0[i].1)
    }

    /// Sets how much there is of `kind`.
    pub fn set(&mut self, kind: Kind, amount: Quantity) {
        match self.0.binary_search_by(|(k, _)| k.cmp(&kind)) {
            Ok(i) if amount.is_zero() => drop(self.0.remove(i)),
            Ok(i) => self.0[i].1 = amount,
            Err(_) if amount.is_zero() => {}
            Err(i) => self.0.insert(i, (kind, amount)),
        }
    }

    /// The entries, sorted by kind.
    pub fn iter(&self) -> impl Iterator<Item = (&Kind, Quantity)> {
        self.0.iter().map(|(kind, amount)| (kind, *amount))
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `self` has at least `need` of everything.
    pub fn covers(&self, need: &Self) -> bool {
        need.iter().all(|(kind, amount)| self.get(kind) >= amount)
    }

    /// The first resource of which `self` has less than `need`, with what it has.
    pub fn first_short(&self, need: &Self) -> Option<(Kind, Quantity)> {
        need.iter()
            .find(|(kind, amount)| self.get(kind) < *amount)
            .map(|(kind, _)| (kind.clone(), self.get(kind)))
    }

    /// Adds every amount of `other`.
    pub fn add(&mut self, other: &Self) {
        for (kind, amount) in other.iter() {
            let sum = self.get(kind).plus(amount);
            self.set(kind.clone(), sum);
        }
    }

    /// Takes every amount of `other`, or changes nothing and returns `false` where one is not there.
    pub fn take(&mut self, other: &Self) -> bool {
        if !self.covers(other) {
            return false;
        }
        for (kind, amount) in other.iter() {
            if let Some(rest) = self.get(kind).minus(amount) {
                self.set(kind.clone(), rest);
            }
        }
        true
    }
}

impl fmt::Display for Resources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("no resources");
        }
        for (i, (kind, amount)) in self.iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            if *kind == Kind::Memory {
                write!(f, "{comma}{} memory", bytes_text(amount.units() as u64 / Quantity::PER_ONE as u64))?;
            } else {
                write!(f, "{comma}{amount} {kind}")?;
            }
        }
        Ok(())
    }
}

/// A number of bytes as a person writes it: `512 B`, `1.5 GiB`.
pub fn bytes_text(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut x = bytes as f64 / 1024.0;
    let mut unit = 0;
    while x >= 1024.0 && unit + 1 < UNITS.len() {
        x /= 1024.0;
        unit += 1;
    }
    format!("{x:.1} {}", UNITS[unit])
}

/// One indexed device of a node.
#[derive(
    Archive,
    Serialize,
    Deserialize,
    serde::Serialize,
    serde::Deserialize,
    Clone,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
)]
pub struct Device {
    /// [`Kind::Gpu`] or [`Kind::Tpu`].
    pub kind: Kind,
    /// Its index on the node, as the vendor's own tools count.
    pub index: u32,
    /// The vendor's name of the model.
    pub model: String,
    /// Its own memory.
    pub memory_bytes: u64,
    /// The vendor's unique name; empty where there is none.
    pub uuid: String,
}

/// A part of one device that a lease holds.
#[derive(
    Archive,
    Serialize,
    Deserialize,
    serde::Serialize,
    serde::Deserialize,
    Clone,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
)]
pub struct DeviceGrant {
    /// [`Kind::Gpu`] or [`Kind::Tpu`].
    pub kind: Kind,
    /// The device's index on its node.
    pub index: u32,
    /// How much of it: up to one.
    pub share: Quantity,
}

/// Label of a node that was started because work waited: its type's name.
pub const LABEL_NODE_TYPE: &str = "mobula.io/node-type";
/// Label of such a node: its name at whoever started it.
pub const LABEL_INSTANCE: &str = "mobula.io/instance";

/// A key and value that a node carries. Kept sorted by key wherever there are several.
pub type Label = (String, String);

/// A condition on a node's labels.
#[derive(
    Archive,
    Serialize,
    Deserialize,
    serde::Serialize,
    serde::Deserialize,
    Clone,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
)]
#[serde(rename_all = "snake_case")]
pub enum LabelRule {
    /// The label is there, with one of these values.
    In(String, Vec<String>),
    /// The label is absent, or has none of these values.
    NotIn(String, Vec<String>),
    /// The label is there.
    Exists(String),
    /// The label is absent.
    Absent(String),
}

impl LabelRule {
    /// The label is there, with one of these values.
    pub fn one_of<V: Into<String>>(key: impl Into<String>, values: impl IntoIterator<Item = V>) -> Self {
        Self::In(key.into(), values.into_iter().map(Into::into).collect())
    }

    /// The label is absent, or has none of these values.
    pub fn none_of<V: Into<String>>(key: impl Into<String>, values: impl IntoIterator<Item = V>) -> Self {
        Self::NotIn(key.into(), values.into_iter().map(Into::into).collect())
    }

    /// The label is there, whatever its value.
    pub fn exists(key: impl Into<String>) -> Self {
        Self::Exists(key.into())
    }

    /// The label is absent.
    pub fn absent(key: impl Into<String>) -> Self {
        Self::Absent(key.into())
    }

    /// Whether a node with these labels (sorted by key) fulfils the rule.
    pub fn holds(&self, labels: &[Label]) -> bool {
        let value = |key: &str| labels.iter().find(|(k, _)| k == key).map(|(_, v)| v);
        match self {
            Self::In(key, values) => value(key).is_some_and(|v| values.contains(v)),
            Self::NotIn(key, values) => value(key).is_none_or(|v| !values.contains(v)),
            Self::Exists(key) => value(key).is_some(),
            Self::Absent(key) => value(key).is_none(),
        }
    }
}

/// Checks the conditions on labels of one request.
pub fn check_rules(rules: &[LabelRule]) -> Result<(), Error> {
    if rules.len() > ENTRIES_MAX {
        return Err(Error::TooMany(rules.len()));
    }
    for rule in rules {
        let (key, values): (&String, &[String]) = match rule {
            LabelRule::In(key, values) | LabelRule::NotIn(key, values) => (key, values),
            LabelRule::Exists(key) | LabelRule::Absent(key) => (key, &[]),
        };
        check_name(key)?;
        if values.len() > ENTRIES_MAX {
            return Err(Error::TooMany(values.len()));
        }
        values.iter().try_for_each(|value| check_name(value).map(|_| ()))?;
    }
    Ok(())
}

impl fmt::Display for LabelRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::In(key, values) => write!(f, "{key} in ({})", values.join(", ")),
            Self::NotIn(key, values) => write!(f, "{key} not in ({})", values.join(", ")),
            Self::Exists(key) => write!(f, "{key} exists"),
            Self::Absent(key) => write!(f, "{key} absent"),
        }
    }
}

/// How a node is chosen among those that fit.
#[derive(
    Archive,
    Serialize,
    Deserialize,
    serde::Serialize,
    serde::Deserialize,
    Clone,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// Pack onto the submitter's node and then the fullest ones until half full, then spread.
    #[default]
    Hybrid,
    /// The least loaded node first.
    Spread,
    /// This node; elsewhere only if `soft` and it cannot ever run it or is full.
    Node {
        /// The node.
        node: NodeId,
        /// Whether another node may do.
        soft: bool,
    },
    /// A node that holds no slot of this class for the same job: never two of them on one node.
    Apart,
    /// Inside a placement group, of whose reservation the slot is a part.
    Group {
        /// The group.
        group: GroupId,
        /// Which of its bundles, from 0; any that has room where `None`.
        bundle: Option<u32>,
    },
}

/// Whether a task or actor shares a process with others of its job.
#[derive(
    Archive,
    Serialize,
    Deserialize,
    serde::Serialize,
    serde::Deserialize,
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
)]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    /// The one host that each (job, node) has.
    #[default]
    Shared,
    /// A host of its own.
    Process,
}

/// A scheduling class: all that tasks must have in common to use each other's leases.
#[derive(
    Archive,
    Serialize,
    Deserialize,
    serde::Serialize,
    serde::Deserialize,
    Clone,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
)]
pub struct Class {
    /// The function's registered name; for people, and so that classes are distinct by function.
    pub function: String,
    /// What one running task holds.
    pub resources: Resources,
    /// How a node is chosen.
    pub strategy: Strategy,
    /// Conditions on the node's labels; all must hold.
    pub labels: Vec<LabelRule>,
    /// Other conditions, each a list of which all must hold: tried in this order where no node that fulfils the
    /// ones before has room. At most [`FALLBACKS_MAX`].
    pub fallbacks: Vec<Vec<LabelRule>>,
    /// Higher goes first within a queue; 0 unless set.
    pub priority: i32,
    /// The queue that is charged; empty for the default one.
    pub queue: String,
    /// Whether it needs a process of its own.
    pub isolation: Isolation,
    /// Whether a request that no node could ever satisfy waits for such a node instead of failing.
    pub wait_for_node: bool,
    /// Whether what runs may be stopped and run again: it is preempted before what may not.
    pub restartable: bool,
}

impl Class {
    /// Whether each of its leases has a process of its own.
    pub fn has_own_process(&self) -> bool {
        self.isolation == Isolation::Process || self.resources.iter().any(|(kind, _)| kind.is_device())
    }

    /// Checks what came from outside: names, amounts and counts.
    pub fn validate(&self) -> Result<(), Error> {
        self.resources.validate_request()?;
        check_rules(&self.labels)?;
        if self.fallbacks.len() > FALLBACKS_MAX {
            return Err(Error::TooManyFallbacks(self.fallbacks.len()));
        }
        self.fallbacks.iter().try_for_each(|rules| check_rules(rules))?;
        if !self.queue.is_empty() {
            check_name(&self.queue)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_exact_and_bounded() {
        let check = |text: &str, want: &str| {
            let got = text.parse::<Quantity>().map_or_else(|e| e.to_string(), |q| q.to_string());
            assert!(got.starts_with(want), "{text} gave {got}");
        };
        check("1", "1");
        check("0.1", "0.1");
        check("0.00005", "0.0001");
        check("2GiB", "2147483648");
        check("-1", "resource amount -1 is out of range");
        check("NaN", "resource amount NaN is out of range");
        check("1e300", "resource amount 1e300 is out of range");
        check("two", "resource amount \"two\" is not a number");
        let tenth = Quantity::from_f64(0.1).unwrap();
        assert_eq!((0..10).fold(Quantity::ZERO, |sum, _| sum.plus(tenth)), Quantity::ONE);
    }

    #[test]
    fn taking_is_all_or_nothing() {
        let mut have =
            Resources::from_list([(Kind::Cpu, Quantity::whole(2)), (Kind::Gpu, Quantity::ONE)]).unwrap();
        let need =
            Resources::from_list([(Kind::Cpu, Quantity::ONE), (Kind::Gpu, Quantity::whole(2))]).unwrap();
        assert!(!have.take(&need));
        assert_eq!(have.get(&Kind::Cpu), Quantity::whole(2));
        assert_eq!(have.first_short(&need), Some((Kind::Gpu, Quantity::ONE)));
        assert!(have.take(&Resources::cpu(Quantity::whole(2))));
        assert_eq!(have.to_string(), "1 GPU");
    }

    #[test]
    fn requests_are_checked() {
        let one_and_a_half = Resources::from_list([(Kind::Gpu, Quantity::from_f64(1.5).unwrap())]).unwrap();
        assert!(one_and_a_half.validate_request().is_err());
        for (chips, fine) in
            [("0.5", true), ("1", true), ("2", true), ("3", false), ("4", true), ("8", true), ("16", false)]
        {
            let mut request = Resources::none();
            request.set(Kind::Tpu, chips.parse().unwrap());
            assert_eq!(request.validate_request().is_ok(), fine, "{chips}");
        }
        assert!(Kind::parse("no spaces").is_err());
        assert_eq!(Kind::parse("GPU").unwrap(), Kind::Gpu);
    }
}
