//! Simulation: loads made from a seed, and traces that are replayed in virtual time.

mod drain;
pub mod load;
mod packing;
mod random;
mod replay;
pub mod trace;

pub use drain::{Drain, ask};
pub use packing::{Packing, packing};
pub use random::Random;
pub use replay::{Delay, Replay, Summary};
