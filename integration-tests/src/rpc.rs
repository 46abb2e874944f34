//! vmd's API without kvmctl between, for tests that call it often.

use crate::host::TestHost;
use proto::vmd::v1::{GetVmRequest, Vm, vm_service_client::VmServiceClient};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tonic::{Status, transport::Channel};

/// A connection to vmd.
#[derive(Debug)]
pub struct Vmd {
    runtime: Runtime,
    client: VmServiceClient<Channel>,
}

impl Vmd {
    /// Connects at the first call.
    ///
    /// # Panics
    /// Without a thread.
    #[must_use]
    pub fn of(host: &TestHost) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        let channel = {
            let _inside = runtime.enter();
            shared::socket::channel(&host.vmd_address()).expect("address")
        };
        Self { runtime, client: VmServiceClient::new(channel) }
    }

    /// A machine as vmd shows it.
    ///
    /// # Errors
    /// What vmd says.
    pub fn show(&mut self, name: &str) -> Result<Vm, Status> {
        let request = GetVmRequest { name: format!("vms/{name}") };
        self.runtime.block_on(self.client.get_vm(request)).map(tonic::Response::into_inner)
    }

    /// The slowest but one in a hundred of `calls` status calls, one after the other.
    ///
    /// # Panics
    /// If one fails.
    pub fn p99(&mut self, name: &str, calls: usize) -> Duration {
        let mut times: Vec<Duration> = (0..calls)
            .map(|_| {
                let begin = Instant::now();
                self.show(name).expect("status");
                begin.elapsed()
            })
            .collect();
        times.sort();
        times[(calls * 99 / 100).min(calls - 1)]
    }
}
