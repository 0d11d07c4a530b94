//! The C library with any descriptor, and pointers that are valid for the sizes that its header states and no
//! more: the status that the header names, the bits of bn-core, and nothing else written.
//!
//! | file | what |
//! |---|---|
//! | `operands.rs` | operands as C sees them, what may be wrong with a call, and what is expected of it |
//! | `descriptor.rs` | descriptors, and the plans that they mean |
//! | `tensors.rs` | the calls with a descriptor |
//! | `arrays.rs` | those without |
#![cfg_attr(feature = "libfuzzer", no_main)]

mod arrays;
mod descriptor;
mod operands;
mod tensors;

use arbitrary::Arbitrary;
use bn_fuzz::fuzz_target;

#[derive(Arbitrary, Debug)]
enum Input {
    Tensors(tensors::Input),
    Arrays(arrays::Input),
}

fuzz_target!(|input: Input| match &input {
    Input::Tensors(input) => tensors::go(input),
    Input::Arrays(input) => arrays::go(input),
});
