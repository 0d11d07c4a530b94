//! Batch normalization for programs with an operating system.
