//! Traces of work: a line for each task, as comma-separated values.
//!
//! The first line names the columns, in any order: `arrival` and `duration` in seconds, `resources` as amounts and kinds
//! (`2 cpu 0.5 gpu 4GiB memory`), `job` and `priority`; and, where there are any, `queue` and `restartable` (`true` or
//! `false`). Other columns are ignored. A field may stand in double quotes; a comma in one is not understood.

use mobula_proto::{
    Quantity, Resources,
    resource::{self, Kind},
};

use crate::Millis;

/// Most tasks of a trace.
pub const TASKS_MAX: usize = 4_000_000;
/// Most bytes of a trace.
pub const TEXT_MAX: usize = 1 << 30;
/// Most bytes of a line.
pub const LINE_MAX: usize = 4096;
/// Longest time in a trace: ten years.
pub const TIME_MAX: Millis = Millis(10 * 365 * 24 * 3600 * 1000);

/// One task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// When it is submitted.
    pub arrival: Millis,
    /// How long it runs.
    pub duration: Millis,
    /// What it holds while it runs.
    pub resources: Resources,
    /// The job of which it is a part.
    pub job: String,
    /// Higher goes first within a queue.
    pub priority: i32,
    /// The queue that is charged; empty for the default one.
    pub queue: String,
    /// Whether it may be stopped and run again.
    pub restartable: bool,
}

/// Why a trace was refused. Lines count from 1, the first being that of the names.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There is no first line, or it lacks a column.
    #[error(
        "the trace has no column {0}: its first line must name arrival, duration, resources, job and priority"
    )]
    NoColumn(&'static str),
    /// A line is longer than [`LINE_MAX`].
    #[error("line {line} has more than {LINE_MAX} bytes: shorten it")]
    LineTooLong {
        /// Which.
        line: usize,
    },
    /// A line has fewer fields than the first.
    #[error("line {line} has {has} fields, but the first line names {wants}: give each its value")]
    TooFewFields {
        /// Which.
        line: usize,
        /// How many it has.
        has: usize,
        /// How many there should be.
        wants: usize,
    },
    /// A time is not a number of seconds from 0 to [`TIME_MAX`].
    #[error("line {line}: {column} is {text:?}: give seconds, from 0 to ten years")]
    Time {
        /// Which.
        line: usize,
        /// `arrival` or `duration`.
        column: &'static str,
        /// What it says.
        text: String,
    },
    /// The resources cannot be read.
    #[error("line {line}: resources are {text:?}: give amounts and kinds, as in \"2 cpu 4GiB memory\"")]
    Resources {
        /// Which.
        line: usize,
        /// What it says.
        text: String,
    },
    /// The resources are not allowed.
    #[error("line {line}: {error}")]
    NotAllowed {
        /// Which.
        line: usize,
        /// Why.
        error: resource::Error,
    },
    /// The priority is not a whole number.
    #[error("line {line}: priority is {text:?}: give a whole number, such as 0")]
    Priority {
        /// Which.
        line: usize,
        /// What it says.
        text: String,
    },
    /// The job or the queue has no name that is allowed, or whether it is restartable is neither true nor false.
    #[error("line {line}: {column} is {text:?}: {cure}")]
    Text {
        /// Which.
        line: usize,
        /// Of what.
        column: &'static str,
        /// What it says.
        text: String,
        /// What to write.
        cure: &'static str,
    },
    /// More than [`TEXT_MAX`] bytes.
    #[error("the trace has more than {TEXT_MAX} bytes: replay a part of it")]
    TextTooLong,
    /// More than [`TASKS_MAX`] tasks.
    #[error("the trace has more than {TASKS_MAX} tasks: replay a part of it")]
    TooMany,
}

/// Where each column is.
struct Columns {
    count: usize,
    arrival: usize,
    duration: usize,
    resources: usize,
    job: usize,
    priority: usize,
    queue: Option<usize>,
    restartable: Option<usize>,
}

fn fields(line: &str) -> impl Iterator<Item = &str> {
    line.split(',').map(|field| field.trim().trim_matches('"').trim())
}

