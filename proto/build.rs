//! Generates the Rust code of the API twice: for clients, and for the broker, which handles a job as opaque bytes.

use std::{env, fs, path::PathBuf};

use prost::Message;
use prost_types::{FileDescriptorSet, field_descriptor_proto::Type};

const FILES: [&str; 6] = [
    "bananas/v1/job.proto",
    "bananas/v1/broker_service.proto",
    "bananas/v1/job_service.proto",
    "bananas/v1/queue_service.proto",
    "bananas/v1/fleet_service.proto",
    "bananas/v1/operation_service.proto",
];

/// Fields that the broker stores and delivers without decoding them. A message field and a bytes field are the same on
/// the wire.
const OPAQUE: [(&str, &str); 5] = [
    ("EnqueueRequest", "job"),
    ("BatchEnqueueRequest", "jobs"),
    ("LeaseResponse", "jobs"),
    ("Jobs", "jobs"),
    ("Job", "spec"),
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let set = protox::compile(FILES, ["."])?;
    fs::write(out.join("descriptor.bin"), set.encode_to_vec())?;

    tonic_prost_build::configure()
        .bytes(".")
        .build_server(false)
        .out_dir(&out)
        .compile_fds(set.clone())?;

    let server = out.join("server");
    fs::create_dir_all(&server)?;
    tonic_prost_build::configure()
        .bytes(".")
        .build_client(false)
        .out_dir(&server)
        .compile_fds(with_opaque_jobs(set))?;
    println!("cargo:rerun-if-changed=bananas");
    Ok(())
}

fn with_opaque_jobs(mut set: FileDescriptorSet) -> FileDescriptorSet {
    let mut changed = 0;
    for file in &mut set.file {
        for message in &mut file.message_type {
            for field in &mut message.field {
                if OPAQUE.contains(&(
                    message.name.as_deref().unwrap_or(""),
                    field.name.as_deref().unwrap_or(""),
                )) {
                    field.r#type = Some(Type::Bytes.into());
                    field.type_name = None;
                    changed += 1;
                }
            }
        }
    }
    assert_eq!(
        changed,
        OPAQUE.len(),
        "a field of OPAQUE is missing from the .proto files"
    );
    set
}
