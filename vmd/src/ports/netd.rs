//! Ports by netd's own API.

use super::{Port, PortRequest, Ports};
use proto::netd::v1::{
    CreatePortRequest, DeletePortRequest, GetNetworkRequest, ObjectState, Port as WirePort, PortSpec,
    network_service_client::NetworkServiceClient, port_service_client::PortServiceClient,
};
use shared::{
    fault::{Fault, Kind},
    name::Name,
    socket,
    telemetry::Inject,
};
use std::{collections::HashMap, time::Duration};
use tonic::{Request, Response, Status, service::interceptor::InterceptedService, transport::Channel};

/// netd answers in milliseconds; more than this and it hangs.
const DEADLINE: Duration = Duration::from_secs(5);
/// What netd is told: later than our own, which has the better words.
const TOLD_DEADLINE: Duration = Duration::from_secs(6);

type Netd = InterceptedService<Channel, Inject>;

/// netd, over its socket.
#[derive(Clone, Debug)]
pub struct NetdPorts {
    networks: NetworkServiceClient<Netd>,
    ports: PortServiceClient<Netd>,
    address: String,
}

impl NetdPorts {
    /// Connects at the first call, and again after each loss.
    ///
    /// # Errors
    /// INVALID_ARGUMENT if the address is not `unix://` and an absolute path.
    pub fn new(address: &str) -> Result<Self, Fault> {
        let channel = socket::channel(address)?;
        Ok(Self {
            networks: NetworkServiceClient::with_interceptor(channel.clone(), Inject),
            ports: PortServiceClient::with_interceptor(channel, Inject),
            address: address.to_owned(),
        })
    }

    async fn bounded<T>(&self, call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Fault> {
        let unreachable = |fault: Fault| {
            fault
                .hint(format!("is netd running? It is looked for at {}", self.address))
                .hint("start netd, or name its socket with --netd")
        };
        match tokio::time::timeout(DEADLINE, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => {
                // tonic's own failures to connect come without details.
                let local = status.details().is_empty();
                let fault = Fault::from(status);
                Err(if fault.kind() == Kind::Unavailable && local {
                    unreachable(
                        Fault::new(Kind::Unavailable, "NETD_UNAVAILABLE", "netd cannot be reached")
                            .cause(&fault),
                    )
                } else {
                    fault
                })
            }
            Err(_) => Err(unreachable(Fault::new(
                Kind::Unavailable,
                "NETD_TIMEOUT",
                format!("netd did not answer within {} s", DEADLINE.as_secs()),
            ))),
        }
    }
}

fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(TOLD_DEADLINE);
    request
}

impl Ports for NetdPorts {
    async fn check_network(&self, network: &Name) -> Result<(), Fault> {
        let name = format!("{}/{network}", crate::convert::NETWORKS);
        let mut client = self.networks.clone();
        self.bounded(client.get_network(request(GetNetworkRequest { name }))).await.map(|_| ())
    }

    async fn create(&self, port: &PortRequest) -> Result<Port, Fault> {
        let wanted = WirePort {
            name: port.resource.clone(),
            labels: HashMap::from([("vm".to_owned(), format!("{}/{}", crate::convert::VMS, port.vm))]),
            spec: Some(PortSpec { mac: port.mac.to_string(), ..Default::default() }),
            ..Default::default()
        };
        let mut client = self.ports.clone();
        let made = self
            .bounded(client.create_port(request(CreatePortRequest { port: Some(wanted) })))
            .await
            .map_err(|e| e.context(format!("cannot create port `{}`", port.resource)))?;
        let uid = made.uid;
        let status = made
            .status
            .ok_or_else(|| Fault::internal(format!("netd gave no status of port `{}`", port.resource)))?;
        if status.state() == ObjectState::Degraded {
            return Err(Fault::new(
                Kind::FailedPrecondition,
                "PORT_DEGRADED",
                format!("port `{}` does not work: {}", port.resource, status.error),
            )
            .hint("`kvmctl port show` tells the port's state, netd's log the details"));
        }
        Ok(Port { uid, interface: status.interface, mtu: status.mtu, owner_uid: status.owner_uid })
    }

    async fn delete(&self, resource: &str, uid: Option<&str>) -> Result<(), Fault> {
        let message =
            DeletePortRequest { name: resource.to_owned(), uid: uid.unwrap_or_default().to_owned() };
        let mut client = self.ports.clone();
        match self.bounded(client.delete_port(request(message))).await {
            Ok(_) => Ok(()),
            Err(fault) if fault.kind() == Kind::NotFound => Ok(()),
            Err(fault) => Err(fault.context(format!("cannot delete port `{resource}`"))),
        }
    }
}
