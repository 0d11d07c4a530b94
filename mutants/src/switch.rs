//! Which mutant is on: `BN_MUTANT` in the environment, read before `main`. Copied into the mutated crate.
//!
//! With `BN_MUTANT=all` none is, but `BN_MUTANT_REACHED` names a file that gets, at the end, the numbers of those that
//! were asked for.

extern crate std;

use core::sync::atomic::{AtomicBool, AtomicU8, Ordering::Relaxed};
use std::{env, format, fs, string::String};

const MOST: usize = 4096;
const OFF: u8 = 0;
const ON: u8 = 1;
const WATCHED: u8 = 2;

static STATES: [AtomicU8; MOST] = [const { AtomicU8::new(OFF) }; MOST];
/// Those that were watched and asked for.
static REACHED: [AtomicBool; MOST] = [const { AtomicBool::new(false) }; MOST];

/// One byte that is nearly always 0: cheap enough for inner loops.
#[inline(always)]
pub(crate) fn on(id: usize) -> bool {
    STATES[id].load(Relaxed) != OFF && decide(id)
}

#[cold]
#[inline(never)]
fn decide(id: usize) -> bool {
    match STATES[id].load(Relaxed) {
        WATCHED => {
            REACHED[id].store(true, Relaxed);
            // From now on it is as fast as if nobody had watched.
            STATES[id].store(OFF, Relaxed);
            false
        }
        state => state == ON,
    }
}

#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = before_main;

unsafe extern "C" {
    fn atexit(f: extern "C" fn()) -> i32;
}

extern "C" fn before_main() {
    match env::var("BN_MUTANT").as_deref() {
        Ok("all") => {
            STATES.iter().for_each(|s| s.store(WATCHED, Relaxed));
            // SAFETY: the function of the C library, and one that lives as long as the program.
            unsafe { atexit(at_exit) };
        }
        Ok(id) => STATES[id.parse::<usize>().expect("BN_MUTANT is a number")].store(ON, Relaxed),
        Err(_) => {}
    }
}

extern "C" fn at_exit() {
    let Some(path) = env::var_os("BN_MUTANT_REACHED") else { return };
    let mut ids = String::new();
    for (id, reached) in REACHED.iter().enumerate() {
        if reached.load(Relaxed) {
            ids += &format!("{id}\n");
        }
    }
    // A child process may have written some before.
    let before = fs::read_to_string(&path).unwrap_or_default();
    let _ = fs::write(path, before + &ids);
}
