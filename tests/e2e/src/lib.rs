//! The harness of the end-to-end tests: scenario × mode, in one binary.
//!
//! A [`Case`] is an async function of an [`Env`]. It runs embedded, over the processes of a local cluster, and as a
//! remote driver of a [`Rig`]; afterwards nothing may be left over. A [`Solo`] brings its own processes.

#![forbid(unsafe_code)]

pub mod env;
mod harness;

pub use env::{Env, Mode, eventually, witness::Witness};
pub use harness::{Case, Known, SKIPPED, Solo, run, skipped};
pub use mobula_rig::{Part, Rig};
