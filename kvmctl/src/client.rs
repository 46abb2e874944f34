//! Connections to the two daemons, made at the first call, and what every call has: a deadline, the trace and an
//! error that says which daemon it came from.

use clap::ValueEnum;
use proto::{
    events::v1::event_service_client::EventServiceClient,
    netd::v1::{
        capture_service_client::CaptureServiceClient, diagnose_service_client::DiagnoseServiceClient,
        forward_service_client::ForwardServiceClient, group_service_client::GroupServiceClient,
        host_service_client::HostServiceClient as NetdHostClient,
        network_service_client::NetworkServiceClient, port_service_client::PortServiceClient,
    },
    vmd::v1::{host_service_client::HostServiceClient as VmdHostClient, vm_service_client::VmServiceClient},
};
use shared::{
    fault::{Fault, Kind},
    socket,
    telemetry::Inject,
};
use std::{cell::OnceCell, error::Error as _, future::Future, io, os::unix::net::UnixStream, time::Duration};
use tonic::{Request, Response, Status, service::interceptor::InterceptedService, transport::Channel};

/// Where netd listens if nobody says otherwise.
pub const DEFAULT_NETD: &str = "unix:///run/kvmctl/netd.sock";
/// Where vmd listens if nobody says otherwise.
pub const DEFAULT_VMD: &str = "unix:///run/kvmctl/vmd.sock";
/// How long a call may take that does nothing slow.
pub const DEADLINE: Duration = Duration::from_secs(60);
/// What a call may take on top of a time-out that the daemon keeps itself.
pub const MARGIN: Duration = Duration::from_secs(30);
/// A page of 1000 machines with many long paths is larger than tonic's 4 MiB.
const LARGEST_ANSWER: usize = 64 << 20;

/// A channel whose calls carry the trace.
pub type Traced = InterceptedService<Channel, Inject>;

/// One of the daemons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DaemonName {
    /// Networks and ports.
    Netd,
    /// Machines.
    Vmd,
}

/// Both daemons.
#[derive(Debug)]
pub struct Clients {
    /// Networks and ports.
    pub netd: Daemon,
    /// Machines.
    pub vmd: Daemon,
}

impl Clients {
    /// The daemons at the addresses asked for; nothing is connected yet.
    #[must_use]
    pub fn new(netd: &str, vmd: &str) -> Self {
        Self { netd: Daemon::new("netd", "--netd", netd), vmd: Daemon::new("vmd", "--vmd", vmd) }
    }

    /// netd's networks.
    ///
    /// # Errors
    /// If the address cannot be used.
    pub fn networks(&self) -> Result<NetworkServiceClient<Traced>, Fault> {
        let client = NetworkServiceClient::with_interceptor(self.netd.channel()?, Inject);
        Ok(client.max_decoding_message_size(LARGEST_ANSWER))
    }

    /// netd's ports.
    ///
    /// # Errors
    /// If the address cannot be used.
    pub fn ports(&self) -> Result<PortServiceClient<Traced>, Fault> {
        let client = PortServiceClient::with_interceptor(self.netd.channel()?, Inject);
        Ok(client.max_decoding_message_size(LARGEST_ANSWER))
    }

    /// netd's captures.
    ///
    /// # Errors
    /// If the address cannot be used.
    pub fn captures(&self) -> Result<CaptureServiceClient<Traced>, Fault> {
        Ok(CaptureServiceClient::with_interceptor(self.netd.channel()?, Inject))
    }

    /// A daemon's events.
    ///
    /// # Errors
    /// If the address cannot be used.
    pub fn events(&self, daemon: DaemonName) -> Result<EventServiceClient<Traced>, Fault> {
        let client = EventServiceClient::with_interceptor(self.of(daemon).channel()?, Inject);
        Ok(client.max_decoding_message_size(LARGEST_ANSWER))
    }

    /// One of both.
    #[must_use]
    pub fn of(&self, daemon: DaemonName) -> &Daemon {
        match daemon {
            DaemonName::Netd => &self.netd,
            DaemonName::Vmd => &self.vmd,
        }
    }

    /// netd's forwards.
    ///
    /// # Errors
    /// If the address cannot be used.
    pub fn forwards(&self) -> Result<ForwardServiceClient<Traced>, Fault> {
        let client = ForwardServiceClient::with_interceptor(self.netd.channel()?, Inject);
        Ok(client.max_decoding_message_size(LARGEST_ANSWER))
    }

    /// netd's groups.
    ///
    /// # Errors
    /// If the address cannot be used.
    pub fn groups(&self) -> Result<GroupServiceClient<Traced>, Fault> {
        let client = GroupServiceClient::with_interceptor(self.netd.channel()?, Inject);
        Ok(client.max_decoding_message_size(LARGEST_ANSWER))
    }

