//! `netd.v1.GroupService`.

use super::page;
use crate::{convert, kernel::Kernel, reconciler::Reconciler};
use proto::netd::v1 as wire;
use shared::{access::Caller, name::Name};
use tonic::{Request, Response, Status};

#[derive(Debug)]
pub struct Service<K>(pub Reconciler<K>);

#[tonic::async_trait]
impl<K: Kernel> wire::group_service_server::GroupService for Service<K> {
    async fn get_group(
        &self,
        request: Request<wire::GetGroupRequest>,
    ) -> Result<Response<wire::Group>, Status> {
        let name = Name::from_resource(&request.get_ref().name, "groups")?;
        Ok(Response::new(convert::group(self.0.group(&name)?)))
    }

    async fn list_groups(
        &self,
        request: Request<wire::ListGroupsRequest>,
    ) -> Result<Response<wire::ListGroupsResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let size = page::page_size(request.page_size)?;
        let after = page::after::<wire::Group>(&request.page_token)?;
        let groups = self.0.groups(after.as_ref(), size).into_iter().map(convert::group).collect();
        let broken = page::broken(&self.0, &caller);
        let (groups, next_page_token) = page::page(groups, broken, after.as_ref(), size);
        Ok(Response::new(wire::ListGroupsResponse { groups, next_page_token }))
    }

    async fn create_group(
        &self,
        request: Request<wire::CreateGroupRequest>,
    ) -> Result<Response<wire::Group>, Status> {
        let caller = Caller::of(&request)?;
        let group = request.into_inner().group;
        caller.about(group.as_ref().map_or("", |group| &group.name));
        let new = convert::new_group(group)?;
        Ok(Response::new(convert::group(self.0.create_group(new).await?)))
    }

    async fn update_group(
        &self,
        request: Request<wire::UpdateGroupRequest>,
    ) -> Result<Response<wire::Group>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        caller.about(request.group.as_ref().map_or("", |group| &group.name));
        let (name, change) = convert::group_change(request)?;
        Ok(Response::new(convert::group(self.0.update_group(name, change).await?)))
    }

    async fn delete_group(
        &self,
        request: Request<wire::DeleteGroupRequest>,
    ) -> Result<Response<wire::DeleteGroupResponse>, Status> {
        Caller::of(&request)?.about(&request.get_ref().name);
        let name = Name::from_resource(&request.get_ref().name, "groups")?;
        self.0.delete_group(name).await?;
        Ok(Response::new(wire::DeleteGroupResponse {}))
    }
}
