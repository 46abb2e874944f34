//! Compiles the `.proto` files with protox, so that no system `protoc` is needed.

use protox::prost_reflect::{DescriptorPool, DynamicMessage, MethodDescriptor, Value};
use std::{env, error::Error, fmt::Write as _, fs, path::PathBuf};

const FILES: [&str; 10] = [
    "access/v1/access.proto",
    "events/v1/event.proto",
    "netd/v1/network.proto",
    "netd/v1/port.proto",
    "netd/v1/forward.proto",
    "netd/v1/capture.proto",
    "netd/v1/group.proto",
    "netd/v1/host.proto",
    "netd/v1/diagnose.proto",
    "vmd/v1/vm.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    for file in FILES {
        println!("cargo::rerun-if-changed={file}");
    }
    let mut compiler = protox::Compiler::new(["."])?;
    compiler.include_source_info(true).include_imports(true).open_files(FILES)?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    // Served by gRPC reflection, so that ordinary gRPC tools work. Encoded by protox, which keeps our own options.
    fs::write(out.join("descriptors.bin"), compiler.encode_file_descriptor_set())?;
    fs::write(out.join("methods.rs"), methods(&compiler.descriptor_pool())?)?;
    tonic_prost_build::configure().compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}

/// The table of who may call what. A method that does not say it is no method.
fn methods(pool: &DescriptorPool) -> Result<String, Box<dyn Error>> {
    let mut table = String::from("&[\n");
    for service in pool.services() {
        for method in service.methods() {
            let role = match option(pool, &method, "access.v1.requires")? {
                Some(Value::EnumNumber(1)) => "viewer",
                Some(Value::EnumNumber(2)) => "operator",
                Some(Value::EnumNumber(3)) => "admin",
                _ => {
                    let name = method.full_name();
                    return Err(
                        format!("method {name} needs `option (access.v1.requires) = ROLE_...;`").into()
                    );
                }
            };
            let audited = matches!(option(pool, &method, "access.v1.audited")?, Some(Value::Bool(true)));
            let path = format!("/{}/{}", service.full_name(), method.name());
            writeln!(table, "    Method {{ path: {path:?}, role: {role:?}, audited: {audited} }},")?;
        }
    }
    table.push(']');
    Ok(table)
}

/// An option of a method; `None` if it is not set.
fn option(
    pool: &DescriptorPool,
    method: &MethodDescriptor,
    name: &str,
) -> Result<Option<Value>, Box<dyn Error>> {
    let extension = pool.get_extension_by_name(name).ok_or_else(|| format!("there is no option {name}"))?;
    let options: DynamicMessage = method.options();
    Ok(options.has_extension(&extension).then(|| options.get_extension(&extension).into_owned()))
}
