//! Map, shuffle, reduce: counts the words of files that need not fit into memory.
//!
//! The driver cuts the files into chunks. A map task counts the words of a chunk and splits its table into one part
//! for each reducer, by the word's hash; it puts each part into the store of its own node and returns refs to them.
//! A reduce task is given the refs to its part of every table; the parts go from the mapper's node to the reducer's,
//! and never through the driver.

#![forbid(unsafe_code)]

mod text;

use std::{
    collections::{BTreeMap, VecDeque},
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use clap::{CommandFactory, Parser};
use mobula::{Cluster, ErrorKind, ObjectRef, Strategy, View};
use text::{Chunks, Counts};

/// Chunks that are on their way at any time, which bounds what the driver and the store hold of the files.
const CHUNKS_MAX: usize = 32;

/// Counts the words of files: what lies between white space, byte for byte.
///
/// A file's end ends its last word. The counts are those of
/// `tr -s '[:space:]' '\n' | grep -a . | LC_ALL=C sort | uniq -c`.
///
/// Runs inside this process, or on the cluster that MOBULA_ADDRESS names, or, with --nodes, on a cluster of
/// processes that it starts for itself.
#[derive(Parser)]
#[command(name = "wordcount", version)]
struct Arguments {
    /// The files; they are read by this process alone.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Print the most frequent words, the first first.
    #[arg(long, value_name = "N", default_value = "10")]
    top: usize,
    /// Print all words as `LC_ALL=C sort | uniq -c` does.
    #[arg(long, conflicts_with = "top")]
    all: bool,
    /// Start a cluster of this many nodes on this machine.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    nodes: Option<u32>,
    /// Reduce tasks, each with its part of the words.
    #[arg(long, value_name = "N", default_value = "4", value_parser = clap::value_parser!(u32).range(1..=1024))]
    reducers: u32,
    /// Size of a chunk in KiB.
    #[arg(long, value_name = "KIB", default_value = "1024", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    chunk: u32,
}

/// What a map task gives.
#[mobula::data]
struct Mapped {
    /// One for each reducer, in the store of the node where the task ran.
    parts: Vec<ObjectRef<Counts>>,
    node: String,
}

/// What a reduce task gives.
#[mobula::data]
struct Reduced {
    /// All of its words, or the most frequent of them.
    counts: Counts,
    /// Words, and different words, before any were left out.
    words: u64,
    distinct: u64,
    node: String,
}

/// Counts the words of a chunk, which is read where it lies.
#[mobula::task]
fn map(chunk: View<Vec<u8>>, reducers: u32) -> mobula::Result<Mapped> {
    let parts = text::count(&chunk, reducers as usize);
    Ok(Mapped { parts: parts.iter().map(mobula::put).collect::<mobula::Result<_>>()?, node: node()? })
}

/// Adds up one reducer's part of every chunk.
#[mobula::task]
fn reduce(parts: Vec<Counts>, top: Option<u64>) -> mobula::Result<Reduced> {
    let merged = text::merge(&parts);
    let (words, distinct) = (merged.total(), merged.len() as u64);
    let counts = match top {
        // No other reducer has these words: what is not among its most frequent is not among those of all.
        Some(top) => merged.top(usize::try_from(top).unwrap_or(usize::MAX)),
        None => merged,
    };
    Ok(Reduced { counts, words, distinct, node: node()? })
}

fn node() -> mobula::Result<String> {
    Ok(mobula::context::current()?.node().to_string())
}

/// What is told at the end.
#[derive(Default)]
struct Report {
    reduced: Vec<Counts>,
    words: u64,
    distinct: u64,
    tasks_by_node: BTreeMap<String, u64>,
    elapsed: Duration,
}

async fn count(arguments: &Arguments) -> mobula::Result<Report> {
    let started = Instant::now();
    let mut report = Report::default();
    let reducers = arguments.reducers;
    let mut shuffled: Vec<Vec<ObjectRef<Counts>>> = (0..reducers).map(|_| Vec::new()).collect();
    let mut running: VecDeque<ObjectRef<Mapped>> = VecDeque::new();
    let chunk_bytes = (arguments.chunk as usize) << 10;
    for path in &arguments.files {
        let failed = |error: io::Error| failed(unreadable(path, &error));
        let mut chunks = Chunks::new(File::open(path).map_err(failed)?, chunk_bytes);
        // Reading blocks this task, which is the only one there is here, and no longer than a chunk takes.
        while let Some(chunk) = chunks.next().map_err(failed)? {
            if running.len() >= CHUNKS_MAX {
                collect(&mut running, &mut shuffled, &mut report).await?;
            }
            let chunk = mobula::put(&chunk)?;
            running.push_back(map.options().strategy(Strategy::Spread).remote(&chunk, reducers));
        }
    }
    while !running.is_empty() {
        collect(&mut running, &mut shuffled, &mut report).await?;
    }

    let top = (!arguments.all).then_some(arguments.top as u64);
    let reducing: Vec<ObjectRef<Reduced>> = shuffled
        .iter()
        .map(|parts| reduce.options().strategy(Strategy::Spread).remote(&parts[..], top))
        .collect();
    for reduced in mobula::get_all(&reducing).await? {
        report.words += reduced.words;
        report.distinct += reduced.distinct;
        *report.tasks_by_node.entry(reduced.node).or_default() += 1;
        report.reduced.push(reduced.counts);
    }
    report.elapsed = started.elapsed();
    Ok(report)
}

/// Waits for the oldest map task and hands its parts on.
async fn collect(
    running: &mut VecDeque<ObjectRef<Mapped>>,
    shuffled: &mut [Vec<ObjectRef<Counts>>],
    report: &mut Report,
) -> mobula::Result<()> {
    if let Some(oldest) = running.pop_front() {
        let mapped = oldest.await?;
        for (list, part) in shuffled.iter_mut().zip(mapped.parts) {
            list.push(part);
        }
        *report.tasks_by_node.entry(mapped.node).or_default() += 1;
    }
    Ok(())
}

impl Report {
    /// Lines of `uniq -c`: the count in seven columns, a space, the word as it is.
    fn print(&self, top: Option<usize>, out: &mut impl Write) -> io::Result<()> {
        let mut table: Vec<(&[u8], u64)> = self.reduced.iter().flat_map(Counts::iter).collect();
        match top {
            Some(top) => table = text::most_frequent(table, top),
            None => table.sort_unstable(),
        }
        for (word, count) in table {
            write!(out, "{count:7} ")?;
            out.write_all(word)?;
            out.write_all(b"\n")?;
        }
        out.flush()
    }

    /// On standard error, so that the counts can be piped on.
    fn summarise(&self) {
        for (node, tasks) in &self.tasks_by_node {
            eprintln!("{node}: {tasks} tasks");
        }
        eprintln!(
            "words={} distinct={} nodes={} seconds={:.2}",
            self.words,
            self.distinct,
            self.tasks_by_node.len(),
            self.elapsed.as_secs_f64()
        );
    }
}

fn unreadable(path: &Path, error: &io::Error) -> String {
    format!("cannot read {}: {error}", path.display())
}

fn failed(message: String) -> mobula::Error {
    mobula::Error::new(ErrorKind::Returned, message)
}

/// Why this cannot be counted, as far as can be told before anything is started.
fn mistake(path: &Path) -> Option<String> {
    let looked = fs::metadata(path).and_then(|found| {
        if found.is_dir() {
            return Err(io::Error::from(io::ErrorKind::IsADirectory));
        }
        // A pipe would take it for a reader that has gone.
        if found.is_file() { File::open(path).map(drop) } else { Ok(()) }
    });
    looked.err().map(|error| unreadable(path, &error))
}

#[mobula::main]
async fn main() -> mobula::Result<()> {
    let arguments = Arguments::parse();
    let mistakes: Vec<String> = arguments.files.iter().filter_map(|path| mistake(path)).collect();
    if !mistakes.is_empty() {
        Arguments::command().error(clap::error::ErrorKind::Io, mistakes.join("\n")).exit();
    }
    let _cluster = match arguments.nodes {
        Some(nodes) => Cluster::local().nodes(nodes).start().await?,
        None => Cluster::auto().start().await?,
    };
    let report = count(&arguments).await?;
    let top = (!arguments.all).then_some(arguments.top);
    match report.print(top, &mut BufWriter::new(io::stdout().lock())) {
        // Whoever read the counts has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        Err(error) => return Err(failed(format!("cannot print: {error}"))),
        Ok(()) => {}
    }
    report.summarise();
    Ok(())
}
