//! `BN_ISA`, in processes of its own: it is read once.

use bn_core::Isa;
use bn_std::{BatchNormLayer, Error};
use std::process::Command;

/// What the processes below run: says what a layer is made with.
#[test]
fn report() {
    match BatchNormLayer::<f32>::new(1) {
        Ok(bn) => println!("isa={}", bn.isa().kind().name()),
        Err(Error::Isa { got }) => println!("refused={got}"),
        Err(error) => panic!("{error}"),
    }
    assert_eq!(bn_std::isa(), bn_std::isa());
    // An ISA chosen by hand has the last word, but does not mend a wrong environment.
    if let Ok(bn) = BatchNormLayer::<f32>::new(1) {
        assert_eq!(bn.with_isa(Isa::PORTABLE).isa(), Isa::PORTABLE);
    }
}

fn reported(value: Option<&str>) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "report", "--nocapture", "--test-threads=1"]).env_remove("BN_ISA");
    if let Some(value) = value {
        command.env("BN_ISA", value);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let place = text.find("isa=").or(text.find("refused=")).unwrap();
    text[place..].lines().next().unwrap().to_owned()
}

#[test]
fn the_environment_decides() {
    let best = format!("isa={}", Isa::detect().kind().name());
    assert_eq!(reported(None), best);
    assert_eq!(reported(Some("")), best);
    for name in ["portable", "avx2", "avx512"] {
        let expected = if Isa::by_name(name).is_some() { format!("isa={name}") } else { format!("refused={name}") };
        assert_eq!(reported(Some(name)), expected);
    }
    assert_eq!(reported(Some("AVX-512")), "refused=AVX-512");
}
