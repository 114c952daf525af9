//! Values as people write them, on the command line, in a variable or in `mobula.toml`.

use std::{collections::BTreeMap, ops::RangeInclusive, time::Duration};

use mobula_agent::users::{self, Uids};
use mobula_head::{core::DRAIN_MS_MAX, service::TOKEN_TTL_MAX};
use mobula_net::{
    identity::{PeerName, Role},
    quic::MTU_BYTES,
    ring,
};
use mobula_proto::{NodeId, Quantity, Queue, Resources, resource};
use mobula_scheduler::{
    Event, Millis,
    autoscale::{self, NodeType},
    sim::trace,
};

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_hours(24);
/// The head pings every two seconds; what is not heard twice may be late.
const NODE_TIMEOUT_MIN: Duration = Duration::from_secs(5);

/// An amount of a resource.
pub fn quantity(text: &str) -> Result<Quantity, resource::Error> {
    text.parse()
}

/// Nodes of one kind.
#[derive(Clone, Debug)]
pub struct Nodes {
    /// How many.
    pub count: u32,
    /// What each has.
    pub total: Resources,
}

/// Most nodes of a simulated cluster, of each kind.
const NODES_MAX: u32 = 100_000;

/// `COUNTx AMOUNT KIND …`.
pub fn nodes(text: &str) -> Result<Nodes, String> {
    let wrong = || format!("{text:?} are no nodes: write for example \"4x 16 cpu 64GiB memory 2 gpu\"");
    let (count, total) = text.split_once('x').ok_or_else(wrong)?;
    let count: u32 = count.trim().parse().map_err(|_| wrong())?;
    if !(1..=NODES_MAX).contains(&count) {
        return Err(format!("{count} nodes are not possible: say 1 to {NODES_MAX}"));
    }
    let total = trace::amounts(total).filter(|total| !total.is_empty()).ok_or_else(wrong)?;
    let up = Event::NodeUp {
        node: NodeId { number: 1, incarnation: 1 },
        total: total.clone(),
        devices: Vec::new(),
        labels: Vec::new(),
    };
    up.validate().map_err(|error| error.to_string())?;
    Ok(Nodes { count, total })
}

/// `NODE@SECONDS`: a node of a simulated cluster, and when it is lost.
pub fn loss(text: &str) -> Result<(u32, Millis), String> {
    let wrong =
        || format!("{text:?} is no loss of a node: write for example \"3@600\", node 3 after 600 seconds");
    let (node, at) = text.split_once('@').ok_or_else(wrong)?;
    let node = node.trim().parse().map_err(|_| wrong())?;
    let at: f64 = at.trim().parse().map_err(|_| wrong())?;
    let most = trace::TIME_MAX.0 as f64 / 1000.0;
    if !(0.0..=most).contains(&at) {
        return Err(wrong());
    }
    Ok((node, Millis((at * 1000.0).round() as u64)))
}

/// How long a node that was started by itself runs nothing before it is drained, unless said.
const IDLE: Duration = Duration::from_secs(60);

/// `NAME=MIN..MAX AMOUNT KIND … KEY=VALUE … idle TIME`.
pub fn node_type(text: &str) -> Result<NodeType, String> {
    let wrong = |what: &str| {
        format!(
            "{text:?} is no type of nodes: {what}; write for example \"worker=0..4 2 cpu 4GiB memory zone=a idle 60s\""
        )
    };
    let mut words = text.split_whitespace();
    let first = words.next().unwrap_or_default();
    let (name, range) = first.split_once('=').ok_or_else(|| wrong("it has no NAME=MIN..MAX"))?;
    let bounds = range.split_once("..").and_then(|(min, max)| Some((min.parse().ok()?, max.parse().ok()?)));
    let (min, max) = bounds.ok_or_else(|| wrong(&format!("{range:?} is no MIN..MAX")))?;
    let mut of = NodeType {
        name: name.to_owned(),
        resources: Resources::none(),
        labels: Vec::new(),
        min,
        max,
        idle_timeout: millis(IDLE),
    };
    let mut list = Vec::new();
    while let Some(word) = words.next() {
        if word == "idle" {
            of.idle_timeout = millis(wait(words.next().unwrap_or_default())?);
        } else if word.contains('=') {
            of.labels.push(label(word)?);
        } else {
            list.push(word);
        }
    }
    of.resources =
        trace::amounts(&list.join(" ")).ok_or_else(|| wrong("its amounts are not like 2 cpu 4GiB memory"))?;
    of.labels.sort();
    autoscale::validate(std::slice::from_ref(&of)).map_err(|error| error.to_string())?;
    if let Some((kind, _)) = of.resources.iter().find(|(kind, _)| kind.is_device()) {
        // Each would count its own from 0, and several would be granted the same one.
        return Err(format!(
            "node type {} offers {kind}, and all such nodes are started on the head's machine, where they would share \
             its devices unawares: take {kind} out, and run `mobula node` there, which offers what it finds",
            of.name
        ));
    }
    Ok(of)
}

