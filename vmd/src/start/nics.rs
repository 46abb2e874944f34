//! A machine's NICs as ports of netd: named after the machine, made at each start as its spec says.

use super::{Context, Undo};
use crate::{
    model::Record,
    ports::{self, Port, PortRequest, Ports},
};
use shared::fault::{Fault, Kind};

/// The machine's resource names of ports, in the order of its NICs.
#[must_use]
pub fn port_names(record: &Record) -> Vec<String> {
    let nics = record.spec.nics.iter().enumerate();
    nics.map(|(index, nic)| ports::resource(&nic.network, &ports::port_name(&record.name, index))).collect()
}

/// The machine is known by its own name on each of its networks, where it has several NICs by the first.
fn port_requests(record: &Record) -> Vec<PortRequest> {
    let nics = &record.spec.nics;
    let ports = port_names(record).into_iter().zip(nics).zip(&record.macs).enumerate();
    ports
        .map(|(index, ((resource, nic), mac))| PortRequest {
            vm: record.name.clone(),
            tenant: record.owner,
            resource,
            mac: *mac,
            hostname: nics[..index]
                .iter()
                .all(|earlier| earlier.network != nic.network)
                .then(|| record.name.clone()),
            options: nic.port.clone(),
        })
        .collect()
}

/// Makes the ports; what is made so far is in `undo`.
///
/// # Errors
/// What netd says, or that a port belongs to another user.
pub(super) async fn make_ports<P: Ports>(
    context: &Context<P>,
    record: &Record,
    undo: &mut Undo,
) -> Result<Vec<Port>, Fault> {
    let own = rustix::process::geteuid().as_raw();
    let mut made = Vec::new();
    for request in port_requests(record) {
        undo.ports.push(request.resource.clone());
        let port = context.releases.create(&request).await?;
        if port.owner_uid != own {
            return Err(Fault::new(
                Kind::FailedPrecondition,
                "PORT_OWNER",
                format!(
                    "port `{}` belongs to uid {}, and vmd runs as uid {own}",
                    request.resource, port.owner_uid
                ),
            )
            .hint("delete that port, so that vmd can make its own"));
        }
        made.push(port);
    }
    Ok(made)
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::model::{Nic, NicModel, Spec, test_record, test_spec};
    use shared::{mac::Mac, name::Name};

    #[test]
    fn a_machine_has_its_own_name_once_on_each_network() {
        let networks = ["lan", "wan", "lan"];
        let nic = |network: &&str| Nic {
            network: network.parse().unwrap(),
            mac: None,
            model: NicModel::Virtio,
            port: Default::default(),
        };
        let spec = Spec { nics: networks.iter().map(nic).collect(), ..test_spec() };
        let macs = (0..3).map(|salt| Mac::derived("web", salt)).collect();
        let record = Record { macs, ..test_record(spec) };
        let requests = port_requests(&record);
        let names: Vec<_> =
            requests.iter().map(|r| (r.resource.as_str(), r.hostname.as_ref().map(Name::as_str))).collect();
        assert_eq!(
            names,
            [
                ("networks/lan/ports/web-0", Some("web")),
                ("networks/wan/ports/web-1", Some("web")),
                ("networks/lan/ports/web-2", None),
            ]
        );
        assert_eq!(requests.iter().map(|r| r.mac).collect::<Vec<_>>(), record.macs);
    }
}
