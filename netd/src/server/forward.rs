//! `netd.v1.ForwardService`.

use super::{page, shown};
use crate::{convert, kernel::Kernel, reconciler::Reconciler};
use proto::netd::v1 as wire;
use shared::{access::Caller, name::Name};
use tonic::{Request, Response, Status};

#[derive(Debug)]
pub struct Service<K>(pub Reconciler<K>);

#[tonic::async_trait]
impl<K: Kernel> wire::forward_service_server::ForwardService for Service<K> {
    async fn get_forward(
        &self,
        request: Request<wire::GetForwardRequest>,
    ) -> Result<Response<wire::Forward>, Status> {
        let caller = Caller::of(&request)?;
        let key = convert::forward_key(&request.get_ref().name)?;
        Ok(Response::new(shown::forward(&caller, convert::forward(self.0.forward(&key)?))))
    }

    async fn list_forwards(
        &self,
        request: Request<wire::ListForwardsRequest>,
    ) -> Result<Response<wire::ListForwardsResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let size = page::page_size(request.page_size)?;
        let network = match request.parent.as_str() {
            "networks/-" => None,
            parent => Some(Name::from_resource(parent, "networks")?),
        };
        let after = page::after::<wire::Forward>(&request.page_token)?;
        let views = self.0.forwards(network.as_ref(), after.as_ref(), size)?;
        let forwards =
            views.into_iter().map(|view| shown::forward(&caller, convert::forward(view))).collect();
        let broken = page::broken_of(network.as_ref(), &self.0, &caller);
        let (forwards, next_page_token) = page::page(forwards, broken, after.as_ref(), size);
        Ok(Response::new(wire::ListForwardsResponse { forwards, next_page_token }))
    }

    async fn create_forward(
        &self,
        request: Request<wire::CreateForwardRequest>,
    ) -> Result<Response<wire::Forward>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        caller.about(request.forward.as_ref().map_or("", |forward| &forward.name));
        let new = convert::new_forward(request)?;
        Ok(Response::new(convert::forward(self.0.create_forward(new).await?)))
    }

    async fn delete_forward(
        &self,
        request: Request<wire::DeleteForwardRequest>,
    ) -> Result<Response<wire::DeleteForwardResponse>, Status> {
        Caller::of(&request)?.about(&request.get_ref().name);
        let key = convert::forward_key(&request.get_ref().name)?;
        self.0.delete_forward(key).await?;
        Ok(Response::new(wire::DeleteForwardResponse {}))
    }
}
