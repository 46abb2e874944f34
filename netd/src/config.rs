//! The command line.

use clap::Parser;
use std::path::PathBuf;

/// Owns the virtual networks of this host: bridges, taps, NAT and packet rules. Serves netd.v1 and events.v1
/// on a Unix socket.
///
/// Needs CAP_NET_ADMIN, nft, and /dev/net/tun; for DHCP and DNS dnsmasq, CAP_NET_RAW and CAP_NET_BIND_SERVICE; for
/// captures CAP_NET_RAW, and tcpdump if they have a filter. Log filter in KVMCTL_LOG (info, debug, ...); spans go to an OTLP
/// collector if OTEL_EXPORTER_OTLP_ENDPOINT is set.
#[derive(Debug, Parser)]
#[command(name = "netd", version)]
pub struct Config {
    /// Where to listen.
    #[arg(long, value_name = "PATH", default_value = "/run/kvmctl/netd.sock")]
    pub socket: PathBuf,
    /// Keeps the records; back it up.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/kvmctl/netd")]
    pub state_dir: PathBuf,
    /// Keeps what does not outlive a reboot.
    #[arg(long, value_name = "DIR", default_value = "/run/kvmctl/netd")]
    pub run_dir: PathBuf,
    /// The program that serves DHCP and DNS. It can read /usr, /lib*, /etc and its network's folder, and write to its
    /// lease file.
    #[arg(long, value_name = "PATH", default_value = "dnsmasq")]
    pub dnsmasq: PathBuf,
    /// Group, by name or number, that may connect to the socket besides root. Without it: `kvmctl`, if there is such a group.
    #[arg(long, value_name = "GROUP", env = "KVMCTL_SOCKET_GROUP")]
    pub socket_group: Option<String>,
    /// Says who may do what. Without it: /etc/kvmctl/access.toml, if it is there; else root is admin, and members of
    /// the socket's group are operators. netd's own user is nobody, whatever its groups, unless a grant names it. Read
    /// again when it changes, and on SIGHUP.
    #[arg(long, value_name = "PATH")]
    pub access_file: Option<PathBuf>,
    /// User, by name or number, to become after a start as root: netd then keeps CAP_NET_ADMIN, CAP_NET_RAW and
    /// CAP_NET_BIND_SERVICE, and writes only to its own folders. Without it: `netd` or `kvmctl-netd`, if there is such a
    /// user; else netd stays root.
    #[arg(long, value_name = "USER")]
    pub user: Option<String>,
    /// Gives up a record that cannot be read, named as `kvmctl host show` does, and ends. netd must not run. What is
    /// left of the object in the kernel stays, and is named at the next start.
    #[arg(long, value_name = "KIND ID")]
    pub forget: Option<String>,
}
