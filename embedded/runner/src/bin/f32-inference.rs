//! A part that small flash holds.

#![no_std]
#![no_main]

runner::program!(bn_conformance::inference::<f32>);
