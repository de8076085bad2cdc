//! The `presenced` binary: parses the command line and calls [`presenced::app`].

fn main() {}
