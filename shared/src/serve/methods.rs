//! Which calls are streams, by the services' own descriptors.

use crate::fault::Fault;
use prost::Message as _;
use prost_types::FileDescriptorSet;
use std::collections::BTreeSet;

/// The paths of all calls that take or give a stream.
#[derive(Debug, Default)]
pub(super) struct Streaming(BTreeSet<String>);

impl Streaming {
    /// Those of the services in these descriptor sets.
    ///
    /// # Errors
    /// INTERNAL if one is no descriptor set.
    pub fn of(descriptors: &[&[u8]]) -> Result<Self, Fault> {
        let mut paths = BTreeSet::new();
        for bytes in descriptors {
            let set = FileDescriptorSet::decode(*bytes)
                .map_err(|e| Fault::internal("the services' descriptors cannot be read").cause(&e))?;
            for file in set.file {
                let package = file.package().to_owned();
                for service in file.service {
                    let streams =
                        service.method.iter().filter(|m| m.client_streaming() || m.server_streaming());
                    paths.extend(streams.map(|m| format!("/{package}.{}/{}", service.name(), m.name())));
                }
            }
        }
        Ok(Self(paths))
    }

    pub fn contains(&self, path: &str) -> bool {
        self.0.contains(path)
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn streams_are_told_from_calls() {
        let streaming = Streaming::of(&[tonic_health::pb::FILE_DESCRIPTOR_SET]).unwrap();
        assert!(streaming.contains("/grpc.health.v1.Health/Watch"));
        assert!(!streaming.contains("/grpc.health.v1.Health/Check"));
        assert!(Streaming::of(&[b"\xff\xff"]).is_err());
    }
}
