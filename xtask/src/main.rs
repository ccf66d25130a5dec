//! Set-up and chores of advect.

fn main() {}
