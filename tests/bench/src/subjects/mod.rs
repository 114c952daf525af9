//! What is measured of Mobula.

pub mod calls;
pub mod functions;
pub mod own;
pub mod ray;