impl Columns {
    fn read(line: &str) -> Result<Self, Error> {
        let names: Vec<String> = fields(line).map(str::to_ascii_lowercase).collect();
        let find = |name: &str| names.iter().position(|column| column == name);
        let must = |name: &'static str| find(name).ok_or(Error::NoColumn(name));
        Ok(Self {
            count: names.len(),
            arrival: must("arrival")?,
            duration: must("duration")?,
            resources: must("resources")?,
            job: must("job")?,
            priority: must("priority")?,
            queue: find("queue"),
            restartable: find("restartable"),
        })
    }
}

/// The tasks of a trace, in the order of their arrival, those that arrive together in the order of their lines. Empty
/// lines are ignored.
pub fn parse(text: &str) -> Result<Vec<Task>, Error> {
    if text.len() > TEXT_MAX {
        return Err(Error::TextTooLong);
    }
    let mut lines = (1..).zip(text.lines());
    let first = lines.next().map_or("", |(_, line)| line);
    if first.len() > LINE_MAX {
        return Err(Error::LineTooLong { line: 1 });
    }
    let columns = Columns::read(first)?;
    let mut tasks = Vec::new();
    for (line, text) in lines.filter(|(_, text)| !text.trim().is_empty()) {
        if tasks.len() == TASKS_MAX {
            return Err(Error::TooMany);
        }
        tasks.push(task(line, text, &columns)?);
    }
    tasks.sort_by_key(|task| task.arrival);
    Ok(tasks)
}

fn task(line: usize, text: &str, columns: &Columns) -> Result<Task, Error> {
    if text.len() > LINE_MAX {
        return Err(Error::LineTooLong { line });
    }
    let all: Vec<&str> = fields(text).collect();
    if all.len() < columns.count {
        return Err(Error::TooFewFields { line, has: all.len(), wants: columns.count });
    }
    let priority = all[columns.priority];
    let name = |at: usize, column: &'static str| {
        let wrong = |_| Error::Text {
            line,
            column,
            text: all[at].to_owned(),
            cure: "name it by letters, digits and . _ - /",
        };
        resource::check_name(all[at]).map(|_| all[at].to_owned()).map_err(wrong)
    };
    Ok(Task {
        arrival: time(line, "arrival", all[columns.arrival])?,
        duration: time(line, "duration", all[columns.duration])?,
        resources: resources(line, all[columns.resources])?,
        job: name(columns.job, "job")?,
        priority: priority.parse().map_err(|_| Error::Priority { line, text: priority.to_owned() })?,
        queue: match columns.queue.filter(|at| !all[*at].is_empty()) {
            Some(at) => name(at, "queue")?,
            None => String::new(),
        },
        restartable: match columns.restartable.map(|at| all[at]) {
            None | Some("" | "false") => false,
            Some("true") => true,
            Some(other) => {
                let (column, cure) = ("restartable", "give true or false");
                return Err(Error::Text { line, column, text: other.to_owned(), cure });
            }
        },
    })
}

fn time(line: usize, column: &'static str, text: &str) -> Result<Millis, Error> {
    let seconds: Option<f64> = text.parse().ok();
    let most = TIME_MAX.0 as f64 / 1000.0;
    match seconds.filter(|seconds| (0.0..=most).contains(seconds)) {
        Some(seconds) => Ok(Millis((seconds * 1000.0).round() as u64)),
        None => Err(Error::Time { line, column, text: text.to_owned() }),
    }
}

fn resources(line: usize, text: &str) -> Result<Resources, Error> {
    let all = amounts(text).ok_or_else(|| Error::Resources { line, text: text.to_owned() })?;
    all.validate_request().map_err(|error| Error::NotAllowed { line, error })?;
    Ok(all)
}

/// Amounts and kinds, as in `2 cpu 4GiB memory`; `None` where it is anything else, or has a kind twice.
pub fn amounts(text: &str) -> Option<Resources> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let mut all = Resources::none();
    for pair in words.chunks(2) {
        let [amount, kind] = pair else { return None };
        let (amount, kind) = (amount.parse::<Quantity>().ok()?, Kind::parse(kind).ok()?);
        if !all.get(&kind).is_zero() {
            return None;
        }
        all.set(kind, amount);
    }
    Some(all)
}