fn millis(time: Duration) -> Millis {
    Millis(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}

/// As [`node_type`] reads it.
pub fn node_type_text(of: &NodeType) -> String {
    let mut text = format!("{}={}..{}", of.name, of.min, of.max);
    for (kind, amount) in of.resources.iter() {
        text.push_str(&format!(" {amount} {kind}"));
    }
    for (key, value) in &of.labels {
        text.push_str(&format!(" {key}={value}"));
    }
    text.push_str(&format!(" idle {}s", of.idle_timeout.0 / 1000));
    text
}

/// `NAME` or `NAME=WEIGHT`.
pub fn queue(text: &str) -> Result<Queue, String> {
    let (name, weight) = text.split_once('=').unwrap_or((text, "1"));
    let weight = quantity(weight).map_err(|error| error.to_string())?;
    let queue = Queue { weight, ..Queue::new(name) };
    mobula_proto::queue::validate(std::slice::from_ref(&queue)).map_err(|error| error.to_string())?;
    Ok(queue)
}

/// A number of bytes.
pub fn bytes(text: &str) -> Result<u64, String> {
    let amount: Quantity = text
        .parse()
        .map_err(|_| format!("{text:?} is no size: write for example 512MiB, 16GiB, or a number of bytes"))?;
    u64::try_from(amount.units() / Quantity::PER_ONE).map_err(|error| error.to_string())
}

/// A share of a whole, 0 to 1.
pub fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err(format!("{text:?} is no share: write a number from 0 to 1, for example 0.8")),
    }
}

/// `FIRST-LAST`.
pub fn uids(text: &str) -> Result<Uids, users::Error> {
    text.parse()
}

fn pair<'a>(text: &'a str, example: &str) -> Result<(&'a str, &'a str), String> {
    text.split_once('=').ok_or_else(|| format!("{text:?} has no '=': write for example {example}"))
}

/// `NAME=N`, of anything but CPUs and memory.
pub fn resource(text: &str) -> Result<(String, Quantity), String> {
    let (name, amount) = pair(text, "licence=2")?;
    let kind = resource::Kind::parse(name).map_err(|error| error.to_string())?;
    match kind {
        resource::Kind::Cpu => Err("say --cpus N for CPUs".to_owned()),
        resource::Kind::Memory => Err("say --memory SIZE for memory".to_owned()),
        _ => Ok((name.to_owned(), amount.parse().map_err(|e: resource::Error| e.to_string())?)),
    }
}

/// `KEY=VALUE`.
pub fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = pair(text, "zone=a")?;
    for name in [key, value] {
        resource::check_name(name).map_err(|error| error.to_string())?;
    }
    Ok((key.to_owned(), value.to_owned()))
}

/// Amounts by resource name, as text that the head reads: it alone decides whether they make sense.
pub type Amounts = BTreeMap<String, String>;

/// `NAME=N,NAME=N`; nothing at all where the text is empty.
pub fn amounts(text: &str) -> Result<Amounts, String> {
    let mut all = Amounts::new();
    for part in text.split(',').map(str::trim).filter(|_| !text.trim().is_empty()) {
        let (name, amount) = pair(part, "cpu=4,gpu=2")?;
        if all.insert(name.to_owned(), amount.to_owned()).is_some() {
            return Err(format!("{name} is given twice: give it once"));
        }
    }
    Ok(all)
}

/// A name that a certificate may carry.
pub fn peer_name(text: &str) -> Result<String, String> {
    PeerName::new(Role::Agent, text).map(|peer| peer.name).map_err(|error| error.to_string())
}

/// A ring's capacity.
pub fn ring_bytes(text: &str) -> Result<u32, String> {
    let (min, max) = (ring::CAPACITY_BYTES_MIN, ring::CAPACITY_BYTES_MAX);
    match u32::try_from(bytes(text)?) {
        Ok(bytes) if bytes.is_power_of_two() && (min..=max).contains(&bytes) => Ok(bytes),
        _ => Err(format!("{text} is out of range: a power of two from {}KiB to {}MiB", min >> 10, max >> 20)),
    }
}

