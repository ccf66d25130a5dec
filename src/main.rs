//! The command line of advect.

fn main() {}
