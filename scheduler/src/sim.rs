//! Simulation: loads made from a seed.

pub mod load;
mod random;

pub use random::Random;
