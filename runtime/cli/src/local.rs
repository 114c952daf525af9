//! Nodes that the head starts on its own machine, as processes, when work waits for them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::Command,
    sync::Arc,
};

use mobula_agent::{
    detect,
    service::{STORE_BYTES_MIN, store_bytes_default},
};
use mobula_head::scaling::{Order, Provider, Scaling};
use mobula_proto::{
    Quantity, Resources,
    resource::{Kind, LABEL_INSTANCE, LABEL_NODE_TYPE},
};
use mobula_scheduler::autoscale::NodeType;
use parking_lot::Mutex;

use crate::{args::ByUp, home::Home, up};

/// Starts nodes as processes of this machine. They end with this process.
pub struct Local {
    folder: PathBuf,
    log: Option<String>,
    /// What the machine has.
    machine: Resources,
    running: Mutex<BTreeMap<String, (String, up::Child)>>,
}

/// What the head is given, where types of nodes are set.
pub fn scaling(types: &[NodeType], home: &Home, log: Option<&str>) -> Option<Scaling> {
    let local = Local {
        folder: home.path().join("auto"),
        log: log.map(str::to_owned),
        machine: if types.is_empty() { Resources::none() } else { machine() },
        running: Mutex::new(BTreeMap::new()),
    };
    (!types.is_empty()).then(|| Scaling { types: types.to_vec(), provider: Arc::new(local) })
}

/// What this machine has, without its devices; nothing where that cannot be told.
fn machine() -> Resources {
    let options = detect::Options { devices: false, ..detect::Options::default() };
    detect::detect(&options).map_or_else(|_| Resources::none(), |found| found.total)
}

impl Local {
    fn command(&self, instance: &str, order: &Order) -> Result<Command, String> {
        let Order { node_type, token, head } = order;
        // It runs on this very machine.
        let dial = match head.ip().is_unspecified() {
            true => SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), head.port()),
            false => *head,
        };
        let folder = self.folder.join(instance);
        let mut command = up::command(ByUp::Attached, None, instance).map_err(|error| error.text())?;
        command.arg("node").arg("--home").arg(&folder).arg("--head").arg(dial.to_string());
        command.arg("--name").arg(instance).arg("--listen").arg(SocketAddr::new(dial.ip(), 0).to_string());
        command.arg("--socket").arg(folder.join("agent.sock")).arg("--by-up").arg(ByUp::Attached.as_str());
        for (kind, amount) in node_type.resources.iter() {
            match kind {
                Kind::Cpu => command.arg("--cpus").arg(amount.to_string()),
                Kind::Memory => command.arg("--memory").arg((amount.units() / Quantity::PER_ONE).to_string()),
                other => command.arg("--resource").arg(format!("{other}={amount}")),
            };
        }
        // What a type does not name it does not offer, though the machine has it.
        for (kind, option) in [(Kind::Cpu, "--cpus"), (Kind::Memory, "--memory")] {
            if node_type.resources.get(&kind).is_zero() {
                command.arg(option).arg("0");
            }
        }
        if node_type.resources.get(&Kind::Memory).is_zero() {
            // Its store is shared memory of the machine all the same: a part of what one node would have.
            let store = store_bytes_default(&self.machine) / u64::from(node_type.max.max(1));
            command.arg("--store").arg(store.max(STORE_BYTES_MIN).to_string());
        }
        let own = [(LABEL_NODE_TYPE, node_type.name.as_str()), (LABEL_INSTANCE, instance)];
        let labels = node_type.labels.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        for (key, value) in labels.chain(own) {
            command.arg("--label").arg(format!("{key}={value}"));
        }
        if let Some(level) = &self.log {
            command.arg("--log").arg(level);
        }
        command.env_remove("MOBULA_NODE_ADVERTISE").env("MOBULA_JOIN", token);
        // No type has devices (see `values::node_type`): those of the machine are offered by nodes started by hand.
        command.envs(detect::VISIBLE_VARIABLES.map(|variable| (variable, "")));
        Ok(command)
    }
}

impl Provider for Local {
    fn start(&self, order: &Order) -> Result<String, String> {
        let mut running = self.running.lock();
        let taken: BTreeSet<&String> = running.keys().collect();
        // A number that is free again has a home, and so its certificate, already.
        let instance = (1..)
            .map(|number: u32| format!("{}-{number}", order.node_type.name))
            .find(|name| !taken.contains(name))
            .ok_or("there are too many nodes")?;
        crate::home::private(&self.folder).map_err(|error| error.text())?;
        let command = self.command(&instance, order)?;
        let child = up::Child::start(command, &instance).map_err(|error| error.text())?;
        running.insert(instance.clone(), (order.node_type.name.clone(), child));
        Ok(instance)
    }

    fn instances(&self) -> Result<BTreeMap<String, String>, String> {
        let mut running = self.running.lock();
        running.retain(|_, (_, child)| !child.has_ended());
        Ok(running.iter().map(|(name, (of, _))| (name.clone(), of.clone())).collect())
    }

    fn end(&self, instance: &str) {
        // Dropped without the lock: it waits until the process is gone.
        let ended = self.running.lock().remove(instance);
        drop(ended);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_offers_what_its_type_says_and_no_more() {
        let machine = crate::values::node_type("m=0..1 100GiB memory").unwrap().resources;
        let local =
            Local { folder: PathBuf::from("/nowhere"), log: None, machine, running: Mutex::default() };
        let told = |text: &str| {
            let order = Order {
                node_type: crate::values::node_type(text).unwrap(),
                token: "token".to_owned(),
                head: "127.0.0.1:7420".parse().unwrap(),
            };
            let command = local.command("worker-1", &order).unwrap();
            let words: Vec<String> =
                command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
            let of = |option: &str| {
                let pairs = words.windows(2).filter(|pair| pair[0] == option);
                pairs.map(|pair| pair[1].clone()).collect::<Vec<_>>().join(" ")
            };
            format!("{}; {}; {}; {}", of("--cpus"), of("--memory"), of("--resource"), of("--store"))
        };
        assert_eq!(told("worker=0..2 2 cpu 1MiB memory idle 60s"), "2; 1048576; ; ");
        assert_eq!(told("worker=0..2 2 cpu idle 60s"), "2; 0; ; 16106127360");
        assert_eq!(told("worker=0..2 3 licence idle 60s"), "0; 0; licence=3; 16106127360");
    }

    #[test]
    fn no_two_nodes_offer_the_same_device() {
        for kind in ["GPU", "TPU"] {
            let error = crate::values::node_type(&format!("worker=0..2 1 cpu 1 {kind}")).unwrap_err();
            assert!(error.contains(&format!("node type worker offers {kind}")), "{error}");
            assert!(error.contains(&format!("take {kind} out, and run `mobula node`")), "{error}");
        }
        // Not even one that the machine has.
        let machine = crate::values::node_type("m=0..1 100GiB memory").unwrap().resources;
        let local =
            Local { folder: PathBuf::from("/nowhere"), log: None, machine, running: Mutex::default() };
        let order = Order {
            node_type: crate::values::node_type("worker=0..2 1 cpu").unwrap(),
            token: "token".to_owned(),
            head: "127.0.0.1:7420".parse().unwrap(),
        };
        let command = local.command("worker-1", &order).unwrap();
        let hidden = detect::VISIBLE_VARIABLES.map(|variable| {
            command
                .get_envs()
                .any(|(name, value)| name == variable && value.is_some_and(|value| value.is_empty()))
        });
        assert_eq!(hidden, [true; 3]);
    }
}
