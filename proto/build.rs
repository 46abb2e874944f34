//! Compiles the `.proto` files with protox, so that no system `protoc` is needed.

use prost::Message as _;
use std::{env, error::Error, fs, path::PathBuf};

const FILES: [&str; 10] = [
    "netd/v1/network.proto",
    "netd/v1/port.proto",
    "netd/v1/forward.proto",
    "netd/v1/capture.proto",
    "netd/v1/event.proto",
    "netd/v1/group.proto",
    "netd/v1/host.proto",
    "netd/v1/diagnose.proto",
    "vmd/v1/event.proto",
    "vmd/v1/vm.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    for file in FILES {
        println!("cargo::rerun-if-changed={file}");
    }
    let descriptors = protox::compile(FILES, ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    // Served by gRPC reflection, so that ordinary gRPC tools work.
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
