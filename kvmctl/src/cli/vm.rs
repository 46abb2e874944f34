//! `kvmctl vm`.

use crate::{complete, parse};
use clap::{Args, Subcommand, ValueEnum, ValueHint};
use clap_complete::ArgValueCompleter;
use proto::vmd::v1::{Disk, Nic};
use shared::name::Name;
use std::time::Duration;

/// `kvmctl vm`.
#[derive(Debug, Subcommand)]
pub enum VmCommand {
    /// Records a machine, stopped
    ///
    /// Creating it again with the same options is no error.
    #[command(after_help = CREATE_HELP)]
    Create(Box<CreateVm>),
    /// Creates a machine and starts it
    #[command(after_help = CREATE_HELP)]
    Run(Box<CreateVm>),
    /// Starts a machine and returns when it is running
    Start(VmName),
    /// Asks the guest to shut down, kills it when the time is over, and returns when it is stopped
    #[command(after_help = "\
Examples:
  kvmctl vm stop web
  kvmctl vm stop web --timeout 2m
  kvmctl vm stop web --force      kill it at once, even if QEMU does not answer")]
    Stop {
        /// Which machine.
        #[command(flatten)]
        vm: VmName,
        /// How long the guest has to shut down: 30s, 2m, at most 1h
        #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse::duration)]
        timeout: Duration,
        /// Kill it at once
        #[arg(long)]
        force: bool,
    },
    /// Resets a running machine, as its reset button would
    Reset(VmName),
    /// Stops the virtual CPUs of a running machine
    Pause(VmName),
    /// Lets a paused machine go on
    Resume(VmName),
    /// Deletes a stopped machine and its console log; its disks stay
    #[command(visible_alias = "rm")]
    Delete(VmName),
    /// Lists the machines
    #[command(visible_alias = "ls")]
    List {
        /// Go on with each change until Ctrl-C, over restarts of vmd too
        #[arg(short, long)]
        watch: bool,
    },
    /// Shows one machine
    Show(VmName),
    /// Attaches to the serial console; Ctrl-] leaves it
    ///
    /// Shows the last lines first. On a terminal every key goes to the guest, except Ctrl-]. With a pipe or a file as
    /// standard input its bytes are sent as they are, and after its end output goes on until the console ends or
    /// Ctrl-C.
    #[command(after_help = "\
Examples:
  kvmctl vm console web
  printf 'root\\npoweroff\\n' | kvmctl vm console web")]
    Console(VmName),
    /// Prints what the serial console has put out
    #[command(visible_alias = "logs")]
    Log {
        /// Which machine.
        #[command(flatten)]
        vm: VmName,
        /// Go on with new output until Ctrl-C
        #[arg(short, long)]
        follow: bool,
    },
    /// Waits until a machine is running or stopped, or has an address
    ///
    /// Returns at once if it already is. A machine that fails while it is waited for ends the wait with exit code 1,
    /// the end of the time with exit code 4.
    ///
    /// `ip`: until it is running and uses an address, and prints its addresses. The guest needs no agent: netd sees
    /// what it announces on a network of any mode, or has given it the address. Link-local ones do not count.
    #[command(after_help = "\
Examples:
  kvmctl vm wait web --for running
  kvmctl vm wait web --for ip -o name | head -n 1
  kvmctl vm wait web --for stopped --timeout 10m")]
    Wait {
        /// Which machine.
        #[command(flatten)]
        vm: VmName,
        /// What to wait for
        #[arg(long = "for", value_enum, value_name = "STATE")]
        goal: Goal,
        /// How long at most: 500ms, 60s, 10m, 1h
        #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse::duration)]
        timeout: Duration,
    },
}

const CREATE_HELP: &str = "\
Disks:     PATH,format=raw|qcow2[,bus=virtio|sata|scsi][,readonly]
           [,cache=writeback|none|writethrough|unsafe|directsync]
           [,media=disk|cdrom]
           A comma in PATH is written `,,`. A relative PATH starts here.
