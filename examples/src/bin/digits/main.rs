//! Data-parallel training: a network learns handwritten digits, and the gradients are made wherever there is room.
//!
//! The training images are dealt into shards, each an object in the store. For each step the driver puts the
//! parameters into the store once, one task for each shard gives the gradient of a batch from its shard, and the
//! driver adds the gradients up and steps. They are added in the order of the shards, whichever comes first, so the
//! losses are the same to the last bit on one node and on many.

#![forbid(unsafe_code)]

mod data;
mod network;

use std::{
    collections::BTreeMap,
    num::{NonZeroU32, NonZeroUsize},
    time::{Duration, Instant},
};

use clap::Parser;
use comfy_table::{ContentArrangement, Table, presets};
use data::Images;
use indicatif::{ProgressBar, ProgressStyle};
use mobula::{Cluster, ErrorKind, NodeId, ObjectRef, Strategy, Tensor};
use ndarray::{ArrayView2, Ix2, ShapeError};
use network::{Adam, Network};

/// Large enough (150 KiB of parameters) that parameters and gradients travel through shared memory.
const NETWORK: Network = Network { inputs: data::PIXELS, hidden: 512, outputs: data::CLASSES };
/// Images of one shard in one step.
const BATCH: usize = 32;
const LEARNING_RATE: f32 = 0.002;
/// Rows of the table of losses, about.
const LOSS_ROWS: usize = 5;

/// Trains a network on handwritten digits, data-parallel, and tests it.
///
/// Runs inside this process, or on the cluster that MOBULA_ADDRESS names, or, with --nodes, on a cluster of
/// processes that it starts for itself.
#[derive(Parser)]
#[command(name = "digits", version)]
struct Arguments {
    /// Start a cluster of this many nodes on this machine.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    nodes: Option<u32>,
    /// How often to go through the training images.
    #[arg(long, value_name = "N", default_value = "20")]
    epochs: NonZeroU32,
    /// Parts that the training images are dealt into: gradients made at once.
    #[arg(long, value_name = "N", default_value = "4")]
    shards: NonZeroUsize,
    /// Decides the split into training and test, the order of the images, and the first weights.
    #[arg(long, value_name = "SEED", default_value = "42")]
    seed: u64,
}

/// Labelled images on their way to tasks.
#[mobula::data]
struct Shard {
    pixels: Tensor,
    labels: Tensor,
}

impl Shard {
    fn new(images: &Images) -> mobula::Result<Self> {
        let labels = Tensor::from_vec(&[images.len()], images.labels.clone())?;
        Ok(Self { pixels: Tensor::from_array(&images.pixels), labels })
    }

    fn pixels(&self) -> mobula::Result<ArrayView2<'_, f32>> {
        self.pixels.view()?.into_dimensionality::<Ix2>().map_err(misshapen)
    }
}

/// What one shard contributes to a step.
#[mobula::data]
struct Part {
    /// Summed over the images, in the layout of the parameters.
    gradient: Tensor,
    /// Summed over the images.
    loss: f32,
    images: u32,
    node: String,
}

/// The gradient over these rows of the shard.
#[mobula::task]
fn gradient_of(parameters: Tensor, shard: Shard, rows: Vec<u32>) -> mobula::Result<Part> {
    let batch = data::gather(shard.pixels()?, shard.labels.as_slice()?, &rows);
    let gradient =
        NETWORK.gradient(parameters.as_slice()?, batch.pixels.view(), &batch.labels).map_err(misshapen)?;
    Ok(Part {
        gradient: Tensor::from_vec(&[gradient.sum.len()], gradient.sum)?,
        loss: gradient.loss,
        images: batch.len() as u32,
        node: mobula::context::current()?.node().to_string(),
    })
}

/// How many of the images the network names as their labels do.
#[mobula::task]
fn correct_in(parameters: Tensor, test: Shard) -> mobula::Result<u64> {
    let correct = NETWORK.correct(parameters.as_slice()?, test.pixels()?, test.labels.as_slice()?);
    Ok(correct.map_err(misshapen)? as u64)
}

fn misshapen(error: ShapeError) -> mobula::Error {
    mobula::Error::new(ErrorKind::Returned, format!("the network and its inputs do not fit: {error}"))
}

/// What is told at the end.
struct Report {
    losses: Vec<f32>,
    accuracy: f64,
    tasks_by_node: BTreeMap<String, u64>,
    /// Parameters and gradients, put by the driver and received from tasks.
    bytes: u64,
    elapsed: Duration,
}

