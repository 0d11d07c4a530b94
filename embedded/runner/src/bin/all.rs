//! The whole set.

#![no_std]
#![no_main]

runner::program!(|isa, arena, report| _ = bn_conformance::all(isa, arena, report));
