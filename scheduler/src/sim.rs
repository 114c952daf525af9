//! Simulation: loads made from a seed.

mod drain;
pub mod load;
mod random;

pub use drain::{Drain, ask};
pub use random::Random;
