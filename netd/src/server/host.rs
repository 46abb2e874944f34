//! `netd.v1.HostService`.

use crate::{convert, kernel::Kernel, plan, reconciler::Reconciler};
use proto::netd::v1 as wire;
use shared::access::{Access, Caller};
use tonic::{Request, Response, Status};

#[derive(Debug)]
pub struct Service<K>(pub Reconciler<K>, pub Access);

#[tonic::async_trait]
impl<K: Kernel> wire::host_service_server::HostService for Service<K> {
    async fn get_host(&self, request: Request<wire::GetHostRequest>) -> Result<Response<wire::Host>, Status> {
        let caller = Caller::of(&request)?;
        let host = self.0.host().await?;
        let (observed, nft) = &*host;
        let (networks, ports) = self.0.counts();
        let on = |key: &str| observed.sysctls.get(key).is_some_and(|value| value == "1");
        let mut warnings = self.0.warnings();
        warnings.extend(self.1.trouble());
        let nft_version = nft.clone().unwrap_or_else(|fault| {
            warnings.push(fault.chain());
            String::new()
        });
        let count = |number| u32::try_from(number).unwrap_or(u32::MAX);
        Ok(Response::new(wire::Host {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            instance_id: self.0.instance(),
            kernel_release: rustix::system::uname().release().to_string_lossy().into_owned(),
            nft_version,
            ipv4_forwarding: on(plan::FORWARD4),
            ipv6_forwarding: on(plan::FORWARD6),
            bridge_nf_call_iptables: on(plan::BRIDGE_NF),
            network_count: count(networks),
            port_count: count(ports),
            warnings: warnings.iter().map(|warning| caller.words(warning)).collect(),
            caller: Some(convert::caller(&caller)),
        }))
    }
}
