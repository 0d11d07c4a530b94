//! A part that small flash holds.

#![no_std]
#![no_main]

runner::program!(|_, arena, report| bn_conformance::deployment::<f64>(arena, report));
