//! All objects of a sort, page by page: for lists and for the shell's completion.

use crate::{
    client::{Clients, DEADLINE, within},
    output::{forward::Forward, group::Group, network::Network, port::Port, vm::Vm},
    resource,
};
use proto::{netd::v1 as netd, vmd::v1 as vmd};
use shared::{fault::Fault, name::Name};

/// Items of all pages. `page` is asked with the token of the one before, and gives its items and the next token.
async fn pages<T>(
    mut page: impl AsyncFnMut(String) -> Result<(Vec<T>, String), Fault>,
) -> Result<Vec<T>, Fault> {
    let (mut found, mut token) = (Vec::new(), String::new());
    loop {
        let (items, next) = page(token).await?;
        found.extend(items);
        if next.is_empty() {
            return Ok(found);
        }
        token = next;
    }
}

/// The parent of one network's objects, or of all networks'.
fn parent(of: Option<&Name>) -> String {
    of.map_or_else(|| "networks/-".to_owned(), resource::network)
}

/// All networks, in the order of their names.
///
/// # Errors
/// What netd said.
pub async fn networks(clients: &Clients) -> Result<Vec<Network>, Fault> {
    let mut networks = clients.networks()?;
    let found = pages(async |page_token| {
        let request = netd::ListNetworksRequest { page_size: 0, page_token };
        let page = clients.netd.call(DEADLINE, networks.list_networks(within(DEADLINE, request))).await?;
        Ok((page.networks, page.next_page_token))
    });
    Ok(found.await?.into_iter().map(Network::from).collect())
}

/// The ports of one network or of all, in the order of their names.
///
/// # Errors
/// What netd said.
pub async fn ports(clients: &Clients, of: Option<&Name>) -> Result<Vec<Port>, Fault> {
    let mut ports = clients.ports()?;
    let found = pages(async |page_token| {
        let request = netd::ListPortsRequest { parent: parent(of), page_size: 0, page_token };
        let page = clients.netd.call(DEADLINE, ports.list_ports(within(DEADLINE, request))).await?;
        Ok((page.ports, page.next_page_token))
    });
    Ok(found.await?.into_iter().map(Port::from).collect())
}

/// The forwards of one network or of all, in the order of their names.
///
/// # Errors
/// What netd said.
pub async fn forwards(clients: &Clients, of: Option<&Name>) -> Result<Vec<Forward>, Fault> {
    let mut forwards = clients.forwards()?;
    let found = pages(async |page_token| {
        let request = netd::ListForwardsRequest { parent: parent(of), page_size: 0, page_token };
        let page = clients.netd.call(DEADLINE, forwards.list_forwards(within(DEADLINE, request))).await?;
        Ok((page.forwards, page.next_page_token))
    });
    Ok(found.await?.into_iter().map(Forward::from).collect())
}

/// All groups, in the order of their names.
///
/// # Errors
/// What netd said.
pub async fn groups(clients: &Clients) -> Result<Vec<Group>, Fault> {
    let mut groups = clients.groups()?;
    let found = pages(async |page_token| {
        let request = netd::ListGroupsRequest { page_size: 0, page_token };
        let page = clients.netd.call(DEADLINE, groups.list_groups(within(DEADLINE, request))).await?;
        Ok((page.groups, page.next_page_token))
    });
    Ok(found.await?.into_iter().map(Group::from).collect())
}

/// All machines, in the order of their names.
///
/// # Errors
/// What vmd said.
pub async fn vms(clients: &Clients) -> Result<Vec<Vm>, Fault> {
    let mut vms = clients.vms()?;
    let found = pages(async |page_token| {
        let request = vmd::ListVmsRequest { page_size: 0, page_token };
        let page = clients.vmd.call(DEADLINE, vms.list_vms(within(DEADLINE, request))).await?;
        Ok((page.vms, page.next_page_token))
    });
    Ok(found.await?.into_iter().map(Vm::from).collect())
}
