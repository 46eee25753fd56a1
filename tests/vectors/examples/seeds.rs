//! Writes the story of each vector into a directory, as what a fuzzer begins with:
//! `cargo run -p telecluster-vectors --example seeds -- DIRECTORY`.

use std::{env, fs, path::PathBuf};

use telecluster_vectors::{fuzz, vectors};

fn main() {
    let directory =
        PathBuf::from(env::args_os().nth(1).expect("a directory, which must not be `fuzz/corpus`"));
    fs::create_dir_all(&directory).expect("make the directory");
    for (number, vector) in vectors::all().iter().enumerate() {
        fs::write(directory.join(format!("vector-{number:03}")), fuzz::story(vector)).expect("write a story");
    }
}
