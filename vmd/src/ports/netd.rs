//! Ports by netd's own API.

use super::{Port, PortRequest, Ports};
use crate::model::{Addresses, PortOptions, Rate};
use proto::netd::v1::{
    CreatePortRequest, DeletePortRequest, GetNetworkRequest, ListPortsRequest, ObjectState, Port as WirePort,
    PortFilter, PortSpec, Rate as WireRate, network_service_client::NetworkServiceClient,
    port_service_client::PortServiceClient,
};
use shared::{
    fault::{Fault, Kind},
    name::{Name, printable},
    socket,
    telemetry::Inject,
};
use std::{collections::HashMap, net::IpAddr, str::FromStr, time::Duration};
use tokio::time::Instant;
use tonic::{Request, Response, Status, service::interceptor::InterceptedService, transport::Channel};

/// netd answers in milliseconds; more than this and it hangs.
const DEADLINE: Duration = Duration::from_secs(5);
/// What netd is told: later than our own, which has the better words.
const TOLD_DEADLINE: Duration = Duration::from_secs(6);

/// Label of a port with the machine that it is for.
const LABEL: &str = "vm";

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

/// Makes a call again where netd says that there were too many changes, and when there is room for one more: vmd has
/// one share of them for all of its clients.
pub(super) async fn paced<T, F>(call: impl Fn() -> F) -> Result<T, Fault>
where
    F: Future<Output = Result<T, Fault>>,
{
    let begun = Instant::now();
    loop {
        match call().await {
            Err(fault) if fault.reason() == "TOO_MANY_CHANGES" => match fault.retry() {
                Some(wait) if begun.elapsed() + wait < DEADLINE => tokio::time::sleep(wait).await,
                _ => return Err(fault),
            },
            result => return result,
        }
    }
}

fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(TOLD_DEADLINE);
    request
}

fn spec(port: &PortRequest) -> PortSpec {
    let PortOptions { ipv4, ipv6, extra, filter, isolated, rate_in, rate_out, groups } = &port.options;
    let text = |address: Option<IpAddr>| address.map(|address| address.to_string()).unwrap_or_default();
    let filter = if *filter { PortFilter::On } else { PortFilter::Off };
    PortSpec {
        mac: port.mac.to_string(),
        filter: filter.into(),
        ipv4_address: text(ipv4.map(IpAddr::V4)),
        ipv6_address: text(ipv6.map(IpAddr::V6)),
        extra_addresses: extra.iter().map(ToString::to_string).collect(),
        hostname: port.hostname.as_ref().map(ToString::to_string).unwrap_or_default(),
        isolated: *isolated,
        rate_in: rate_in.map(rate),
        rate_out: rate_out.map(rate),
        groups: groups.iter().map(|group| format!("groups/{group}")).collect(),
        tenant: port.tenant.to_string(),
    }
}

fn rate(rate: Rate) -> WireRate {
    WireRate { bits_per_second: rate.bits_per_second, burst_bytes: rate.burst_bytes }
}

fn refused(fault: Fault, port: &PortRequest) -> Fault {
    let taken = fault.reason() == "HOSTNAME_TAKEN";
    let fault = fault.context(format!("cannot create port `{}`", port.resource));
    // The name is not one that somebody asked for.
    if taken { fault.hint("a machine is known by its own name on its networks") } else { fault }
}

/// An address in netd's answer; empty is none.
fn answered<T: FromStr>(text: &str, port: &str) -> Result<Option<T>, Fault> {
    if text.is_empty() {
        return Ok(None);
    }
    let broken =
        || Fault::internal(format!("netd's address of port `{port}`, `{}`, is none", printable(text)));
    text.parse().map(Some).map_err(|_| broken())
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
            labels: HashMap::from([(LABEL.to_owned(), format!("{}/{}", crate::convert::VMS, port.vm))]),
            spec: Some(spec(port)),
            ..Default::default()
        };
        let create = || async {
            let message = CreatePortRequest { port: Some(wanted.clone()) };
            self.bounded(self.ports.clone().create_port(request(message))).await
        };
        let made = paced(create).await.map_err(|e| refused(e, port))?;
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
        let addresses = Addresses {
            ipv4: answered(&status.ipv4_address, &port.resource)?,
            ipv6: answered(&status.ipv6_address, &port.resource)?,
        };
        let (interface, mtu, owner_uid) = (status.interface, status.mtu, status.owner_uid);
        Ok(Port { uid, interface, mtu, owner_uid, addresses })
    }

    async fn delete(&self, resource: &str, uid: Option<&str>) -> Result<(), Fault> {
        let message =
            DeletePortRequest { name: resource.to_owned(), uid: uid.unwrap_or_default().to_owned() };
        match self.bounded(self.ports.clone().delete_port(request(message))).await {
            Ok(_) => Ok(()),
            Err(fault) if fault.kind() == Kind::NotFound => Ok(()),
            Err(fault) => Err(fault.context(format!("cannot delete port `{resource}`"))),
        }
    }

    async fn own(&self) -> Result<Vec<String>, Fault> {
        let user = rustix::process::geteuid().as_raw();
        let (mut own, mut page_token) = (Vec::new(), String::new());
        loop {
            let message = ListPortsRequest {
                parent: format!("{}/-", crate::convert::NETWORKS),
                page_size: 0,
                page_token,
            };
            let mut client = self.ports.clone();
            let page = self.bounded(client.list_ports(request(message))).await?;
            let made = page.ports.into_iter().filter(|port| {
                let owner = port.status.as_ref().map(|status| status.owner_uid);
                port.labels.contains_key(LABEL) && owner == Some(user)
            });
            own.extend(made.map(|port| port.name));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok(own);
            }
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test(start_paused = true)]
    async fn a_change_for_which_there_is_no_room_yet_is_made_when_there_is() {
        let begun = Instant::now();
        let calls = AtomicU32::new(0);
        let after = |room: Duration, wait: Option<Duration>| {
            let calls = &calls;
            move || async move {
                calls.fetch_add(1, Ordering::Relaxed);
                if begun.elapsed() >= room {
                    return Ok(());
                }
                let fault = Fault::new(Kind::ResourceExhausted, "TOO_MANY_CHANGES", "too many");
                Err(wait.into_iter().fold(fault, Fault::retry_after))
            }
        };
        let step = Some(Duration::from_millis(100));
        paced(after(Duration::from_millis(250), step)).await.unwrap();
        assert_eq!(calls.load(Ordering::Relaxed), 4);
        // Not for ever, and not where nobody says when.
        let fault = paced(after(Duration::from_secs(3600), step)).await.unwrap_err();
        assert_eq!(fault.reason(), "TOO_MANY_CHANGES");
        assert!(begun.elapsed() < 2 * DEADLINE);
        let before = calls.load(Ordering::Relaxed);
        paced(after(Duration::from_secs(3600), None)).await.unwrap_err();
        assert_eq!(calls.load(Ordering::Relaxed), before + 1);
    }
}