async fn train(arguments: &Arguments, nodes: &[NodeId]) -> mobula::Result<Report> {
    let started = Instant::now();
    let mut random = data::Random::new(arguments.seed);
    let all = data::load().map_err(|error| mobula::Error::new(ErrorKind::Returned, error.to_string()))?;
    let (train, test) = data::split(&all, &mut random);
    let shards: Vec<Images> =
        train.deal(arguments.shards.get()).into_iter().filter(|shard| shard.len() > 0).collect();
    let stored = shards
        .iter()
        .map(|shard| mobula::put(&Shard::new(shard)?))
        .collect::<mobula::Result<Vec<ObjectRef<Shard>>>>()?;
    // Each shard is read on one node, which copies it once; should that be full or gone, another does as well.
    let mut homes: Vec<Strategy> =
        nodes.iter().map(|node| Strategy::Node { node: *node, soft: true }).collect();
    if homes.is_empty() {
        // Nodes may come once there is work.
        homes.push(Strategy::Hybrid);
    }

    let mut parameters = NETWORK.start(&mut random);
    let mut adam = Adam::new(parameters.len(), LEARNING_RATE);
    let mut report = Report {
        losses: Vec::new(),
        accuracy: 0.0,
        tasks_by_node: BTreeMap::new(),
        bytes: 0,
        elapsed: Duration::ZERO,
    };
    let progress = progress(u64::from(arguments.epochs.get()));
    for _ in 0..arguments.epochs.get() {
        let orders: Vec<Vec<u32>> = shards.iter().map(|shard| random.order(shard.len())).collect();
        let longest = orders.iter().map(Vec::len).max().unwrap_or(0);
        let mut loss = 0.0;
        for start in (0..longest).step_by(BATCH) {
            let object = put(&parameters, &mut report.bytes)?;
            // Submitted together, before any is awaited.
            let parts: Vec<ObjectRef<Part>> = stored
                .iter()
                .zip(&orders)
                .zip(homes.iter().cycle())
                .filter_map(|((shard, order), home)| {
                    let rows = order.get(start..order.len().min(start + BATCH))?;
                    let there = gradient_of.options().strategy(home.clone());
                    Some(there.remote(&object, shard, rows.to_vec()))
                })
                .collect();
            loss += step(&parts, &mut parameters, &mut adam, &mut report).await?;
        }
        report.losses.push(loss / train.len() as f32);
        progress.inc(1);
        progress.set_message(format!("loss {:.4}", loss / train.len() as f32));
    }
    progress.finish_and_clear();

    let object = put(&parameters, &mut report.bytes)?;
    report.accuracy = correct_in.remote(&object, Shard::new(&test)?).await? as f64 / test.len() as f64;
    report.elapsed = started.elapsed();
    Ok(report)
}

fn put(parameters: &[f32], bytes: &mut u64) -> mobula::Result<ObjectRef<Tensor>> {
    let tensor = Tensor::from_vec(&[parameters.len()], parameters.to_vec())?;
    *bytes += tensor.as_bytes()?.len() as u64;
    mobula::put(&tensor)
}

/// Adds the gradients up in the order of the shards, steps, and gives the loss summed over the images.
async fn step(
    parts: &[ObjectRef<Part>],
    parameters: &mut [f32],
    adam: &mut Adam,
    report: &mut Report,
) -> mobula::Result<f32> {
    let mut sum = vec![0.0; parameters.len()];
    let (mut loss, mut images) = (0.0, 0);
    for part in mobula::get_all(parts).await? {
        for (sum, slope) in sum.iter_mut().zip(part.gradient.as_slice::<f32>()?) {
            *sum += slope;
        }
        loss += part.loss;
        images += part.images;
        report.bytes += part.gradient.as_bytes()?.len() as u64;
        *report.tasks_by_node.entry(part.node).or_default() += 1;
    }
    for slope in &mut sum {
        *slope /= images as f32;
    }
    adam.step(parameters, &sum);
    Ok(loss)
}

/// Drawn on standard error, and only where that is a terminal.
fn progress(epochs: u64) -> ProgressBar {
    let bar = ProgressBar::new(epochs);
    match ProgressStyle::with_template("epoch {pos}/{len} {wide_bar} {msg}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn table(header: [&str; 2], rows: impl Iterator<Item = [String; 2]>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header);
    table.add_rows(rows);
    table
}

impl Report {
    fn print(&self) {
        let every = self.losses.len().div_ceil(LOSS_ROWS).max(1);
        let last = self.losses.len();
        let losses = self.losses.iter().enumerate().map(|(at, loss)| (at + 1, loss));
        let shown = losses.filter(|(epoch, _)| *epoch == 1 || epoch % every == 0 || *epoch == last);
        // Enough digits to tell any two losses apart.
        let losses = shown.map(|(epoch, loss)| [epoch.to_string(), format!("{loss:.8}")]);
        println!("{}", table(["epoch", "loss"], losses));
        let tasks = self.tasks_by_node.iter().map(|(node, tasks)| [node.clone(), tasks.to_string()]);
        println!("{}", table(["node", "gradients"], tasks));
        let gradients: u64 = self.tasks_by_node.values().sum();
        let mebibytes = self.bytes as f64 / f64::from(1 << 20);
        println!("{gradients} gradients, {mebibytes:.1} MiB of parameters and gradients");
        println!(
            "accuracy={:.4} nodes={} seconds={:.2}",
            self.accuracy,
            self.tasks_by_node.len(),
            self.elapsed.as_secs_f64()
        );
    }
}

#[mobula::main]
async fn main() -> mobula::Result<()> {
    let arguments = Arguments::parse();
    let cluster = match arguments.nodes {
        Some(nodes) => Cluster::local().nodes(nodes).start().await?,
        None => Cluster::auto().start().await?,
    };
    train(&arguments, &cluster.nodes().await?).await?.print();
    Ok(())
}
