//! Placement groups.

use std::{future::Future, pin::Pin};

use mobula_proto::{
    Group, GroupId, Quantity, Resources,
    group::Arrange,
    host::{Answer, Question},
    resource::{self, Kind, LabelRule},
};

use crate::{Error, ErrorKind, Result, actor::unexpected};

/// Resources of one or several nodes that are reserved together, all or nothing: in *bundles*, each on one node, which
/// lie to each other as was asked. Tasks and actors run inside with
/// [`Options::in_group`](crate::Options::in_group).
///
/// ```
/// # async fn example() -> mobula::Result<()> {
/// # #[mobula::task]
/// # fn train(rank: u32) {}
/// // Four workers, each on a node of its own.
/// let group = mobula::PlacementGroup::strict_spread().bundles(4, &[("cpu", 2.0)]).reserve().await?;
/// let ranks: Vec<_> = (0..4).map(|rank| train.options().in_group(&group, rank).remote(rank)).collect();
/// mobula::get_all(&ranks).await?;
/// group.remove().await?;
/// # Ok(())
/// # }
/// ```
///
/// It ends with its job, unless it is detached. A handle travels as an argument; dropping it changes nothing. When a node
/// is lost, its bundles are reserved again elsewhere as soon as there is room, and what ran in them is tried again there.
#[crate::data]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlacementGroup {
    id: GroupId,
    bundles: u32,
}

/// What a placement group shall be. A mistake in a value is reported when it is created.
#[derive(Clone, Debug, Default)]
#[must_use = "nothing is reserved before `reserve` or `create` is called"]
pub struct GroupBuilder {
    group: Group,
    name: String,
    namespace: String,
    detached: bool,
    mistake: Option<String>,
}

impl PlacementGroup {
    /// In as few places as there is room for. A place is a node, or what [`GroupBuilder::by`] says.
    pub fn pack() -> GroupBuilder {
        GroupBuilder::of(Arrange::Pack)
    }

    /// In as many places as there are.
    pub fn spread() -> GroupBuilder {
        GroupBuilder::of(Arrange::Spread)
    }

    /// All in one place, or not at all.
    pub fn strict_pack() -> GroupBuilder {
        GroupBuilder::of(Arrange::StrictPack)
    }

    /// Each in a place of its own, or not at all.
    pub fn strict_spread() -> GroupBuilder {
        GroupBuilder::of(Arrange::StrictSpread)
    }

    /// The group of this name: one of this job's own, or a detached one. The empty namespace is the job's own.
    pub async fn find(name: &str, namespace: &str) -> Result<Self> {
        let question = Question::GroupFind { namespace: namespace.to_owned(), name: name.to_owned() };
        Self::asked(question).await.map(|(group, _)| group)
    }

    /// Its name in the cluster, as `mobula groups` shows it.
    pub fn id(&self) -> GroupId {
        self.id
    }

    /// How many bundles it has; they are counted from 0.
    pub fn bundles(&self) -> u32 {
        self.bundles
    }

    /// Waits until all of it is reserved: for the first time, or again after a node was lost. Fails with `Infeasible` where
    /// the nodes that there are could never hold it, and with `Unknown` where it was removed.
    pub async fn ready(&self) -> Result<()> {
        let runtime = crate::cluster::current()?;
        if runtime.is_placed(self.id) {
            return Ok(());
        }
        Self::asked(Question::GroupReady { group: self.id }).await.map(|_| ())
    }

