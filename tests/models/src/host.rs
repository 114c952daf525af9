//! A host's views into regions of others, on locks of the model checker.

use loom::sync::mpsc::Sender;
use mobula_proto::host::ToAgent;

use crate::{bytes::Bytes, region::Reader};

#[path = "host/sync.rs"]
mod sync;
#[path = "../../../worker/host/src/store/views.rs"]
pub mod views;

/// What the agent's side of a model hears.
#[expect(clippy::large_enum_variant, reason = "a model says little")]
pub enum Said {
    /// What the host says.
    Host(ToAgent),
    /// One of those that the model waits for is done.
    Done,
    /// The object's owner does not count on it any more.
    Free,
    /// The connection is gone: nothing is heard or answered any more.
    Gone,
}

/// In place of the host's link to its agent.
#[derive(Clone)]
pub struct AgentSender(Sender<Said>);

impl AgentSender {
    /// Says it all to whoever receives.
    pub fn new(sender: Sender<Said>) -> Self {
        Self(sender)
    }

    /// As the host's.
    pub fn tell(&self, message: ToAgent) {
        self.say(Said::Host(message));
    }

    /// As the host's: it is heard at any time before what is said next.
    pub fn mention(&self, message: ToAgent) {
        self.tell(message);
    }

    /// What is no message.
    pub fn say(&self, said: Said) {
        // Nobody hears what is said once a model is over.
        let _over = self.0.send(said);
    }
}
