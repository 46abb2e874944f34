//! The host as it is printed.

use super::{
    Object,
    caller::Caller,
    containment::{Layer, contained, layers, uncontained},
    set,
    text::{Sheet, or_dash, yes_no},
    vm::accelerator,
};
use crate::parse::MIB;
use proto::{netd::v1 as netd, vmd::v1 as vmd};
use serde::Serialize;

/// What both daemons say; null for one that cannot be reached.
#[derive(Clone, Debug, Serialize)]
pub struct Host {
    /// The host's own name.
    pub name: String,
    /// Networking.
    pub netd: Option<NetdHost>,
    /// Machines.
    pub vmd: Option<VmdHost>,
    /// Warnings of both: `netd: ...`.
    #[serde(skip)]
    pub all_warnings: Vec<String>,
}

/// What netd says.
#[derive(Clone, Debug, Serialize)]
pub struct NetdHost {
    /// netd's version.
    pub version: String,
    /// Marks this netd's objects.
    pub instance_id: String,
    /// `uname -r`.
    pub kernel_release: String,
    /// First line of `nft --version`.
    pub nft_version: Option<String>,
    /// net.ipv4.ip_forward.
    pub ipv4_forwarding: bool,
    /// net.ipv6.conf.all.forwarding.
    pub ipv6_forwarding: bool,
    /// net.bridge.bridge-nf-call-iptables.
    pub bridge_nf_call_iptables: bool,
    /// Number of networks.
    pub network_count: u32,
    /// Number of ports.
    pub port_count: u32,
    /// What an operator should know.
    pub warnings: Vec<String>,
    /// Who asks, and what they may do there.
    pub caller: Option<Caller>,
}

/// What vmd says.
#[derive(Clone, Debug, Serialize)]
pub struct VmdHost {
    /// vmd's version.
    pub version: String,
    /// Path.
    pub qemu_binary: Option<String>,
    /// First line of `qemu --version`.
    pub qemu_version: Option<String>,
    /// kvm or tcg.
    pub accelerator: Option<String>,
    /// Why that one.
    pub accelerator_reason: Option<String>,
    /// Of the host.
    pub cpus: u32,
    /// Of the host, bytes.
    pub memory_bytes: u64,
    /// Number of machines.
    pub vm_count: u32,
    /// How many of them run.
    pub running_vm_count: u32,
    /// What keeps machines' QEMU in here.
    pub containment: Vec<Layer>,
    /// What an operator should know.
    pub warnings: Vec<String>,
    /// Who asks, and what they may do there.
    pub caller: Option<Caller>,
}

impl Host {
    /// Puts the answers together.
    #[must_use]
    pub fn new(name: String, netd: Option<netd::Host>, vmd: Option<vmd::Host>) -> Self {
        let netd = netd.map(NetdHost::from);
        let vmd = vmd.map(VmdHost::from);
        let of = |daemon: &str, warnings: &[String]| -> Vec<String> {
            warnings.iter().map(|warning| format!("{daemon}: {warning}")).collect()
        };
        let mut all_warnings = netd.as_ref().map_or_else(Vec::new, |h| of("netd", &h.warnings));
        all_warnings.extend(vmd.as_ref().map_or_else(Vec::new, |h| of("vmd", &h.warnings)));
        Self { name, netd, vmd, all_warnings }
    }
}

impl From<netd::Host> for NetdHost {
    fn from(host: netd::Host) -> Self {
        Self {
            version: host.version,
            instance_id: host.instance_id,
            kernel_release: host.kernel_release,
            nft_version: set(host.nft_version),
            ipv4_forwarding: host.ipv4_forwarding,
            ipv6_forwarding: host.ipv6_forwarding,
            bridge_nf_call_iptables: host.bridge_nf_call_iptables,
            network_count: host.network_count,
            port_count: host.port_count,
            warnings: host.warnings,
            caller: host.caller.map(Caller::from),
        }
    }
}

impl From<vmd::Host> for VmdHost {
    fn from(host: vmd::Host) -> Self {
        Self {
            version: host.version,
            qemu_binary: set(host.qemu_binary),
            qemu_version: set(host.qemu_version),
            accelerator: accelerator(host.accelerator),
            accelerator_reason: set(host.accelerator_reason),
            cpus: host.cpus,
            memory_bytes: host.memory_bytes,
            vm_count: host.vm_count,
            running_vm_count: host.running_vm_count,
            containment: layers(host.containment),
            warnings: host.warnings,
            caller: host.caller.map(Caller::from),
        }
    }
}

impl Object for Host {
    const COLUMNS: &'static [&'static str] = &["NAME", "NETD", "VMD"];

    fn name(&self) -> &str {
        &self.name
    }

    fn row(&self) -> Vec<String> {
        let netd = self.netd.as_ref().map(|host| host.version.as_str());
        let vmd = self.vmd.as_ref().map(|host| host.version.as_str());
        vec![self.name.clone(), or_dash(netd), or_dash(vmd)]
    }

    fn sheet(&self) -> String {
        let mut sheet = Sheet::default().line("Host", &self.name);
        if let Some(host) = &self.netd {
            sheet = sheet
                .line("netd", &host.version)
                .line("Instance", &host.instance_id)
                .line("Kernel", &host.kernel_release)
                .maybe("nft", host.nft_version.as_deref())
                .line("IPv4 forwarding", yes_no(host.ipv4_forwarding))
                .line("IPv6 forwarding", yes_no(host.ipv6_forwarding))
                .line("Bridged frames pass iptables", yes_no(host.bridge_nf_call_iptables))
                .line("Networks", host.network_count.to_string())
                .line("Ports", host.port_count.to_string())
                .maybe("You, to netd", host.caller.as_ref().map(Caller::words));
        }
        if let Some(host) = &self.vmd {
            let reason = host.accelerator_reason.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
            sheet = sheet
                .line("vmd", &host.version)
                .maybe("QEMU", host.qemu_version.as_deref())
                .maybe("QEMU binary", host.qemu_binary.as_deref())
                .maybe("Accelerator", host.accelerator.as_ref().map(|accel| format!("{accel}{reason}")))
                .line("CPUs", host.cpus.to_string())
                .line("Memory", format!("{} MiB", host.memory_bytes / MIB))
                .line("Machines", format!("{} ({} running)", host.vm_count, host.running_vm_count))
                .maybe("QEMU is contained by", contained(&host.containment))
                .items("QEMU is not contained by", uncontained(&host.containment))
                .maybe("You, to vmd", host.caller.as_ref().map(Caller::words));
        }
        sheet.items("Warnings", self.all_warnings.clone()).render()
    }

    fn summary(&self) -> String {
        self.row()[1..].join(", ")
    }
}
