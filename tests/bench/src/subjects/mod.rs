//! What is measured of Mobula.

pub mod calls;
pub mod cost;
pub mod functions;
pub mod nodes;
pub mod own;
pub mod ray;
pub mod scale;
pub mod starts;
