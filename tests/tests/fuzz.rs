//! The fuzzers' entry points on a stable compiler: over the stories of all vectors, over the kept inputs (`fuzz/corpus`, every
//! crash that was ever found among them), and over random changes of both. `FUZZ_RUNS` says how many, `FUZZ_SEED` which.

use std::{fs, path::Path};

use telecluster_tests::{
    dice::{Dice, number},
    fuzz, vectors,
};

fn inputs(target: &str) -> Vec<Vec<u8>> {
    let mut inputs: Vec<_> = vectors::all().iter().map(fuzz::story).collect();
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    if std::env::var_os("TELECLUSTER_VM").is_some() {
        eprintln!("without the kept inputs: no files of the checkout are in this machine");
        return inputs;
    }
    for entry in fs::read_dir(&kept).expect("list the kept inputs") {
        inputs.push(fs::read(entry.expect("an entry").path()).expect("read an input"));
    }
    inputs
}

/// Some bytes change, some go, some come from another input.
fn change(input: &mut Vec<u8>, inputs: &[Vec<u8>], dice: &mut Dice) {
    for _ in 0..=dice.next(4) {
        let place = dice.next(input.len());
        match dice.next(8) {
            0..=3 if !input.is_empty() => input[place] = dice.byte(),
            4 if !input.is_empty() => input[place] ^= 1 << dice.next(8),
            5 => input.truncate(place),
            6 => {
                let byte = dice.byte();
                input.insert(place, byte);
            }
            _ => {
                let other = &inputs[dice.next(inputs.len())];
                input.extend(&other[..dice.next(other.len())]);
            }
        }
    }
    input.truncate(4096);
}

fn run(target: &str, entry: fn(&[u8])) {
    let (inputs, runs) = (inputs(target), number("FUZZ_RUNS", 20_000));
    for input in &inputs {
        entry(input);
    }
    let mut dice = Dice::new(number("FUZZ_SEED", 4));
    for _ in 0..runs {
        let mut input = inputs[dice.next(inputs.len())].clone();
        change(&mut input, &inputs, &mut dice);
        // Shown when it fails: what goes into `fuzz/corpus`.
        let shown = std::panic::catch_unwind(|| entry(&input));
        assert!(shown.is_ok(), "{target}: {input:02x?}");
    }
}

#[test]
fn whatever_is_parsed_is_there() {
    run("parse", fuzz::parse);
}

#[test]
fn whatever_is_translated_stays_right() {
    run("translate", fuzz::translate);
}
