//! `netd.v1.NetworkService`.

use super::{page, shown, watch};
use crate::{convert, kernel::Kernel, model::IfName, reconciler::Reconciler};
use proto::netd::v1 as wire;
use shared::{access::Caller, events::Cursor, fault::Fault, name::Name, serve::Messages};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

#[derive(Debug)]
pub struct Service<K> {
    reconciler: Reconciler<K>,
    stop: CancellationToken,
}

impl<K: Kernel> Service<K> {
    pub fn new(reconciler: Reconciler<K>, stop: CancellationToken) -> Self {
        Self { reconciler, stop }
    }
}

/// Whether the caller may have a network use these interfaces of the host.
fn allowed<'a>(
    caller: &Caller,
    interfaces: impl IntoIterator<Item = &'a Option<IfName>>,
) -> Result<(), Fault> {
    interfaces.into_iter().flatten().try_for_each(|name| caller.must_be_allowed_uplink(name.as_str()))
}

#[tonic::async_trait]
impl<K: Kernel> wire::network_service_server::NetworkService for Service<K> {
    type WatchNetworksStream = Messages<wire::WatchNetworksResponse>;

    async fn get_network(
        &self,
        request: Request<wire::GetNetworkRequest>,
    ) -> Result<Response<wire::Network>, Status> {
        let caller = Caller::of(&request)?;
        let name = Name::from_resource(&request.get_ref().name, "networks")?;
        Ok(Response::new(shown::network(&caller, convert::network(self.reconciler.network(&name)?))))
    }

    async fn list_networks(
        &self,
        request: Request<wire::ListNetworksRequest>,
    ) -> Result<Response<wire::ListNetworksResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let size = page::page_size(request.page_size)?;
        let after = page::after::<wire::Network>(&request.page_token)?;
        let networks = self.reconciler.networks(after.as_ref(), size).into_iter();
        let networks = networks.map(|network| shown::network(&caller, convert::network(network))).collect();
        let broken = page::broken(&self.reconciler, &caller);
        let (networks, next_page_token) = page::page(networks, broken, after.as_ref(), size);
        Ok(Response::new(wire::ListNetworksResponse { networks, next_page_token }))
    }

    async fn create_network(
        &self,
        request: Request<wire::CreateNetworkRequest>,
    ) -> Result<Response<wire::Network>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        caller.about(request.network.as_ref().map_or("", |network| &network.name));
        let new = convert::new_network(request.network)?;
        allowed(&caller, [&new.spec.uplink, &new.spec.bridge])?;
        let view = self.reconciler.create_network(new, request.validate_only).await?;
        Ok(Response::new(convert::network(view)))
    }

    async fn update_network(
        &self,
        request: Request<wire::UpdateNetworkRequest>,
    ) -> Result<Response<wire::Network>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        caller.about(request.network.as_ref().map_or("", |network| &network.name));
        let (name, change) = convert::network_change(request)?;
        allowed(&caller, &change.uplink)?;
        Ok(Response::new(convert::network(self.reconciler.update_network(name, change).await?)))
    }

    async fn delete_network(
        &self,
        request: Request<wire::DeleteNetworkRequest>,
    ) -> Result<Response<wire::DeleteNetworkResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        caller.about(&request.name);
        let name = Name::from_resource(&request.name, "networks")?;
        self.reconciler.delete_network(name, request.force).await?;
        Ok(Response::new(wire::DeleteNetworkResponse {}))
    }

    async fn list_leases(
        &self,
        request: Request<wire::ListLeasesRequest>,
    ) -> Result<Response<wire::ListLeasesResponse>, Status> {
        let name = Name::from_resource(&request.get_ref().parent, "networks")?;
        let found = self.reconciler.leases(&name)?;
        let leases = found.iter().map(|(lease, port)| convert::lease(lease, port.as_ref())).collect();
        Ok(Response::new(wire::ListLeasesResponse { leases }))
    }

    async fn watch_networks(
        &self,
        request: Request<wire::WatchNetworksRequest>,
    ) -> Result<Response<Self::WatchNetworksStream>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let since = Cursor::new(request.since_revision, request.since_epoch)?;
        Ok(Response::new(watch::networks(&self.reconciler, &since, caller, self.stop.clone())?))
    }
}
