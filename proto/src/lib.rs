//! The wire types and gRPC services of netd and vmd. Generated code only.
#![allow(missing_docs, clippy::all, clippy::pedantic)]

/// All files of the packages, encoded as a `google.protobuf.FileDescriptorSet`.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// A method, and what its options in the `.proto` file say of it.
#[derive(Clone, Copy, Debug)]
pub struct Method {
    /// `/PACKAGE.SERVICE/METHOD`, as it stands in a request.
    pub path: &'static str,
    /// The least role that may call it: `viewer`, `operator` or `admin`.
    pub role: &'static str,
    /// Whether each call is written to the audit log.
    pub audited: bool,
}

/// Every method of both daemons.
pub const METHODS: &[Method] = include!(concat!(env!("OUT_DIR"), "/methods.rs"));

pub mod access {
    pub mod v1 {
        tonic::include_proto!("access.v1");
    }
}

pub mod events {
    pub mod v1 {
        tonic::include_proto!("events.v1");
    }
}

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
