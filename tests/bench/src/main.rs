//! Measures Mobula.
fn main() {}
