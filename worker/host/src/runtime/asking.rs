//! Questions to the head.

use std::time::Duration;

use mobula_proto::{
    Failure, FailureKind, GroupId,
    host::{Answer, Question, ToAgent},
};

use super::Runtime;
use crate::core::UNASKED;

/// Longest wait for the head's answer to a question.
pub const QUESTION_WAIT: Duration = Duration::from_secs(10);

/// Most placement groups that are remembered as reserved; the head is asked about others.
const PLACED_MAX: usize = 4096;

/// Who waits for the head's answer to a question.
pub(super) enum Asker {
    /// A thread.
    Now(std::sync::mpsc::SyncSender<Answer>),
    /// Async code.
    Later(tokio::sync::oneshot::Sender<Answer>),
}

impl Asker {
    /// The asker may have given up; then nobody wants the answer.
    pub fn answer(self, answer: Answer) {
        match self {
            Self::Now(sender) => drop(sender.try_send(answer)),
            Self::Later(sender) => drop(sender.send(answer)),
        }
    }
}

/// A question that is taken back when this is dropped.
struct Asked<'a> {
    runtime: &'a Runtime,
    request: u64,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.runtime.questions.lock().remove(&self.request);
    }
}

impl Runtime {
    /// The number under which the asker gets its answer.
    fn number_asker(&self, asker: Asker) -> u64 {
        let request = self.number();
        let mut questions = self.questions.lock();
        questions.insert(request, asker);
        // Under that lock, so that the job's end finds whoever asks, or they find it.
        if self.ended.lock().is_some() {
            questions.remove(&request);
        }
        request
    }

    /// Asks the head. Blocks the calling thread for at most [`QUESTION_WAIT`].
    pub fn ask(&self, question: Question) -> Answer {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        let request = self.number_asker(Asker::Now(sender));
        self.tell(ToAgent::Ask { request, question });
        receiver.recv_timeout(QUESTION_WAIT).unwrap_or_else(|_| {
            self.questions.lock().remove(&request);
            Answer::Failed(self.ended().unwrap_or_else(|| {
                Failure::new(
                    FailureKind::Unreachable,
                    format!("the head gave no answer within {} s", QUESTION_WAIT.as_secs()),
                )
            }))
        })
    }

    /// Asks the head something that it may answer much later, when something has come about: ends with the answer, or
    /// with the job. Dropped, the answer is not waited for.
    pub async fn ask_and_wait(&self, question: Question) -> Answer {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let request = self.number_asker(Asker::Later(sender));
        let _asked = Asked { runtime: self, request };
        self.tell(ToAgent::Ask { request, question });
        receiver.await.unwrap_or_else(|_| {
            Answer::Failed(self.ended().unwrap_or_else(|| {
                Failure::new(FailureKind::Unreachable, "the connection to the head is gone")
            }))
        })
    }

    /// Whether this placement group was reserved when the head last spoke of it, and no node was lost since.
    pub fn is_placed(&self, group: GroupId) -> bool {
        self.placed.lock().contains(&group)
    }

    /// The head said whether this placement group is reserved.
    pub fn note_placed(&self, group: GroupId, yes: bool) {
        let mut placed = self.placed.lock();
        if !yes {
            placed.remove(&group);
        } else if placed.len() < PLACED_MAX {
            placed.insert(group);
        }
    }

    /// Tells the head something of which the answer does not matter.
    pub fn tell_head(&self, question: Question) {
        self.tell(ToAgent::Ask { request: UNASKED, question });
    }
}
