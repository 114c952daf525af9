//! Nodes that the head starts on its own machine, as processes, when work waits for them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::Command,
    sync::Arc,
};

use mobula_head::scaling::{Order, Provider, Scaling};
use mobula_proto::{
    Quantity,
    resource::{Kind, LABEL_INSTANCE, LABEL_NODE_TYPE},
};
use mobula_scheduler::autoscale::NodeType;
use parking_lot::Mutex;

use crate::{args::ByUp, home::Home, up};

/// Starts nodes as processes of this machine. They end with this process.
pub struct Local {
    folder: PathBuf,
    log: Option<String>,
    running: Mutex<BTreeMap<String, (String, up::Child)>>,
}

/// What the head is given, where types of nodes are set.
pub fn scaling(types: &[NodeType], home: &Home, log: Option<&str>) -> Option<Scaling> {
    let local = Local {
        folder: home.path().join("auto"),
        log: log.map(str::to_owned),
        running: Mutex::new(BTreeMap::new()),
    };
    (!types.is_empty()).then(|| Scaling { types: types.to_vec(), provider: Arc::new(local) })
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
        if node_type.resources.get(&Kind::Cpu).is_zero() {
            command.arg("--cpus").arg("0");
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
        // What it offers is stated; a device that is found belongs to the nodes that were started by hand.
        command.envs(mobula_agent::detect::VISIBLE_VARIABLES.map(|variable| (variable, "")));
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
