//! What netd says of all its objects, by its API.

use crate::{host::TestHost, wait};
use proto::netd::v1::{
    Group, GroupDefault, GroupSpec, ListForwardsRequest, ListGroupsRequest, ListNetworksRequest,
    ListPortsRequest, UpdateGroupRequest, forward_service_client::ForwardServiceClient,
    group_service_client::GroupServiceClient, network_service_client::NetworkServiceClient,
    port_service_client::PortServiceClient,
};
use std::fmt::Debug;
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

/// All objects of a netd, without what differs from one object to the next of that name and spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Records(String);

impl Records {
    /// Asks for them.
    ///
    /// # Panics
    /// If netd does not answer.
    #[must_use]
    pub fn of(host: &TestHost) -> Self {
        let text = call(host, async |channel| {
            let networks = NetworkServiceClient::new(channel.clone());
            let ports = PortServiceClient::new(channel.clone());
            let forwards = ForwardServiceClient::new(channel.clone());
            let groups = GroupServiceClient::new(channel);
            let all = ListPortsRequest { parent: "networks/-".to_owned(), ..Default::default() };
            let ports = { ports }.list_ports(all).await?.into_inner().ports;
            let all = ListForwardsRequest { parent: "networks/-".to_owned(), ..Default::default() };
            let forwards = { forwards }.list_forwards(all).await?.into_inner().forwards;
            let networks =
                { networks }.list_networks(ListNetworksRequest::default()).await?.into_inner().networks;
            let groups = { groups }.list_groups(ListGroupsRequest::default()).await?.into_inner().groups;
            Ok([text(&networks), text(&ports), text(&forwards), text(&groups)].concat())
        });
        Self(text.unwrap_or_else(|status| panic!("{status}\n{}", host.logs())))
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.0.contains("name:")
    }

    /// Whether something is still to be deleted, or could not be.
    #[must_use]
    pub fn is_deleting(&self) -> bool {
        self.0.contains("state: Deleting") || self.0.contains("state: Degraded")
    }

    /// Looks until netd says so.
    ///
    /// # Panics
    /// With both, if it never does.
    pub fn await_same(&self, host: &TestHost) {
        let same = || (*self == Self::of(host)).then_some(());
        if wait::try_until(super::SOON, same).is_none() {
            self.assert_same(&Self::of(host));
        }
    }

    /// Panics with both, unless they are the same.
    ///
    /// # Panics
    /// If they differ.
    pub fn assert_same(&self, now: &Self) {
        assert!(self == now, "records are\n{}\nand not\n{}", now.0, self.0);
    }
}

fn text(objects: &impl Debug) -> String {
    const CHANCE: [&str; 7] =
        ["uid: ", "generation: ", "observed_generation: ", "pid: ", "id: ", "seconds: ", "nanos: "];
    let text = format!("{objects:#?}\n");
    let same = |line: &&str| !CHANCE.iter().any(|word| line.trim_start().starts_with(word));
    text.lines().filter(same).flat_map(|line| [line, "\n"]).collect()
}

fn call<T>(host: &TestHost, work: impl AsyncFnOnce(Channel) -> Result<T, Status>) -> Result<T, Status> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let endpoint =
            Endpoint::from_shared(host.netd_address()).map_err(|e| Status::internal(e.to_string()))?;
        let channel = endpoint.connect().await.map_err(|e| Status::unavailable(e.to_string()))?;
        work(channel).await
    })
}

/// Lets group `g` deny what its guests send, or not.
///
/// # Errors
/// What netd said.
pub fn deny_out(host: &TestHost, deny: bool) -> Result<(), String> {
    let default = if deny { GroupDefault::Deny } else { GroupDefault::Allow };
    let spec = GroupSpec { default_out: default.into(), ..GroupSpec::default() };
    let group = Group { name: "groups/g".to_owned(), spec: Some(spec), ..Group::default() };
    let update_mask = Some(prost_types::FieldMask { paths: vec!["spec.default_out".to_owned()] });
    let request = UpdateGroupRequest { group: Some(group), update_mask, expected_generation: 0 };
    let answer = call(host, async |channel| GroupServiceClient::new(channel).update_group(request).await);
    answer.map(drop).map_err(|status| status.to_string())
}
