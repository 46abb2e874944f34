//! The wire types and gRPC services of netd and vmd. Generated code only.
#![allow(missing_docs, clippy::all, clippy::pedantic)]

/// All files of both packages, encoded as a `google.protobuf.FileDescriptorSet`.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

pub mod netd {
    pub mod v1 {
        tonic::include_proto!("netd.v1");
    }
}

pub mod vmd {
    pub mod v1 {
        tonic::include_proto!("vmd.v1");
    }
}
