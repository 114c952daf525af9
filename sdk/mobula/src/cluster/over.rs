//! The end of a driver's job, as the driver lives through it.

use std::{
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use mobula_host::link::AgentReceiver;
use mobula_proto::host::ToHost;

/// Longest that a driver which is done waits for what its hosts printed last. All that takes long is a node that
/// hangs or cannot be reached.
pub const OUTPUT_WAIT: Duration = Duration::from_millis(500);

/// How far the end has come.
#[derive(Default)]
pub(super) struct Over {
    begun: AtomicBool,
    told: Mutex<bool>,
    changed: Condvar,
}

impl Over {
    /// The end begins now; `false` where it had begun already.
    pub(super) fn begin(&self) -> bool {
        !self.begun.swap(true, Ordering::AcqRel)
    }

    /// Listens along for the agent's word that the job has ended, which comes behind the last line of output. It is the
    /// agent's last: whoever reads on sees the link end, and closes it.
    pub(super) fn listen(self: &Arc<Self>, mut receive: AgentReceiver) -> AgentReceiver {
        let over = Arc::clone(self);
        let mut last = false;
        Box::new(move || {
            if last {
                return None;
            }
            // Whoever asks for the next message has dealt with those before it: lines have been printed.
            let delivery = receive();
            if delivery.as_ref().is_none_or(|delivery| matches!(delivery.message, ToHost::JobEnded(_))) {
                last = true;
                *over.told.lock().unwrap_or_else(PoisonError::into_inner) = true;
                over.changed.notify_all();
            }
            delivery
        })
    }

    /// Returns when the agent has said so, when it is gone, or after [`OUTPUT_WAIT`].
    pub(super) fn wait(&self) {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(told, OUTPUT_WAIT, |told| !*told);
        if waited.is_ok_and(|(_, late)| late.timed_out()) {
            tracing::debug!("the last output of some node did not come in time");
        }
    }
}