    /// netd's view of the host.
    ///
    /// # Errors
    /// If the address cannot be used.
    pub fn netd_host(&self) -> Result<NetdHostClient<Traced>, Fault> {
        Ok(NetdHostClient::with_interceptor(self.netd.channel()?, Inject))
    }

    /// netd's diagnosis.
    ///
    /// # Errors
    /// If the address cannot be used.
    pub fn diagnose(&self) -> Result<DiagnoseServiceClient<Traced>, Fault> {
        let client = DiagnoseServiceClient::with_interceptor(self.netd.channel()?, Inject);
        Ok(client.max_decoding_message_size(LARGEST_ANSWER))
    }

    /// vmd's machines.
    ///
    /// # Errors
    /// If the address cannot be used.
    pub fn vms(&self) -> Result<VmServiceClient<Traced>, Fault> {
        let client = VmServiceClient::with_interceptor(self.vmd.channel()?, Inject);
        Ok(client.max_decoding_message_size(LARGEST_ANSWER))
    }

    /// vmd's view of the host.
    ///
    /// # Errors
    /// If the address cannot be used.
    pub fn vmd_host(&self) -> Result<VmdHostClient<Traced>, Fault> {
        Ok(VmdHostClient::with_interceptor(self.vmd.channel()?, Inject))
    }
}

/// One daemon.
#[derive(Debug)]
pub struct Daemon {
    name: &'static str,
    option: &'static str,
    address: String,
    channel: OnceCell<Channel>,
}

impl Daemon {
    fn new(name: &'static str, option: &'static str, address: &str) -> Self {
        Self { name, option, address: address.to_owned(), channel: OnceCell::new() }
    }

    /// What it is called.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    fn channel(&self) -> Result<Channel, Fault> {
        if let Some(channel) = self.channel.get() {
            return Ok(channel.clone());
        }
        let channel = socket::channel(&self.address)?;
        Ok(self.channel.get_or_init(|| channel).clone())
    }

    /// Waits for the answer of a call, at most for `deadline`.
    ///
    /// # Errors
    /// What the daemon said; UNAVAILABLE with the reason if it cannot be reached; DEADLINE_EXCEEDED.
    pub async fn call<T>(
        &self,
        deadline: Duration,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Fault> {
        match tokio::time::timeout(deadline, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(self.fault(status)),
            Err(_) => Err(self.too_late(deadline)),
        }
    }

    /// A failed call's status, with what is known about the connection.
    #[must_use]
    pub fn fault(&self, status: Status) -> Fault {
        // Only a status made on this side has a source: the connection failed, the daemon said nothing.
        let lost = status.source().is_some();
        let fault = Fault::from(status);
        if lost || (fault.kind() == Kind::Unavailable && fault.reason().is_empty()) {
            return self.unreachable(&fault);
        }
        fault
    }

    fn too_late(&self, deadline: Duration) -> Fault {
        Fault::new(
            Kind::DeadlineExceeded,
            "DEADLINE_EXCEEDED",
            format!("{} did not answer within {} s", self.name, deadline.as_secs()),
        )
        .hint(format!("what was asked for may still happen: look again, and see the log of {}", self.name))
    }

    /// Says why there is no connection. tonic's own text does not tell a missing socket from one that may not be
    /// opened, so the socket is asked again.
    fn unreachable(&self, fault: &Fault) -> Fault {
        let Self { name, option, address, .. } = self;
        let problem = |message: String| Fault::new(Kind::Unavailable, "DAEMON_UNREACHABLE", message);
        let gone = problem(format!("cannot reach {name} at {address}"));
        let path = address.strip_prefix("unix://").unwrap_or(address);
        match UnixStream::connect(path) {
            Err(error) => {
                let hint = match error.kind() {
                    io::ErrorKind::PermissionDenied => {
                        "join the group kvmctl: `sudo usermod -aG kvmctl $USER`, then log in again".to_owned()
                    }
                    io::ErrorKind::ConnectionRefused => {
                        format!("start {name}: its socket is there, but nobody listens on it")
                    }
                    _ => format!("start {name}, or name its socket with {option}"),
                };
                gone.cause(&error).hint(hint)
            }
            // It listens now: it ended during the call, or speaks something else.
            Ok(_) => problem(format!("the connection to {name} at {address} was lost"))
                .cause(&io::Error::other(fault.chain()))
                .hint(format!(
                    "{name} may have been restarted during the call: look at the result, try again"
                )),
        }
    }
}

/// A request that the daemon gives up on when `deadline` is over, as this side does.
pub fn within<T>(deadline: Duration, message: T) -> Request<T> {
    let mut request = Request::new(message);
    // A little later than this side, so that there is one who says it.
    request.set_timeout(deadline + Duration::from_secs(1));
    request
}
