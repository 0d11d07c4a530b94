//! The targets without a fuzzer: inputs are the seeds, and what chance makes of them. It needs neither libFuzzer nor a
//! build of bn-core of its own; where a fuzzer finds its way, this one goes the same steps each time.
//!
//! ```text
//! forward -runs=800 -input=artifacts/forward/input seeds/forward
//! ```

use bn_oracle::data::Random;
use std::io;
use std::path::{Path, PathBuf};

/// The longest input.
const MOST: usize = 512;

/// Bytes that numbers and lengths are made of.
const BYTES: [u8; 8] = [0, 1, 0x3f, 0x7f, 0x80, 0x81, 0xbf, 0xff];

/// What a target's `main` does: runs it on every file of the directories it is given, and then on as many inputs drawn
/// from those as `-runs` says. Where it ends before its time, the file `-input` has the bytes that ended it.
pub fn main(target: fn(&[u8])) {
    let (mut runs, mut input, mut seeds) = (0usize, None, Vec::new());
    for argument in std::env::args().skip(1) {
        if let Some(n) = argument.strip_prefix("-runs=") {
            runs = n.parse().expect("-runs: a number");
        } else if let Some(path) = argument.strip_prefix("-input=") {
            input = Some(PathBuf::from(path));
        } else {
            assert!(!argument.starts_with('-'), "{argument}: no such option");
            read(Path::new(&argument), &mut seeds).unwrap_or_else(|e| panic!("{argument}: {e}"));
        }
    }
    let run = |bytes: &[u8]| {
        // Before, as some ends leave no time to write it: a signal, a panic where C called.
        if let Some(path) = &input {
            std::fs::write(path, bytes).expect("the directory of -input");
        }
        target(bytes);
    };
    seeds.iter().for_each(|bytes| run(bytes));
    let mut random = Random(1);
    for _ in 0..runs {
        run(&drawn(&mut random, &seeds));
    }
    if let Some(path) = &input {
        std::fs::remove_file(path).ok();
    }
    println!("{} seeds, {runs} drawn inputs", seeds.len());
}

/// The bytes of a file, or of all files of a directory, in the order of their names.
fn read(path: &Path, into: &mut Vec<Vec<u8>>) -> io::Result<()> {
    if path.is_dir() {
        let mut paths = path.read_dir()?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
        paths.sort();
        paths.iter().try_for_each(|path| read(path, into))
    } else {
        into.push(std::fs::read(path)?);
        Ok(())
    }
}

/// An input: random bytes, or a seed of which some bytes have changed.
fn drawn(random: &mut Random, seeds: &[Vec<u8>]) -> Vec<u8> {
    if seeds.is_empty() || random.below(4) == 0 {
        let bytes = random.below(MOST) + 1;
        return (0..bytes).map(|_| random.bits() as u8).collect();
    }
    let mut bytes = seeds[random.below(seeds.len())].clone();
    for _ in 0..1 << random.below(5) {
        // Mostly among the first, which say what the others mean.
        let most = bytes.len().min(if random.below(2) == 0 { 64 } else { MOST });
        let at = random.below(most.max(1));
        match random.below(6) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 if at < bytes.len() => bytes[at] = random.bits() as u8,
            2 if at < bytes.len() => bytes[at] = random.pick(&BYTES),
            3 => {
                let four = (random.bits() as u32).to_le_bytes();
                bytes.iter_mut().skip(at).zip(four).for_each(|(b, new)| *b = new);
            }
            4 => {
                // From here on another seed.
                let other = &seeds[random.below(seeds.len())];
                bytes.truncate(at);
                bytes.extend(other.iter().skip(at));
            }
            _ => bytes.insert(at.min(bytes.len()), random.bits() as u8),
        }
    }
    bytes.truncate(MOST);
    bytes
}

/// As libFuzzer's: a program that runs the body on values of the input's type.
#[macro_export]
macro_rules! fuzz_target {
    (|$input:ident: $of:ty| $body:expr) => {
        fn main() {
            $crate::blind::main(|bytes| {
                let unstructured = $crate::arbitrary::Unstructured::new(bytes);
                if let Ok($input) = <$of as $crate::arbitrary::Arbitrary>::arbitrary_take_rest(unstructured) {
                    $body
                }
            });
        }
    };
}