Networks:  NETWORK[,mac=MAC][,model=virtio|e1000|e1000e]
           [,ip=ADDR][,ip=ADDR6][,extra-ip=ADDR...][,filter=on|off]
           [,isolated][,rate-in=RATE][,rate-out=RATE][,group=NAME...]
           `ip`: its address, a free one if not given, the same each time.
           `extra-ip`, repeatable: one more that the guest may use.
           `filter=off`: frames from the guest are not checked.
           `isolated`: kept apart from other isolated ones of the network.
           `group`, repeatable: its rules hold, see kvmctl group.
           RATE: bits per second to (`in`) or from the guest: 100M, 2G.

Examples:
  kvmctl vm run web --disk web.qcow2,format=qcow2 --network lan
  kvmctl vm run db --disk db.qcow2,format=qcow2 \\
    --network lan,ip=192.168.100.10,rate-out=100M
  kvmctl vm run setup --vnc --disk disk.qcow2,format=qcow2,cache=none \\
    --disk install.iso,format=raw,media=cdrom
  kvmctl vm run tiny --kernel vmlinuz --initrd initrd.img \\
    --cmdline 'console=ttyS0'";

/// Which machine is meant.
#[derive(Args, Debug)]
pub struct VmName {
    /// The machine's name
    #[arg(value_parser = parse::name, add = ArgValueCompleter::new(complete::vms))]
    pub name: Name,
}

/// `kvmctl vm create` and `kvmctl vm run`.
#[derive(Args, Debug)]
pub struct CreateVm {
    /// 1 to 63 of a-z, 0-9 and -
    #[arg(value_parser = parse::name)]
    pub name: Name,
    /// Number of virtual CPUs, 1 to 255
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=255))]
    pub vcpus: u32,
    /// Memory: 512M, 2G
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = parse::memory)]
    pub memory: u64,
    /// QEMU CPU model; `host` with KVM and `max` without, if not given
    #[arg(long = "cpu", value_name = "MODEL")]
    pub cpu_model: Option<String>,
    /// A disk, see below; the first one is booted from
    #[arg(long = "disk", value_name = "PATH,format=F[,...]", value_parser = parse::disk,
          value_hint = ValueHint::FilePath)]
    pub disks: Vec<Disk>,
    /// Boot this kernel directly
    #[arg(long, value_name = "FILE", value_parser = parse::path, value_hint = ValueHint::FilePath)]
    pub kernel: Option<String>,
    /// Initial RAM disk of the kernel
    #[arg(long, value_name = "FILE", requires = "kernel", value_parser = parse::path,
          value_hint = ValueHint::FilePath)]
    pub initrd: Option<String>,
    /// Command line of the kernel
    #[arg(long, value_name = "TEXT", requires = "kernel", allow_hyphen_values = true)]
    pub cmdline: Option<String>,
    /// A network card on this network, see below
    #[arg(long = "network", value_name = "NETWORK[,...]", value_parser = parse::nic,
          add = ArgValueCompleter::new(complete::networks))]
    pub nics: Vec<Nic>,
    /// A display by VNC, on a Unix socket that only vmd's user may open, or on 127.0.0.1 for every local user
    #[arg(long, value_enum, value_name = "WHERE", num_args = 0..=1, require_equals = true,
          default_missing_value = "unix")]
    pub vnc: Option<VncChoice>,
}

/// Where a VNC server listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum VncChoice {
    /// A Unix socket.
    #[value(help = None)]
    Unix,
    /// 127.0.0.1.
    #[value(help = None)]
    Tcp,
}

/// What `kvmctl vm wait` waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Goal {
    /// The guest runs.
    #[value(help = None)]
    Running,
    /// The guest has ended.
    #[value(help = None)]
    Stopped,
    /// The guest runs and uses an address.
    #[value(help = None)]
    Ip,
}
