//! `netd.v1.PortService`.

use super::{page, shown, watch};
use crate::{
    convert::{self, Seen},
    kernel::Kernel,
    reconciler::{PortView, Reconciler},
};
use proto::netd::v1 as wire;
use shared::{
    access::Caller,
    events::Cursor,
    fault::{Fault, Kind},
    name::Name,
    serve::Messages,
};
use std::collections::BTreeSet;
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

    async fn wire(&self, view: PortView, caller: &Caller) -> Result<wire::Port, Fault> {
        let attached =
            self.reconciler.attached(std::slice::from_ref(&view.port.tap)).await?.contains(&view.port.tap);
        let traffic = self.reconciler.traffic().await?.taps.get(&view.port.tap).cloned().unwrap_or_default();
        let leased = self.reconciler.leased(&view.port.network);
        Ok(shown::port(caller, convert::port(view, &Seen { attached, traffic, leased })))
    }
}

#[tonic::async_trait]
impl<K: Kernel> wire::port_service_server::PortService for Service<K> {
    type WatchPortsStream = Messages<wire::WatchPortsResponse>;

    async fn get_port(&self, request: Request<wire::GetPortRequest>) -> Result<Response<wire::Port>, Status> {
        let caller = Caller::of(&request)?;
        let (network, name) = convert::port_key(&request.get_ref().name)?;
        Ok(Response::new(self.wire(self.reconciler.port(&network, &name)?, &caller).await?))
    }

    async fn list_ports(
        &self,
        request: Request<wire::ListPortsRequest>,
    ) -> Result<Response<wire::ListPortsResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let size = page::page_size(request.page_size)?;
        let of = parent(&request.parent)?;
        let after = page::after::<wire::Port>(&request.page_token)?;
        let views = self.reconciler.ports(of.as_ref(), after.as_ref(), size)?;
        let taps: Vec<_> = views.iter().map(|view| view.port.tap.clone()).collect();
        let attached = self.reconciler.attached(&taps).await?;
        let traffic = self.reconciler.traffic().await?;
        let mut seen = Seen::default();
        let mut network = None;
        let mut ports = Vec::with_capacity(views.len());
        for view in views {
            // They come network by network.
            if network.as_ref() != Some(&view.port.network) {
                seen.leased = self.reconciler.leased(&view.port.network);
                network = Some(view.port.network.clone());
            }
            seen.attached = attached.contains(&view.port.tap);
            seen.traffic = traffic.taps.get(&view.port.tap).cloned().unwrap_or_default();
            ports.push(shown::port(&caller, convert::port(view, &seen)));
        }
        let broken = page::broken_of(of.as_ref(), &self.reconciler, &caller);
        let (ports, next_page_token) = page::page(ports, broken, after.as_ref(), size);
        Ok(Response::new(wire::ListPortsResponse { ports, next_page_token }))
    }

    async fn create_port(
        &self,
        request: Request<wire::CreatePortRequest>,
    ) -> Result<Response<wire::Port>, Status> {
        let caller = Caller::of(&request)?;
        let port = request.into_inner().port;
        caller.about(port.as_ref().map_or("", |port| &port.name));
        let new = convert::new_port(port, &caller)?;
        caller.must_be_granted(&new.network)?;
        caller.must_filter(new.spec.filter)?;
        caller.must_be_granted_groups(&BTreeSet::new(), &new.spec.groups)?;
        let view = self.reconciler.create_port(new).await?;
        Ok(Response::new(convert::port(view, &Seen::default())))
    }

    async fn update_port(
        &self,
        request: Request<wire::UpdatePortRequest>,
    ) -> Result<Response<wire::Port>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        caller.about(request.port.as_ref().map_or("", |port| &port.name));
        let (key, mut change) = convert::port_change(request)?;
        change.by = Some(caller.clone());
        caller.must_be_granted(&key.0)?;
        caller.must_filter(change.filter != Some(false))?;
        let view = self.reconciler.update_port(key, change, caller.acting_uid()).await?;
        Ok(Response::new(self.wire(view, &caller).await?))
    }

    async fn delete_port(
        &self,
        request: Request<wire::DeletePortRequest>,
    ) -> Result<Response<wire::DeletePortResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        caller.about(&request.name);
        let key = convert::port_key(&request.name)?;
        let uid = match request.uid.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|e| {
                Fault::new(Kind::InvalidArgument, "INVALID_UID", "the uid is not a UUID").cause(&e)
            })?),
        };
        let by = (caller.acting_uid(), caller.rights.quota);
        self.reconciler.delete_port(key, uid, by).await?;
        Ok(Response::new(wire::DeletePortResponse {}))
    }

    async fn watch_ports(
        &self,
        request: Request<wire::WatchPortsRequest>,
    ) -> Result<Response<Self::WatchPortsStream>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let since = Cursor::new(request.since_revision, request.since_epoch)?;
        let network = parent(&request.parent)?;
        Ok(Response::new(watch::ports(&self.reconciler, &since, (network, caller), self.stop.clone())?))
    }
}

/// The network that a request is about; `None`: all.
fn parent(parent: &str) -> Result<Option<Name>, Fault> {
    match parent {
        "networks/-" => Ok(None),
        parent => Name::from_resource(parent, "networks").map(Some),
    }
}