    /// Gives all of it back, and stops what runs inside: async code is dropped, sync code in a process that it shares is
    /// asked ([`context::cancelled`](crate::context::cancelled)), other processes are killed. What waits for it, or would
    /// run again inside, fails with `Unknown`.
    pub async fn remove(self) -> Result<()> {
        let runtime = crate::cluster::current()?;
        runtime.note_placed(self.id, false);
        match runtime.ask_and_wait(Question::GroupRemove { group: self.id }).await {
            Answer::Done => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    /// [`PlacementGroup::remove`] without waiting until it is done: what is asked for afterwards comes after it.
    pub fn give_up(self) -> Result<()> {
        let runtime = crate::cluster::current()?;
        runtime.note_placed(self.id, false);
        runtime.tell_head(Question::GroupRemove { group: self.id });
        Ok(())
    }

    /// The group in the head's answer, and whether it is reserved.
    async fn asked(question: Question) -> Result<(Self, bool)> {
        let runtime = crate::cluster::current()?;
        match runtime.ask_and_wait(question).await {
            Answer::Group { group, bundles, placed } => {
                runtime.note_placed(group, placed);
                Ok((Self { id: group, bundles }, placed))
            }
            Answer::NoSuchName => {
                Err(Error::new(ErrorKind::Unknown, "there is no placement group of this name"))
            }
            other => Err(unexpected(other)),
        }
    }
}

impl GroupBuilder {
    fn of(arrange: Arrange) -> Self {
        Self { group: Group { arrange, ..Group::default() }, ..Self::default() }
    }

    /// One bundle more: amounts by name (`cpu`, `memory` in bytes, `gpu`, `tpu`, or a custom resource).
    pub fn bundle(self, amounts: &[(&str, f64)]) -> Self {
        self.bundles(1, amounts)
    }

    /// So many bundles more, all alike.
    pub fn bundles(mut self, count: usize, amounts: &[(&str, f64)]) -> Self {
        let list =
            amounts.iter().map(|(name, amount)| Ok((Kind::parse(name)?, Quantity::from_f64(*amount)?)));
        let bundle = list.collect::<Result<Vec<_>, resource::Error>>().and_then(Resources::from_list);
        match bundle {
            // One more than may be is enough to be refused.
            Ok(bundle) => {
                let room = (mobula_proto::group::BUNDLES_MAX + 1).saturating_sub(self.group.bundles.len());
                self.group.bundles.extend(std::iter::repeat_n(bundle, count.min(room)));
            }
            Err(error) => {
                let at = self.group.bundles.len();
                self.mistake.get_or_insert_with(|| format!("bundle {at}: {error}"));
            }
        }
        self
    }

    /// Places are all nodes that have the same value of this label, such as a rack, instead of single nodes.
    pub fn by(mut self, label: &str) -> Self {
        label.clone_into(&mut self.group.place);
        self
    }

    /// Only nodes whose labels fulfil the rule; all rules must hold.
    pub fn label_rule(mut self, rule: LabelRule) -> Self {
        self.group.labels.push(rule);
        self
    }

    /// Higher goes first within its queue.
    pub fn priority(mut self, priority: i32) -> Self {
        self.group.priority = priority;
        self
    }

    /// The queue that is charged; the job's own unless set.
    pub fn queue(mut self, queue: &str) -> Self {
        queue.clone_into(&mut self.group.queue);
        self
    }

    /// Waits for nodes that could hold it instead of failing when there are none. What was reserved once waits for others
    /// in any case.
    pub fn wait_for_node(mut self, yes: bool) -> Self {
        self.group.wait_for_node = yes;
        self
    }

    /// Whether what runs in it may be stopped and run again: then the group makes room for others as a whole, and waits
    /// again. One that is not restartable never does: what it borrowed of other queues it keeps until it is removed, or its
    /// job ends.
    pub fn restartable(mut self, yes: bool) -> Self {
        self.group.restartable = yes;
        self
    }

    /// A name by which others find it ([`PlacementGroup::find`]), unique in its namespace.
    pub fn name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// The namespace of the name; the job's own unless set.
    pub fn namespace(mut self, namespace: &str) -> Self {
        namespace.clone_into(&mut self.namespace);
        self
    }

    /// Stays until it is removed, even after its job has ended or the head was started again; any job may run in it. It
    /// waits for nodes. Needs a name and a namespace.
    pub fn detached(mut self) -> Self {
        self.detached = true;
        self
    }

    /// Asks for it, and returns before it is reserved: see [`PlacementGroup::ready`].
    pub async fn create(self) -> Result<PlacementGroup> {
        self.ask().await.map(|(group, _)| group)
    }

    /// Asks for it, and waits until all of it is reserved.
    pub async fn reserve(self) -> Result<PlacementGroup> {
        let (group, placed) = self.ask().await?;
        if !placed {
            group.ready().await?;
        }
        Ok(group)
    }

    async fn ask(self) -> Result<(PlacementGroup, bool)> {
        let Self { group, name, namespace, detached, mistake } = self;
        let mistake = mistake.or_else(|| group.validate().err().map(|error| error.to_string()));
        if let Some(mistake) = mistake {
            return Err(Error::new(ErrorKind::Infeasible, mistake));
        }
        let question = Question::GroupCreate { group, name, namespace, detached };
        PlacementGroup::asked(question).await
    }
}

impl IntoFuture for GroupBuilder {
    type Output = Result<PlacementGroup>;
    type IntoFuture = Pin<Box<dyn Future<Output = Result<PlacementGroup>> + Send>>;

    /// [`GroupBuilder::reserve`].
    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.reserve())
    }
}
