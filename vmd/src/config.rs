//! The command line.

use clap::{Parser, ValueEnum};
use shared::{
    fault::{Fault, Kind},
    socket,
};
use std::path::PathBuf;

/// Group that may use the socket where none is named.
const DEFAULT_GROUP: &str = "kvmctl";

/// Runs virtual machines for kvmctl and other clients. Serves vmd.v1 and events.v1 on a Unix socket.
///
/// Needs QEMU, netd and no privilege; /dev/kvm for machines that are to be fast, newuidmap and
/// subordinate ids for a user of each machine. Log filter in KVMCTL_LOG (info, debug, ...); spans go to an OTLP collector if
/// OTEL_EXPORTER_OTLP_ENDPOINT is set.
#[derive(Clone, Debug, Parser)]
#[command(name = "vmd", version)]
pub struct Config {
    /// Unix socket to serve on.
    #[arg(long, value_name = "PATH", default_value = "/run/kvmctl/vmd.sock")]
    pub socket: PathBuf,
    /// Address of netd, which makes the guests' ports.
    #[arg(long, value_name = "ADDR", env = "KVMCTL_NETD", default_value = "unix:///run/kvmctl/netd.sock")]
    pub netd: String,
    /// Folder of the records and console logs.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/kvmctl/vmd")]
    pub state_dir: PathBuf,
    /// Folder of the sockets to the guests.
    #[arg(long, value_name = "DIR", default_value = "/run/kvmctl/vmd")]
    pub run_dir: PathBuf,
    /// QEMU to run, a path or a name looked up in PATH.
    #[arg(long, value_name = "BIN", default_value = "qemu-system-x86_64")]
    pub qemu: PathBuf,
    /// How virtual CPUs are executed; auto: KVM where it really works, else TCG.
    #[arg(long, value_enum, value_name = "ACCEL", default_value = "auto")]
    pub accel: AccelChoice,
    /// Start no machine whose QEMU cannot be contained in full; `kvmctl host show` tells what this host allows.
    #[arg(long)]
    pub require_containment: bool,
    /// Control group (cgroup v2) that vmd may divide among machines, a folder where cgroup v2 is mounted. vmd is started
    /// in a group beneath it, called vmd. Without it: the group that whoever started vmd left to it, as systemd does.
    #[arg(long, value_name = "PATH")]
    pub cgroup: Option<PathBuf>,
    /// Group that may connect to the socket [default: kvmctl, if there is that group].
    #[arg(long, value_name = "GROUP", env = "KVMCTL_SOCKET_GROUP")]
    pub socket_group: Option<String>,
    /// Says who may do what. Without it: /etc/kvmctl/access.toml, if it is there; else root and vmd's own user are
    /// admins, and members of the socket's group operators. Read again when it changes, and on SIGHUP.
    #[arg(long, value_name = "PATH")]
    pub access_file: Option<PathBuf>,
    /// Lets vmd run as root, where a container has no other user. Its guests are then root's.
    #[arg(long)]
    pub allow_root: bool,
    /// Gives up a record that cannot be read, named as `kvmctl host show` does, and ends. vmd must not run.
    #[arg(long, value_name = "KIND ID")]
    pub forget: Option<String>,
}

/// What `--accel` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AccelChoice {
    /// KVM where it really works, else TCG.
    Auto,
    /// KVM, or no machine starts.
    Kvm,
    /// QEMU's own emulation.
    Tcg,
}

impl Config {
    /// The id of the group that may use the socket; `None`: only vmd's own user.
    ///
    /// # Errors
    /// INVALID_ARGUMENT if a group was named that does not exist.
    pub fn group(&self) -> Result<Option<u32>, Fault> {
        let Some(group) = &self.socket_group else { return Ok(socket::group_id(DEFAULT_GROUP)) };
        socket::group_id(group).map(Some).ok_or_else(|| {
            Fault::new(Kind::InvalidArgument, "UNKNOWN_GROUP", format!("there is no group `{group}`"))
                .hint("name a group of /etc/group, or give its number, with --socket-group")
        })
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_definition_is_consistent_and_the_defaults_are_as_documented() {
        Config::command().debug_assert();
        let config = Config::try_parse_from(["vmd"]).unwrap();
        assert_eq!(config.socket, PathBuf::from("/run/kvmctl/vmd.sock"));
        assert_eq!(config.qemu, PathBuf::from("qemu-system-x86_64"));
        assert_eq!(config.accel, AccelChoice::Auto);
    }

    #[test]
    fn an_unknown_group_is_refused_and_a_number_is_taken() {
        let with = |group: &str| Config::try_parse_from(["vmd", "--socket-group", group]).unwrap().group();
        assert_eq!(with("4711").unwrap(), Some(4711));
        assert_eq!(with("no-such-group").unwrap_err().reason(), "UNKNOWN_GROUP");
    }
}