/// Bytes of UDP payload in a packet.
pub fn mtu(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(bytes) if MTU_BYTES.contains(&bytes) => Ok(bytes),
        _ => Err(format!(
            "{text:?} is no packet size: write a number of bytes from {} to {}, for example 1452",
            MTU_BYTES.start(),
            MTU_BYTES.end()
        )),
    }
}

/// How long a token may be good.
pub fn ttl(text: &str) -> Result<Duration, String> {
    time(text, SECOND..=TOKEN_TTL_MAX)
}

/// How long a node may take to drain.
pub fn drain_time(text: &str) -> Result<Duration, String> {
    time(text, SECOND..=Duration::from_millis(DRAIN_MS_MAX))
}

/// Silence after which a node counts as lost.
pub fn node_timeout(text: &str) -> Result<Duration, String> {
    time(text, NODE_TIMEOUT_MIN..=DAY)
}

/// A wait of a second to a day.
pub fn wait(text: &str) -> Result<Duration, String> {
    time(text, SECOND..=DAY)
}

/// What is to be logged.
pub fn level(text: &str) -> Result<String, String> {
    mobula_telemetry::log::check(text).map(|()| text.to_owned()).map_err(|error| {
        format!("{text:?} is no level: write for example info, or warn,mobula_agent=debug ({error})")
    })
}

fn time(text: &str, range: RangeInclusive<Duration>) -> Result<Duration, String> {
    let no = || format!("{text:?} is no time: write for example 90s, 10m, 2h or 1d");
    let split = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(no)?;
    let (number, unit) = text.split_at(split);
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 60 * 60,
        "d" => 24 * 60 * 60,
        _ => return Err(no()),
    };
    let number: u64 = number.parse().map_err(|_| no())?;
    match number.checked_mul(seconds).map(Duration::from_secs) {
        Some(time) if range.contains(&time) => Ok(time),
        _ => {
            let (min, max) = (range.start().as_secs(), range.end().as_secs() / 86_400);
            Err(format!("{text} is out of range: {min}s to {max}d"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_times_and_pairs_are_read() {
        assert_eq!(bytes("512MiB"), Ok(512 * 1024 * 1024));
        assert_eq!((share("0"), share("0.25"), share("1")), (Ok(0.0), Ok(0.25), Ok(1.0)));
        for wrong in ["1.01", "-0.1", "NaN", "80%", ""] {
            assert!(share(wrong).unwrap_err().contains("0 to 1"), "{wrong:?}");
        }
        assert!(bytes("lots").unwrap_err().contains("16GiB"));
        assert_eq!(ttl("10m"), Ok(Duration::from_secs(600)));
        for bad in ["10", "m", "0s", "31d", "1w", "-1s", ""] {
            assert!(ttl(bad).is_err(), "{bad:?} was taken for a time");
        }
        assert_eq!(node_timeout("6s"), Ok(Duration::from_secs(6)));
        assert!(
            node_timeout("4s").unwrap_err().contains("5s to 1d") && wait("18446744073709551615d").is_err()
        );
        assert_eq!(ring_bytes("1MiB"), Ok(1 << 20));
        for bad in ["3MiB", "1KiB", "8GiB", "-1"] {
            assert!(ring_bytes(bad).is_err(), "{bad:?} was taken for a ring's size");
        }
        assert_eq!((mtu("1200"), mtu("1452"), mtu("65000")), (Ok(1200), Ok(1452), Ok(65_000)));
        for bad in ["1199", "65001", "1452B", "-1", ""] {
            assert!(mtu(bad).unwrap_err().contains("1200 to 65000"), "{bad:?} was taken for a packet size");
        }
        assert!(level("info").is_ok() && level("mobula=loud=er").is_err());
        assert_eq!(self::resource("licence=2"), Ok(("licence".to_owned(), Quantity::whole(2))));
        assert_eq!(self::resource("gpu=2"), Ok(("gpu".to_owned(), Quantity::whole(2))));
        for bad in ["licence", "cpu=1", "memory=1GiB", "a b=1", "x=y", "x=-1"] {
            assert!(self::resource(bad).is_err(), "{bad:?} was taken for a resource");
        }
        let all = amounts("cpu=4, memory=64GiB").unwrap();
        assert_eq!((all["cpu"].as_str(), all["memory"].as_str(), all.len()), ("4", "64GiB", 2));
        assert_eq!(amounts(""), Ok(Amounts::new()));
        for bad in ["cpu", "cpu=1,", "cpu=1,cpu=2"] {
            assert!(amounts(bad).is_err(), "{bad:?} was taken for amounts");
        }
        assert!(label("zone").is_err() && label("zone=a").is_ok());
    }
}
