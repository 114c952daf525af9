//! Sentences for people: what is missing, and what a demand waits for.

use mobula_proto::{
    Quantity,
    resource::{Class, Kind, LabelRule, Strategy, bytes_text},
};

use crate::{
    Demand,
    cluster::Cluster,
    node::Node,
    shapes::Shape,
    stock::{Kinds, Need},
};

/// What a demand waits for.
pub(crate) fn waits(demand: &Demand, shape: &Shape, cluster: &Cluster) -> String {
    let class = &demand.class;
    let nodes: Vec<&Node> = nodes(cluster).collect();
    if nodes.is_empty() {
        return "waits for a first node: the cluster has none that runs work".to_owned();
    }
    let could = |n: &&Node| cluster.admits(shape, n) && n.stock.could_ever(&shape.need);
    let able: Vec<&Node> = nodes.into_iter().filter(could).collect();
    if able.is_empty() {
        return format!("waits for a node that fits: {}", missing(class, cluster));
    }
    let open: Vec<&Node> = able.iter().copied().filter(|n| !n.draining).collect();
    if open.is_empty() {
        return format!("waits for a node that is not draining: {} would fit", names(&able));
    }
    let busy = busy(class, &shape.need, &open, &cluster.kinds)
        .unwrap_or_else(|| "the nodes that fit hold as many slots as they may".to_owned());
    let slots = if demand.backlog == 1 { "1 slot".to_owned() } else { format!("{} slots", demand.backlog) };
    format!("waits for {slots} of {} each: {busy}", class.resources)
}

/// Those that run work, by number.
fn nodes(cluster: &Cluster) -> impl Iterator<Item = &Node> {
    cluster.by_number.values().filter_map(|at| cluster.nodes.get(*at)).filter(|n| n.works())
}

/// Why none of the nodes, which all could hold the class, has room now.
fn busy(class: &Class, need: &Need, nodes: &[&Node], kinds: &Kinds) -> Option<String> {
    let who = match nodes {
        [node] => format!("{}, the only node that fits,", node.id),
        _ => format!("none of the {} nodes that fit", nodes.len()),
    };
    let verb = if nodes.len() == 1 { " has" } else { " has more than" };
    let free = |node: &Node, kind: usize| Quantity::from_units(node.stock.free_of(kind)).unwrap_or_default();
    let wanted: Vec<(&Kind, usize, Quantity)> =
        class.resources.iter().filter_map(|(kind, each)| Some((kind, kinds.find(kind)?, each))).collect();
    // The resource that is short on the most nodes is the one to name.
    let counted = wanted.iter().map(|(kind, at, each)| {
        let count = nodes.iter().filter(|n| free(n, *at) < *each).count();
        (count, *kind, *at, *each)
    });
    // The first of equals.
    let (count, kind, at, each) = counted.reduce(|a, b| if b.0 > a.0 { b } else { a })?;
    if count == nodes.len() {
        let (most, node) = most(nodes, |n| free(n, at))?;
        let total = amount(kind, node.total.get(kind));
        let free = quantity(kind, most);
        return Some(match nodes.len() {
            1 => format!("{who}{verb} {free} of {total} free"),
            _ => format!("{who}{verb} {free} of its {kind} free ({})", node.id),
        });
    }
    let scattered = wanted.iter().find(|(kind, at, each)| {
        kind.is_device() && nodes.iter().all(|n| n.stock.is_short(*at, each.units()))
    });
    if let Some((kind, _, each)) = scattered {
        let what = if *each < Quantity::ONE {
            format!("{each} of one {kind} free")
        } else {
            format!("{each} whole {kind} free")
        };
        return Some(format!("no node that fits has {what}"));
    }
    let full = nodes.iter().all(|n| !n.stock.fits(need));
    (full && count > 0)
        .then(|| format!("no node that fits has all of that free; most lack {}", amount(kind, each)))
}

/// What is missing for a class that no node could ever hold.
pub(crate) fn missing(class: &Class, cluster: &Cluster) -> String {
    let mut fitting: Vec<&Node> = nodes(cluster).collect();
    let mut only = None;
    if let Strategy::Node { node, soft: false } = &class.strategy {
        fitting.retain(|n| n.id == *node);
        if fitting.is_empty() {
            return format!("{node} is not in the cluster, or runs no work");
        }
        only = Some(*node);
    }
    let subject = only.map_or_else(|| "no node".to_owned(), |node| node.to_string());
    for rule in &class.labels {
        if !fitting.iter().any(|n| rule.holds(&n.labels)) {
            return lacks_label(only.map(|n| n.to_string()), rule);
        }
    }
    fitting.retain(|n| class.labels.iter().all(|rule| rule.holds(&n.labels)));
    let rules: Vec<String> = class.labels.iter().map(LabelRule::to_string).collect();
    if fitting.is_empty() {
        return format!("{subject} fulfils all of these label rules: {}", rules.join("; "));
    }
    let with_label =
        if rules.is_empty() { String::new() } else { format!(" with label {}", rules.join("; ")) };
    for (kind, each) in class.resources.iter() {
        let Some((most, node)) = most(&fitting, |n| n.total.get(kind)) else { continue };
        if most >= each {
            continue;
        }
        let need = amount(kind, each);
        let has = quantity(kind, most);
        return match only {
            Some(node) => format!("{node} has {}, not {}", amount(kind, most), quantity(kind, each)),
            None if most.is_zero() => format!("no node{with_label} has {need}: none has any"),
            None => format!("no node{with_label} has {need}: the most any node has is {has} ({})", node.id),
        };
    }
    // Each resource alone is there somewhere: name the node that comes closest.
    let lacking = |n: &Node| class.resources.iter().filter(|(kind, each)| n.total.get(kind) < *each).count();
    let closest = fitting.iter().min_by_key(|n| lacking(n));
    let detail = closest.and_then(|n| {
        let (kind, has) = n.total.first_short(&class.resources)?;
        Some(format!(": {} comes closest, with {}", n.id, amount(&kind, has)))
    });
    format!("no node{with_label} has {} together{}", class.resources, detail.unwrap_or_default())
}

fn lacks_label(only: Option<String>, rule: &LabelRule) -> String {
    match (only, rule) {
        (None, LabelRule::In(..)) => format!("no node has label {rule}"),
        (None, LabelRule::Exists(key)) => format!("no node has label {key}"),
        (None, LabelRule::NotIn(key, values)) => {
            format!("every node has label {key} in ({})", values.join(", "))
        }
        (None, LabelRule::Absent(key)) => format!("every node has label {key}"),
        (Some(node), _) => format!("{node} does not fulfil label rule {rule}"),
    }
}

/// The largest amount, and the first node that has it.
fn most<'a>(nodes: &[&'a Node], of: impl Fn(&Node) -> Quantity) -> Option<(Quantity, &'a Node)> {
    nodes.iter().map(|n| (of(n), *n)).reduce(|a, b| if b.0 > a.0 { b } else { a })
}

fn quantity(kind: &Kind, amount: Quantity) -> String {
    match kind {
        Kind::Memory => bytes_text(amount.units().unsigned_abs() / Quantity::PER_ONE.unsigned_abs()),
        _ => amount.to_string(),
    }
}

fn amount(kind: &Kind, of: Quantity) -> String {
    format!("{} {kind}", quantity(kind, of))
}

fn names(nodes: &[&Node]) -> String {
    let names: Vec<String> = nodes.iter().take(3).map(|n| n.id.to_string()).collect();
    let more = nodes.len().saturating_sub(names.len());
    if more == 0 { names.join(", ") } else { format!("{} and {more} more", names.join(", ")) }
}
